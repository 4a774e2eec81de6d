"""The diffusion transformer with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748).

    block:  h += g1 Attention((1 + s1) LN(h) + b1);   h += g2 MLP((1 + s2) LN(h) + b2)

where (b1, s1, g1, b2, s2, g2) are affine in silu(embedding) and start at zero, so that every block
starts as the identity.  With a context, cross-attention stands between the two (as in PixArt-alpha, Chen
et al. 2023, arXiv:2310.00426).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.diffusion.networks import Condition, ConditionEmbedding, DenoisingNetwork, with_image
from genjax.nn import sharding
from genjax.nn.attention import Attention
from genjax.nn.dropout import dropout, fold_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiT(DenoisingNetwork):
    """Transformer over patches of sequences [B, L, C], pictures [B, H, W, C] or videos [B, T, H, W, C].

    DiT-S, B, L and XL have widths 384, 768, 1024, 1152, depths 12, 12, 24, 28 and heads 6, 12, 16, 16.

    Attributes:
      patch_size: length of a patch along each axis; in videos a patch lies in one frame.
      hidden_dim: width of the residual stream.
      num_layers: number of blocks.
      num_heads: heads of attention.
      mlp_ratio: width of the inner MLP as a multiple of hidden_dim.
      cross_attention: whether blocks attend to a context; otherwise a text comes as `vector` alone (model.text.pooled).
      dropout_rate: dropout in the MLPs.
      remat: compute blocks again in the backward pass to save memory.
    """

    flag_name: ClassVar[str] = "dit"

    patch_size: int = 2
    hidden_dim: int = 384
    num_layers: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    cross_attention: bool = True
    dropout_rate: float = 0.0
    remat: bool = False

    conditions = ("label", "vector", "context", "image")

    def build(self, num_outputs: int, num_classes: int | None, dtype: Any) -> nn.Module:
        return _DiT(self, num_outputs, num_classes, dtype)


def position_embedding(grid: tuple[int, ...], dim: int) -> np.ndarray:
    """Fixed sines and cosines of the places of a grid, an equal share of the features for each
    axis, [prod(grid), dim].
    """
    share = dim // (2 * len(grid)) * 2
    parts = []
    for axis in np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"):
        frequencies = 10000.0 ** -(np.arange(share // 2) / (share / 2))
        angles = axis.reshape(-1, 1) * frequencies
        parts.append(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    table = np.concatenate(parts, axis=1)
    return np.pad(table, ((0, 0), (0, dim - table.shape[1]))).astype(np.float32)


def patchify(x: Array, sizes: tuple[int, ...]) -> Array:
    """Patches of x [B, *space, C] as tokens [B, N, prod(sizes) C].

    Raises:
      UserError: the patches do not divide the data.
    """
    space = x.shape[1:-1]
    if any(n % p for n, p in zip(space, sizes)):
        raise UserError(f"patches of {sizes} do not divide data of {space}")
    split = [length for n, p in zip(space, sizes) for length in (n // p, p)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    rank = len(space)
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return x.transpose(order).reshape(x.shape[0], math.prod(n // p for n, p in zip(space, sizes)), -1)


def unpatchify(tokens: Array, space: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """The inverse of `patchify`, [B, N, prod(sizes) C] to [B, *space, C]."""
    rank, grid = len(space), tuple(n // p for n, p in zip(space, sizes))
    x = tokens.reshape(tokens.shape[0], *grid, *sizes, -1)
    order = (0, *(i for axis in range(rank) for i in (1 + axis, 1 + rank + axis)), 2 * rank + 1)
    return x.transpose(order).reshape(tokens.shape[0], *space, -1)


class _Block(nn.Module):
    config: DiT
    dtype: Any

    @nn.compact
    def __call__(
        self,
        h: Array,
        embedding: Array,
        context: Array | None,
        context_mask: Array | None,
        dropout_keys: Array | None,
    ) -> Array:
        config, dtype = self.config, self.dtype
        zeros = nn.initializers.zeros
        adapt = nn.Dense(6 * config.hidden_dim, dtype=dtype, kernel_init=zeros, name="adapt")(embedding)
        b1, s1, g1, b2, s2, g2 = jnp.split(adapt[:, None], 6, axis=-1)
        norm = lambda a: nn.LayerNorm(use_scale=False, use_bias=False, epsilon=1e-6, dtype=dtype)(a)
        h = h + g1 * Attention(config.num_heads, dtype=dtype, name="attention")(norm(h) * (1.0 + s1) + b1)[0]
        if context is not None:
            attend = Attention(config.num_heads, cross=True, dtype=dtype, output_init_std=1e-5, name="cross_attention")
            h = h + attend(norm(h), context.astype(dtype), key_mask=context_mask)[0]
        y = nn.Dense(int(config.mlp_ratio * config.hidden_dim), dtype=dtype, name="widen")(norm(h) * (1.0 + s2) + b2)
        y = dropout(jax.nn.gelu(y, approximate=True), config.dropout_rate, dropout_keys)
        return h + g2 * nn.Dense(config.hidden_dim, dtype=dtype, name="narrow")(y)


class _DiT(nn.Module):
    config: DiT
    num_outputs: int
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, time: Array, condition: Condition, dropout_keys: Array | None = None) -> Array:
        config, dtype = self.config, self.dtype
        x = with_image(z.astype(dtype), condition)
        space = x.shape[1:-1]
        sizes = (config.patch_size,) * len(space)
        if len(space) == 3:
            sizes = (1, *sizes[1:])
        tokens = patchify(x, sizes)
        positions = position_embedding(tuple(n // p for n, p in zip(space, sizes)), config.hidden_dim)
        h = nn.Dense(config.hidden_dim, dtype=dtype, name="patches")(tokens) + jnp.asarray(positions, dtype)[None]
        embedding = jax.nn.silu(ConditionEmbedding(config.hidden_dim, self.num_classes, dtype)(time, condition))
        block = sharding.blocks(_Block, self, dtype, config.remat)
        context, mask = condition.get("context"), condition.get("context_mask")
        if context is not None and not config.cross_attention:
            if "vector" not in condition:
                raise UserError(
                    "a DiT without cross_attention sees a text as one vector, which is missing; give "
                    "model.text.pooled=true (or condition_on=context,vector)"
                )
            context, mask = None, None
        for i in range(config.num_layers):
            h = block(config, dtype, name=f"block_{i}")(h, embedding, context, mask, fold_in(dropout_keys, i))
        zeros = nn.initializers.zeros
        adapt = nn.Dense(2 * config.hidden_dim, dtype=dtype, kernel_init=zeros, name="output_adapt")(embedding)
        shift, scale = jnp.split(adapt[:, None], 2, axis=-1)
        h = nn.LayerNorm(use_scale=False, use_bias=False, epsilon=1e-6, dtype=dtype)(h) * (1.0 + scale) + shift
        out = nn.Dense(math.prod(sizes) * self.num_outputs, dtype=dtype, kernel_init=zeros, name="output")(h)
        return unpatchify(out, space, sizes).astype(jnp.float32)
