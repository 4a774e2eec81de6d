"""Encoders of arrays into vectors and decoders back, as configurations that a model chooses from.

A `Network` is a frozen dataclass that builds two Linen modules:

    encoder(num_outputs):  x [B, *data_shape], condition [B, C] or None  ->  [B, num_outputs]
    decoder(output_shape): z [B, D],           condition [B, C] or None  ->  [B, *output_shape]
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.nn.distributions import OutputDistribution
from genjax.nn.mlp import MLP, Activation

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Network:
    """An encoder and its mirror image, the decoder."""

    def encoder(self, num_outputs: int, dtype: Any = jnp.float32) -> nn.Module:
        """Returns the module that maps (x, condition) to [B, num_outputs]."""
        raise NotImplementedError

    def decoder(self, output_shape: tuple[int, ...], dtype: Any = jnp.float32) -> nn.Module:
        """Returns the module that maps (z, condition) to [B, *output_shape]."""
        raise NotImplementedError


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
      activation: of the hidden layers.
    """

    hidden_dims: tuple[int, ...] = (512,)
    activation: Activation = "relu"

    def encoder(self, num_outputs: int, dtype: Any = jnp.float32) -> nn.Module:
        return _MLPEncoder((*self.hidden_dims, num_outputs), self.activation, dtype)

    def decoder(self, output_shape: tuple[int, ...], dtype: Any = jnp.float32) -> nn.Module:
        return _MLPDecoder(self.hidden_dims[::-1], output_shape, self.activation, dtype)


class OutputDecoder(nn.Module):
    """A network's decoder that ends in the parameters of an output distribution.

    Maps z [B, D] to [B, *data_shape, P], where the distribution's shared parameters, if any, follow the network's outputs.
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
