"""Draws pictures that show what the generator of a trained run has learned:

    python -m experiments.pictures --workdir=runs/dcgan_digits --tool=walk

curves       losses, gradient penalties and scores over the steps of training
walk         a GIF of --num_rows walks on great arcs, each from latent to latent of --num_columns latents, with
             --num_values frames from one latent to the next
classes      for a model conditional on classes: a row for each class, with the same latents in every row
truncation   StyleGAN: a row for each latent, with its w scaled from the mean of w (0) to w itself (1), and beyond
mixing       StyleGAN: a picture for each pair of latents: the style of the row's latent, except in the layers --layers,
             which have the style of the column's latent; first row and first column show the latents themselves
project      StyleGAN: pictures of the evaluation split, and the generator's pictures from the styles that come nearest
             to them by the distance of --features; needs data.preprocessing signed or unit
equivariance StyleGAN3: decibels for random shifts by whole pixels (EQ-T), by fractions (EQ-T_frac) and rotations (EQ-R)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.data import Images, random_order, write_grid
from genjax.families.gan import equivariance as equivariances
from genjax.families.gan import style_tools
from genjax.families.gan.style_gan import StyleGAN
from genjax.tools import generators as generator
from genjax.tools.features import feature_function

TOOLS = ("curves", "walk", "classes", "truncation", "mixing", "project", "equivariance")

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
flags.DEFINE_enum("tool", "walk", TOOLS, "what to draw")
flags.DEFINE_integer("num_rows", 4, "rows of a picture", lower_bound=1)
flags.DEFINE_integer("num_columns", 8, "columns of a picture; latents that a walk visits", lower_bound=2)
flags.DEFINE_integer("num_values", 10, "frames of a walk from one latent to the next", lower_bound=2)
flags.DEFINE_list("layers", ["0", "4"], "first layer of the columns' styles, and the one behind the last")
flags.DEFINE_integer("num_steps", 300, "steps of a projection", lower_bound=1)
flags.DEFINE_string(
    "features", None, "of a projection: the directory of a run of a classifier, or a file of Inception's weights"
)
flags.DEFINE_integer("num_motions", 16, "shifts and turns that equivariance is measured by", lower_bound=1)
flags.DEFINE_boolean("per_layer", False, "let a projection choose w for every layer")
flags.DEFINE_integer("seed", 0, "seed of the latents")


def needs(run: Any, condition: bool, what: str) -> None:
    """Raises ConfigError unless the run is one that the tool can draw."""
    if not condition:
        raise ConfigError(f"--tool={flags.FLAGS.tool} needs {what}; the run's is {type(run.model).__name__}")


def path_of(run: Any, name: str, suffix: str = ".png") -> Path:
    folder = Path(run.workdir) / "pictures"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}_{run.step:08d}_seed{flags.FLAGS.seed}{suffix}"


def draw(pictures: np.ndarray, num_columns: int, path: Path) -> None:
    write_grid(pictures, path, num_columns)
    print(path)


def curves(run: Any) -> None:
    generator.draw_curves(run, path_of(run, "curves"))
    print(path_of(run, "curves"))


def walk(run: Any) -> None:
    values, path = flags.FLAGS, path_of(run, "walk", ".gif")
    generator.check_can_draw("walk", run.experiment)
    generator.draw_walk(run, path, values.num_rows, values.num_columns, values.num_values, values.seed)
    print(path)


def classes(run: Any) -> None:
    path = path_of(run, "classes")
    generator.check_can_draw("classes", run.experiment)
    generator.draw_classes(run, path, flags.FLAGS.num_columns, flags.FLAGS.seed)
    print(path)


def styles_and_pictures(run: Any, count: int) -> tuple[jax.Array, Any, Any]:
    """Styles of new latents, the compiled truncated styles of latents, and the compiled pictures of styles."""
    needs(run, isinstance(run.model, StyleGAN), "a StyleGAN")
    codes = generator.latents(run, flags.FLAGS.seed, count)
    styles = jax.jit(lambda state, psi: run.model.styles(state, codes, truncation=psi))
    synthesize = jax.jit(run.model.synthesize)
    to_unit = run.experiment.data.to_unit
    return (
        styles(run.state, 1.0),
        lambda psi: styles(run.state, psi),
        lambda s: to_unit(np.asarray(synthesize(run.state, s))),
    )


def truncation(run: Any) -> None:
    columns = flags.FLAGS.num_columns
    _, truncated, pictures = styles_and_pictures(run, flags.FLAGS.num_rows)
    values = np.linspace(0.0, 1.25, columns)
    grid = np.stack([pictures(truncated(psi)) for psi in values], axis=1)  # [rows, columns, H, W, C]
    draw(grid.reshape(-1, *grid.shape[2:]), columns, path_of(run, "truncation"))
    print("columns are psi =", ", ".join(f"{psi:.2f}" for psi in values))


def mixing(run: Any) -> None:
    rows, columns = flags.FLAGS.num_rows, flags.FLAGS.num_columns
    styles, _, pictures = styles_and_pictures(run, rows + columns)
    try:
        first, last = map(int, flags.FLAGS.layers)
    except ValueError:
        raise ConfigError(f"--layers={','.join(flags.FLAGS.layers)} must be two layers, as in 0,4") from None
    if not 0 <= first < last <= styles.shape[1]:
        raise ConfigError(f"--layers={first},{last} must lie within 0,{styles.shape[1]}, the layers of the generator")
    sources = pictures(styles)
    mixed = jax.jit(run.model.mix_styles, static_argnums=3)(run.state, styles[:rows], styles[rows:], (first, last))
    mixed = run.experiment.data.to_unit(np.asarray(mixed.reshape(-1, *mixed.shape[2:])))
    mixed = mixed.reshape(rows, columns, *mixed.shape[1:])
    sheet = [np.ones_like(sources[0]), *sources[rows:]]
    for source, row in zip(sources[:rows], mixed):
        sheet += [source, *row]
    draw(np.stack(sheet), columns + 1, path_of(run, f"mixing_{first}_{last}"))


def distance_features(run: Any) -> tuple[str, Callable[[jax.Array], jax.Array]]:
    """The features that a projection measures distances in: their name, and a function of pictures [B, H, W, C]."""
    name, preprocessing = flags.FLAGS.features, run.experiment.data.preprocessing
    if name is None:
        return "pixels at several sizes", style_tools.pyramid
    scales = {"signed": 0.5, "unit": 1.0}
    if preprocessing not in scales:
        raise ConfigError(f"--features wants data.preprocessing=signed or unit; the run has {preprocessing}")
    scale = scales[preprocessing]
    description, function = feature_function(name, "tensorflow")
    return description, lambda x: function(jnp.clip(scale * x + 1.0 - scale, 0.0, 1.0))[0]


def project(run: Any) -> None:
    values = flags.FLAGS
    needs(run, isinstance(run.model, StyleGAN), "a StyleGAN")
    data, count = run.experiment.data, values.num_columns
    examples = data.load(run.experiment.evaluation.split)
    raw = examples.gather(random_order(len(examples))[:count])
    x = data.transform({name: jnp.asarray(a) for name, a in raw.items()}, jax.random.key(0))["x"]
    key = jax.random.key(values.seed)
    description, features = distance_features(run)

    def find(state: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = style_tools.project(
            run.model, state, x, key, num_steps=values.num_steps, per_layer=values.per_layer, features=features
        )
        return run.model.synthesize(state, found.styles, noise=found.noise), found.distances

    found, distances = jax.jit(find)(run.state, x)
    sheet = [data.to_unit(np.asarray(pictures)) for pictures in (x, found)]
    draw(np.concatenate(sheet), count, path_of(run, "projection"))
    print(
        f"squared distance of {description}, mean of {count}: {distances[0].mean():.4f} to {distances[-1].mean():.4f}"
    )


def equivariance(run: Any) -> None:
    count, key = flags.FLAGS.num_motions, jax.random.key(flags.FLAGS.seed)
    styles, _, pictures = styles_and_pictures(run, flags.FLAGS.num_rows)
    measure = jax.jit(equivariances.equivariance, static_argnums=(0, 4, 5))
    names = {"translation": "EQ-T", "fractional": "EQ-T_frac", "rotation": "EQ-R"}
    values = {name: float(measure(run.model, run.state, styles, key, kind, count)) for kind, name in names.items()}
    print(", ".join(f"{name} {value:.1f} dB" for name, value in values.items()))
    # Pictures of an untrained generator are faint, which alone gives high figures.
    deviation = 2.0 * pictures(styles).std()
    print(
        f"{len(styles)} pictures of {run.model.data_shape[0]} pixels, {count} motions each; standard deviation {deviation:.4f}"
    )


_TOOLS = {
    "curves": curves,
    "walk": walk,
    "classes": classes,
    "truncation": truncation,
    "mixing": mixing,
    "project": project,
    "equivariance": equivariance,
}


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is not None:
        if flags.FLAGS.tool != "curves":
            needs(run, isinstance(run.experiment.data, Images), "a run on pictures")
        _TOOLS[flags.FLAGS.tool](run)
    return 0


if __name__ == "__main__":
    command_line.run(main)
