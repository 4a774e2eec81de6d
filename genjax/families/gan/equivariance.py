"""Equivariance of the generator of StyleGAN3 (Karras et al. 2021, arXiv:2106.12423, section
2.2, eq. 7, and appendix E.3).

The measure is the peak signal-to-noise ratio between the picture of a moved input and the moved picture,

    EQ = 10 log10( I_max^2 / E (G(t[z0]; w) - t[G(z0; w)])^2 ),   I_max = 2 for pictures in [-1, 1]

with the mean over random motions t, styles w, and pixels that depend on nothing outside the picture:

    translation   by whole pixels, up to 1/8 of the size each way (EQ-T)
    fractional    by any such distance (EQ-T_frac); pictures are moved by a sinc in Lanczos's window of 3 pixels
    rotation      by any angle about the centre (EQ-R)

A rotated square of frequencies differs from the square that pixels can hold.  In EQ-R both pictures therefore go
through a filter that is the same in all directions, and one of them is read at rotated places R p:

    (h * G(t[z0]; w))(p)   against   (h * G(z0; w))(R p),   h(r) = J1(2 pi c r) / r  in Kaiser's window

The paper cuts at the bounds of both squares.  Here h fades out from .25 to .5 cycles per pixel, so that errors in
the finest details count less.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.gan.style_gan import StyleGAN
from genjax.families.gan.style_gan3 import StyleGAN3Network
from genjax.families.gan.upfirdn import kaiser_shape
from genjax.model import TrainState

Motion = Literal["translation", "fractional", "rotation"]
#: Radii of the filters in pixels.
_LANCZOS, _RADIAL = 3, 8


def shift_matrix(size: int, shift: Array) -> tuple[Array, Array]:
    """The matrix that moves a row of pixels by a real distance of at most an eighth of it: y = M x.

    Returns:
      M [size, size]; and True at the pixels of y that depend on nothing outside x, [size].
    """
    reach = size // 8 + _LANCZOS + 1
    distance = jnp.arange(-reach, size + reach)[None] - (jnp.arange(size)[:, None] - shift)
    window = jnp.where(jnp.abs(distance) < _LANCZOS, jnp.sinc(distance / _LANCZOS), 0.0)
    weight = jnp.sinc(distance) * window
    weight = weight / weight.sum(1, keepdims=True)
    outside = jnp.abs(weight[:, :reach]).sum(1) + jnp.abs(weight[:, -reach:]).sum(1)
    return weight[:, reach:-reach], outside < 1e-4


@functools.cache
def _radial_filter() -> tuple[np.ndarray, np.ndarray]:
    """Distances in pixels, and the filter h there; it passes half the amplitude at .375 cycles per pixel."""
    from scipy.special import j1

    distance = np.linspace(0.0, _RADIAL, 1000)
    window = np.kaiser(2 * len(distance) - 1, kaiser_shape(2 * _RADIAL + 1, 0.25))[len(distance) - 1 :]
    angle = 2.0 * np.pi * 0.375 * np.maximum(distance, 1e-6)
    return distance, j1(angle) / angle * window


def read_filtered(x: Array, matrix: Array) -> Array:
    """Pictures through h, read at other places.

    Args:
      x: pictures, [B, H, W, C].
      matrix: maps the place (right, down) of a pixel, from the centre, to the place where it is read, [2, 2].

    Returns:
      Pictures [B, H, W, C].
    """
    height, width = x.shape[1:3]
    distances, values = _radial_filter()
    middle = jnp.array([width - 1, height - 1]) / 2
    place = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1) - middle[None, None]
    # At full precision: with the fast products of GPUs, places in large pictures are a tenth of a pixel off.
    place = jnp.matmul(place, matrix.T, precision="highest") + middle[None, None]  # [H, W, 2]
    corner = jnp.floor(place).astype(jnp.int32)
    steps = np.arange(1 - _RADIAL, _RADIAL + 1)

    def add(sums: tuple[Array, Array], offset: Array) -> tuple[tuple[Array, Array], None]:
        at = corner + offset[None, None]
        radius = jnp.sqrt(jnp.sum((at - place) ** 2, axis=-1))
        weight = jnp.interp(radius, distances, values, right=0.0)
        value = x[:, jnp.clip(at[..., 1], 0, height - 1), jnp.clip(at[..., 0], 0, width - 1)]
        return (sums[0] + weight[None, :, :, None] * value, sums[1] + weight), None

    offsets = jnp.asarray(np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2))
    (total, weights), _ = jax.lax.scan(add, (jnp.zeros_like(x), jnp.zeros((height, width))), offsets)
    return total / weights[None, :, :, None]


def equivariance(
    model: StyleGAN, state: TrainState, styles: Array, key: Array, motion: Motion, num_motions: int = 8
) -> Array:
    """The measure EQ in decibels, a scalar.

    Args:
      model: a StyleGAN3.
      state: its state.
      styles: w of the pictures, [B, layers, W].
      key: random key of the motions.
      motion: kind of the motions.
      num_motions: number of motions, each of which moves all pictures.

    Raises:
      UserError: the generator has no input that can be moved, or the pictures are smaller than the filter.
    """
    if not isinstance(model.network, StyleGAN3Network):
        raise UserError("only the generator of StyleGAN3 has an input that can be moved")
    size = model.data_shape[0]
    if motion == "rotation" and size <= 2 * _RADIAL:
        raise UserError(
            f"pictures of {size} x {size} are too small for the filter of rotations; take 32 pixels or more"
        )
    still = model.synthesize(state, styles)

    def shifted(key: Array) -> tuple[Array, Array, Array]:
        shift = size * jax.random.uniform(key, (2,), minval=-0.125, maxval=0.125)
        shift = jnp.round(shift) if motion == "translation" else shift
        (rows, valid_rows), (columns, valid_columns) = (shift_matrix(size, s) for s in shift)
        transform = jnp.eye(3).at[:2, 2].set(-shift[::-1] / size)
        moved = model.synthesize(state, styles, None, transform)
        expected = jnp.einsum("ph,bhwc,qw->bpqc", rows, still, columns, precision="highest")
        return moved, expected, valid_rows[:, None] & valid_columns[None]

    def turned(key: Array) -> tuple[Array, Array, Array]:
        angle = jax.random.uniform(key, minval=-jnp.pi, maxval=jnp.pi)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.array([[cos, -sin], [sin, cos]])
        moved = model.synthesize(state, styles, None, jnp.eye(3).at[:2, :2].set(turn))
        place = np.arange(size) - (size - 1) / 2
        disc = jnp.asarray(np.hypot(place[:, None], place[None]) <= size / 2 - _RADIAL)
        return read_filtered(moved, jnp.eye(2)), read_filtered(still, turn), disc

    def error(key: Array) -> tuple[Array, Array]:
        moved, expected, valid = turned(key) if motion == "rotation" else shifted(key)
        squares = jnp.where(valid[None, :, :, None], (moved - expected) ** 2, 0.0)
        return squares.sum(), valid.sum() * len(styles) * squares.shape[-1]

    errors, counts = jax.lax.map(error, jax.random.split(key, num_motions))
    return 10.0 * jnp.log10(4.0 * counts.sum() / errors.sum())
