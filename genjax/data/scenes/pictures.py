"""Pictures of scenes: soft-edged shapes on a grey ground, in numpy for data and in JAX for the judge.

pixel = ground + sum over things of cover (colour - ground),    cover = clip(1/2 - distance to the edge, 0, 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from genjax.data.scenes.grammar import COLOURS, SIZES, Kind, Scene

#: Height and width of a picture in pixels.
SIDE = 32
#: Radius of things in pixels, by size.
RADII = dict(zip(SIZES, (3.5, 6.0)))
#: Half of a square's side, of a triangle's inner circle and of a cross's arm, in radii.
_SQUARE, _TRIANGLE, _ARM = 0.886, 0.62, 0.34
#: Area of each shape in squared radii.
AREAS = np.array([np.pi, 4 * _SQUARE**2, 3 * np.sqrt(3) * _TRIANGLE**2, 4 * _ARM * (2 - _ARM)], np.float32)


def distance(xp: ModuleType, shape: str, u: Any, v: Any, radius: Any) -> Any:
    """Distance of points to the edge of a shape, negative inside.

    Args:
      xp: numpy or jax.numpy.
      shape: one of SHAPES.
      u, v: places right of and below the centre, in pixels.
      radius: the shape's radius.
    """
    if shape == "circle":
        return xp.sqrt(u * u + v * v) - radius
    a, b = xp.abs(u), xp.abs(v)
    match shape:
        case "square":
            return xp.maximum(a, b) - _SQUARE * radius
        case "triangle":
            return xp.maximum(0.8660254 * a - 0.5 * v, v) - _TRIANGLE * radius
    return xp.maximum(xp.minimum(a, b) - _ARM * radius, xp.maximum(a, b) - radius)


def extent(kind: Kind) -> tuple[float, float, float]:
    """How far a thing reaches from its centre sideways, up and down, in pixels."""
    r = RADII[kind.size]
    match kind.shape:
        case "square":
            return _SQUARE * r, _SQUARE * r, _SQUARE * r
        case "triangle":
            return np.sqrt(3) * _TRIANGLE * r, 2 * _TRIANGLE * r, _TRIANGLE * r
    return r, r, r


def render(scenes: Sequence[Scene]) -> np.ndarray:
    """Pictures uint8 [N, SIDE, SIDE, 3] of scenes."""
    ground = np.array([scene.ground for scene in scenes], np.float32).reshape(-1, 1, 1, 1)
    picture = np.broadcast_to(ground, (len(scenes), SIDE, SIDE, 3)).copy()
    pixel = np.arange(SIDE, dtype=np.float32) + 0.5
    groups: dict[tuple[int, str], list[int]] = {}
    for i, scene in enumerate(scenes):
        for place, thing in enumerate(scene.things):
            groups.setdefault((place, thing.kind.shape), []).append(i)
    # All things of one shape by one expression; of one place in the scene, so that no picture is drawn to twice.
    for (place, shape), all_rows in groups.items():
        for start in range(0, len(all_rows), 512):
            rows = all_rows[start : start + 512]
            things = [scenes[i].things[place] for i in rows]
            x, y = (np.array([getattr(t, axis) for t in things], np.float32)[:, None, None] for axis in "xy")
            radius = np.array([RADII[t.kind.size] for t in things], np.float32)[:, None, None]
            colour = np.array([COLOURS[t.kind.colour] for t in things], np.float32)[:, None, None, :]
            u, v = pixel[None, None] - x, pixel[None, :, None] - y
            cover = np.clip(0.5 - distance(np, shape, u, v, radius), 0.0, 1.0)[..., None]
            # Things do not overlap, so each adds its own difference.
            picture[rows] += cover * (colour - ground[rows])
    return np.round(255 * picture).astype(np.uint8)
