"""The multimodal diffusion transformer of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206, section 4, fig. 2).

Pictures x and texts c are two streams with weights of their own, which meet in attention alone:

    y = silu(time + pooled text),    (b1, s1, g1, b2, s2, g2) = affine(y) for each stream, zero at the start
    q, k, v = [maps_x((1 + s1) LN(x) + b1), maps_c((1 + s1) LN(c) + b1)],    all places attend to all places
    x += g1 output_x(attention),    x += g2 MLP_x((1 + s2) LN(x) + b2),    and c likewise with its own

The last block leaves the texts as they are: only their keys and values count.  Its queries of texts stay without an
effect, as in the published weights.
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
from genjax.families.diffusion.dit import unpatchify
from genjax.families.diffusion.networks import Condition, DenoisingNetwork, sinusoidal_embedding, with_image
from genjax.nn import sharding
from genjax.nn.attention import attend
from genjax.nn.positions import rotate_pairs

#: Sines and cosines that a time, or the scale of guidance, becomes.
TIME_CHANNELS = 256

#: Cosines and sines of the angles by which queries and keys of pictures are turned, [T, D / 2] each.
Angles = tuple[Array, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiT(DenoisingNetwork):
    """Transformer of two streams, the patches of pictures [B, H, W, C] (or of sequences or videos) and a context.

    Stable Diffusion 3 has hidden_dim 64 num_layers and num_layers heads; 24 layers in its medium size.

    Attributes:
      patch_size: length of a patch along each axis; in videos a patch lies in one frame.
      hidden_dim: width of both streams.
      num_layers: number of blocks.
      num_heads: heads of attention.
      mlp_ratio: width of the inner MLPs as a multiple of hidden_dim.
      qk_norm: RMS norm of queries and keys.
      dual_layers: numbers of the blocks in which pictures also attend to themselves alone, from 0 (version 3.5).
      pooled: whether the modulations also see the condition `vector`, the pooled text.
      max_grid: side of the largest grid of patches, whose places a picture's are the middle of; None counts places of
        any picture from its corner.
      base_grid: side of the grid over which places run from 0 to its length, with max_grid; None for max_grid.
      context_dim: channels of the context; None takes what is given.
      vector_dim: length of the pooled text; None takes what is given.
      remat: compute blocks again in the backward pass to save memory.
    """

    flag_name: ClassVar[str] = "mmdit"

    patch_size: int = 2
    hidden_dim: int = 384
    num_layers: int = 6
    num_heads: int = 6
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    dual_layers: tuple[int, ...] = ()
    pooled: bool = True
    max_grid: int | None = None
    base_grid: int | None = None
    context_dim: int | None = None
    vector_dim: int | None = None
    remat: bool = False

    conditions = ("label", "vector", "context", "image")

    def build(self, num_outputs: int, num_classes: int | None, dtype: Any) -> nn.Module:
        check_heads(self.hidden_dim, self.num_heads)
        unknown = [i for i in self.dual_layers if not 0 <= i < self.num_layers]
        if unknown:
            raise UserError(f"network.dual_layers names block {unknown[0]}, and there are {self.num_layers} from 0")
        return _MMDiT(self, num_outputs, num_classes, dtype)

    def places(self, grid: tuple[int, ...]) -> np.ndarray:
        """Fixed sines and cosines of the places of a grid of patches, [prod(grid), hidden_dim].

        Raises:
          UserError: the grid is larger than `max_grid`.
        """
        if self.max_grid is None:
            return encoded_places([np.arange(n, dtype=float) for n in grid], self.hidden_dim)
        if any(n > self.max_grid for n in grid):
            raise UserError(
                f"a grid of {' x '.join(map(str, grid))} patches is larger than network.max_grid={self.max_grid}, the "
                "largest whose places are known; take smaller pictures or a larger max_grid"
            )
        scale = (self.base_grid or self.max_grid) / self.max_grid
        starts = ((self.max_grid - n) // 2 for n in grid)
        axes = [scale * (start + np.arange(n, dtype=float)) for start, n in zip(starts, grid)]
        return encoded_places(axes, self.hidden_dim)


def check_heads(width: int, num_heads: int) -> None:
    """Raises UserError unless heads divide the width."""
    if num_heads < 1 or width % num_heads:
        raise UserError(f"network.num_heads={num_heads} must divide network.hidden_dim={width}")


def encoded_places(axes: list[np.ndarray], dim: int) -> np.ndarray:
    """Sines and cosines of all places of a grid, an equal share of the features for each axis, the last axis first.

    Args:
      axes: coordinates along each axis.
      dim: number of features.

    Returns:
      Float32 [places, dim], with zeros where the shares leave a rest.
    """
    share = dim // (2 * len(axes)) * 2
    frequencies = 10000.0 ** -(np.arange(share // 2) / (share / 2))
    parts = []
    for axis in reversed(np.meshgrid(*axes, indexing="ij")):
        angles = axis.reshape(-1, 1) * frequencies
        parts += [np.sin(angles), np.cos(angles)]
    table = np.concatenate(parts, axis=1)
    return np.pad(table, ((0, 0), (0, dim - table.shape[1]))).astype(np.float32)


class Embedded(nn.Module):
    """Two linear maps with silu between, [B, C] to [B, features]."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = jax.nn.silu(nn.Dense(self.features, dtype=self.dtype, name="hidden")(x.astype(self.dtype)))
        return nn.Dense(self.features, dtype=self.dtype, name="output")(hidden)


