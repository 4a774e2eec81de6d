"""Embedded sets that are made, not read: two-dimensional densities, sprites with known factors, coloured shapes."""

from __future__ import annotations

import functools

import numpy as np

# ----------------------------------------------------------------------------------------------------------------------
# Two-dimensional densities, in the forms that the flow literature draws (FFJORD, Grathwohl et al. 2019)


def _ring(rng: np.random.Generator, count: int, radius: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _two_moons(rng: np.random.Generator, count: int) -> np.ndarray:
    upper = rng.random(count) < 0.5
    angle = rng.uniform(0, np.pi, count)
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return (np.stack([x, y], 1) + 0.1 * rng.standard_normal((count, 2)) - [0.5, 0.25]) * 2


def _circles(rng: np.random.Generator, count: int) -> np.ndarray:
    radius = np.where(rng.random(count) < 0.5, 3.0, 1.5)
    return _ring(rng, count, radius) + 0.15 * rng.standard_normal((count, 2))


def _rings(rng: np.random.Generator, count: int) -> np.ndarray:
    radius = rng.integers(1, 5, count).astype(float)
    return _ring(rng, count, radius) + 0.08 * rng.standard_normal((count, 2))


def _swiss_roll(rng: np.random.Generator, count: int) -> np.ndarray:
    angle = 1.5 * np.pi * (1 + 2 * rng.random(count))
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) / 5 + 0.1 * rng.standard_normal((count, 2))


def _two_spirals(rng: np.random.Generator, count: int) -> np.ndarray:
    radius = np.sqrt(rng.random(count)) * 3 * np.pi
    sign = np.where(rng.random(count) < 0.5, 1.0, -1.0)
    x = np.stack([-np.cos(radius) * radius * sign, np.sin(radius) * radius * sign], 1) / 3
    return x + 0.1 * rng.standard_normal((count, 2))


def _pinwheel(rng: np.random.Generator, count: int) -> np.ndarray:
    arm = rng.integers(0, 5, count)
    x = rng.standard_normal((count, 2)) * [0.3, 0.1] + [1.0, 0.0]
    angle = 2 * np.pi * arm / 5 + 0.25 * np.exp(x[:, 0])
    cos, sin = np.cos(angle), np.sin(angle)
    return 2 * np.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)


def eight_gaussians_means() -> np.ndarray:
    """Centres of the mixture eight_gaussians, shape [8, 2]; every component has the standard deviation 0.2."""
    angle = 2 * np.pi * np.arange(8) / 8
    return 2.0 * np.stack([np.cos(angle), np.sin(angle)], 1)


def grid_gaussians_means() -> np.ndarray:
    """Centres of the mixture grid_gaussians, shape [25, 2]; every component has the standard deviation 0.05."""
    axis = np.linspace(-2, 2, 5)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)


def _mixture(rng: np.random.Generator, count: int, means: np.ndarray, scale: float) -> np.ndarray:
    return means[rng.integers(0, len(means), count)] + scale * rng.standard_normal((count, 2))


def _checkerboard(rng: np.random.Generator, count: int) -> np.ndarray:
    column = rng.integers(0, 4, count)
    row = 2 * rng.integers(0, 2, count) + column % 2
    return np.stack([column, row], 1) + rng.random((count, 2)) - 2.0


DENSITIES = {
    "two_moons": _two_moons,
    "circles": _circles,
    "rings": _rings,
    "swiss_roll": _swiss_roll,
    "two_spirals": _two_spirals,
    "pinwheel": _pinwheel,
    "eight_gaussians": lambda rng, count: _mixture(rng, count, eight_gaussians_means(), 0.2),
    "grid_gaussians": lambda rng, count: _mixture(rng, count, grid_gaussians_means(), 0.05),
    "checkerboard": _checkerboard,
}

# ----------------------------------------------------------------------------------------------------------------------
# Sprites with known factors, after dSprites (Matthey et al. 2017)

#: Number of values of each factor, in the order of the columns of `factors`.
SPRITE_FACTORS = {"shape": 3, "scale": 4, "orientation": 8, "position_x": 8, "position_y": 8}
#: Values of the first factor, the class of a sprite.
SPRITE_SHAPES = ("square", "ellipse", "heart")
_SPRITE_SIZE = 32


