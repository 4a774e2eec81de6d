"""The hidden states of a run: transitions, paths and components as pictures, and the
motions of a linear Gaussian model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax import config
from genjax.data import first_examples
from genjax.model import HasComponents, HasModes, HasStates
from genjax.nn.emissions import Gaussian
from genjax.tools.drawing import draw_ellipses, draw_paths, draw_transitions
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the pictures.

    Attributes:
      num_rows: number of sequences in the picture of paths.
    """

    num_rows: int = 16

    def __post_init__(self) -> None:
        config.check_at_least(self, num_rows=1)


def draw(run: Run, options: Options | None = None) -> list[Path]:
    """Writes pictures of the states of a hidden Markov model, or of the components of a mixture, into the run.

    Raises:
      ConfigError: the model has neither, or its components are not Gaussian in two dimensions.
    """
    if isinstance(run.model, HasStates):
        return _draw_states(run, (options or Options()).num_rows)
    if isinstance(run.model, HasComponents):
        return _draw_components(run)
    raise config.ConfigError(
        f"{type(run.model).__name__} has no hidden states; give a run of a hidden Markov model, state space or mixture"
    )


def motions(run: Run) -> list[tuple[float, float]] | None:
    """Damping and period of each hidden motion of a linear Gaussian model; None for models without motions.

    Returns:
      The share of each motion that is left after a frame, and its period in frames, infinity if it does not turn.
    """
    return run.model.modes(run.state) if isinstance(run.model, HasModes) else None


def _draw_states(run: Run, num_rows: int) -> list[Path]:
    transition = np.asarray(jax.nn.softmax(run.model.best(run.state)["transition"], -1))
    files = [Path(run.workdir) / "transition.png", Path(run.workdir) / "paths.png"]
    draw_transitions(transition, files[0])

    def decode(state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        paths = run.model.decode_states(state, batch)[0]
        return paths, batch.get("mask", np.ones(paths.shape, bool))

    (paths, mask), _ = run.engine.map(decode, run.state, run.experiment.evaluation.split)
    draw_paths(paths[:num_rows], mask[:num_rows], len(transition), files[1])
    return files


def _draw_components(run: Run) -> list[Path]:
    parts = run.state.params["parts"]
    if not isinstance(run.model.component, Gaussian) or parts["mean"].shape[1] != 2:
        raise config.ConfigError("ellipses are drawn of Gaussian components in two dimensions; this mixture has others")
    x = run.experiment.data.load(run.experiment.evaluation.split).arrays()["x"]
    x = x[first_examples(len(x), 5000)]
    path = Path(run.workdir) / "ellipses.png"
    weights = np.exp(np.asarray(run.state.params["log_weights"]))
    draw_ellipses(x, np.asarray(parts["mean"]), np.asarray(run.model.component.covariances(parts)), weights, path)
    return [path]