class Modulation(nn.Module):
    """What modulates the blocks: the sum of the embedded time and conditions, [B, features].

    Attributes:
      features: length of the result.
      num_classes: number of classes of `label`, or None.
      pooled: whether there is a pooled text.
      guidance: scale of guidance that the network is told where the condition has none, or None if it is not told.
      dtype: type to compute in.
    """

    features: int
    num_classes: int | None
    pooled: bool
    guidance: float | None
    dtype: Any

    @nn.compact
    def __call__(self, time: Array, condition: Condition) -> Array:
        embedded = lambda name, values: Embedded(self.features, self.dtype, name=name)(values)
        y = embedded("time", sinusoidal_embedding(time, TIME_CHANNELS))
        if self.guidance is not None:
            scale = jnp.broadcast_to(jnp.asarray(self.guidance, jnp.float32), time.shape)
            y = y + embedded("guidance", sinusoidal_embedding(1000.0 * condition.get("guidance", scale), TIME_CHANNELS))
        if self.num_classes is not None:
            label = condition.get("label", jnp.full(time.shape, self.num_classes, jnp.int32))
            y = y + nn.Embed(self.num_classes + 1, self.features, dtype=self.dtype, name="label")(label)
        if self.pooled:
            y = y + embedded("vector", condition["vector"])
        return y


def checked_texts(network: Any, condition: Condition) -> Array:
    """The context of a condition.

    Raises:
      UserError: the context or the pooled text is missing or has another width than the network's.
    """
    kind = type(network).__name__
    if "context" not in condition:
        raise UserError(f"{kind} reads texts as a second stream; give condition_on=text (or context)")
    if network.pooled and "vector" not in condition:
        raise UserError(
            f"the modulations of {kind} see the pooled text, which is missing; give model.text.pooled=true (or "
            "condition_on=context,vector), or network.pooled=false"
        )
    for name, wanted in (("context", network.context_dim), ("vector", network.vector_dim if network.pooled else None)):
        if wanted is not None and condition[name].shape[-1] != wanted:
            raise UserError(f"{name} has {condition[name].shape[-1]} channels, and {kind} reads {wanted}")
    return condition["context"]


def layer_norm(x: Array, dtype: Any) -> Array:
    """Layer norm without parameters, computed in float32."""
    x = x.astype(jnp.float32)
    return ((x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)).astype(dtype)


def modulated(x: Array, shift: Array, scale: Array, dtype: Any) -> Array:
    """(1 + scale) LN(x) + shift."""
    return layer_norm(x, dtype) * (1.0 + scale) + shift


