"""The U-Net of DDPM and its descendants, over sequences, pictures and videos.

Ho et al. 2020 (arXiv:2006.11239, appendix B); Dhariwal & Nichol 2021 (arXiv:2105.05233) for adaptive group norm and
attention at several resolutions; Rombach et al. 2022 (arXiv:2112.10752) for cross-attention; Ho et al. 2022
(arXiv:2204.03458) for the factorised space-time form.  One module serves [B, L, C], [B, H, W, C] and, with `video`, [B,
T, H, W, C], whose frames are convolved one by one and combined by temporal attention.  With `patch_size` the network
works on patches, and so at a fraction of the places (Hoogeboom et al. 2023, arXiv:2301.11093, section 3.2).

The networks of Stable Diffusion are settings of this one: see checkpoints.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.diffusion.networks import Condition, ConditionEmbedding, DenoisingNetwork, with_image
from genjax.families.diffusion.spatial_transformer import SpatialTransformer
from genjax.nn.attention import Attention
from genjax.nn.convolution import Doubling
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.group_norm import GroupNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet(DenoisingNetwork):
    """U-Net of residual blocks.

    Attributes:
      channels: width at full resolution.
      channel_multipliers: width of each level as a multiple of `channels`; between levels the size is halved.
      num_blocks: number of residual blocks at each level, and one more on the way up.
      attention_levels: levels with self-attention, counted from 0 at full resolution; if there
        are any, the middle has it too.
      num_heads: number of attention heads, if head_channels is None.
      head_channels: channels of a head (64 in ADM); the number of heads is then width / head_channels.
      num_groups: number of groups of group norm; fewer if it does not divide the width.
      scale_shift_norm: the embedding scales and shifts after the norm (ADM); otherwise it is added (DDPM).
      resample_convolution: halve by strided convolution and double with a convolution; otherwise
        by means and repetition only.
      resample_blocks: halve and double inside additional residual blocks (BigGAN, ADM),
        instead of resample_convolution.
      dropout_rate: dropout inside the blocks.
      video: data are [B, T, H, W, C].
      transformer_depths: blocks of the spatial transformer (spatial_transformer.py) at each level, of which levels in
        `attention_levels` have one; () for single layers of attention.
      exact_groups: have num_groups groups, however few channels each has.
      norm_epsilon: number added to variances in residual blocks.
      centred_halving: surround maps with zeros before they are halved; otherwise zeros follow the last row and column.
      size_channels: sines of each of the last six numbers of a `vector`, which are sizes in pixels (SDXL); None for a
        vector without them.
      linear_projection: form of the spatial transformers' outer maps in files of diffusers: linear, or convolutions.
      patch_size: side of the patches that the network treats as one place each; 1 takes single pixels.
      remat: compute blocks again in the backward pass to save memory.
    """

    flag_name: ClassVar[str] = "unet"

    channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2)
    num_blocks: int = 2
    attention_levels: tuple[int, ...] = (2,)
    num_heads: int = 4
    head_channels: int | None = None
    num_groups: int = 32
    scale_shift_norm: bool = True
    resample_convolution: bool = True
    resample_blocks: bool = False
    dropout_rate: float = 0.0
    video: bool = False
    transformer_depths: tuple[int, ...] = ()
    exact_groups: bool = False
    norm_epsilon: float = 1e-6
    centred_halving: bool = False
    size_channels: int | None = None
    linear_projection: bool = False
    patch_size: int = 1
    remat: bool = False

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that the network understands; only attention layers use a context."""
        return ("label", "vector", "context", "image") if self.attention_levels else ("label", "vector", "image")

    def build(self, num_outputs: int, num_classes: int | None, dtype: Any) -> nn.Module:
        beyond = [level for level in self.attention_levels if not 0 <= level < len(self.channel_multipliers)]
        if beyond:
            raise UserError(
                f"attention_levels {tuple(beyond)} are none of the {len(self.channel_multipliers)} levels, "
                "counted from 0"
            )
        if self.transformer_depths and len(self.transformer_depths) != len(self.channel_multipliers):
            raise UserError(
                f"transformer_depths={self.transformer_depths} must have one number for each of the "
                f"{len(self.channel_multipliers)} levels"
            )
        return _UNet(self, num_outputs, num_classes, dtype)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.channel_multipliers)

    def norm(self, dtype: Any, name: str) -> GroupNorm:
        """A norm of a residual block."""
        return GroupNorm(self.num_groups, dtype, self.norm_epsilon, self.exact_groups, name=name)

    def heads_for(self, width: int) -> int:
        """Heads of attention of a width.

        Raises:
          UserError: head_channels does not divide the width.
        """
        if self.head_channels is None:
            return self.num_heads
        if self.head_channels < 1 or width % self.head_channels:
            raise UserError(f"head_channels={self.head_channels} does not divide the width {width} of an attention")
        return width // self.head_channels


