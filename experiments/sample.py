"""Draws samples from a trained run and writes them as their domain shows them:

python -m experiments.sample --workdir=runs/vae --num_samples=64 --seed=1

A model that answers sources, as a translator does, answers the first of the evaluation split; each is shown with its target.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from absl import flags

from experiments import command_line
from genjax import config

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
flags.DEFINE_integer("step", None, "which checkpoint, by default the latest sound one")
flags.DEFINE_integer("num_samples", 64, "number of samples", lower_bound=1)
flags.DEFINE_integer("seed", 0, "seed of the samples")
flags.DEFINE_string("output", None, "path of the picture without its suffix; <workdir>/samples/... unless given")
flags.DEFINE_list("label", None, "classes of the samples, in turn, for a model conditional on classes")
flags.DEFINE_boolean("reconstruct", False, "show examples of the evaluation split beside their reconstructions instead")


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    import jax
    import numpy as np

    from experiments.answers import examples_to_answer

    values = flags.FLAGS
    condition, batch = {}, None
    if values.label is not None:
        try:
            classes = [int(c) for c in values.label]
        except ValueError:
            raise config.ConfigError(f"--label={','.join(values.label)} is not a list of class numbers") from None
        # Models that take other conditions by name have no list of them, and say themselves what they do not know.
        parameters = inspect.signature(run.model.sample).parameters.values()
        if not any(p.name == "label" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise config.ConfigError(f"{type(run.model).__name__} is not conditional on classes; leave --label out")
        condition["label"] = np.resize(np.array(classes, np.int32), values.num_samples)
        # Inside of the compiled sampler their values are not known.
        getattr(run.model, "check_labels", lambda label: None)(condition["label"])
    if values.reconstruct:
        if not hasattr(run.model, "reconstruct"):
            raise config.ConfigError(f"{type(run.model).__name__} does not reconstruct; leave --reconstruct out")
        samples = run.engine.reconstruct(run.state, values.num_samples, run.experiment.evaluation.split)
        kind = "reconstructions"
    else:
        key = jax.random.key(values.seed)
        batch = examples_to_answer(run, values.num_samples, key)
        if batch is not None:
            condition |= {name: batch[name] for name in ("source", "source_mask")}
        samples = run.sample(key, values.num_samples, **condition)
        kind = "samples"
    if np.issubdtype(samples.dtype, np.floating) and not np.isfinite(samples).all():
        raise config.ConfigError(
            f"{kind} of {run.workdir} are not finite: the run has diverged, or an adaptive solver ran out of steps "
            "(--model.sampler.num_steps)"
        )
    default = Path(run.workdir) / "samples" / f"{kind}_{run.step:08d}_seed{values.seed}"
    stem = Path(values.output).expanduser() if values.output else default
    stem.parent.mkdir(parents=True, exist_ok=True)
    if batch is None:
        paths = run.write_samples(samples, stem)
    else:
        paths = run.experiment.data.write_answers(batch, samples, stem)
        print(paths[0].read_text(encoding="utf-8"))
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    command_line.run(main)
