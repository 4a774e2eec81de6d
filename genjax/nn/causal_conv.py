"""Convolutions of pictures that look only at pixels before the present one in raster order, whole or a pixel at a time.

    y[i, j] = b + sum_{(di, dj) in taps} x[i + di, j + dj] W[di, dj]

with one of these sets of taps (van den Oord et al. 2016, arXiv:1601.06759 and arXiv:1606.05328):

    raster      di < 0 and |dj| <= k // 2, or di = 0 and -(k // 2) <= dj < 0       (and dj = 0 unless exclude_self)
    vertical    -rows < di <= 0 and |dj| <= k // 2                                 (di < 0 if exclude_self)
    horizontal  di = 0 and -columns < dj <= 0                                      (dj < 0 if exclude_self)
    corner      -rows < di <= 0 and -columns < dj <= 0

Only the taps have weights; no product is computed and then masked.  The sum is one matrix product over the shifted
pictures side by side (im2col), which on CPU is about twice as fast as XLA's convolution with its gradients.  Where rows
have three taps, two neighbouring outputs take four products there, not six (`minimal_filtering`).

To sample, `CausalConv` is called in one of two stepwise modes, given the place (i, j) of the present pixel:

    pixel  x [B, 1, 1, C] at (i, j) -> y [B, 1, 1, F] at (i, j)
    row    x [B, 1, W, C] of row i  -> y [B, 1, W, F] of row i          (vertical taps alone)

It remembers as many rows of its input as it looks at, [rows, W + padding, B, C] in the collection "cache".  A
convolution with exclude_self is given the previous pixel, or the row above, because the present pixel is not known yet.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.nn.products import prefers_matrix_products, tall_product

Mode = Literal["full", "row", "pixel"]


def raster_taps(size: int, exclude_self: bool) -> tuple[tuple[int, int], ...]:
    """Taps (di, dj) of a masked size x size convolution."""
    half = size // 2
    above = tuple((di, dj) for di in range(-half, 0) for dj in range(-half, half + 1))
    return above + tuple((0, dj) for dj in range(-half, 0 if exclude_self else 1))


def vertical_taps(rows: int, size: int, exclude_self: bool = False) -> tuple[tuple[int, int], ...]:
    """Taps of `rows` rows, each `size` wide; the last row is the present row, or the row above it."""
    last = 0 if exclude_self else 1
    return tuple((di, dj) for di in range(last - rows, last) for dj in range(-(size // 2), size // 2 + 1))


def horizontal_taps(columns: int, exclude_self: bool = False) -> tuple[tuple[int, int], ...]:
    """Taps of `columns` pixels of the present row; the last is the present pixel, or the pixel before it."""
    last = 0 if exclude_self else 1
    return tuple((0, dj) for dj in range(last - columns, last))


def corner_taps(rows: int, columns: int) -> tuple[tuple[int, int], ...]:
    """Taps of a rectangle whose lower right corner is the present pixel."""
    return tuple((di, dj) for di in range(1 - rows, 1) for dj in range(1 - columns, 1))


class CausalConv(nn.Module):
    """A convolution over the given taps.

    Attributes:
      features: number F of outputs.
      taps: offsets (di, dj), none of which is after (0, 0) in raster order.
      width: width W of the picture, for the stepwise modes.
      mode: "full" pictures, or stepwise by "row" or "pixel".
      exclude_self: whether the taps leave out the pixel (0, 0); in "row" mode, its whole row.
      use_bias: whether to add b.
      dtype: compute type.
    """

    features: int
    taps: tuple[tuple[int, int], ...]
    width: int
    mode: Mode = "full"
    exclude_self: bool = False
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, place: tuple[Array, Array] | None = None, then: tuple[Array, Array] | None = None
    ) -> Array:
        """x [B, H, W, C] -> [B, H, W, F]; stepwise as the module's text says, with place = (i, j).

        With `then` = (matrix [F, G], vector [G]), returns y matrix + vector [B, H, W, G] without computing y.
        """
        channels = x.shape[-1]
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (len(self.taps) * channels, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
        if then is not None:
            bias = then[1] if bias is None else bias @ then[0] + then[1]
            kernel = kernel @ then[0]
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.mode == "full" and allows_minimal_filtering(x, self.taps):
            y = minimal_filtering(x, kernel)
        elif self.mode == "full":
            y = tall_product(shifted(x, self.taps), kernel)
        else:
            y = tall_product(self._pixel(x, place) if self.mode == "pixel" else self._row(x, place), kernel)
        return y if bias is None else y + bias.astype(self.dtype)[None, None, None]

    def _padding(self) -> tuple[int, int, int]:
        left = max(0, -min(dj for _, dj in self.taps))
        right = max(0, max(dj for _, dj in self.taps))
        return left, right, 1 - min(di for di, _ in self.taps)

    def _cache(self, x: Array) -> tuple[Any, int, int]:
        left, right, rows = self._padding()
        shape = (rows, self.width + left + right, x.shape[0], x.shape[-1])
        return self.variable("cache", "rows", jnp.zeros, shape, self.dtype), left, rows

    def _pixel(self, x: Array, place: tuple[Array, Array]) -> Array:
        cache, left, rows = self._cache(x)
        i, j = place
        # Row r lies in slot r mod rows; no tap reads what a slot still holds of older rows.
        wi, wj = i, j
        if self.exclude_self:
            wi, wj = jnp.where(j == 0, i - 1, i), (j - 1) % self.width
        value = jax.lax.dynamic_update_slice(cache.value, x[:, 0, 0][None, None], (wi % rows, wj + left, 0, 0))
        cache.value = value
        parts = []
        for di in sorted({di for di, _ in self.taps}):
            of_row = [dj for d, dj in self.taps if d == di]
            size = (1, len(of_row), *value.shape[2:])
            window = jax.lax.dynamic_slice(value, ((i + di) % rows, j + left + min(of_row), 0, 0), size)[0]
            parts += [window[n] for n in range(len(of_row))]
        return jnp.concatenate(parts, -1)[:, None, None]  # [B, 1, 1, taps C]

    def _row(self, x: Array, place: tuple[Array, Array]) -> Array:
        cache, left, rows = self._cache(x)
        i = place[0]
        slot = (i - 1 if self.exclude_self else i) % rows
        value = jax.lax.dynamic_update_slice(cache.value, x[:, 0].swapaxes(0, 1)[None], (slot, left, 0, 0))
        cache.value = value
        parts = []
        for di, dj in self.taps:
            row = jax.lax.dynamic_index_in_dim(value, (i + di) % rows, keepdims=False)
            parts.append(row[left + dj : left + dj + self.width])
        return jnp.concatenate(parts, -1).swapaxes(0, 1)[:, None]  # [B, 1, W, taps C]


def shifted(x: Array, taps: tuple[tuple[int, int], ...]) -> Array:
    """Pictures x [B, H, W, C] shifted by each tap, zero beyond the border, side by side: [B, H, W, taps C]."""
    _, height, width, _ = x.shape
    up = -min(di for di, _ in taps)
    left, right = max(0, -min(dj for _, dj in taps)), max(0, max(dj for _, dj in taps))
    padded = jnp.pad(x, ((0, 0), (up, 0), (left, right), (0, 0)))
    windows = [padded[:, up + di : up + di + height, left + dj : left + dj + width] for di, dj in taps]
    return jnp.concatenate(windows, -1)


def allows_minimal_filtering(x: Array, taps: tuple[tuple[int, int], ...]) -> bool:
    """Whether `minimal_filtering` computes these taps, and is the faster way."""
    # With few channels the sums before and after the products take longer than the saved products.
    worthwhile = prefers_matrix_products() and x.dtype == jnp.float32 and x.shape[-1] >= 16
    return worthwhile and x.shape[2] % 2 == 0 and taps == vertical_taps(len(taps) // 3, 3)


def minimal_filtering(x: Array, kernel: Array) -> Array:
    """Convolution over `vertical_taps(rows, 3)` by F(2, 3) of Winograd (Lavin & Gray 2016, arXiv:1509.09308, section
    4.1).

    Of each row of taps w and four neighbouring pixels d, the outputs at the two in the middle are

        y_1 = m_1 + m_2 + m_3,    y_2 = m_2 - m_3 - m_4    with    m_1 = (d_1 - d_3) w_1,  m_4 = (d_2 - d_4) w_3,
        m_2 = (d_2 + d_3) (w_1 + w_2 + w_3) / 2,    m_3 = (d_3 - d_2) (w_1 - w_2 + w_3) / 2

    Args:
      x: pictures [B, H, W, C] with an even width.
      kernel: [rows * 3 * C, F].

    Returns:
      [B, H, W, F].
    """
    batch, height, width, channels = x.shape
    rows = kernel.shape[0] // (3 * channels)
    w1, w2, w3 = jnp.moveaxis(kernel.reshape(rows, 3, channels, -1), 1, 0)
    padded = jnp.pad(x, ((0, 0), (rows - 1, 0), (1, 1), (0, 0)))
    pairs = padded.reshape(batch, height + rows - 1, width // 2 + 1, 2, channels)
    odd, even = (half.squeeze(3) for half in jnp.split(pairs, 2, axis=3))
    d1, d2, d3, d4 = odd[:, :, :-1], even[:, :, :-1], odd[:, :, 1:], even[:, :, 1:]

    def product(d: Array, w: Array) -> Array:
        shifted_rows = jnp.concatenate([d[:, r : r + height] for r in range(rows)], axis=-1)
        return tall_product(shifted_rows, w.reshape(rows * channels, -1))

    m1, m4 = product(d1 - d3, w1), product(d2 - d4, w3)
    m2, m3 = product(d2 + d3, 0.5 * (w1 + w2 + w3)), product(d3 - d2, 0.5 * (w1 - w2 + w3))
    return jnp.stack([m1 + m2 + m3, m2 - m3 - m4], axis=3).reshape(batch, height, width, -1)
