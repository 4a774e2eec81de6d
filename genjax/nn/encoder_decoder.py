"""Encoders of arrays into vectors and decoders back, as configurations that a model chooses from.

A `Network` is a frozen dataclass that builds two Linen modules:

    encoder(num_outputs):  x [B, *data_shape], condition [B, C] or None  ->  [B, num_outputs]
    decoder(output_shape): z [B, D],           condition [B, C] or None  ->  [B, *output_shape]
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn.convolution import Downsample, ResidualBlock, Upsample
from genjax.nn.distributions import OutputDistribution
from genjax.nn.mlp import MLP, Activation, activation_function


@dataclasses.dataclass(frozen=True)
class Network(abc.ABC):
    """An encoder and its mirror image, the decoder."""

    @abc.abstractmethod
    def encoder(self, num_outputs: int, dtype: Any = jnp.float32) -> nn.Module:
        """Returns the module that maps (x, condition) to [B, num_outputs]."""

    @abc.abstractmethod
    def decoder(self, output_shape: tuple[int, ...], dtype: Any = jnp.float32) -> nn.Module:
        """Returns the module that maps (z, condition) to [B, *output_shape]."""


def append_condition(vectors: Array, condition: Array | None) -> Array:
    """Concatenates vectors [B, D] with a condition [B, C] where there is one."""
    if condition is None:
        return vectors
    return jnp.concatenate([vectors, condition.astype(vectors.dtype)], axis=-1)


class _MLPEncoder(nn.Module):
    features: tuple[int, ...]
    activation: Activation
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        x = append_condition(x.reshape(x.shape[0], -1), condition)
        return MLP(self.features, self.activation, self.dtype)(x)


class _MLPDecoder(nn.Module):
    hidden_dims: tuple[int, ...]
    output_shape: tuple[int, ...]
    activation: Activation
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None) -> Array:
        z = append_condition(z, condition)
        features = (*self.hidden_dims, math.prod(self.output_shape))
        return MLP(features, self.activation, self.dtype)(z).reshape(z.shape[0], *self.output_shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPNetwork(Network):
    """Multilayer perceptrons on flattened arrays of any shape.

    Attributes:
      hidden_dims: widths of the encoder's hidden layers; the decoder has them in reverse.  () makes both affine.
      activation: activation of the hidden layers.
    """

    hidden_dims: tuple[int, ...] = (512,)
    activation: Activation = "relu"

    def encoder(self, num_outputs: int, dtype: Any = jnp.float32) -> nn.Module:
        return _MLPEncoder((*self.hidden_dims, num_outputs), self.activation, dtype)

    def decoder(self, output_shape: tuple[int, ...], dtype: Any = jnp.float32) -> nn.Module:
        return _MLPDecoder(self.hidden_dims[::-1], output_shape, self.activation, dtype)


class ConvolutionalEncoder(nn.Module):
    """Pictures [B, H, W, C] to features [B, H / 2^n, W / 2^n, channels[-1]]: n halvings, each with residual blocks.

    Attributes:
      channels: numbers of channels of the feature maps after each halving.
      num_residual_blocks: number of residual blocks after each halving.
      activation: activation after every layer.
      dtype: type to compute in.
    """

    channels: tuple[int, ...]
    num_residual_blocks: int
    activation: Activation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_function(self.activation)
        for channels in self.channels:
            x = activation(Downsample(channels, self.dtype)(x))
            for _ in range(self.num_residual_blocks):
                x = ResidualBlock(self.activation, self.dtype)(x)
        return activation(x) if self.num_residual_blocks else x


class ConvolutionalDecoder(nn.Module):
    """The mirror image: features [B, h, w, channels[-1]] to [B, h 2^n, w 2^n, num_outputs], without a last activation.

    Attributes:
      channels: numbers of channels of the encoder.
      num_outputs: number of channels of the result.
      num_residual_blocks: number of residual blocks before each doubling.
      activation: activation after every layer except the last.
      dtype: type to compute in; the last layer is in float32, so that neighbouring levels of 256 can be told apart.
    """

    channels: tuple[int, ...]
    num_outputs: int
    num_residual_blocks: int
    activation: Activation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_function(self.activation)
        for channels in self.channels[-2::-1]:
            x = activation(Upsample(channels, self.dtype)(self._residual(x)))
        return Upsample(self.num_outputs)(self._residual(x))

    def _residual(self, x: Array) -> Array:
        for _ in range(self.num_residual_blocks):
            x = ResidualBlock(self.activation, self.dtype)(x)
        return activation_function(self.activation)(x) if self.num_residual_blocks else x


def check_picture_shape(shape: tuple[int, ...], num_halvings: int) -> None:
    """Raises UserError unless `shape` is (H, W, C) and can be halved `num_halvings` times."""
    factor = 2**num_halvings
    if len(shape) != 3 or shape[0] % factor or shape[1] % factor:
        raise UserError(
            f"a convolutional network with {num_halvings} halvings needs data of a shape (H, W, C) with H and W "
            f"multiples of {factor}, not {tuple(shape)}; give fewer network.channels, or pad with data.pad_to"
        )


class _ConvEncoder(nn.Module):
    network: ConvNetwork
    num_outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        network = self.network
        check_picture_shape(x.shape[1:], len(network.channels))
        x = ConvolutionalEncoder(network.channels, network.num_residual_blocks, network.activation, self.dtype)(x)
        x = append_condition(x.reshape(x.shape[0], -1), condition)
        return MLP((*network.hidden_dims, self.num_outputs), network.activation, self.dtype)(x)


class _ConvDecoder(nn.Module):
    network: ConvNetwork
    output_shape: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None) -> Array:
        network = self.network
        height, width, *rest = self.output_shape
        factor = 2 ** len(network.channels)
        check_picture_shape((height, width, 1), len(network.channels))
        shape = (height // factor, width // factor, network.channels[-1])
        x = append_condition(z, condition)
        x = MLP((*network.hidden_dims[::-1], math.prod(shape)), network.activation, self.dtype)(x)
        x = activation_function(network.activation)(x).reshape(z.shape[0], *shape)
        decoder = ConvolutionalDecoder(
            network.channels, math.prod(rest), network.num_residual_blocks, network.activation, self.dtype
        )
        return decoder(x).reshape(z.shape[0], *self.output_shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNetwork(Network):
    """Convolutional networks for pictures, residual where `num_residual_blocks` is not 0.

    Attributes:
      channels: numbers of channels of the encoder's feature maps, each of half the height and width of the map before;
        the decoder has them in reverse.
      num_residual_blocks: number of residual blocks at each resolution.
      hidden_dims: widths of dense layers between the smallest feature maps and the code.
      activation: activation of all layers.
    """

    channels: tuple[int, ...] = (32, 64)
    num_residual_blocks: int = 0
    hidden_dims: tuple[int, ...] = (256,)
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        if not self.channels:
            raise UserError("network.channels=() must name at least one feature map; MLPNetwork has none")

    def encoder(self, num_outputs: int, dtype: Any = jnp.float32) -> nn.Module:
        return _ConvEncoder(self, num_outputs, dtype)

    def decoder(self, output_shape: tuple[int, ...], dtype: Any = jnp.float32) -> nn.Module:
        return _ConvDecoder(self, output_shape, dtype)


class OutputDecoder(nn.Module):
    """A network's decoder that ends in the parameters of an output distribution.

    Maps z [B, D] to [B, *data_shape, P], where the distribution's shared parameters, if any,
    follow the network's outputs.
    """

    network: Network
    output: OutputDistribution
    data_shape: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None) -> Array:
        shape = (*self.data_shape, self.output.num_parameters)
        parameters = self.network.decoder(shape, self.dtype)(z, condition).astype(jnp.float32)
        if self.output.num_shared_parameters:
            shared = self.param("shared_output", nn.initializers.zeros, (self.output.num_shared_parameters,))
            shared = jnp.broadcast_to(shared, (*parameters.shape[:-1], *shared.shape))
            parameters = jnp.concatenate([parameters, shared], axis=-1)
        return parameters