class Heads(nn.Module):
    """Queries, keys and values of a stream, and the map behind the attention.

    Attributes:
      width: width of the stream.
      num_heads: number of heads.
      qk_norm: RMS norm of queries and keys.
      dtype: type to compute in.
      with_output: whether there is a map behind the attention.
    """

    width: int
    num_heads: int
    qk_norm: bool
    dtype: Any
    with_output: bool = True

    def setup(self) -> None:
        dense = lambda: nn.Dense(self.width, dtype=self.dtype, dot_general=sharding.columns_product)
        self.query, self.key, self.value = dense(), dense(), dense()
        if self.qk_norm:
            norm = lambda: nn.RMSNorm(epsilon=1e-6, dtype=self.dtype)
            self.query_norm, self.key_norm = norm(), norm()
        if self.with_output:
            self.output = nn.Dense(self.width, dtype=self.dtype)

    def inputs(self, x: Array, angles: Angles | None = None) -> tuple[Array, Array, Array]:
        """Queries, keys and values [B, T, H, D] of x [B, T, C], turned by angles where they are given."""
        batch, length, _ = x.shape
        sharding.check_divides("tensor", num_heads=self.num_heads)
        copies = sharding.for_columns(x, self.num_heads)
        q, k, v = (
            sharding.split_tokens(part(copies).reshape(batch, length, self.num_heads, -1), "tensor")
            for part in (self.query, self.key, self.value)
        )
        if self.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            q, k = rotate_pairs(q, *angles), rotate_pairs(k, *angles)
        return q, k, v

    def after(self, mixed: Array) -> Array:
        """The stream's own map of what its queries found, [B, T, C]."""
        return sharding.split_tokens(self.output(mixed))


