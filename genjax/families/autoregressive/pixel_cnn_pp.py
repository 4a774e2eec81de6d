"""PixelCNN++ (Salimans et al. 2017, arXiv:1701.05517): mixtures of logistics, and shortcuts across resolutions.

Two streams, u from the rows above and l from the pixels to the left and u, through gated residual blocks

    x <- x + a sigmoid(b),   (a, b) = conv(drop(celu(conv(celu(x)) + W celu(aux)))),   celu(x) = elu([x, -x])

whose convolutions are 2 x 3 in u and 2 x 2 in l.  A first pass halves height and width between levels, a second doubles
them again, and each of its blocks takes the first pass's block of the same place as aux (figure 2).

Unlike in the paper, doubling is a 1 x 1 convolution followed by depth-to-space, blocks have no weight normalisation,
and l is started from u.  The value of a level of half size at (I, J) is made at pixel
(2I, 2J); the four pixels that use it come later in raster order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.autoregressive.images import ImageModel
from genjax.nn.causal_conv import CausalConv, Mode, corner_taps, horizontal_taps, vertical_taps
from genjax.nn.distributions import Bernoulli, Categorical
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.logistic_mixture import DiscretizedLogisticMixture


def celu(x: Array) -> Array:
    """elu of x and of -x, side by side."""
    return nn.elu(jnp.concatenate([x, -x], -1))


class GatedBlock(nn.Module):
    """A gated residual block over the given taps."""

    taps: tuple[tuple[int, int], ...]
    width: int
    mode: Mode
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, aux: Array | None, condition: Array | None, place: Any, keys: Array | None) -> Array:
        features = x.shape[-1]
        conv = lambda name, n: CausalConv(n, self.taps, self.width, self.mode, dtype=self.dtype, name=name)
        r = conv("in", features)(celu(x), place)
        if aux is not None:
            r = r + nn.Dense(features, use_bias=False, dtype=self.dtype, name="aux")(celu(aux))
        r = conv("out", 2 * features)(dropout(celu(r), self.dropout, keys), place)
        if condition is not None:
            r = r + nn.Dense(2 * features, use_bias=False, dtype=self.dtype, name="condition")(condition)[:, None, None]
        a, b = jnp.split(r, 2, axis=-1)
        return x + a * jax.nn.sigmoid(b)


class Halve(nn.Module):
    """A convolution of stride 2, whose output at (I, J) ends at (2I, 2J); stepwise, an output is kept until the next
    one."""

    taps: tuple[tuple[int, int], ...]
    width: int
    mode: Mode
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, place: Any) -> Array:
        conv = CausalConv(x.shape[-1], self.taps, self.width, self.mode, dtype=self.dtype, name="conv")
        y = conv(x, place)
        if self.mode == "full":
            return y[:, ::2, ::2]
        kept = self.variable("cache", "kept", jnp.zeros, (y.shape[0], 1, self.width // 2, y.shape[-1]), self.dtype)
        i, j = place
        if self.mode == "row":
            kept.value = jnp.where(i % 2 == 0, y[:, :, ::2], kept.value)
            return kept.value
        old = jax.lax.dynamic_slice_in_dim(kept.value, j // 2, 1, axis=2)
        new = jnp.where((i % 2 == 0) & (j % 2 == 0), y, old)
        kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, new, j // 2, axis=2)
        return new


class Double(nn.Module):
    """A 1 x 1 convolution and depth-to-space."""

    mode: Mode
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, place: Any) -> Array:
        size, height, width, features = x.shape
        y = nn.Dense(4 * features, dtype=self.dtype, name="conv")(x).reshape(size, height, width, 2, 2, features)
        if self.mode == "full":
            return y.transpose(0, 1, 3, 2, 4, 5).reshape(size, 2 * height, 2 * width, features)
        i, j = place
        y = jnp.take(y, i % 2, axis=3)  # [B, 1, w, 2, F]
        if self.mode == "row":
            return y.reshape(size, 1, 2 * width, features)
        return jnp.take(y, j % 2, axis=3)


class Stream(nn.Module):
    """One of the two streams: u (with `context` None) from x, or l from x and the outputs of u's layers.

    The output of u is a tuple with the features of each layer in order; the output of l is its last features.
    """

    config: PixelCNNPP
    mode: Mode

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: tuple[Array, ...] | None,
        condition: Array | None,
        place: Any,
        keys: Array | None = None,
    ) -> Any:
        config, dtype, mode = self.config, jnp.dtype(self.config.compute_dtype), self.mode
        width, vertical = config.shape()[1], context is None
        taps = vertical_taps(2, 3) if vertical else corner_taps(2, 2)
        told = iter(context or ())
        keys = fold_in(keys, 0 if vertical else 1)
        outputs: list[Array] = []

        def at(level: int) -> Any:
            return None if place is None else tuple(p // 2**level for p in place)

        def block(name: str, h: Array, level: int, skip: Array | None) -> Array:
            aux = [a for a in (None if vertical else next(told), skip) if a is not None]
            aux = jnp.concatenate(aux, -1) if aux else None
            module = GatedBlock(taps, width // 2**level, mode, config.dropout, dtype, name=name)
            outputs.append(module(h, aux, condition, at(level), fold_in(keys, len(outputs))))
            return outputs[-1]

        if vertical:
            first = CausalConv(
                config.hidden_dim, vertical_taps(2, 3, True), width, mode, True, dtype=dtype, name="first"
            )
            h = first(x, place)
            outputs.append(h)
        else:
            first = CausalConv(
                config.hidden_dim, horizontal_taps(2, True), width, mode, True, dtype=dtype, name="first"
            )
            h = first(x, place) + nn.Dense(config.hidden_dim, dtype=dtype, name="link")(next(told))
        skips = []
        for level in range(config.num_levels):
            for n in range(config.num_blocks):
                h = block(f"first_{level}_{n}", h, level, None)
                skips.append(h)
            if level < config.num_levels - 1:
                h = Halve(taps, width // 2**level, mode, dtype, name=f"halve_{level}")(h, at(level))
        for level in reversed(range(config.num_levels)):
            for n in range(config.num_blocks):
                h = block(f"second_{level}_{n}", h, level, skips.pop())
            if level:
                h = Double(mode, dtype, name=f"double_{level}")(h, at(level - 1))
        return tuple(outputs) if vertical else nn.elu(h)


class Rows(nn.Module):
    """Stream u with the arguments of a row module."""

    config: PixelCNNPP
    mode: Mode

    @nn.compact
    def __call__(self, x: Array, condition: Array | None, place: Any, keys: Array | None = None) -> tuple[Array, ...]:
        return Stream(self.config, self.mode, name="stream")(x, None, condition, place, keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelCNNPP(ImageModel):
    """Two streams over several resolutions.

    Attributes:
      hidden_dim: features of each stream.
      num_blocks: number of residual blocks of each level, in each of the two passes.
      num_levels: number of resolutions, each half of the one before.
      dropout: probability of dropping a unit between the convolutions of a block.
    """

    output: Bernoulli | Categorical | DiscretizedLogisticMixture = DiscretizedLogisticMixture()
    hidden_dim: int = 160
    num_blocks: int = 5
    num_levels: int = 3
    dropout: float = 0.5

    def dropout_rate(self) -> float:
        return self.dropout

    def shape(self) -> tuple[int, ...]:
        shape = super().shape()
        factor = 2 ** (self.num_levels - 1)
        if shape[0] % factor or shape[1] % factor:
            raise UserError(
                f"num_levels={self.num_levels} halves height and width {self.num_levels - 1} times, "
                f"which {shape[:2]} does not allow: pad to multiples of {factor} (data.pad_to) or lower "
                "model.num_levels"
            )
        return shape

    def networks(self, mode: Mode | None = None) -> tuple[nn.Module, nn.Module]:
        if mode in (None, "full"):
            return Rows(self, "full"), Stream(self, "full")
        return Rows(self, "row"), Stream(self, "pixel")
