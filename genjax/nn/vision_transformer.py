"""Pictures as sequences of patches for a transformer stack (ViT, Dosovitskiy et al. 2021, eq. 1-4).

z_0 = [class; x_1 E; ...; x_N E] + positions,   z_L = stack(z_0),   y = norm(z_L[0])
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import Transformer, TransformerStack


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions and a stack.

    Attributes:
      config: the stack; if its norms stand before the sublayers, a norm follows the output too.
      patch_size: height and width P of a patch.
      input_norm: a norm before the first block (CLIP).
      dtype: compute type; parameters stay float32.
    """

    config: Transformer
    patch_size: int
    input_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, H, W, C] -> features of the class token and the patches, [B, 1 + N, width].

        Raises:
          UserError: the patches do not divide the pictures.
        """
        config, size = self.config, self.patch_size
        batch, height, width, channels = x.shape
        if height % size or width % size:
            raise UserError(f"patches of {size} x {size} do not divide pictures of {height} x {width}")
        rows, columns = height // size, width // size
        patches = x.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
        init = nn.initializers.normal(config.init_std or 0.02)
        kernel = self.param("patch", init, (size, size, channels, config.width)).astype(self.dtype)
        tokens = jnp.einsum("brcpqi,pqio->brco", patches.astype(self.dtype), kernel)
        first = self.param("class", init, (config.width,)).astype(self.dtype)
        first = jnp.broadcast_to(first[None, None], (batch, 1, config.width))
        tokens = jnp.concatenate([first, tokens.reshape(batch, rows * columns, config.width)], axis=1)
        table = nn.Embed(1 + rows * columns, config.width, embedding_init=init, name="position").embedding
        tokens = tokens + table.astype(self.dtype)[None]
        if self.input_norm:
            norm = nn.LayerNorm(
                epsilon=config.norm_epsilon, dtype=self.dtype, use_fast_variance=False, name="input_norm"
            )
            tokens = norm(tokens)
        refuse_experts(config.experts)
        return TransformerStack(config, self.dtype, name="stack")(tokens, dropout_keys=dropout_keys).x
