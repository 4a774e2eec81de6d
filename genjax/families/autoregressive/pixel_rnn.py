"""PixelRNN with diagonal bidirectional LSTMs (van den Oord, Kalchbrenner & Kavukcuoglu 2016,
arXiv:1601.06759, section 3.2).

A 7 x 7 convolution that leaves out the present pixel, then residual layers, each with an LSTM that goes from the left

    o, f, i = sigmoid, g = tanh of  W x[i, j] + U h[i, j - 1] + V h[i - 1, j] + b
    c[i, j] = f c[i, j - 1] + i g,      h[i, j] = o tanh(c[i, j])

and its mirror image from the right, r.  The layer is x <- x + W_r (h[i, j] + r[i - 1, j]): r is taken
from the row above, so that no pixel sees itself or a later pixel.  Every pixel sees all pixels before it, except the
last pixel of the row above where the convolution does not reach it.

A whole picture is computed diagonal by diagonal: row i is moved to the right by i, so that both neighbours of a pixel
lie in the column before its own (figure 3).  To sample, both LSTMs run over each complete row, for the row below; the
LSTM from the left also runs pixel by pixel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.families.autoregressive.images import ImageModel
from genjax.nn.causal_conv import CausalConv, Mode, raster_taps


def skew(x: Array) -> Array:
    """Moves row i of pictures [B, H, W, C] to the right by i: [B, H, W + H - 1, C], zeros around."""
    batch, height, width, channels = x.shape
    longer = jnp.pad(x, ((0, 0), (0, 0), (0, height), (0, 0))).reshape(batch, height * (width + height), channels)
    return longer[:, :-height].reshape(batch, height, width + height - 1, channels)


def unskew(x: Array) -> Array:
    """The inverse of `skew`."""
    batch, height, columns, channels = x.shape
    longer = jnp.pad(x.reshape(batch, height * columns, channels), ((0, 0), (0, height), (0, 0)))
    return longer.reshape(batch, height, columns + 1, channels)[:, :, : columns + 1 - height]


class DiagonalLSTM(nn.Module):
    """The LSTM from the left.

    Attributes:
      features: number F of its units.
      mode: "full" pictures, or stepwise by "row" or "pixel".
      dtype: compute type.
    """

    features: int
    mode: Mode
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, above: Array | None = None, place: tuple[Array, Array] | None = None) -> Array:
        """x [B, H, W, C] to h [B, H, W, F]; stepwise with `above`, h of the row above, [B, 1, W, F] or [B, 1, 1, F]."""
        size, init = self.features, nn.initializers.lecun_normal()
        left = self.param("left", init, (size, 4 * size)).astype(self.dtype)
        upper = self.param("above", init, (size, 4 * size)).astype(self.dtype)
        inputs = nn.Dense(4 * size, dtype=self.dtype, name="input")(x)

        def cell(carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
            h, c = carry
            o, f, i, g = jnp.split(inputs + h @ left, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        batch, height, _, _ = x.shape
        if self.mode == "full":

            def column(carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
                # Zero inputs keep a zero state, so that the padding beside a row does not matter.
                row_above = jnp.pad(carry[0], ((0, 0), (1, 0), (0, 0)))[:, :-1]
                return cell(carry, inputs + row_above @ upper)

            start = (jnp.zeros((batch, height, size), inputs.dtype),) * 2
            _, h = jax.lax.scan(column, start, jnp.moveaxis(skew(inputs), 2, 0))
            return unskew(jnp.moveaxis(h, 0, 2))
        inputs = (inputs + above @ upper)[:, 0]
        if self.mode == "row":
            start = (jnp.zeros((batch, size), inputs.dtype),) * 2
            _, h = jax.lax.scan(cell, start, inputs.swapaxes(0, 1))
            return h.swapaxes(0, 1)[:, None]
        state = self.variable("cache", "state", jnp.zeros, (2, batch, size), inputs.dtype)
        before = jnp.where(place[1] == 0, 0.0, state.value).astype(inputs.dtype)
        (h, c), _ = cell((before[0], before[1]), inputs[:, 0])
        state.value = jnp.stack([h, c])
        return h[:, None, None]


class PixelRNNTrunk(nn.Module):
    """x [B, H, W, C] -> features [B, H, W, F] from earlier pixels, whole or pixel by pixel.

    Pixel by pixel, `context` has for each layer what `PixelRNNRow` returns.
    """

    config: PixelRNN
    mode: Mode

    @nn.compact
    def layers(self, x: Array, context: Any, condition: Array | None, place: Any) -> tuple[Array, tuple[Any, ...]]:
        """Features; in "row" mode, h and r of each layer for the next row."""
        config, mode, told = self.config, self.mode, []
        size, dtype = config.hidden_dim, jnp.dtype(config.compute_dtype)
        # In "row" mode, x is the row above `place`.
        at = (place[0] - 1, place[1]) if mode == "row" else place
        taps = raster_taps(config.first_size, exclude_self=True)
        first = CausalConv(2 * size, taps, config.shape()[1], mode, mode != "row", dtype=dtype, name="first")
        x = first(x, at)
        if condition is not None:
            x = x + nn.Dense(2 * size, use_bias=False, dtype=dtype, name="condition")(condition)[:, None, None]
        for n in range(config.num_layers):
            left = DiagonalLSTM(size, mode, dtype, name=f"left_{n}")
            right = None if mode == "pixel" else DiagonalLSTM(size, mode, dtype, name=f"right_{n}")
            if mode == "full":
                h = left(x)
                from_right = right(x[:, :, ::-1])[:, :, ::-1]
                r = jnp.pad(from_right, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
            elif mode == "pixel":
                above, r = context[n]
                h = left(x, above, place)
            else:
                shape = (2, *x.shape[:-1], size)
                kept = self.variable("cache", f"row_{n}", jnp.zeros, shape, dtype)
                above, r = kept.value
                h = left(x, above)
                # There is nothing above the first row.
                after = jnp.stack([h, right(x[:, :, ::-1], r[:, :, ::-1])[:, :, ::-1]])
                kept.value = jnp.where(place[0] > 0, after, 0.0).astype(dtype)
                told.append((kept.value[0], kept.value[1]))
            x = x + nn.Dense(2 * size, dtype=dtype, name=f"out_{n}")(h + r)
        return nn.Dense(config.output_dim, dtype=dtype, name="last")(nn.relu(x)), tuple(told)

    def __call__(self, x: Array, context: Any, condition: Array | None, place: Any) -> Array:
        return self.layers(x, context, condition, place)[0]


class PixelRNNRow(PixelRNNTrunk):
    """The row [B, 1, W, C] above `place` -> h and r of each layer in it, each [B, 1, W, F]; zeros
    above the first row.
    """

    def __call__(self, x: Array, condition: Array | None, place: Any) -> tuple[Any, ...]:
        return self.layers(x, None, condition, place)[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelRNN(ImageModel):
    """Residual layers of diagonal bidirectional LSTMs.

    Attributes:
      hidden_dim: units F of each LSTM; the residual stream has 2F features.
      num_layers: number of residual layers.
      first_size: height and width of the first convolution.
      output_dim: number of features of the last hidden layer.
    """

    hidden_dim: int = 16
    num_layers: int = 7
    first_size: int = 7
    output_dim: int = 32

    def networks(self, mode: Mode | None = None) -> tuple[nn.Module | None, nn.Module]:
        if mode in (None, "full"):
            return None, PixelRNNTrunk(self, "full")
        return PixelRNNRow(self, "row"), PixelRNNTrunk(self, "pixel")
