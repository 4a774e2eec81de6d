"""The spatial transformer of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, appendix E.2.1, table 15).

    x + W_out stack(W_in norm(x)),    every block of the stack: self-attention of all places, cross-attention to the
                                      context, and a layer gated by gelu, each with a norm before and a residual path

The maps W are of every place.  Queries, keys and values have no biases.
"""

from __future__ import annotations

import math
from typing import Any

from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn.group_norm import GroupNorm
from genjax.nn.transformer import Transformer, TransformerStack


def spatial_stack(depth: int, width: int, num_heads: int) -> Transformer:
    """The stack inside of a spatial transformer."""
    return Transformer(
        num_layers=depth,
        width=width,
        num_heads=num_heads,
        mlp_dim=4 * width,
        activation="gelu",
        gated=True,
        qkv_bias=False,
        positions="none",
        causal=False,
        cross_attention=True,
        final_norm=False,
    )


class SpatialTransformer(nn.Module):
    """Attention of all places and to a context, x [B, ..., C] to the same shape.

    Attributes:
      depth: number of blocks.
      num_heads: heads of attention.
      num_groups, exact_groups: groups of group norm; see `GroupNorm`.
      dtype: type to compute in.
    """

    depth: int
    num_heads: int
    num_groups: int
    exact_groups: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, context: Array | None, context_mask: Array | None) -> Array:
        if context is None:
            raise UserError("a U-Net with transformer_depths attends to a context; give condition_on=context")
        shape = x.shape
        tokens = x.reshape(shape[0], math.prod(shape[1:-1]), shape[-1])
        h = GroupNorm(self.num_groups, self.dtype, exact=self.exact_groups, name="norm")(tokens)
        h = nn.Dense(shape[-1], dtype=self.dtype, name="input")(h)
        stack = TransformerStack(spatial_stack(self.depth, shape[-1], self.num_heads), self.dtype, name="stack")
        h = stack(h, context=context.astype(self.dtype), context_mask=context_mask).x
        # Zero, so that a new transformer changes nothing.
        h = nn.Dense(shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name="output")(h)
        return (tokens + h).reshape(shape)
