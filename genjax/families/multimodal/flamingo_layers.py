"""The parts that Flamingo adds to a language model (Alayrac et al. 2022, arXiv:2204.14198, section 2, appendix A.1).

    resampler  l <- l + attention(q = LN l, kv = [LN f + time, LN l]),   l <- l + mlp(LN l),   norm at the end
    gated      x <- x + tanh(a) cross(norm x, l),   x <- x + tanh(b) mlp(norm x)

The gates a and b are 0 at the start, or another number for a model that learns from nothing.
f are the features of a picture, or of the frames of a film, l a few learned latents that become the picture.  No linear
map has a bias.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn.attention import Attention, KVCache
from genjax.nn.transformer import FeedForward, Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampler:
    """Configuration of a Perceiver resampler.

    Attributes:
      num_latents: number R of vectors that a picture becomes.
      num_layers: number of layers.
      num_heads: heads of attention.
      head_dim: features of a head, None for width / num_heads.
      mlp_dim: features of the hidden layers, None for 4 width.
      activation: non-linearity of the hidden layers.
      num_frames: largest number of frames of a film, each with a learned embedding; 0 for pictures alone.
    """

    num_latents: int = 64
    num_layers: int = 6
    num_heads: int = 8
    head_dim: int | None = None
    mlp_dim: int | None = None
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    num_frames: int = 0

    def __post_init__(self) -> None:
        for field in ("num_latents", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise UserError(f"model.resampler.{field}={getattr(self, field)} must be at least 1")


def _norm(name: str, dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)


class PerceiverResampler(nn.Module):
    """Features of pictures as a fixed number of vectors.

    Attributes:
      config: the resampler.
      dtype: compute type; parameters stay float32.
    """

    config: Resampler
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Features [B, F, V, C] of F frames (1 of a picture) -> [B, R, C].

        Raises:
          UserError: there are more frames than embeddings of them.
        """
        config, (batch, frames, places, width) = self.config, features.shape
        features = features.astype(self.dtype)
        if config.num_frames:
            if frames > config.num_frames:
                raise UserError(
                    f"films of {frames} frames are longer than model.resampler.num_frames={config.num_frames}"
                )
            times = self.param("times", nn.initializers.normal(1.0), (config.num_frames, width))
            features = features + times[None, :frames, None].astype(self.dtype)
        elif frames > 1:
            raise UserError(f"films of {frames} frames need model.resampler.num_frames, which is 0")
        features = features.reshape(batch, frames * places, width)
        latents = self.param("latents", nn.initializers.normal(1.0), (config.num_latents, width))
        latents = jnp.broadcast_to(latents[None].astype(self.dtype), (batch, *latents.shape))
        block = Transformer(
            width=width,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            mlp_dim=config.mlp_dim,
            activation=config.activation,
            use_bias=False,
        )
        for i in range(config.num_layers):
            own = _norm(f"latents_norm_{i}", self.dtype)(latents)
            seen = jnp.concatenate([_norm(f"features_norm_{i}", self.dtype)(features), own], axis=1)
            attention = Attention(
                config.num_heads,
                head_dim=config.head_dim,
                qkv_bias=False,
                output_bias=False,
                cross=True,
                dtype=self.dtype,
                init_std=block.init_std,
                name=f"attention_{i}",
            )
            latents = latents + attention(own, seen)[0]
            hidden = _norm(f"mlp_norm_{i}", self.dtype)(latents)
            latents = latents + FeedForward(block, self.dtype, name=f"mlp_{i}")(hidden)
        return _norm("final_norm", self.dtype)(latents)


class GatedBlock(nn.Module):
    """Cross-attention to pictures and a hidden layer, which do nothing while their gates are 0.

    Attributes:
      config: the language model's stack: heads, hidden layer, norm and activation.
      num_latents: number R of vectors of a picture.
      initial_gate: the gates before tanh at the start.
      dtype: compute type; parameters stay float32.
    """

    config: Transformer
    num_latents: int
    initial_gate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, pictures: Array | None, number: Array, cache: KVCache | None = None
    ) -> tuple[Array, KVCache]:
        """Runs the block.

        Args:
          x: the text's features, [B, T, C].
          pictures: resampled pictures, [B, N, R, C']; None if the cache has their keys and values.
          number: which picture each place of the text sees, [B, T]: 1 .. N, or another number for none, which adds
            exactly 0.
          cache: keys and values of all pictures in this block.

        Returns:
          The text's features, and the keys and values.
        """
        config = dataclasses.replace(self.config, use_bias=False)

        def norm(name: str) -> nn.Module:
            if config.norm == "rms":
                return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=self.dtype, name=name)
            return nn.LayerNorm(epsilon=config.norm_epsilon, dtype=self.dtype, use_fast_variance=False, name=name)

        def gated(name: str, x: Array) -> Array:
            gate = self.param(name, nn.initializers.constant(self.initial_gate), (1,))
            return jnp.tanh(gate.astype(self.dtype))[None, None] * x

        keys = None
        if pictures is not None:
            keys = pictures.reshape(pictures.shape[0], -1, pictures.shape[-1])
        num_keys = cache.keys.shape[2] if keys is None else keys.shape[1]
        numbers = 1 + jnp.arange(num_keys)[None] // self.num_latents  # of each key's picture, [1, S]
        seen = (number >= 1) & (number <= num_keys // self.num_latents)
        found, cache, _ = Attention(
            config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.size_of_head,
            qkv_bias=False,
            output_bias=False,
            cross=True,
            dtype=self.dtype,
            init_std=config.init_std,
            output_init_std=config.residual_init_std,
            name="cross_attention",
        )(
            norm("cross_attention_norm")(x),
            keys,
            segment_ids=number,
            key_segment_ids=jnp.broadcast_to(numbers, (x.shape[0], num_keys)),
            cache=cache,
        )
        # Who sees no key gets the mean of all values from attention.
        x = x + gated("cross_attention_gate", jnp.where(seen[..., None], found, 0.0))
        hidden = FeedForward(config, self.dtype, name="mlp")(norm("mlp_norm")(x))
        return x + gated("mlp_gate", hidden), cache