class Stream(nn.Module):
    """The weights of one stream in a block.

    Attributes:
      width: width of the stream.
      num_heads: number of heads.
      inner: width of the inner MLP.
      qk_norm: RMS norm of queries and keys.
      dual: whether the stream also attends to itself alone.
      ends: whether only its keys and values count, so that nothing is behind the attention.
      dtype: type to compute in.
    """

    width: int
    num_heads: int
    inner: int
    qk_norm: bool
    dual: bool
    ends: bool
    dtype: Any

    def setup(self) -> None:
        zeros = nn.initializers.zeros
        count = 2 if self.ends else 9 if self.dual else 6
        self.adapt = nn.Dense(count * self.width, dtype=self.dtype, kernel_init=zeros)
        heads = lambda output: Heads(self.width, self.num_heads, self.qk_norm, self.dtype, output)
        self.attention = heads(not self.ends)
        if self.dual:
            self.own_attention = heads(True)
        if not self.ends:
            self.up = nn.Dense(self.inner, dtype=self.dtype)
            self.down = nn.Dense(self.width, dtype=self.dtype)

    def changes(self, y: Array) -> tuple[Array, ...]:
        """Shift and scale before the attention, and what else modulates the stream, [B, 1, C] each."""
        parts = jnp.split(self.adapt(y)[:, None], self.adapt.features // self.width, axis=-1)
        # A layer that ends has its scale first, as the output of the whole network.
        return tuple(parts[::-1]) if self.ends else tuple(parts)

    def inputs(self, h: Array, changes: tuple[Array, ...], angles: Angles | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values of the joint attention."""
        return self.attention.inputs(modulated(h, *changes[:2], self.dtype), angles)

    def finished(self, h: Array, mixed: Array, changes: tuple[Array, ...]) -> Array:
        """The stream after the block."""
        g1, b2, s2, g2 = changes[2:6]
        before = h
        h = h + g1 * self.attention.after(mixed)
        if self.dual:
            b3, s3, g3 = changes[6:]
            q, k, v = self.own_attention.inputs(modulated(before, b3, s3, self.dtype))
            h = h + g3 * self.own_attention.after(attend(q, k, v))
        inner = jax.nn.gelu(self.up(modulated(h, b2, s2, self.dtype)), approximate=True)
        return h + g2 * self.down(inner)


class JointBlock(nn.Module):
    """A block of two streams; see the top of this file.

    Attributes:
      width, num_heads, inner, qk_norm, dtype: as of `Stream`.
      dual: whether pictures also attend to themselves alone.
      ends: whether only keys and values of texts count.
    """

    width: int
    num_heads: int
    inner: int
    qk_norm: bool
    dual: bool
    ends: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, h: Array, texts: Array, y: Array, key_mask: Array | None, angles: Angles | None
    ) -> tuple[Array, Array]:
        sizes = (self.width, self.num_heads, self.inner, self.qk_norm)
        picture = Stream(*sizes, self.dual, False, self.dtype, name="picture")
        text = Stream(*sizes, False, self.ends, self.dtype, name="text")
        picture_changes, text_changes = picture.changes(y), text.changes(y)
        inputs = picture.inputs(h, picture_changes, angles), text.inputs(texts, text_changes, None)
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*inputs, strict=True))
        mixed = attend(q, k, v, key_mask)
        length = h.shape[1]
        h = picture.finished(h, mixed[:, :length], picture_changes)
        return h, texts if self.ends else text.finished(texts, mixed[:, length:], text_changes)


def joint_mask(condition: Condition, num_patches: int) -> Array | None:
    """Which keys count, [B, patches + texts]: all patches, and texts without their padding; None if all do."""
    mask = condition.get("context_mask")
    if mask is None:
        return None
    return jnp.concatenate([jnp.ones((mask.shape[0], num_patches), bool), mask.astype(bool)], axis=1)


class Output(nn.Module):
    """The last norm, modulated, and the last map, zero at the start."""

    width: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, h: Array, y: Array) -> Array:
        zeros = nn.initializers.zeros
        adapt = nn.Dense(2 * self.width, dtype=self.dtype, kernel_init=zeros, name="adapt")(y)
        scale, shift = jnp.split(adapt[:, None], 2, axis=-1)
        out = nn.Dense(self.features, dtype=self.dtype, kernel_init=zeros, name="output")
        return out(modulated(h, shift, scale, self.dtype))


def patch_sizes(space: tuple[int, ...], patch_size: int) -> tuple[int, ...]:
    """Lengths of a patch along each axis.

    Raises:
      UserError: patches do not divide the data.
    """
    sizes = (patch_size,) * len(space)
    if len(space) == 3:
        sizes = (1, *sizes[1:])
    if any(n % p for n, p in zip(space, sizes)):
        raise UserError(f"patches of {sizes} do not divide data of {space}")
    return sizes


class _MMDiT(nn.Module):
    config: MMDiT
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
        sizes = patch_sizes(space, config.patch_size)
        patches = nn.Conv(config.hidden_dim, sizes, sizes, padding="VALID", dtype=dtype, name="patches")(x)
        h = patches.reshape(x.shape[0], -1, config.hidden_dim)
        h = h + jnp.asarray(config.places(patches.shape[1:-1]), dtype)[None]
        texts = nn.Dense(config.hidden_dim, dtype=dtype, name="context")(context.astype(dtype))
        modulation = Modulation(config.hidden_dim, self.num_classes, config.pooled, None, dtype, name="modulation")
        y = jax.nn.silu(modulation(time, condition))
        mask = joint_mask(condition, h.shape[1])
        block = sharding.blocks(JointBlock, self, dtype, config.remat)
        sizes_of_block = (config.hidden_dim, config.num_heads, int(config.mlp_ratio * config.hidden_dim))
        for i in range(config.num_layers):
            ends, dual = i == config.num_layers - 1, i in config.dual_layers
            make = block(*sizes_of_block, config.qk_norm, dual, ends, dtype, name=f"block_{i}")
            h, texts = make(h, texts, y, mask, None)
        out = Output(config.hidden_dim, math.prod(sizes) * self.num_outputs, dtype, name="last")(h, y)
        return unpatchify(out, space, sizes).astype(jnp.float32)
