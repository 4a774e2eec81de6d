"""Networks that translate pictures, and a discriminator of patches.

    U-Net     n halvings and n doublings, with every map of the way down shown again on the way up   (Isola et al. 2017,
              arXiv:1611.07004, section 3.2.1)
    ResNet    7 x 7, two halvings, residual blocks, two doublings, 7 x 7
              (Zhu et al. 2017, arXiv:1703.10593, appendix 7.2)
    PatchGAN  halvings and two 4 x 4 convolutions to a map of scores, each of one patch            (2017, section 3.2.2)

Maps are normalised over each picture, which is batch norm with the batches of one that the papers train with.  Strided
convolutions are 4 x 4 everywhere, and borders are zeros.  Weights start from N(0, .02^2), and scales of norms from N(1,
.02^2).
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, check_data_shape
from genjax.errors import UserError
from genjax.families.gan.layers import Convolution, Downsample, Upsample, scales_near_one
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.encoder_decoder import check_picture_shape


class InstanceNorm(nn.Module):
    """Normalises every map of every picture, then applies a learned scale and shift (Ulyanov et al. 2016)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = nn.GroupNorm(num_groups=None, group_size=1, epsilon=1e-5, dtype=x.dtype, scale_init=scales_near_one)
        return norm(x)


class _UNet(nn.Module):
    network: UNetTranslator
    num_outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None) -> Array:
        channels, rate = self.network.channels, self.network.dropout_rate
        check_picture_shape(x.shape[1:], len(channels))
        maps = []
        for depth, width in enumerate(channels):
            x = Downsample(width, dtype=self.dtype)(x if depth == 0 else nn.leaky_relu(x, 0.2))
            # No norm on the first maps, which show the picture, nor on the innermost maps, which may be a single pixel.
            if 0 < depth < len(channels) - 1:
                x = InstanceNorm()(x)
            maps.append(x)
        for depth, width in reversed(list(enumerate(channels[:-1]))):
            x = InstanceNorm()(Upsample(width, dtype=self.dtype)(nn.relu(x)))
            if depth >= len(channels) - 4:
                x = dropout(x, rate, fold_in(keys, depth))
            x = jnp.concatenate([x, maps[depth]], axis=-1)
        return jnp.tanh(Upsample(self.num_outputs, dtype=self.dtype)(nn.relu(x)).astype(jnp.float32))


class _ResNet(nn.Module):
    network: ResNetTranslator
    num_outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None) -> Array:
        del keys
        width, size = self.network.num_channels, self.network.outer_kernel_size
        check_picture_shape(x.shape[1:], 2)
        x = nn.relu(InstanceNorm()(Convolution(width, dtype=self.dtype, kernel_size=size)(x)))
        for factor in (2, 4):
            x = nn.relu(InstanceNorm()(Downsample(factor * width, dtype=self.dtype)(x)))
        for _ in range(self.network.num_residual_blocks):
            y = nn.relu(InstanceNorm()(Convolution(4 * width, dtype=self.dtype)(x)))
            x = x + InstanceNorm()(Convolution(4 * width, dtype=self.dtype)(y))
        for factor in (2, 1):
            x = nn.relu(InstanceNorm()(Upsample(factor * width, dtype=self.dtype)(x)))
        return jnp.tanh(Convolution(self.num_outputs, dtype=self.dtype, kernel_size=size)(x).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Translator(abc.ABC):
    """A network from pictures [B, H, W, C] and keys [B] of its noise (or None) to pictures [B, H, W, num_outputs] in
    [-1, 1].
    """

    @abc.abstractmethod
    def build(self, num_outputs: int, dtype: Any = jnp.float32) -> nn.Module:
        """Returns the Linen module."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetTranslator(Translator):
    """U-Net, whose noise is dropout of the three innermost maps on the way up.

    Attributes:
      channels: numbers of channels of the maps; each map has half the height and width of the map before.
      dropout_rate: share of the units that are dropped.
    """

    flag_name: ClassVar[str] = "unet_translator"

    channels: tuple[int, ...] = (64, 128, 256, 512)
    dropout_rate: float = 0.5

    def build(self, num_outputs: int, dtype: Any = jnp.float32) -> nn.Module:
        return _UNet(self, num_outputs, dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetTranslator(Translator):
    """Residual network without noise.

    Attributes:
      num_channels: number of channels of the maps in full size; the smallest maps have four times as many.
      num_residual_blocks: number of residual blocks, of two convolutions each, on the smallest maps.
      outer_kernel_size: kernel size, odd, of the first and the last convolution.
    """

    flag_name: ClassVar[str] = "resnet_translator"

    num_channels: int = 64
    num_residual_blocks: int = 6
    outer_kernel_size: int = 7

    def build(self, num_outputs: int, dtype: Any = jnp.float32) -> nn.Module:
        return _ResNet(self, num_outputs, dtype)


class PatchDiscriminator(nn.Module):
    """Pictures [B, H, W, C] to scores of patches [B, H / 2^n - 2, W / 2^n - 2], where n is the number of channels.

    Apart from the norms, a score sees 16, 34 or 70 pixels in each direction for n = 1, 2 or 3; the papers use 70.

    Attributes:
      channels: numbers of channels of the maps after each halving.
      dtype: type to compute in.
    """

    channels: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_picture_shape(x.shape[1:], len(self.channels))
        smallest = 3 * 2 ** len(self.channels)
        if min(x.shape[1:3]) < smallest:
            raise UserError(
                f"a discriminator of patches that halves pictures {len(self.channels)} times needs {smallest} pixels "
                f"each way, not {x.shape[1]} x {x.shape[2]}; give it fewer model.discriminator_channels"
            )
        for depth, width in enumerate(self.channels):
            x = Downsample(width, dtype=self.dtype)(x)
            x = nn.leaky_relu(InstanceNorm()(x) if depth else x, 0.2)
        x = nn.leaky_relu(InstanceNorm()(Convolution(2 * self.channels[-1], dtype=self.dtype, kernel_size=4)(x)), 0.2)
        return Convolution(1, dtype=self.dtype, kernel_size=4)(x)[..., 0].astype(jnp.float32)


def mean_over_pixels(x: Array) -> Array:
    """Mean of all but the first axis, [B, ...] to [B]."""
    return x.reshape(x.shape[0], -1).mean(-1)


def check_domains(batch: Any, data_shape: tuple[int, ...] | None) -> None:
    """Raises UserError unless a batch has pictures of both domains, of one size."""
    if "source" not in batch:
        raise UserError(
            "a model of translation needs pictures of two domains, x and source, as data=translations has them"
        )
    x, source = batch["x"].shape[1:], batch["source"].shape[1:]
    if len(x) != 3 or x[:2] != source[:2]:
        raise UserError(f"pictures of the two domains must have one height and width, not {source} and {x}")
    check_data_shape(batch["x"], data_shape)


def chosen_sources(state_extra: dict[str, Any], num_samples: int, source: Array | None) -> Array:
    """The pictures to translate, [num_samples, H, W, C]: the given pictures, or the kept sources in turn.

    Raises:
      UserError: the given pictures are not num_samples.
    """
    if source is None:
        kept = state_extra["sources"]
        return kept[jnp.arange(num_samples) % kept.shape[0]]
    if source.shape[0] != num_samples:
        raise UserError(f"{source.shape[0]} pictures cannot become {num_samples} samples; translate each once")
    return source
