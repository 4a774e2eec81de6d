"""Pictures of a generator: curves of its training, walks between latents, classes, and styles of StyleGAN.

    run = genjax.restore("runs/dcgan_digits")
    generators.walk(run, generators.Options(num_rows=2))

`experiments.train` draws the pictures named by `training.pictures` beside every sheet of samples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.config import ConfigError, check_at_least
from genjax.data import Images, random_order, write_grid
from genjax.data.videos import write_gif
from genjax.evaluation.latents import spherical_interpolation
from genjax.families.gan import equivariance as equivariances
from genjax.families.gan import style_tools
from genjax.families.gan.style_gan import StyleGAN
from genjax.model import DecodesNoise, takes
from genjax.tools.drawing import plot_curves
from genjax.tools.features import feature_function
from genjax.tools.outcome import Outcome, folder_of
from genjax.training import Experiment, Run, records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the pictures of a generator.

    Attributes:
      num_rows: number of rows of a picture.
      num_columns: number of columns of a picture, or of latents that a walk visits.
      num_values: number of frames of a walk from one latent to the next.
      layers: first,last: the layers first .. last - 1 get the columns' styles.
      num_steps: number of steps of a projection.
      features: features for a projection: the directory of a run of a classifier, or a file of Inception's weights.
      num_motions: number of shifts and rotations by which equivariance is measured.
      per_layer: let a projection choose w for every layer.
      seed: seed of the latents.
    """

    num_rows: int = 4
    num_columns: int = 8
    num_values: int = 10
    layers: tuple[int, int] = (0, 4)
    num_steps: int = 300
    features: str | None = None
    num_motions: int = 16
    per_layer: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, num_rows=1, num_columns=2, num_values=2, num_steps=1, num_motions=1)


def curves(run: Run, options: Options | None = None) -> Outcome:
    """Draws losses, gradient penalties and scores over the steps of training.

    Raises:
      ConfigError: none were written yet.
    """
    path = _path(run, "curves", options or Options())
    draw_curves(run, path)
    return Outcome(files=(path,))


def walk(run: Run, options: Options | None = None) -> Outcome:
    """Draws a GIF of `num_rows` walks on great arcs, each from latent to latent.

    Raises:
      ConfigError: the model decodes no normal latents to pictures.
    """
    options = options or Options()
    check_can_draw("walk", run.experiment)
    path = _path(run, "walk", options, ".gif")
    draw_walk(run, path, options.num_rows, options.num_columns, options.num_values, options.seed)
    return Outcome(files=(path,))


def classes(run: Run, options: Options | None = None) -> Outcome:
    """Draws a row for each class, with the same latents in every row.

    Raises:
      ConfigError: the model is no GAN of pictures that is conditional on classes.
    """
    options = options or Options()
    check_can_draw("classes", run.experiment)
    path = _path(run, "classes", options)
    draw_classes(run, path, options.num_columns, options.seed)
    return Outcome(files=(path,))


def truncation(run: Run, options: Options | None = None) -> Outcome:
    """Draws a row for each latent of a StyleGAN, with w from the mean (0) to itself (1), and beyond.

    Raises:
      ConfigError: the model is no StyleGAN.
    """
    options = options or Options()
    _, truncated, pictures = _styles_and_pictures(run, "truncation", options.num_rows, options.seed)
    values = np.linspace(0.0, 1.25, options.num_columns)
    grid = np.stack([pictures(truncated(psi)) for psi in values], axis=1)  # [rows, columns, H, W, C]
    path = _path(run, "truncation", options)
    write_grid(grid.reshape(-1, *grid.shape[2:]), path, options.num_columns)
    return Outcome(files=(path,), notes=(f"columns are psi = {', '.join(f'{psi:.2f}' for psi in values)}",))


def mixing(run: Run, options: Options | None = None) -> Outcome:
    """Draws the rows' latents of a StyleGAN with the styles of the columns' latents in some layers; sources first.

    Raises:
      ConfigError: the model is no StyleGAN, or has no such layers.
    """
    options = options or Options()
    rows, columns, (first, last) = options.num_rows, options.num_columns, options.layers
    styles, _, pictures = _styles_and_pictures(run, "mixing", rows + columns, options.seed)
    if not 0 <= first < last <= styles.shape[1]:
        raise ConfigError(f"--layers={first},{last} must lie within 0,{styles.shape[1]}, the layers of the generator")
    sources = pictures(styles)
    mixed = jax.jit(run.model.mix_styles, static_argnums=3)(run.state, styles[:rows], styles[rows:], (first, last))
    mixed = run.experiment.data.to_unit(np.asarray(mixed.reshape(-1, *mixed.shape[2:])))
    mixed = mixed.reshape(rows, columns, *mixed.shape[1:])
    sheet = [np.ones_like(sources[0]), *sources[rows:]]
    for source, row in zip(sources[:rows], mixed):
        sheet += [source, *row]
    path = _path(run, f"mixing_{first}_{last}", options)
    write_grid(np.stack(sheet), path, columns + 1)
    return Outcome(files=(path,))


