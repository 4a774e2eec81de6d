"""The transformer of Flux (Black Forest Labs 2024, github.com/black-forest-labs/flux), as its published code has it.

Blocks of two streams as in `mmdit`, then blocks of one stream, in which attention and MLP stand side by side:

    h = [texts, patches],    h += g W [attention(m), gelu(U m)],    m = (1 + s) LN(h) + b

Queries and keys have RMS norms, and are turned by angles of the places (frame, row, column), each of which has its own
features (rotary positions: Su et al. 2021, arXiv:2104.09864, eq. 34); texts lie at place 0.  A network that was
distilled from guided ones is told the scale of guidance, and needs no second evaluation.
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
from genjax.families.diffusion.mmdit import (
    Angles,
    Heads,
    JointBlock,
    Modulation,
    Output,
    check_heads,
    checked_texts,
    joint_mask,
    modulated,
    patch_sizes,
)
from genjax.families.diffusion.networks import Condition, DenoisingNetwork, with_image
from genjax.nn import sharding
from genjax.nn.attention import attend


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flux(DenoisingNetwork):
    """Transformer of the patches of pictures [B, H, W, C] or videos [B, T, H, W, C] and of a context.

    Flux has hidden_dim 3072, 24 heads, 19 layers and 38 single layers.

    Attributes:
      patch_size: length of a patch along each axis; in videos a patch lies in one frame.
      hidden_dim: width of the streams.
      num_layers: number of blocks of two streams.
      num_single_layers: number of blocks of one stream behind them.
      num_heads: heads of attention.
      rotary_axes: features of a head that turn with the place in time, height and width; together all of a head.
      mlp_ratio: width of the inner MLPs as a multiple of hidden_dim.
      pooled: whether the modulations also see the condition `vector`, the pooled text.
      told_guidance: scale of guidance, as diffusers counts it, that a distilled network is told; None if it was not
        distilled.
      context_dim: channels of the context; None takes what is given.
      vector_dim: length of the pooled text; None takes what is given.
      remat: compute blocks again in the backward pass to save memory.
    """

    flag_name: ClassVar[str] = "flux"

    patch_size: int = 2
    hidden_dim: int = 384
    num_layers: int = 3
    num_single_layers: int = 6
    num_heads: int = 6
    rotary_axes: tuple[int, ...] = (8, 28, 28)
    mlp_ratio: float = 4.0
    pooled: bool = True
    told_guidance: float | None = None
    context_dim: int | None = None
    vector_dim: int | None = None
    remat: bool = False

    conditions = ("label", "vector", "context", "image", "guidance")

    def build(self, num_outputs: int, num_classes: int | None, dtype: Any) -> nn.Module:
        check_heads(self.hidden_dim, self.num_heads)
        width = self.hidden_dim // self.num_heads
        if len(self.rotary_axes) != 3 or sum(self.rotary_axes) != width or any(n % 2 for n in self.rotary_axes):
            raise UserError(
                f"network.rotary_axes={','.join(map(str, self.rotary_axes))} must be three even numbers that sum to "
                f"the {width} features of a head"
            )
        return _Flux(self, num_outputs, num_classes, dtype)

    def angles(self, grid: tuple[int, ...]) -> Angles:
        """Cosines and sines of the angles of the places of a grid of patches, [prod(grid), D / 2] each."""
        axes = [np.arange(n, dtype=float) for n in (1,) * (3 - len(grid)) + grid]
        parts = []
        for place, count in zip(np.meshgrid(*axes, indexing="ij"), self.rotary_axes):
            frequencies = 10000.0 ** -(np.arange(0, count, 2) / count)
            parts.append(place.reshape(-1, 1) * frequencies)
        angles = np.concatenate(parts, axis=1)
        return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def packed(x: Array, sizes: tuple[int, ...]) -> Array:
    """Patches of x [B, *space, C] as tokens [B, N, C prod(sizes)]: unlike `dit.patchify`, channels first."""
    space, rank = x.shape[1:-1], x.ndim - 2
    split = [length for n, p in zip(space, sizes) for length in (n // p, p)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    order = (0, *range(1, 2 * rank, 2), 2 * rank + 1, *range(2, 2 * rank + 1, 2))
    return x.transpose(order).reshape(x.shape[0], math.prod(n // p for n, p in zip(space, sizes)), -1)


def unpacked(tokens: Array, space: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """The inverse of `packed`, [B, N, C prod(sizes)] to [B, *space, C]."""
    rank, grid = len(space), tuple(n // p for n, p in zip(space, sizes))
    x = tokens.reshape(tokens.shape[0], *grid, -1, *sizes)
    order = (0, *(i for axis in range(rank) for i in (1 + axis, 2 + rank + axis)), 1 + rank)
    return x.transpose(order).reshape(tokens.shape[0], *space, -1)


class _SingleBlock(nn.Module):
    config: Flux
    dtype: Any

    @nn.compact
    def __call__(self, h: Array, y: Array, key_mask: Array | None, angles: Angles) -> Array:
        config, dtype = self.config, self.dtype
        width, zeros = config.hidden_dim, nn.initializers.zeros
        adapt = nn.Dense(3 * width, dtype=dtype, kernel_init=zeros, name="adapt")(y)
        b, s, g = jnp.split(adapt[:, None], 3, axis=-1)
        m = modulated(h, b, s, dtype)
        heads = Heads(width, config.num_heads, True, dtype, with_output=False, name="attention")
        mixed = attend(*heads.inputs(m, angles), key_mask)
        inner = nn.Dense(int(config.mlp_ratio * width), dtype=dtype, name="up")(m)
        both = jnp.concatenate([mixed, jax.nn.gelu(inner, approximate=True)], axis=-1)
        return h + g * nn.Dense(width, dtype=dtype, name="down")(both)


class _Flux(nn.Module):
    config: Flux
    num_outputs: int
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, time: Array, condition: Condition, dropout_keys: Array | None = None) -> Array:
        del dropout_keys
        config, dtype = self.config, self.dtype
        context = checked_texts(config, condition)
        x = with_image(z.astype(dtype), condition)
        space = x.shape[1:-1]
        if len(space) not in (2, 3):
            raise UserError(f"Flux draws pictures [H, W, C] and videos [T, H, W, C], no data of shape {x.shape[1:]}")
        sizes, width = patch_sizes(space, config.patch_size), config.hidden_dim
        h = nn.Dense(width, dtype=dtype, name="patches")(packed(x, sizes))
        texts = nn.Dense(width, dtype=dtype, name="context")(context.astype(dtype))
        modulation = Modulation(width, self.num_classes, config.pooled, config.told_guidance, dtype, name="modulation")
        y = jax.nn.silu(modulation(time, condition))
        angles, mask = config.angles(tuple(n // p for n, p in zip(space, sizes))), joint_mask(condition, h.shape[1])
        joint = sharding.blocks(JointBlock, self, dtype, config.remat)
        single = sharding.blocks(_SingleBlock, self, dtype, config.remat)
        inner = int(config.mlp_ratio * width)
        for i in range(config.num_layers):
            make = joint(width, config.num_heads, inner, True, False, False, dtype, name=f"block_{i}")
            h, texts = make(h, texts, y, mask, angles)
        # Patches stand first here, which changes nothing: places are told by the angles.
        count = texts.shape[1]
        still = [jnp.full((count, a.shape[1]), value) for a, value in zip(angles, (1.0, 0.0))]
        angles = tuple(jnp.concatenate([a, none]) for a, none in zip(angles, still))
        length, h = h.shape[1], jnp.concatenate([h, texts], axis=1)
        for i in range(config.num_single_layers):
            h = single(config, dtype, name=f"block_{config.num_layers + i}")(h, y, mask, angles)
        out = Output(width, math.prod(sizes) * self.num_outputs, dtype, name="last")(h[:, :length], y)
        return unpacked(out, space, sizes).astype(jnp.float32)
