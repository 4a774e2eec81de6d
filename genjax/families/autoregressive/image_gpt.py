"""An image transformer in the manner of ImageGPT (Chen et al. 2020, "Generative pretraining from pixels").

A causal transformer over pixels in raster order.  The input at place t is the pixel before it, so that

    h_t = transformer(start, x_1, ..., x_{t-1})_t + position_t,    p(x_t | x_<t) from h_t

To sample, keys and values of the pixels so far are kept (genjax/nn/attention.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.autoregressive.images import ImageModel
from genjax.nn.causal_conv import Mode
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import Transformer, TransformerStack


class ImageGPTTrunk(nn.Module):
    """x [B, H, W, C] -> features [B, H, W, F] from earlier pixels, whole or stepwise."""

    config: ImageGPT
    mode: Mode

    @nn.compact
    def __call__(
        self, x: Array, context: None, condition: Array | None, place: Any, keys: Array | None = None
    ) -> Array:
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        height, width, _ = config.shape()
        length, features = height * width, config.transformer.width
        std = nn.initializers.normal(0.02)
        embed = nn.Dense(features, dtype=dtype, name="pixel")
        start = self.param("start", std, (features,)).astype(dtype)
        positions = self.param("position", std, (length, features)).astype(dtype)
        stack = TransformerStack(config.transformer, dtype, name="stack")
        shift = None
        if condition is not None:
            shift = nn.Dense(features, use_bias=False, dtype=dtype, name="condition")(condition)[:, None]
        size = x.shape[0]
        if self.mode == "full":
            h = embed(x.reshape(size, length, -1))
            h = jnp.concatenate([jnp.broadcast_to(start[None, None], (size, 1, features)), h[:, :-1]], axis=1)
            h = h + positions[None]
            h = stack(h if shift is None else h + shift, dropout_keys=keys).x
            return h.reshape(size, height, width, features)
        cache = self.variable("cache", "transformer", config.transformer.init_cache, size, length, dtype)
        index = place[0] * width + place[1]
        h = jnp.where(index == 0, start[None, None], embed(x.reshape(size, 1, -1)))
        h = h + positions[index][None, None]
        # The place tells how much of the cache is filled, so that a used cache can serve as a fresh one.
        before = cache.value.replace(length=index.astype(jnp.int32))
        out = stack(h if shift is None else h + shift, cache=before)
        cache.value = out.cache
        return out.x[:, :, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageGPT(ImageModel):
    """A causal transformer over pixels.

    Attributes:
      transformer: the stack; its own positions are switched off, as learned positions of the pixels are added.
    """

    transformer: Transformer = Transformer(num_layers=8, width=64, num_heads=2, positions="none")

    def dropout_rate(self) -> float:
        return self.transformer.dropout

    def networks(self, mode: Mode | None = None) -> tuple[None, nn.Module]:
        if not self.transformer.causal or self.transformer.positions == "learned":
            raise UserError(
                "an image transformer needs transformer.causal=true and transformer.positions other than learned"
            )
        refuse_experts(self.transformer.experts)
        return None, ImageGPTTrunk(self, mode or "full")