def project(run: Run, options: Options | None = None) -> Outcome:
    """Draws pictures of the evaluation split, and a StyleGAN's pictures from the styles that come nearest to them.

    Raises:
      ConfigError: the model is no StyleGAN, or its data do not fit the features.
    """
    options = options or Options()
    _check_style_gan(run, "project")
    data, count = run.experiment.data, options.num_columns
    examples = data.load(run.experiment.evaluation.split)
    raw = examples.gather(random_order(len(examples), count))
    x = data.transform({name: jnp.asarray(a) for name, a in raw.items()}, jax.random.key(0))["x"]
    key = jax.random.key(options.seed)
    description, features = _distance_features(run, options.features)

    def find(state: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = style_tools.project(
            run.model, state, x, key, num_steps=options.num_steps, per_layer=options.per_layer, features=features
        )
        return run.model.synthesize(state, found.styles, noise=found.noise), found.distances

    found, distances = jax.jit(find)(run.state, x)
    path = _path(run, "projection", options)
    write_grid(np.concatenate([data.to_unit(np.asarray(pictures)) for pictures in (x, found)]), path, count)
    first, last = float(distances[0].mean()), float(distances[-1].mean())
    note = f"squared distance of {description}, mean of {count}: {first:.4f} to {last:.4f}"
    return Outcome(files=(path,), notes=(note,))


def equivariance(run: Run, options: Options | None = None) -> Outcome:
    """Measures, in decibels, how well pictures of a StyleGAN3 follow shifts and rotations of its input.

    Raises:
      ConfigError: the model is no StyleGAN.
      UserError: its input cannot be moved.
    """
    options = options or Options()
    count, key = options.num_motions, jax.random.key(options.seed)
    styles, _, pictures = _styles_and_pictures(run, "equivariance", options.num_rows, options.seed)
    measure = jax.jit(equivariances.equivariance, static_argnums=(0, 4, 5))
    names = {"translation": "EQ-T", "fractional": "EQ-T_frac", "rotation": "EQ-R"}
    values = {name: float(measure(run.model, run.state, styles, key, kind, count)) for kind, name in names.items()}
    # An untrained generator makes faint pictures, and its figures are high for this reason only.
    deviation = 2.0 * pictures(styles).std()
    size = run.model.data_shape[0]
    note = (
        f"decibels, of {len(styles)} pictures of {size} pixels, {count} motions each; "
        f"standard deviation {deviation:.4f}"
    )
    return Outcome(notes=(note,), figures=(values,))


#: The tools, by their names in experiments.pictures.
TOOLS = {
    "curves": curves,
    "walk": walk,
    "classes": classes,
    "truncation": truncation,
    "mixing": mixing,
    "project": project,
    "equivariance": equivariance,
}


def _path(run: Run, name: str, options: Options, suffix: str = ".png") -> Path:
    return folder_of(run, "pictures") / f"{name}_{run.step:08d}_seed{options.seed}{suffix}"


def _check_style_gan(run: Run, tool: str) -> None:
    if not isinstance(run.model, StyleGAN) or not isinstance(run.experiment.data, Images):
        raise ConfigError(f"{tool} needs a StyleGAN of pictures; the run's is {type(run.model).__name__}")


def _styles_and_pictures(run: Run, tool: str, count: int, seed: int) -> tuple[jax.Array, Any, Any]:
    """Styles of new latents, the compiled truncated styles of latents, and the compiled pictures of styles."""
    _check_style_gan(run, tool)
    codes = latents(run, seed, count)
    styles = jax.jit(lambda state, psi: run.model.styles(state, codes, truncation=psi))
    synthesize = jax.jit(run.model.synthesize)
    to_unit = run.experiment.data.to_unit
    return (
        styles(run.state, 1.0),
        lambda psi: styles(run.state, psi),
        lambda s: to_unit(np.asarray(synthesize(run.state, s))),
    )


def _distance_features(run: Run, name: str | None) -> tuple[str, Callable[[jax.Array], jax.Array]]:
    """The features for distances of a projection: their name, and a function of pictures [B, H, W, C]."""
    preprocessing = run.experiment.data.preprocessing
    if name is None:
        return "pixels at several sizes", style_tools.pyramid
    scales = {"signed": 0.5, "unit": 1.0}
    if preprocessing not in scales:
        raise ConfigError(f"--features wants data.preprocessing=signed or unit; the run has {preprocessing}")
    scale = scales[preprocessing]
    description, function = feature_function(name, "tensorflow")
    return description, lambda x: function(jnp.clip(scale * x + 1.0 - scale, 0.0, 1.0))[0]


def check_can_draw(name: str, experiment: Experiment) -> None:
    """Raises ConfigError unless curves, walk or classes of an experiment can be drawn."""
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
    # A walk ends at its beginning, so that the GIF can loop.
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
    """A function that draws `training.pictures` into a folder and returns their files by name.

    Raises:
      ConfigError: one of the pictures cannot be drawn for this experiment.
    """
    for name in experiment.training.pictures:
        check_can_draw(name, experiment)

    def draw(run: Run, folder: Path) -> dict[str, Path]:
        drawings = {
            # The curves show all steps so far, so only the last picture is kept.
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