_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def convolution(
    features: int, x: Array, dtype: Any, name: str, size: int = 3, zeros: bool = False, halves: str | None = None
) -> Array:
    """A convolution of x [B, *places, C]; `halves` is "SAME" or "CENTRED" if it has stride 2."""
    rank = x.ndim - 2
    init = nn.initializers.zeros if zeros else _KERNEL_INIT
    padding = ((1, 1),) * rank if halves == "CENTRED" else "SAME"
    strides = 1 if halves is None else 2
    return nn.Conv(
        features, (size,) * rank, strides=strides, padding=padding, dtype=dtype, kernel_init=init, name=name
    )(x)


def to_patches(x: Array, size: int) -> Array:
    """Patches as channels: [B, *places, C] to [B, *places / size, size^n C] for n axes of places.

    Raises:
      UserError: an axis that the size does not divide.
    """
    places = x.shape[1:-1]
    if any(n % size for n in places):
        raise UserError(f"patch_size={size} does not divide data of {' x '.join(map(str, places))}")
    if size == 1:
        return x
    rank = len(places)
    split = x.reshape(x.shape[0], *(m for n in places for m in (n // size, size)), x.shape[-1])
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return split.transpose(order).reshape(x.shape[0], *(n // size for n in places), -1)


def from_patches(x: Array, size: int) -> Array:
    """The inverse of `to_patches`: [B, *places, size^n C] to [B, *places * size, C]."""
    if size == 1:
        return x
    places, rank = x.shape[1:-1], x.ndim - 2
    split = x.reshape(x.shape[0], *places, *(size,) * rank, -1)
    order = (0, *(axis for i in range(rank) for axis in (1 + i, 1 + rank + i)), 2 * rank + 1)
    return split.transpose(order).reshape(x.shape[0], *(n * size for n in places), -1)


def _over_space(embedding: Array, x: Array) -> Array:
    return embedding.reshape(embedding.shape[0], *(1,) * (x.ndim - 2), embedding.shape[-1])


def _resized(x: Array, places: tuple[int, ...]) -> Array:
    """x [B, *places', C] at half the places by means, or at twice by repetition, [B, *places, C]; else as it is."""
    old, rank = x.shape[1:-1], x.ndim - 2
    if old == places:
        return x
    if math.prod(places) < math.prod(old):
        return nn.avg_pool(x, (2,) * rank, strides=(2,) * rank, padding="SAME", count_include_pad=False)
    for axis in range(1, rank + 1):
        x = jnp.repeat(x, 2, axis=axis)
    # After doubling, the surplus of an odd size is cut off.
    return x[(slice(None), *(slice(0, n) for n in places))]


class _ResidualBlock(nn.Module):
    """GroupNorm, convolution, embedding, GroupNorm, dropout, convolution; `places` of the result,
    if it changes them.
    """

    features: int
    config: UNet
    dtype: Any
    places: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array, dropout_keys: Array | None) -> Array:
        config, dtype = self.config, self.dtype
        h = jax.nn.silu(config.norm(dtype, "norm_1")(x))
        if self.places is not None:
            h, x = _resized(h, self.places), _resized(x, self.places)
        h = convolution(self.features, h, dtype, "conv_1")
        width = 2 * self.features if config.scale_shift_norm else self.features
        adapt = nn.Dense(width, dtype=dtype, name="adapt")(embedding)  # [B, width]
        norm = config.norm(dtype, "norm_2")
        h = norm(h, *jnp.split(adapt, 2, axis=-1)) if config.scale_shift_norm else norm(h + _over_space(adapt, h))
        h = dropout(jax.nn.silu(h), config.dropout_rate, dropout_keys)
        h = convolution(self.features, h, dtype, "conv_2", zeros=True)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=dtype, name="skip")(x)
        return x + h


class _AttentionBlock(nn.Module):
    """Self-attention over places, then cross-attention to the context where there is one."""

    config: UNet
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, context: Array | None, context_mask: Array | None) -> Array:
        config, dtype, shape = self.config, self.dtype, x.shape
        tokens = x.reshape(shape[0], math.prod(shape[1:-1]), shape[-1])
        h = GroupNorm(config.num_groups, dtype, name="norm")(tokens)
        heads = config.heads_for(shape[-1])
        tokens = tokens + Attention(heads, dtype=dtype, output_init_std=1e-5, name="attention")(h)[0]
        if context is not None:
            h = GroupNorm(config.num_groups, dtype, name="cross_norm")(tokens)
            attend = Attention(heads, cross=True, dtype=dtype, output_init_std=1e-5, name="cross_attention")
            tokens = tokens + attend(h, context.astype(dtype), key_mask=context_mask)[0]
        return tokens.reshape(shape)


class _TemporalAttention(nn.Module):
    """Attention of each place over the frames, x [B T, H, W, C], with learned positions of the frames."""

    config: UNet
    num_frames: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, frames = x.shape, self.num_frames
        tokens = x.reshape(-1, frames, math.prod(shape[1:-1]), shape[-1]).swapaxes(1, 2)
        tokens = tokens.reshape(-1, frames, shape[-1])  # [B H W, T, C]
        positions = self.param("positions", nn.initializers.normal(0.02), (frames, shape[-1]))
        h = GroupNorm(self.config.num_groups, self.dtype, name="norm")(tokens) + positions.astype(self.dtype)[None]
        heads = self.config.heads_for(shape[-1])
        h = Attention(heads, dtype=self.dtype, output_init_std=1e-5, name="attention")(h)[0]
        tokens = (tokens + h).reshape(-1, math.prod(shape[1:-1]), frames, shape[-1]).swapaxes(1, 2)
        return tokens.reshape(shape)


class Paths:
    """The layers of a U-Net between its first convolution and its last norm, which a control network shares.

    Layers become parts of the Linen module in whose `__call__` the methods are called.

    Args:
      config: the U-Net.
      dtype: type to compute in.
      embedding: time and conditions [B, E], after their non-linearity.
      context, context_mask: what layers of attention attend to, or None.
      frames: number of frames of a video, which lie along the batch axis.
      dropout_keys: one key an example, or None in evaluation.
    """

    def __init__(
        self,
        config: UNet,
        dtype: Any,
        embedding: Array,
        context: Array | None,
        context_mask: Array | None,
        frames: int = 1,
        dropout_keys: Array | None = None,
    ) -> None:
        self.config, self.dtype, self.embedding, self.dropout_keys = config, dtype, embedding, dropout_keys
        self.context, self.context_mask, self.frames = context, context_mask, frames
        self._place = iter(range(10000))

    def _residual(self, h: Array, features: int, name: str, places: tuple[int, ...] | None = None) -> Array:
        block = nn.remat(_ResidualBlock) if self.config.remat else _ResidualBlock
        keys = fold_in(self.dropout_keys, next(self._place))
        return block(features, self.config, self.dtype, places, name=name)(h, self.embedding, keys)

    def block(self, h: Array, features: int, level: int, name: str, attends: bool) -> Array:
        """A residual block, and attention to places, context and frames where there is one."""
        config, dtype = self.config, self.dtype
        h = self._residual(h, features, name)
        if attends and config.transformer_depths:
            transformer = nn.remat(SpatialTransformer) if config.remat else SpatialTransformer
            sizes = (config.transformer_depths[level], config.heads_for(features), config.num_groups)
            module = transformer(*sizes, config.exact_groups, dtype, name=f"{name}_attention")
            h = module(h, self.context, self.context_mask)
        elif attends:
            attention = nn.remat(_AttentionBlock) if config.remat else _AttentionBlock
            h = attention(config, dtype, name=f"{name}_attention")(h, self.context, self.context_mask)
        if config.video:
            h = _TemporalAttention(config, self.frames, dtype, name=f"{name}_temporal")(h)
        return h

    def _resample(self, x: Array, places: tuple[int, ...], name: str) -> Array:
        """x at half or twice the places."""
        config = self.config
        if config.resample_blocks:
            return self._residual(x, x.shape[-1], name, places)
        if not config.resample_convolution:
            return _resized(x, places)
        if math.prod(places) < math.prod(x.shape[1:-1]):
            halves = "CENTRED" if config.centred_halving else "SAME"
            return convolution(x.shape[-1], x, self.dtype, name, halves=halves)
        if len(places) == 2 and places == tuple(2 * n for n in x.shape[1:-1]):
            return Doubling(self.dtype, name=name)(x)
        return convolution(x.shape[-1], _resized(x, places), self.dtype, name)

    def down(self, h: Array) -> tuple[Array, list[Array]]:
        """From the first convolution to the smallest maps, and all maps that the way up sees again."""
        config, skips = self.config, [h]
        for level, width in enumerate(config.widths):
            for i in range(config.num_blocks):
                h = self.block(h, width, level, f"down_{level}_{i}", level in config.attention_levels)
                skips.append(h)
            if level < len(config.widths) - 1:
                h = self._resample(h, tuple(-(-n // 2) for n in h.shape[1:-1]), f"halve_{level}")
                skips.append(h)
        return h, skips

    def middle(self, h: Array) -> Array:
        """The smallest maps."""
        level, width = len(self.config.widths) - 1, self.config.widths[-1]
        h = self.block(h, width, level, "middle_0", bool(self.config.attention_levels))
        return self.block(h, width, level, "middle_1", False)

    def up(self, h: Array, skips: list[Array]) -> Array:
        """From the smallest maps back to all places."""
        config, skips = self.config, list(skips)
        for level, width in reversed(list(enumerate(config.widths))):
            for i in range(config.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.block(h, width, level, f"up_{level}_{i}", level in config.attention_levels)
            if level > 0:
                h = self._resample(h, skips[-1].shape[1:-1], f"double_{level}")
        return h


class _UNet(nn.Module):
    config: UNet
    num_outputs: int
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, time: Array, condition: Condition, dropout_keys: Array | None = None) -> Array:
        config, dtype = self.config, self.dtype
        expected = 5 if config.video else (3, 4)
        if z.ndim not in (expected if isinstance(expected, tuple) else (expected,)):
            raise UserError(
                f"a U-Net with video={config.video} takes data of "
                f"{'[T, H, W, C]' if config.video else '[L, C] or [H, W, C]'}, not of shape {z.shape[1:]}; "
                "choose another network, or set video"
            )
        h = with_image(z.astype(dtype), condition)
        embed = ConditionEmbedding(4 * config.channels, self.num_classes, dtype, config.size_channels)
        embedding = jax.nn.silu(embed(time, condition))
        context, context_mask = condition.get("context"), condition.get("context_mask")
        lead, frames = h.shape[:-3], 1
        if config.video:
            frames = h.shape[1]
            h = h.reshape(-1, *h.shape[2:])
            repeat = lambda a: None if a is None else jnp.repeat(a, frames, axis=0)
            embedding, context, context_mask = repeat(embedding), repeat(context), repeat(context_mask)
            if dropout_keys is not None:
                dropout_keys = jax.vmap(lambda k: jax.random.split(k, frames))(dropout_keys).reshape(-1)
        h = to_patches(h, config.patch_size)
        paths = Paths(config, dtype, embedding, context, context_mask, frames, dropout_keys)
        h, skips = paths.down(convolution(config.channels, h, dtype, "input"))
        h = paths.middle(h)
        if "control" in condition:
            *more, middle = condition["control"]
            skips = [skip + extra.astype(dtype) for skip, extra in zip(skips, more, strict=True)]
            h = h + middle.astype(dtype)
        h = paths.up(h, skips)
        h = jax.nn.silu(config.norm(dtype, "output_norm")(h))
        outputs = self.num_outputs * config.patch_size ** (h.ndim - 2)
        h = from_patches(convolution(outputs, h, dtype, "output", zeros=True), config.patch_size)
        if config.video:
            h = h.reshape(*lead, *h.shape[1:])
        return h.astype(jnp.float32)
