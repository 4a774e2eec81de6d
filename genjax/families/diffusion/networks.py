"""Denoising networks as configurations: maps from noisy data, a time and conditions to a prediction of the same shape.

A `DenoisingNetwork` is a frozen dataclass that builds a Linen module

    (z [B, *shape], time [B], condition, dropout_keys [B] or None) -> [B, *shape[:-1], outputs], float32

`time` is the model's measure of the noise level, from about 0 to 1000.  `condition` may have

    label    int32 [B]; num_classes stands for no class
    vector   [B, D]
    context  [B, S, D] with context_mask [B, S], attended to
    image    [B, *shape[:-1], C], concatenated to z
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn.dropout import dropout, fold_in

Condition = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingNetwork(abc.ABC):
    """Base of denoising networks."""

    #: Names of the conditions that the network understands.
    conditions = ("label", "vector", "image")

    @abc.abstractmethod
    def build(self, num_outputs: int, num_classes: int | None, dtype: Any) -> nn.Module:
        """Returns the module.

        Args:
          num_outputs: channels of the output (features, of vectors).
          num_classes: number of classes of `label`, or None if there are no classes.
          dtype: type to compute in; parameters and outputs are float32.
        """


def as_function(network: DenoisingNetwork) -> DenoisingNetwork:
    """A network's configuration without fields that do not influence its function of parameters and inputs."""
    free = {"dropout_rate": 0.0, "remat": False}
    return dataclasses.replace(network, **{name: value for name, value in free.items() if hasattr(network, name)})


def sinusoidal_embedding(values: Array, dim: int, max_period: float = 10000.0) -> Array:
    """Cosines and sines of values [B] at frequencies from 1 to 1 / max_period, shape [B, dim], dim even."""
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = values.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ConditionEmbedding(nn.Module):
    """Time, class and vector as one vector [B, features], the sum of the given ones and the time.

    Attributes:
      features: length of the result.
      num_classes: number of classes, or None.
      dtype: type to compute in.
      size_channels: if given, the last six numbers of a vector are sizes; each becomes this number of sines and
        cosines, and the vector passes two layers (SDXL: Podell et al. 2023, arXiv:2307.01952, section 2.2).
    """

    features: int
    num_classes: int | None
    dtype: Any
    size_channels: int | None = None

    @nn.compact
    def __call__(self, time: Array, condition: Condition) -> Array:
        dim = max(2 * (self.features // 8), 16)
        embedding = nn.Dense(self.features, dtype=self.dtype)(sinusoidal_embedding(time, dim).astype(self.dtype))
        embedding = nn.Dense(self.features, dtype=self.dtype)(jax.nn.silu(embedding))
        if self.num_classes is not None:
            table = nn.Embed(self.num_classes + 1, self.features, dtype=self.dtype)
            label = condition.get("label", jnp.full(time.shape, self.num_classes, jnp.int32))
            embedding = embedding + table(label)
        if "vector" in condition:
            vector = condition["vector"].astype(self.dtype)
            if self.size_channels is not None:
                sizes = sinusoidal_embedding(condition["vector"][:, -6:].reshape(-1), self.size_channels)
                sizes = sizes.reshape(len(vector), -1).astype(self.dtype)
                vector = jnp.concatenate([vector[:, :-6], sizes], axis=-1)
                vector = jax.nn.silu(nn.Dense(self.features, dtype=self.dtype, name="vector_hidden")(vector))
            embedding = embedding + nn.Dense(self.features, dtype=self.dtype, name="vector")(vector)
        return embedding


def with_image(z: Array, condition: Condition) -> Array:
    """z with the condition's image as further channels.

    Raises:
      UserError: the image has another size.
    """
    if "image" not in condition:
        return z
    image = condition["image"]
    if image.shape[:-1] != z.shape[:-1]:
        raise UserError(f"the condition's image has shape {image.shape}, which does not fit data of shape {z.shape}")
    return jnp.concatenate([z, image.astype(z.dtype)], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualMLP(DenoisingNetwork):
    """Residual layers with adaptive norm, for vectors such as two-dimensional points.

    Attributes:
      hidden_dim: width of the residual stream.
      num_blocks: number of residual blocks.
      dropout_rate: dropout inside the blocks.
    """

    hidden_dim: int = 128
    num_blocks: int = 3
    dropout_rate: float = 0.0

    def build(self, num_outputs: int, num_classes: int | None, dtype: Any) -> nn.Module:
        return _ResidualMLP(self, num_outputs, num_classes, dtype)


class _ResidualMLP(nn.Module):
    config: ResidualMLP
    num_outputs: int
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, time: Array, condition: Condition, dropout_keys: Array | None = None) -> Array:
        config = self.config
        h = with_image(z.astype(self.dtype), condition)
        shape = h.shape[:-1]
        lead = (slice(None), *(None,) * (h.ndim - 2))
        embedding = ConditionEmbedding(config.hidden_dim, self.num_classes, self.dtype)(time, condition)
        embedding = jax.nn.silu(embedding)
        h = nn.Dense(config.hidden_dim, dtype=self.dtype)(h)
        for i in range(config.num_blocks):
            scale_and_shift = nn.Dense(2 * config.hidden_dim, dtype=self.dtype, name=f"adapt_{i}")(embedding)
            scale, shift = jnp.split(scale_and_shift, 2, axis=-1)
            y = nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(h)
            y = jax.nn.silu(y * (1.0 + scale[lead]) + shift[lead])
            y = jax.nn.silu(nn.Dense(config.hidden_dim, dtype=self.dtype, name=f"first_{i}")(y))
            y = dropout(y, config.dropout_rate, fold_in(dropout_keys, i))
            h = h + nn.Dense(config.hidden_dim, dtype=self.dtype, name=f"second_{i}")(y)
        out = nn.Dense(self.num_outputs, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="output")(
            jax.nn.silu(h)
        )
        return out.reshape(*shape, self.num_outputs).astype(jnp.float32)
