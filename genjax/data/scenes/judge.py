"""The exact judge of Scenes, by analysis and synthesis: what is in a picture, and whether a caption is true of it.

    ground   median of the picture's border
    blobs    connected pixels that differ from the ground
    thing    of the four shapes with the blob's centre and area, the one whose picture, in the colour of least squares,
             has the least error
    picture  is parsed if there are 1 to 3 blobs, each is a shape of a known size and colour, and the picture of all of
             them differs from the given picture by little everywhere

A picture that is not parsed is of no caption: a judge that guesses would reward what it cannot read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.data.pipeline import full_batches
from genjax.data.scenes.grammar import COLOURS, SHAPES, SIZES, Description, Kind, Thing
from genjax.data.scenes.pictures import AREAS, RADII, SIDE, distance
from genjax.errors import UserError

#: Most things of a picture.
MOST_THINGS = 3
#: Distance from the ground, in the space of red, green and blue, beyond which a pixel belongs to a blob.
_FOREGROUND = 0.3
#: Pixels of the smallest blob; smaller ones are specks, which the error of the picture counts.
_SMALLEST_BLOB = 8
#: Largest relative error of a radius, distance of a colour from its name's, and root mean squared errors.
_RADIUS, _COLOUR, _ERROR, _REST = 0.15, 0.25, 0.12, 0.1
#: Largest brightness of the ground, and difference of its three colours.
_GROUND, _GREY = 0.35, 0.1


class Analysis(NamedTuple):
    """What the judge sees in pictures.

    Attributes:
      parsed: whether the picture is one of a scene, bool [B].
      count: number of blobs, int32 [B].
      shape, colour, size: numbers in SHAPES, COLOURS and SIZES, int32 [B, 3]; for blobs beyond `count` meaningless.
      x, y: centres in pixels, float32 [B, 3].
      error: root mean squared error around each blob, float32 [B, 3].
    """

    parsed: Array
    count: Array
    shape: Array
    colour: Array
    size: Array
    x: Array
    y: Array
    error: Array


def _shifted(a: Array, combine: Array, empty: float) -> Array:
    """`combine` over each pixel of a [H, W] and its eight neighbours."""
    wide = jnp.pad(a, 1, constant_values=empty)
    rows = combine(combine(wide[:-2], wide[1:-1]), wide[2:])
    return combine(combine(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _blobs(foreground: Array) -> Array:
    """Numbers of connected blobs, int32 [H, W], 0 where there is none."""
    numbers = jnp.where(foreground, jnp.arange(1, foreground.size + 1).reshape(foreground.shape), 0)

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        numbers, _ = state
        new = jnp.where(foreground, _shifted(numbers, jnp.maximum, 0), 0)
        return new, jnp.any(new != numbers)

    return jax.lax.while_loop(lambda state: state[1], spread, (numbers, jnp.asarray(True)))[0]


def _analyse(x: Array) -> Analysis:
    """The analysis of one picture [SIDE, SIDE, 3] in [0, 1]."""
    pixel = jnp.arange(SIDE, dtype=jnp.float32) + 0.5
    border = jnp.concatenate([x[0], x[-1], x[1:-1, 0], x[1:-1, -1]])
    ground = jnp.median(border, axis=0)  # [3]
    difference = x - ground[None, None]
    numbers = _blobs(jnp.sqrt((difference**2).sum(-1)) > _FOREGROUND)
    areas = jnp.zeros(SIDE * SIDE + 1, jnp.int32).at[numbers.reshape(-1)].add(1).at[0].set(0)
    largest, number = jax.lax.top_k(areas, MOST_THINGS + 1)
    count = (largest >= _SMALLEST_BLOB).sum()

    def thing(number: Array) -> tuple[Array, ...]:
        blob = numbers == number
        inside = _shifted(blob, jnp.logical_and, False)
        around = _shifted(blob, jnp.logical_or, False).astype(jnp.float32)
        weight = inside.astype(jnp.float32)[..., None]
        colour = (weight * difference).sum((0, 1)) / jnp.maximum(weight.sum(), 1.0)
        # The part of each pixel that the thing covers, soft edges included.
        cover = jnp.clip(difference @ colour / jnp.maximum((colour**2).sum(), 1e-6), 0.0, 1.0) * around
        area = jnp.maximum(cover.sum(), 1e-6)
        centre_x, centre_y = (cover.sum(0) * pixel).sum() / area, (cover.sum(1) * pixel).sum() / area
        u, v = (pixel - centre_x)[None], (pixel - centre_y)[:, None]
        radii = jnp.sqrt(area / jnp.asarray(AREAS))
        edges = jnp.stack([distance(jnp, shape, u, v, radii[i]) for i, shape in enumerate(SHAPES)])
        covers = jnp.clip(0.5 - edges, 0.0, 1.0)  # [4, H, W]
        flat = covers.reshape(len(SHAPES), -1)
        found = flat @ difference.reshape(-1, 3) / jnp.maximum((flat**2).sum(-1), 1e-6)[:, None]  # [4, 3]
        wrong = ((difference[None] - covers[..., None] * found[:, None, None]) ** 2).mean(-1) * around[None]
        errors = jnp.sqrt(wrong.sum((1, 2)) / jnp.maximum(around.sum(), 1.0))
        best = errors.argmin()
        picture = covers[best][..., None] * found[best][None, None] * around[..., None]
        return best, errors[best], radii[best], found[best] + ground, centre_x, centre_y, picture, around

    shape, error, radius, colour, centre_x, centre_y, pictures, around = jax.vmap(thing)(number[:MOST_THINGS])
    there = jnp.arange(MOST_THINGS) < count
    known = jnp.asarray(list(RADII.values()))
    size = jnp.abs(radius[:, None] / known[None] - 1.0).argmin(1)
    distances = jnp.linalg.norm(colour[:, None] - jnp.asarray(list(COLOURS.values()))[None], axis=-1)
    sound = (error < _ERROR) & (jnp.abs(radius / known[size] - 1.0) < _RADIUS) & (distances.min(1) < _COLOUR)
    # What is neither ground nor a thing.
    outside = jnp.clip(1.0 - (around * there[:, None, None]).sum(0), 0.0, 1.0)
    rest = (((difference - (pictures * there[:, None, None, None]).sum(0)) ** 2).mean(-1) * outside).sum()
    rest = jnp.sqrt(rest / jnp.maximum(outside.sum(), 1.0))
    grey = (ground.max() - ground.min() < _GREY) & (ground.max() < _GROUND)
    parsed = (count >= 1) & (count <= MOST_THINGS) & jnp.all(sound | ~there) & (rest < _REST) & grey
    return Analysis(parsed, count, shape, distances.argmin(1), size, centre_x, centre_y, error)


@functools.cache
def _program() -> jax.stages.Wrapped:
    return jax.jit(jax.vmap(_analyse))


def analyse(pictures: np.ndarray, batch_size: int = 64) -> Analysis:
    """What is in pictures float32 [N, SIDE, SIDE, 3] of brightness in [0, 1]; arrays of numpy.

    Raises:
      UserError: the pictures have another size or no colours.
    """
    pictures = np.asarray(pictures, np.float32)
    if pictures.shape[1:] != (SIDE, SIDE, 3):
        raise UserError(f"the judge of Scenes reads pictures of {SIDE} x {SIDE} x 3, not of {pictures.shape[1:]}")
    parts = []
    for rows, _ in full_batches(len(pictures), batch_size):
        parts.append(jax.tree.map(np.asarray, _program()(pictures[rows])))
    return Analysis(*(np.concatenate(part)[: len(pictures)] for part in zip(*parts)))


def things_of(analysis: Analysis) -> Iterator[tuple[Thing, ...] | None]:
    """The things of each picture, or None where it was not parsed."""
    colours = list(COLOURS)
    for i, parsed in enumerate(analysis.parsed):
        rows = range(int(analysis.count[i])) if parsed else ()
        yield (
            tuple(
                Thing(
                    Kind(SIZES[analysis.size[i, k]], colours[analysis.colour[i, k]], SHAPES[analysis.shape[i, k]]),
                    float(analysis.x[i, k]),
                    float(analysis.y[i, k]),
                )
                for k in rows
            )
            or None
        )


def verdicts(analysis: Analysis, descriptions: Sequence[Description]) -> dict[str, np.ndarray]:
    """Whether each picture is as described, bool [N] each.

    Returns:
      `parsed`; `count`, the right number of things; `things`, the right kinds and no others; and `all`, these in their
      places.  Each includes the ones before.
    """
    rows = []
    for things, description in zip(things_of(analysis), descriptions, strict=True):
        if things is None:
            rows.append((False, False, False, False))
            continue
        count = len(things) == len(description.kinds)
        kinds = count and sorted(t.kind for t in things) == sorted(description.kinds)
        rows.append((True, count, kinds, kinds and description.is_true_of(things)))
    return dict(zip(("parsed", "count", "things", "all"), np.array(rows, bool).reshape(-1, 4).T))


def rates(analysis: Analysis, descriptions: Sequence[Description]) -> dict[str, float]:
    """Shares of pictures that are as described; NaN for a share of none.

    Returns:
      `parsed`, `count`, `things` and `all` of `verdicts`; and `all` of the captions that name one thing, as
      `one_thing`, and of the captions that name more, as `relations`.
    """
    found = verdicts(analysis, descriptions)
    several = np.array([len(description.kinds) > 1 for description in descriptions])
    share = lambda values: float(values.mean()) if len(values) else float("nan")
    return {
        **{name: share(values) for name, values in found.items()},
        "one_thing": share(found["all"][~several]),
        "relations": share(found["all"][several]),
    }
