"""Pictures as sequences of patches for a transformer stack (ViT, Dosovitskiy et al. 2021, eq. 1-4).

z_0 = [class; x_1 E; ...; x_N E] + positions,   z_L = stack(z_0),   y = norm(z_L[0])

Without a class token the features may be pooled by attention of one learned probe (Zhai et al. 2022, arXiv:2106.04560,
section 3.3), as SigLIP does.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn.attention import Attention
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import FeedForward, Transformer, TransformerStack


class VisionTransformer(nn.Module):
    """Patches, a class token if there is one, learned positions and a stack.

    Attributes:
      config: the stack; if its norms stand before the sublayers, a norm follows the output too.
      patch_size: height and width P of a patch.
      input_norm: a norm before the first block (CLIP).
      class_token: whether a learned token stands before the patches.
      patch_bias: whether the map of patches has a bias (SigLIP).
      dtype: compute type; parameters stay float32.
    """

    config: Transformer
    patch_size: int
    input_norm: bool = False
    class_token: bool = True
    patch_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, H, W, C] -> features of the class token (if there is one) and the patches, [B, 1 + N, width].

        Raises:
          UserError: the patches do not divide the pictures.
        """
        config, size = self.config, self.patch_size
        batch, height, width, channels = x.shape
        if height % size or width % size:
            raise UserError(
                f"patch_size={size} does not divide pictures of {height} x {width}; give a number that divides both "
                "sides, or other pictures by data.image_size"
            )
        rows, columns = height // size, width // size
        patches = x.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
        init = nn.initializers.normal(config.init_std or 0.02)
        kernel = self.param("patch", init, (size, size, channels, config.width)).astype(self.dtype)
        tokens = jnp.einsum("brcpqi,pqio->brco", patches.astype(self.dtype), kernel)
        tokens = tokens.reshape(batch, rows * columns, config.width)
        if self.patch_bias:
            bias = self.param("patch_bias", nn.initializers.zeros, (config.width,))
            tokens = tokens + bias.astype(self.dtype)[None, None]
        if self.class_token:
            first = self.param("class", init, (config.width,)).astype(self.dtype)
            first = jnp.broadcast_to(first[None, None], (batch, 1, config.width))
            tokens = jnp.concatenate([first, tokens], axis=1)
        table = nn.Embed(tokens.shape[1], config.width, embedding_init=init, name="position").embedding
        tokens = tokens + table.astype(self.dtype)[None]
        if self.input_norm:
            norm = nn.LayerNorm(
                epsilon=config.norm_epsilon, dtype=self.dtype, use_fast_variance=False, name="input_norm"
            )
            tokens = norm(tokens)
        refuse_experts(config.experts)
        return TransformerStack(config, self.dtype, name="stack")(tokens, dropout_keys=dropout_keys).x


class AttentionPooling(nn.Module):
    """One learned probe attends to all features; a hidden layer follows: [B, N, C] -> [B, C].

    Attributes:
      config: the stack that made the features, for heads, hidden layer, norm and activation.
      dtype: compute type.
    """

    config: Transformer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> Array:
        config = self.config
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, config.width)).astype(self.dtype)
        probe = jnp.broadcast_to(probe, (features.shape[0], 1, config.width))
        attention = Attention(config.num_heads, cross=True, dtype=self.dtype, name="attention")
        pooled = attention(probe, features.astype(self.dtype))[0]
        norm = nn.LayerNorm(epsilon=config.norm_epsilon, dtype=self.dtype, use_fast_variance=False, name="norm")
        return (pooled + FeedForward(config, self.dtype, name="mlp")(norm(pooled)))[:, 0]
