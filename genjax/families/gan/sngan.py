"""The residual networks of SNGAN (Miyato et al. 2018, arXiv:1802.05957, appendix B.4), also used by cGANs with
projection.

    generator      z -> dense to 4 x 4 -> residual blocks that double -> norm, relu, convolution 3 x 3 -> tanh
    discriminator  residual blocks that halve down to 8 x 8, two more -> relu -> sum over places -> score

    block that doubles   x -> up(conv1(x)) + conv3(relu(norm(conv3(up(relu(norm(x)))))))      up: nearest neighbour
    block that halves    x -> mean(conv1(x)) + mean(conv3(relu(conv3(relu(x)))))              mean: of 2 x 2 pixels

The discriminator's weights are spectrally normalised and it has no other norm.  Where the class is given by projection,
the generator's batch norms have scales and offsets of each class (Miyato & Koyama 2018, arXiv:1802.05637).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array
from genjax.families.gan.layers import BatchNorm, Convolution, Dense
from genjax.families.gan.networks import Conditioning, GANNetwork, Head, times_halved, with_label_maps
from genjax.nn.encoder_decoder import append_condition

_GLOROT = nn.initializers.xavier_uniform()
#: Initial weights of convolutions behind a relu: sqrt(2) times the usual deviation, as in the authors' code.
_GLOROT_OF_RELU = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SNGANNetwork(GANNetwork):
    """Residual networks with spectral normalisation.

    Attributes:
      generator_channels: number of channels in all blocks of the generator.
      discriminator_channels: number of channels in all blocks of the discriminator.
      conditional_norm: give the class to the generator's batch norms, instead of concatenating it to the latents.
      spectral: normalise the discriminator's weights.
    """

    generator_channels: int = 256
    discriminator_channels: int = 128
    conditional_norm: bool = True
    spectral: bool = True

    def generator(self, data_shape: tuple[int, ...], dtype: Any) -> nn.Module:
        times_halved(data_shape)
        return _Generator(self, data_shape, dtype)

    def discriminator(self, conditioning: Conditioning, dtype: Any) -> nn.Module:
        return _Discriminator(self, conditioning, dtype)


def _doubled(x: Array) -> Array:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _halved(x: Array) -> Array:
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class _UpBlock(nn.Module):
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, condition: Array | None, training: bool) -> Array:
        layer = functools.partial(Convolution, self.features, kernel_init=_GLOROT_OF_RELU, dtype=self.dtype)
        shortcut = _doubled(layer(kernel_size=1, kernel_init=_GLOROT, name="shortcut")(x))
        y = _doubled(nn.relu(BatchNorm(dtype=self.dtype)(x, training, condition)))
        y = nn.relu(BatchNorm(dtype=self.dtype)(layer()(y), training, condition))
        return shortcut + layer()(y)


class _DownBlock(nn.Module):
    """A block that halves, or keeps the size where `halve` is false; the first has no activation before its
    convolutions.
    """

    features: int
    spectral: bool
    dtype: Any
    halve: bool = True
    first: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = functools.partial(
            Convolution, self.features, kernel_init=_GLOROT_OF_RELU, spectral=self.spectral, dtype=self.dtype
        )
        resize = _halved if self.halve else lambda y: y
        shortcut = x
        if self.halve or x.shape[-1] != self.features:
            # A 1 x 1 convolution and a mean commute; the mean first is cheaper.
            shortcut = layer(kernel_size=1, kernel_init=_GLOROT, name="shortcut")(resize(x))
        y = layer()(x if self.first else nn.relu(x))
        return shortcut + resize(layer()(nn.relu(y)))


class _Generator(nn.Module):
    network: SNGANNetwork
    data_shape: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None, training: bool = False, keys: Any = None) -> Array:
        features, count = self.network.generator_channels, times_halved(self.data_shape)
        height, width, outputs = self.data_shape
        shape = (height // 2**count, width // 2**count, features)
        if not self.network.conditional_norm:
            z, condition = append_condition(z, condition), None
        x = Dense(shape[0] * shape[1] * features, kernel_init=_GLOROT, dtype=self.dtype)(z).reshape(-1, *shape)
        for _ in range(count):
            x = _UpBlock(features, self.dtype)(x, condition, training)
        x = nn.relu(BatchNorm(dtype=self.dtype)(x, training))
        return jnp.tanh(Convolution(outputs, kernel_init=_GLOROT, dtype=self.dtype)(x))


class _Discriminator(nn.Module):
    network: SNGANNetwork
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
        network, count = self.network, times_halved(x.shape[1:], 8)
        block = functools.partial(_DownBlock, network.discriminator_channels, network.spectral, self.dtype)
        x = with_label_maps(x, condition if self.conditioning == "concatenation" else None)
        for i in range(count):
            x = block(first=i == 0)(x)
        for _ in range(2):
            x = block(halve=False)(x)
        features = nn.relu(x).sum((1, 2))
        layer = functools.partial(Dense, kernel_init=_GLOROT, spectral=network.spectral, dtype=self.dtype)
        return Head(self.conditioning, layer)(features, condition)
