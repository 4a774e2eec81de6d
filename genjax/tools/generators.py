"""Pictures of what a generator does: curves of its training, walks between latents, a row for each class.

`experiments.pictures` draws them of a finished run; `experiments.train` draws those of `training.pictures` beside every sheet
of samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.config import ConfigError
from genjax.data import Images, write_grid
from genjax.data.videos import write_gif
from genjax.evaluation.latents import spherical_interpolation
from genjax.model import DecodesNoise, takes
from genjax.tools.drawing import plot_curves
from genjax.training import Experiment, Run, records


def check_can_draw(name: str, experiment: Experiment) -> None:
    """Raises ConfigError unless an experiment is one whose curves, walk or classes can be drawn."""
    model, data = experiment.model, experiment.data
    if name == "curves":
        return
    if not isinstance(data, Images):
        raise ConfigError(f"{name} needs pictures; the data are {type(data).__name__}")
    if not isinstance(model, DecodesNoise):
        raise ConfigError(f"{name} needs a model that decodes normal latents; the model is {type(model).__name__}")
    if name == "classes" and not takes(model, "label"):
        raise ConfigError(f"{name} needs a model that is conditional on classes; the model is {type(model).__name__}")


def latents(run: Run, seed: int, *shape: int) -> jax.Array:
    """Standard normal latents [*shape, latent_dim]."""
    return jax.random.normal(jax.random.key(seed), (*shape, run.model.latent_dim))


@functools.partial(jax.jit, static_argnums=0)
def _decode(model: Any, state: Any, codes: jax.Array, condition: dict[str, jax.Array]) -> jax.Array:
    return model.decode(state, codes, **condition)


def decode(run: Run, codes: Any, **condition: Any) -> np.ndarray:
    """Brightness in [0, 1] of the pictures of latents [N, latent_dim], shape [N, H, W, C]."""
    decoded = _decode(run.model, run.state, jnp.asarray(codes, jnp.float32), condition)
    return run.experiment.data.to_unit(np.asarray(decoded))


def training_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics of training up to the run's state."""
    rows = records.read_lines(Path(run.workdir))
    return [row for row in rows if row["kind"] == "train" and row["step"] <= run.step]


def draw_curves(run: Run, path: Path) -> None:
    """Losses, gradient penalties and scores over the steps of training.

    Raises:
      ConfigError: none were written yet.
    """
    rows = training_metrics(run)
    if not rows:
        raise ConfigError(
            f"{run.workdir} holds no metrics of training; they are written every training.log_every steps"
        )
    plot_curves(rows, path)


def draw_walk(
    run: Run, path: Path, num_rows: int = 4, num_columns: int = 4, num_values: int = 8, seed: int = 0
) -> None:
    """A GIF of walks on great arcs that visit `num_columns` latents, with `num_values` frames from one to the next."""
    codes = np.asarray(latents(run, seed, num_rows, num_columns))
    # A walk ends where it began, so that the GIF can go round.
    legs = [
        spherical_interpolation(codes[:, i], codes[:, (i + 1) % num_columns], num_values + 1)[:, :-1]
        for i in range(num_columns)
    ]
    steps = np.concatenate(legs, axis=1).swapaxes(0, 1)  # [frames, rows, latent_dim]
    write_gif(np.stack([decode(run, step) for step in steps], axis=1), path, frames_per_second=16)


def draw_classes(run: Run, path: Path, num_columns: int = 10, seed: int = 0) -> None:
    """A row for each class, the same latents in every row."""
    count = run.model.num_classes
    codes = jnp.tile(latents(run, seed, num_columns), (count, 1))
    label = jnp.repeat(jnp.arange(count), num_columns)
    write_grid(decode(run, codes, label=label), path, num_columns)


def scheduled(experiment: Experiment) -> Callable[[Run, Path], dict[str, Path]]:
    """What draws `training.pictures` into a folder, and gives their files by name.

    Raises:
      ConfigError: one of them cannot be drawn of this experiment.
    """
    for name in experiment.training.pictures:
        check_can_draw(name, experiment)

    def draw(run: Run, folder: Path) -> dict[str, Path]:
        drawings = {
            # The curves are those of all steps so far, so that the last ones are enough.
            "curves": (draw_curves, folder / "curves.png"),
            "walk": (draw_walk, folder / f"walk_{run.step:08d}.gif"),
            "classes": (draw_classes, folder / f"classes_{run.step:08d}.png"),
        }
        names = [name for name in run.experiment.training.pictures if name != "curves" or training_metrics(run)]
        for name in names:
            function, path = drawings[name]
            function(run, path)
        return {name: drawings[name][1] for name in names}

    return draw
