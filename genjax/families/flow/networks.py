"""Networks of couplings: from the unchanged part of an example to the parameters of the map of the other part.

Each is called as `network.apply(params, x, num_outputs, condition)`; the last layer starts at 0, so that a flow starts
near the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from genjax.batch import Array

zeros = nn.initializers.zeros_init()


class MLP(nn.Module):
    """Dense layers on vectors: [B, D] to [B, num_outputs].

    Attributes:
      hidden_dims: widths of the hidden layers.
      activation: activation between layers.
      dtype: compute type; outputs are float32 or the inputs' own type.
    """

    hidden_dims: tuple[int, ...]
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, num_outputs: int, condition: Array | None = None) -> Array:
        h = x if condition is None else jnp.concatenate([x, condition], -1)
        for width in self.hidden_dims:
            h = self.activation(nn.Dense(width, dtype=self.dtype)(h))
        return nn.Dense(num_outputs, kernel_init=zeros, dtype=self.dtype)(h).astype(x.dtype)


class ConvNet(nn.Module):
    """Glow's 3x3, 1x1, 3x3 convolutions: [B, H, W, C] to [B, H, W, num_outputs].

    Attributes:
      width: number of channels of the two hidden layers.
      dtype: compute type.
    """

    width: int = 512
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, num_outputs: int, condition: Array | None = None) -> Array:
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype)(x)
        if condition is not None:
            h = h + nn.Dense(self.width, use_bias=False, dtype=self.dtype)(condition)[:, None, None, :]
        h = nn.relu(h)
        h = nn.relu(nn.Conv(self.width, (1, 1), dtype=self.dtype)(h))
        return nn.Conv(num_outputs, (3, 3), kernel_init=zeros, dtype=self.dtype)(h).astype(x.dtype)


class ConvResNet(nn.Module):
    """RealNVP's residual network of convolutions, with layer norm instead of batch norm.

    Attributes:
      width: number of channels.
      num_blocks: number of residual blocks.
      dtype: compute type.
    """

    width: int = 64
    num_blocks: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, num_outputs: int, condition: Array | None = None) -> Array:
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype)(x)
        if condition is not None:
            h = h + nn.Dense(self.width, use_bias=False, dtype=self.dtype)(condition)[:, None, None, :]
        for _ in range(self.num_blocks):
            r = nn.relu(nn.LayerNorm(dtype=self.dtype)(h))
            r = nn.relu(nn.Conv(self.width, (3, 3), dtype=self.dtype)(r))
            h = h + nn.Conv(self.width, (3, 3), dtype=self.dtype)(r)
        h = nn.relu(nn.LayerNorm(dtype=self.dtype)(h))
        return nn.Conv(num_outputs, (1, 1), kernel_init=zeros, dtype=self.dtype)(h).astype(x.dtype)
