"""The convolutional encoder and decoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, appendix G; Esser
et al. 2021, arXiv:2012.09841).

    encoder   3 x 3, then levels of residual blocks with a halving between two levels, a middle with one head of
              attention, norm, 3 x 3, and a map of every place
    decoder   a map of every place, 3 x 3, the middle, levels of residual blocks with a doubling between two levels,
              norm, 3 x 3

Parameters have the parts that files of the library diffusers have.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from genjax.batch import Array
from genjax.nn.attention import Attention
from genjax.nn.convolution import Convolution, Doubling, Halving
from genjax.nn.group_norm import GroupNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureNetwork:
    """Sizes of an encoder of pictures and of its mirror image.

    Attributes:
      channels: channels of each level; height and width are halved between two levels.
      num_blocks: residual blocks of a level; the decoder has one more.
      num_groups: groups of group norm, which divide all channels.
      middle_attention: whether the smallest maps attend to themselves.
      quant_convolution: whether maps of every place stand behind the encoder and before the decoder.
    """

    channels: tuple[int, ...] = (64, 128, 128)
    num_blocks: int = 1
    num_groups: int = 32
    middle_attention: bool = True
    quant_convolution: bool = True

    @property
    def factor(self) -> int:
        """Ratio of the picture's height to the code's."""
        return 2 ** (len(self.channels) - 1)


class _Norm(nn.Module):
    """Group norm, then x sigmoid(x)."""

    network: PictureNetwork
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jax.nn.silu(GroupNorm(self.network.num_groups, self.dtype, exact=True, name="norm")(x))


class _Block(nn.Module):
    """Twice norm and 3 x 3 convolution, added to x [B, H, W, C]; [B, H, W, features]."""

    features: int
    network: PictureNetwork
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = Convolution(self.features, self.dtype, name="conv_1")(_Norm(self.network, self.dtype, name="norm_1")(x))
        h = Convolution(self.features, self.dtype, name="conv_2")(_Norm(self.network, self.dtype, name="norm_2")(h))
        if x.shape[-1] != self.features:
            x = Convolution(self.features, self.dtype, kernel_size=1, name="skip")(x)
        return x + h


class _Middle(nn.Module):
    """A residual block, attention of all places, and another block."""

    network: PictureNetwork
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = _Block(width, self.network, self.dtype, name="block_0")(x)
        if self.network.middle_attention:
            h = GroupNorm(self.network.num_groups, self.dtype, exact=True, name="attention_norm")(x)
            h = h.reshape(x.shape[0], -1, width)
            x = x + Attention(1, dtype=self.dtype, name="attention")(h)[0].reshape(x.shape)
        return _Block(width, self.network, self.dtype, name="block_1")(x)


class PictureEncoder(nn.Module):
    """Pictures [B, H, W, C] to maps [B, H / factor, W / factor, num_outputs].

    Attributes:
      network: the sizes.
      num_outputs: channels of the maps.
      dtype: type to compute in.
    """

    network: PictureNetwork
    num_outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        network, dtype = self.network, self.dtype
        x = Convolution(network.channels[0], dtype, name="input")(x)
        for level, width in enumerate(network.channels):
            for i in range(network.num_blocks):
                x = _Block(width, network, dtype, name=f"down_{level}_{i}")(x)
            if level < len(network.channels) - 1:
                x = Halving(width, dtype, name=f"halve_{level}")(x)
        x = _Middle(network, dtype, name="middle")(x)
        x = Convolution(self.num_outputs, dtype, name="output")(_Norm(network, dtype, name="output_norm")(x))
        if network.quant_convolution:
            x = Convolution(self.num_outputs, dtype, kernel_size=1, name="quant")(x)
        return x.astype(jax.numpy.float32)


class PictureDecoder(nn.Module):
    """Maps [B, h, w, D] to pictures [B, factor h, factor w, num_outputs], in two parts, as a loss wants the last layer.

    Attributes:
      network: the sizes.
      num_outputs: channels of the pictures.
      dtype: type to compute in.
    """

    network: PictureNetwork
    num_outputs: int
    dtype: Any

    def setup(self) -> None:
        self.output = Convolution(self.num_outputs, self.dtype)
        self.body = _DecoderBody(self.network, self.dtype)

    def features(self, z: Array) -> Array:
        """What the last convolution sees, [B, H, W, channels[0]]."""
        return self.body(z)

    def picture(self, features: Array) -> Array:
        """The last convolution, [B, H, W, num_outputs], float32."""
        return self.output(features).astype(jax.numpy.float32)

    def __call__(self, z: Array) -> Array:
        return self.picture(self.features(z))


class _DecoderBody(nn.Module):
    """The decoder without its last convolution."""

    network: PictureNetwork
    dtype: Any

    @nn.compact
    def __call__(self, z: Array) -> Array:
        network, dtype = self.network, self.dtype
        if network.quant_convolution:
            z = Convolution(z.shape[-1], dtype, kernel_size=1, name="quant")(z)
        x = Convolution(network.channels[-1], dtype, name="input")(z)
        x = _Middle(network, dtype, name="middle")(x)
        for level, width in reversed(list(enumerate(network.channels))):
            for i in range(network.num_blocks + 1):
                x = _Block(width, network, dtype, name=f"up_{level}_{i}")(x)
            if level > 0:
                x = Doubling(dtype, name=f"double_{level}")(x)
        return _Norm(network, dtype, name="output_norm")(x)
