"""Multilayer perceptrons and the activations that configurations choose from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn.tokens import logits_product

#: Names of activations, as configurations and flags spell them.
Activation = Literal["relu", "tanh", "gelu", "silu", "elu", "leaky_relu", "softplus", "sigmoid", "identity"]


def activation_function(name: Activation) -> Callable[[Array], Array]:
    """Returns the elementwise function of that name.

    Raises:
      UserError: there is none.
    """
    if name == "identity":
        return lambda x: x
    if name not in Activation.__args__:
        raise UserError(f"unknown activation {name!r}; choose one of {', '.join(Activation.__args__)}")
    return getattr(jax.nn, name)


class MLP(nn.Module):
    """Affine layers with an activation between them, [..., D] to [..., features[-1]].

    Attributes:
      features: widths of the layers; the last is the output, which has no activation.
      activation: applied after every layer but the last.
      dtype: type to compute in; parameters and outputs stay float32.
    """

    features: tuple[int, ...]
    activation: Activation = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_function(self.activation)
        for width in self.features[:-1]:
            x = activation(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.features[-1], dtype=self.dtype, dot_general=logits_product)(x)
