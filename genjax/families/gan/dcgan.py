"""The networks of DCGAN (Radford et al. 2016, arXiv:1511.06434), for pictures of 28, 32, 64, ... pixels.

    generator      z -> dense to 4 x 4 -> [norm, relu, transposed convolution 4 x 4 with stride 2]* -> tanh
    discriminator  [convolution 4 x 4 with stride 2, norm, leaky relu .2]* -> dense to the score

No norm follows the discriminator's first layer nor precedes the outputs.  Weights start from N(0, .02^2) and scales of
norms from N(1, .02^2); the paper trains with Adam at 2e-4 and beta1 = .5 on pictures in [-1, 1]
(data.preprocessing=signed).  Kernels are 4 x 4, as in the authors' Torch code.  Every halving doubles the channels.  28
pixels end at 7 x 7 instead of 4 x 4.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array
from genjax.families.gan.layers import Dense, Downsample, Normalization, Normalize, Upsample, scales_near_one
from genjax.families.gan.networks import Conditioning, GANNetwork, Head, times_halved, with_label_maps
from genjax.nn.encoder_decoder import append_condition


@dataclasses.dataclass(frozen=True, kw_only=True)
class DCGANNetwork(GANNetwork):
    """Strided convolutions without pooling.

    Attributes:
      base_channels: channels of the largest feature maps of both networks.
      generator_norm: norm of the generator's layers.
      discriminator_norm: norm of the discriminator's layers; spectral normalises weights instead.  The penalty wgan_gp
        needs a norm that treats examples separately: layer, spectral or none.
    """

    base_channels: int = 64
    generator_norm: Literal["batch", "layer", "none"] = "batch"
    discriminator_norm: Normalization = "batch"

    @property
    def mixes_examples(self) -> bool:
        return self.discriminator_norm == "batch"

    def generator(self, data_shape: tuple[int, ...], dtype: Any) -> nn.Module:
        times_halved(data_shape)
        return _Generator(self, data_shape, dtype)

    def discriminator(self, conditioning: Conditioning, dtype: Any) -> nn.Module:
        return _Discriminator(self, conditioning, dtype)


class _Generator(nn.Module):
    network: DCGANNetwork
    data_shape: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None, training: bool = False, keys: Any = None) -> Array:
        network, count = self.network, times_halved(self.data_shape)
        height, width, outputs = self.data_shape
        channels = [network.base_channels * 2**i for i in range(count)][::-1]
        bias = network.generator_norm == "none"
        x = append_condition(z, condition)
        shape = (height // 2**count, width // 2**count, channels[0])
        x = Dense(shape[0] * shape[1] * shape[2], use_bias=bias, dtype=self.dtype)(x).reshape(-1, *shape)
        for features in channels[1:]:
            x = nn.relu(Normalize(network.generator_norm, scales_near_one, self.dtype)(x, training))
            x = Upsample(features, use_bias=bias, dtype=self.dtype)(x)
        x = nn.relu(Normalize(network.generator_norm, scales_near_one, self.dtype)(x, training))
        return jnp.tanh(Upsample(outputs, dtype=self.dtype)(x))


class _Discriminator(nn.Module):
    network: DCGANNetwork
    conditioning: Conditioning
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array | None = None,
        training: bool = False,
        keys: Array | None = None,
        counted: Array | None = None,
    ) -> Array:
        network, count = self.network, times_halved(x.shape[1:])
        spectral = network.discriminator_norm == "spectral"
        bias = network.discriminator_norm in ("spectral", "none")
        x = with_label_maps(x, condition if self.conditioning == "concatenation" else None)
        for i in range(count):
            features = network.base_channels * 2**i
            x = Downsample(features, use_bias=bias or i == 0, spectral=spectral, dtype=self.dtype)(x)
            if i > 0:
                x = Normalize(network.discriminator_norm, scales_near_one, self.dtype)(x, training)
            x = nn.leaky_relu(x, 0.2)
        layer = functools.partial(Dense, spectral=spectral, dtype=self.dtype)
        return Head(self.conditioning, layer)(x.reshape(x.shape[0], -1), condition)
