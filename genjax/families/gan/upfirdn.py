"""Resampling of pictures (upfirdn): insert zeros, apply a finite impulse response filter, drop pixels.

Along each axis, with x stretched by zeros, z[u i] = x[i], and padded or cropped by (before, after),

    y[j] = sum_t f[t] z[d j + T - 1 - t - before]        u: up, d: down, T: length of the filter

which is `scipy.signal.upfirdn` for before = T - 1 and after = T - u.  A separable filter is a banded matrix along each
axis; on CPU it is applied as such, elsewhere as convolutions of single channels.  Filters are designed by Kaiser's
window (Karras et al. 2021, arXiv:2106.12423, appendix C).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn.products import prefers_matrix_products

Filter = tuple[float, ...] | tuple[tuple[float, ...], ...]


@functools.cache
def resampling_matrix(size: int, taps: tuple[float, ...], up: int, down: int, padding: tuple[int, int]) -> np.ndarray:
    """The matrix [outputs, size] that resamples one axis.

    Raises:
      UserError: nothing is left.
    """
    length = size * up + sum(padding) - len(taps) + 1
    if length < 1:
        raise UserError(f"{size} pixels with up={up} and padding={padding} are fewer than the {len(taps)} taps")
    outputs = -(-length // down)
    row, column = np.meshgrid(np.arange(outputs), np.arange(size), indexing="ij")
    tap = down * row + len(taps) - 1 - padding[0] - up * column
    inside = (tap >= 0) & (tap < len(taps))
    return np.where(inside, np.asarray(taps)[np.clip(tap, 0, len(taps) - 1)], 0.0).astype(np.float32)


def _depthwise(x: Array, kernel: Array, up: tuple[int, int], down: tuple[int, int], padding) -> Array:
    """One filter [K, L] for all channels of x [B, H, W, C]; `padding` counts from the last stretched pixel."""
    batch, height, width, channels = x.shape
    x = jnp.moveaxis(x, -1, 1).reshape(batch * channels, height, width, 1)
    # JAX's convolutions insert no zeros after the last pixel, and are correlations.
    padding = [(p[0], p[1] + u - 1) for p, u in zip(padding, up)]
    kernel = kernel[::-1, ::-1, None, None].astype(x.dtype)
    y = jax.lax.conv_general_dilated(
        x, kernel, down, padding, lhs_dilation=up, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.moveaxis(y.reshape(batch, channels, *y.shape[1:3]), 1, -1)


def upfirdn(
    x: Array,
    taps: Filter,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
    matrix_products: bool | None = None,
) -> Array:
    """Resamples both axes of pictures.

    Args:
      x: pictures, [B, H, W, C].
      taps: filter for each axis, [T], or for both axes together, [T][T].
      up: factor by which the picture is stretched.
      down: one pixel in `down` is kept along each axis.
      padding: zeros before and after each stretched axis; negative ones crop.
      matrix_products: whether separable filters are matrices; by default on CPU.

    Returns:
      Pictures [B, ceil((up H + sum(padding) - T + 1) / down), ..., C].
    """
    if isinstance(taps[0], tuple):
        return _depthwise(x, jnp.asarray(taps), (up, up), (down, down), (padding, padding))
    if prefers_matrix_products() if matrix_products is None else matrix_products:
        rows, columns = (jnp.asarray(resampling_matrix(n, taps, up, down, padding), x.dtype) for n in x.shape[1:3])
        return jnp.einsum("ph,bhwc,qw->bpqc", rows, x, columns)
    kernel = jnp.asarray(taps)
    x = _depthwise(x, kernel[:, None], (up, 1), (down, 1), (padding, (0, 0)))
    return _depthwise(x, kernel[None], (1, up), (1, down), ((0, 0), padding))


def binomial(gain: float = 1.0) -> tuple[float, ...]:
    """The filter [1, 3, 3, 1] of StyleGAN2, with the sum `gain`."""
    return tuple(gain * t / 8.0 for t in (1.0, 3.0, 3.0, 1.0))


def blur(x: Array, radius: Array, largest: float) -> Array:
    """Pictures [B, H, W, C] under the filter 2^-(i / radius)^2, |i| <= 3 radius, of sum 1, along each axis, with zeros
    around.

    Args:
      x: pictures.
      radius: distance in pixels at which the filter has half of its height, a scalar that may be traced; below 1/3
        pictures do not change.
      largest: the largest radius.
    """

    def tap(offset: Array) -> Array:
        return jnp.where(jnp.abs(offset) <= 3.0 * radius, jnp.exp2(-((offset / jnp.maximum(radius, 1e-3)) ** 2)), 0.0)

    reach = int(3.0 * largest)
    total = tap(jnp.arange(-reach, reach + 1)).sum()
    places = (jnp.arange(size) for size in x.shape[1:3])
    rows, columns = ((tap(p[:, None] - p[None]) / total).astype(x.dtype) for p in places)
    return jnp.einsum("ph,bhwc,qw->bpqc", rows, x, columns)


def kaiser_shape(num_taps: int, width: float) -> float:
    """The parameter of Kaiser's window with `num_taps` taps; `width` of the transition band in cycles per tap."""
    attenuation = 2.285 * (num_taps - 1) * np.pi * 2.0 * width + 7.95
    if attenuation > 50.0:
        return 0.1102 * (attenuation - 8.7)
    return 0.5842 * max(attenuation - 21.0, 0.0) ** 0.4 + 0.07886 * max(attenuation - 21.0, 0.0)


@functools.cache
def low_pass(num_taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Filter | None:
    """Kaiser's low-pass filter of sum 1, or None for a single tap, which is the identity.

    Args:
      num_taps: T; None comes back for 1.
      cutoff: frequency of half the amplitude, in cycles per picture.
      width: width of the transition band.
      rate: sampling rate, in pixels per picture.
      radial: a filter [T][T] that passes a disc of frequencies instead of a square (a jinc instead of a sinc).
    """
    if num_taps == 1:
        return None
    window = np.kaiser(num_taps, kaiser_shape(num_taps, width / rate))
    t = np.arange(num_taps) - (num_taps - 1) / 2
    if not radial:
        taps = np.sinc(2.0 * cutoff / rate * t) * window
        return tuple((taps / taps.sum()).tolist())
    from scipy.special import j1

    radius = np.hypot(t[:, None], t[None])
    angle = 2.0 * np.pi * cutoff / rate * np.where(radius == 0.0, 1.0, radius)
    jinc = np.where(radius == 0.0, 0.5, j1(angle) / angle)
    taps = jinc * window[:, None] * window[None]
    return tuple(map(tuple, (taps / taps.sum()).tolist()))