@functools.cache
def sprites() -> tuple[np.ndarray, np.ndarray]:
    """All 6144 sprites: every combination of the factors once, row-major in their order.

    Returns:
      Pictures uint8 [6144, 32, 32, 1] with soft edges, and factors int32 [6144, 5].
    """
    factors = np.stack(
        np.unravel_index(np.arange(np.prod(list(SPRITE_FACTORS.values()))), (*SPRITE_FACTORS.values(),)), 1
    )
    shape, scale, orientation, column, row = factors.T.astype(float)
    grid = (np.arange(_SPRITE_SIZE) + 0.5) / _SPRITE_SIZE * 2 - 1
    y, x = np.meshgrid(grid, grid, indexing="ij")
    pictures = np.empty((len(factors), _SPRITE_SIZE, _SPRITE_SIZE, 1), np.uint8)
    radius = 0.16 + 0.045 * scale
    # A quarter turn would show the square again, so orientations lie within one.
    angle = orientation * (np.pi / 2) / SPRITE_FACTORS["orientation"]
    centre_x = -0.55 + 1.1 * column / (SPRITE_FACTORS["position_x"] - 1)
    centre_y = -0.55 + 1.1 * row / (SPRITE_FACTORS["position_y"] - 1)
    for i in range(len(factors)):
        u, v = (x - centre_x[i]) / radius[i], (y - centre_y[i]) / radius[i]
        cos, sin = np.cos(angle[i]), np.sin(angle[i])
        u, v = cos * u + sin * v, cos * v - sin * u
        match int(shape[i]):
            case 0:
                distance = np.maximum(np.abs(u), np.abs(v)) - 0.85
            case 1:
                distance = np.sqrt((u / 1.2) ** 2 + (v / 0.65) ** 2) - 1.0
            case _:
                distance = (u**2 + (v + 0.6 * np.sqrt(np.abs(u) + 1e-6) - 0.2) ** 2) - 0.85
        pictures[i, ..., 0] = np.round(255 * np.clip(0.5 - distance * radius[i] * _SPRITE_SIZE / 2, 0, 1))
    return pictures, factors.astype(np.int32)


# ----------------------------------------------------------------------------------------------------------------------
# Coloured shapes, a twin of small colour photographs

SHAPE_CLASSES = ("disc", "square", "triangle", "ring", "cross")


@functools.cache
def shapes(count: int = 5000, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Shapes of random colour, place and size on a shaded background.

    Returns:
      Pictures uint8 [count, size, size, 3], and classes int32 [count] among `SHAPE_CLASSES`.
    """
    rng = np.random.default_rng(0)
    label = rng.integers(0, len(SHAPE_CLASSES), count).astype(np.int32)
    grid = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(grid, grid, indexing="ij")
    pictures = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        near, far, colour = rng.uniform(0.0, 0.5, 3), rng.uniform(0.0, 0.5, 3), rng.uniform(0.4, 1.0, 3)
        direction = rng.uniform(0, 2 * np.pi)
        shade = (x * np.cos(direction) + y * np.sin(direction)) / 2.9 + 0.5
        background = near + (far - near) * shade[..., None]
        radius = rng.uniform(0.3, 0.55)
        u, v = (x - rng.uniform(-0.35, 0.35)) / radius, (y - rng.uniform(-0.35, 0.35)) / radius
        match SHAPE_CLASSES[label[i]]:
            case "disc":
                distance = np.hypot(u, v) - 1
            case "square":
                distance = np.maximum(np.abs(u), np.abs(v)) - 0.85
            case "triangle":
                distance = np.maximum(np.abs(u) * 0.87 + v * 0.5, -v) - 0.6
            case "ring":
                distance = np.abs(np.hypot(u, v) - 0.75) - 0.25
            case _:
                distance = np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.3, np.maximum(np.abs(u), np.abs(v)) - 1)
        cover = np.clip(0.5 - distance * radius * size / 2, 0, 1)[..., None]
        pictures[i] = np.round(255 * (background * (1 - cover) + colour * cover))
    return pictures, label
