"""Looks at the hidden states of a trained run and writes pictures into its directory:

    python -m experiments.states --workdir=runs/hmm_chords

transition.png   the matrix of transitions, states in the order of their stationary probability (hidden Markov models)
paths.png        the most likely state of each frame, of the first sequences of the evaluation split
ellipses.png     components over the data, at one and two standard deviations (Gaussian mixtures of points)

For a linear Gaussian model it prints the damping and the frequency of each hidden motion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.data import first_examples
from genjax.nn.emissions import Gaussian
from genjax.tools.drawing import draw_ellipses, draw_paths, draw_transitions

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
flags.DEFINE_integer("num_rows", 16, "sequences in the picture of paths", lower_bound=1)


def states_of(run: Any) -> list[Path]:
    """Writes the pictures of a hidden Markov model."""
    transition = np.asarray(jax.nn.softmax(run.model.best(run.state)["transition"], -1))
    files = [Path(run.workdir) / "transition.png", Path(run.workdir) / "paths.png"]
    draw_transitions(transition, files[0])

    def decode(state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        paths = run.model.decode_states(state, batch)[0]
        return paths, batch.get("mask", np.ones(paths.shape, bool))

    (paths, mask), _ = run.engine.map(decode, run.state, run.experiment.evaluation.split)
    rows = flags.FLAGS.num_rows
    draw_paths(paths[:rows], mask[:rows], len(transition), files[1])
    return files


def components_of(run: Any) -> list[Path]:
    """Writes the picture of a Gaussian mixture in two dimensions."""
    parts = run.state.params["parts"]
    if not isinstance(run.model.component, Gaussian) or parts["mean"].shape[1] != 2:
        raise ConfigError("ellipses are drawn of Gaussian components in two dimensions; this mixture has others")
    x = run.experiment.data.load(run.experiment.evaluation.split).arrays()["x"]
    x = x[first_examples(len(x), 5000)]
    path = Path(run.workdir) / "ellipses.png"
    weights = np.exp(np.asarray(run.state.params["log_weights"]))
    draw_ellipses(x, np.asarray(parts["mean"]), np.asarray(run.model.component.covariances(parts)), weights, path)
    return [path]


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    if hasattr(run.model, "decode_states"):
        files = states_of(run)
    elif hasattr(run.model, "responsibilities"):
        files = components_of(run)
    elif hasattr(run.model, "modes"):
        for modulus, period in run.model.modes(run.state):
            turns = f"turns once in {period:.2f} frames" if np.isfinite(period) else "does not turn"
            print(f"{turns}, {modulus:.4f} of it is left after a frame")
        return 0
    else:
        raise ConfigError(
            f"{type(run.model).__name__} has no hidden states; give a run of a hidden Markov model, state space or mixture"
        )
    print("written to " + ", ".join(map(str, files)))
    return 0


if __name__ == "__main__":
    command_line.run(main)
