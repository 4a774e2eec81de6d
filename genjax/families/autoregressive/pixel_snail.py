"""PixelSNAIL (Chen et al. 2018, arXiv:1712.09763): gated residual blocks with causal attention between.

A convolution with mask A, then blocks.  In each block, from the input x at all pixels so far,

    residual   h <- h + a sigmoid(b),  (a, b) = conv_2x2(drop(elu(conv_2x2(elu(h)))))  num_residual times
    attention  r = softmax(q(h) k([s, f, h])^T) v([s, f, h])                         over the pixel and all before
    out        h <- h + elu(W_h elu(h) + W_r elu(r))

s at a pixel is the value of the previous pixel in raster order, and f is the output of the first convolution.  All
features at a pixel are thus made of earlier pixels, so that attention may look at the present place.  By s, attention
reaches every earlier pixel; convolutions alone miss the last pixel of the row above.  Pixels know their place by two
channels with their coordinates.

Unlike in the paper, two 2 x 2 convolutions (rather than a raster with both sides) widen the view to the left and above
only, attention looks at s up to the present place (which holds the same pixels as the picture strictly before it), and
q, k, v and the way out are affine maps (rather than 1 x 1 gated residual blocks).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.families.autoregressive.images import ImageModel
from genjax.nn.causal_conv import CausalConv, Mode, corner_taps, raster_taps
from genjax.nn.dropout import dropout, fold_in


def previous_pixels(x: Array) -> Array:
    """At each pixel of x [B, H, W, C], the previous pixel in raster order; zeros at the first pixel."""
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.pad(pixels, ((0, 0), (1, 0), (0, 0)))[:, :-1].reshape(x.shape)


class CausalAttention(nn.Module):
    """Attention of each pixel's query to keys of it and all pixels before it, whole or a pixel at a time."""

    config: PixelSNAIL
    mode: Mode

    @nn.compact
    def __call__(self, query: Array, memory: Array, place: Any) -> Array:
        """query [B, h, w, E], memory [B, h, w, E'] -> [B, h, w, heads * value_dim]."""
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        size, height, width = query.shape[:3]
        heads, key_dim, value_dim = config.num_heads, config.key_dim, config.value_dim
        dense = lambda name, dim, a: nn.Dense(heads * dim, dtype=dtype, name=name)(a).reshape(size, -1, heads, dim)
        q, k, v = dense("query", key_dim, query), dense("key", key_dim, memory), dense("value", value_dim, memory)
        length = config.shape()[0] * config.shape()[1]
        if self.mode == "full":
            mask = jnp.tril(jnp.ones((length, length), bool))
        else:
            keys = self.variable("cache", "keys", jnp.zeros, (size, length, heads, key_dim), dtype)
            values = self.variable("cache", "values", jnp.zeros, (size, length, heads, value_dim), dtype)
            index = place[0] * config.shape()[1] + place[1]
            keys.value = jax.lax.dynamic_update_slice(keys.value, k, (0, index, 0, 0))
            values.value = jax.lax.dynamic_update_slice(values.value, v, (0, index, 0, 0))
            k, v, mask = keys.value, values.value, (jnp.arange(length) <= index)[None]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * key_dim**-0.5
        weights = jax.nn.softmax(jnp.where(mask[None, None], logits, -1e30)).astype(dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(size, height, width, heads * value_dim)


class PixelSNAILTrunk(nn.Module):
    """x [B, H, W, C] -> features [B, H, W, F] from earlier pixels, whole or stepwise."""

    config: PixelSNAIL
    mode: Mode

    @nn.compact
    def __call__(
        self, x: Array, context: None, condition: Array | None, place: Any, keys: Array | None = None
    ) -> Array:
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        height, width, _ = config.shape()
        common = {"width": width, "mode": self.mode, "dtype": dtype}
        taps = corner_taps(2, 2)
        if self.mode == "full":
            i, j = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
        else:
            i, j = (p[None, None] for p in place)
        coordinates = jnp.stack([i / height - 0.5, j / width - 0.5], -1).astype(dtype)[None]
        coordinates = jnp.broadcast_to(coordinates, (*x.shape[:3], 2))
        first = raster_taps(config.first_size, exclude_self=True)
        h = CausalConv(config.hidden_dim, first, exclude_self=True, name="first", **common)(x, place)
        # In a stepwise mode, x is already the previous pixel.
        before = previous_pixels(x) if self.mode == "full" else x
        inputs = jnp.concatenate([before.astype(dtype), h], -1)
        for n in range(config.num_blocks):
            for m in range(config.num_residual):
                r = CausalConv(config.hidden_dim, taps, name=f"conv_{n}_{m}_0", **common)(nn.elu(h), place)
                if condition is not None:
                    dense = nn.Dense(config.hidden_dim, use_bias=False, dtype=dtype, name=f"condition_{n}_{m}")
                    r = r + dense(condition)[:, None, None]
                r = dropout(nn.elu(r), config.dropout, fold_in(keys, n * config.num_residual + m))
                r = CausalConv(2 * config.hidden_dim, taps, name=f"conv_{n}_{m}_1", **common)(r, place)
                a, b = jnp.split(r, 2, axis=-1)
                h = h + a * jax.nn.sigmoid(b)
            query, memory = jnp.concatenate([h, coordinates], -1), jnp.concatenate([inputs, h, coordinates], -1)
            r = CausalAttention(config, self.mode, name=f"attention_{n}")(query, memory, place)
            dense = lambda name, a: nn.Dense(config.hidden_dim, dtype=dtype, name=name)(nn.elu(a))
            h = h + nn.elu(dense(f"out_{n}", h) + dense(f"attended_{n}", r))
        return nn.Dense(config.output_dim, dtype=dtype, name="last")(nn.elu(h))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelSNAIL(ImageModel):
    """Gated residual convolutions and causal attention.

    Attributes:
      hidden_dim: features of every layer.
      num_blocks: number of blocks, each with one attention.
      num_residual: residual layers in each block.
      first_size: height and width of the first convolution.
      num_heads: heads of attention.
      key_dim: features of a key.
      value_dim: features of a value.
      output_dim: number of features of the last hidden layer.
      dropout: probability of dropping a unit between the convolutions of a residual layer.
    """

    hidden_dim: int = 64
    num_blocks: int = 8
    num_residual: int = 2
    first_size: int = 3
    num_heads: int = 1
    key_dim: int = 16
    value_dim: int = 32
    output_dim: int = 64
    dropout: float = 0.0

    def dropout_rate(self) -> float:
        return self.dropout

    def networks(self, mode: Mode | None = None) -> tuple[None, nn.Module]:
        return None, PixelSNAILTrunk(self, mode or "full")
