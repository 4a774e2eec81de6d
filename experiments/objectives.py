"""Compares the objectives of GANs on a mixture whose modes are known, each with as many updates of a network:

    python -m experiments.objectives --data=eight_gaussians --num_updates=20000 --seeds=0,1,2 --workdir=runs/objectives

Network, optimizer and data are those of the experiment wgan_gp_eight_gaussians; --data=grid_gaussians is the grid of 25.  A
method that updates its discriminator five times for each generator takes fewer steps.  For each method: modes covered and the
share of 10,000 samples, drawn from the generator's moving average (.999), within three standard deviations of a mode, over the
seeds.  The runs stay in --workdir, and a second call goes on from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import genjax
from experiments import command_line
from genjax import config
from genjax.data import procedural
from genjax.evaluation.modes import mode_coverage

_CRITIC = {"model.objective": "wasserstein", "model.num_discriminator_steps": 5}
_R1 = {"model.penalty": "r1", "model.penalty_weight": 0.1}
#: What each method changes of a GAN without penalty that updates both networks in turn.
METHODS: dict[str, dict[str, Any]] = {
    "minimax": {"model.objective": "minimax"},
    "non_saturating": {"model.objective": "non_saturating"},
    "least_squares": {"model.objective": "least_squares"},
    "hinge": {"model.objective": "hinge"},
    "relativistic": {"model.objective": "relativistic"},
    "relativistic_average": {"model.objective": "relativistic_average"},
    "wasserstein_clipped": {**_CRITIC, "model.clip_weights": 0.05},
    "wasserstein_gp": {**_CRITIC, "model.penalty": "wgan_gp", "model.penalty_weight": 0.1},
    "non_saturating_r1": {"model.objective": "non_saturating", **_R1},
    "relativistic_r1_r2": {"model.objective": "relativistic", **_R1, "model.penalty": "r1_r2"},
}
_MIXTURES = {
    "eight_gaussians": (procedural.eight_gaussians_means, 0.2),
    "grid_gaussians": (procedural.grid_gaussians_means, 0.05),
}

flags.DEFINE_string("workdir", None, "directory of the runs")
flags.DEFINE_enum("data", "eight_gaussians", tuple(_MIXTURES), "the mixture")
flags.DEFINE_list("methods", list(METHODS), f"which of {', '.join(METHODS)}")
flags.DEFINE_integer("num_updates", 20000, "updates of both networks together", lower_bound=2)
flags.DEFINE_float("learning_rate", 1e-3, "of both networks")
flags.DEFINE_list("seeds", ["0"], "seeds of the runs")


def changes(method: str, seed: int) -> dict[str, Any]:
    """Overrides of wgan_gp_eight_gaussians."""
    values = flags.FLAGS
    plain = {"model.penalty": "none", "model.num_discriminator_steps": 1, "model.latent_dim": 16}
    found = {**plain, **METHODS[method], "data.name": values.data, "training.seed": seed}
    steps = values.num_updates // (1 + found["model.num_discriminator_steps"])
    found |= {f"model.{name}_optimizer.learning_rate": values.learning_rate for name in ("generator", "discriminator")}
    found |= {"model.generator_optimizer.ema_decay": 0.999}
    found |= {"training.num_steps": steps, "training.checkpoint_every": steps, "training.num_samples": 10000}
    return found | {"training.tensorboard": False}


def main(arguments: list[str]) -> int:
    flags.FLAGS(arguments)
    values = flags.FLAGS
    if values.workdir is None:
        raise config.ConfigError("--workdir is missing; it is the directory of the runs")
    unknown = [name for name in values.methods if name not in METHODS]
    if unknown:
        raise config.ConfigError(f"--methods={','.join(unknown)} is none of {', '.join(METHODS)}")
    experiment = config.find_experiment("wgan_gp_eight_gaussians").build()
    means, scale = _MIXTURES[values.data]
    means, rows = means(), {}
    print(f"{values.data}, {values.num_updates} updates, learning rate {values.learning_rate:g}, seeds {values.seeds}")
    for method in values.methods:
        found = []
        for seed in map(int, values.seeds):
            workdir = Path(values.workdir).expanduser() / values.data / method / f"seed{seed}"
            genjax.train(config.apply_overrides(experiment, changes(method, seed)), workdir, name=method, quiet=True)
            samples = genjax.restore(workdir).sample(jax.random.key(seed), 10000)
            found.append(mode_coverage(samples, means, scale))
        rows[method] = found
        modes = ", ".join(str(f["modes_covered"]) for f in found)
        share = 100 * np.mean([f["high_quality_share"] for f in found])
        entropy = np.mean([f["mode_entropy"] for f in found])
        print(
            f"  {method:<22} modes {modes} of {len(means)}   within 3 sd {share:5.1f} %   entropy {entropy:.3f}",
            flush=True,
        )
    path = Path(values.workdir).expanduser() / f"{values.data}.json"
    path.write_text(json.dumps({"arguments": arguments[1:], "results": rows}, indent=2) + "\n")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
