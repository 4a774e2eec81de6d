"""Masked dense networks: MADE (Germain et al. 2015, arXiv:1502.03509).

Input d has the degree m_0(d) = its place (1..D) in the order; hidden unit k of layer l a degree m_l(k) in 1..D-1.

    M_l[j, k]   = 1 where m_l(k) >= m_{l-1}(j)          (eq. 12; eq. 8 for the first layer)
    M_out[k, d] = 1 where m_0(d) >  m_L(k)              (eq. 13; eq. 9)

so that output d depends only on the inputs before d in the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError


def sequential_degrees(dim: int, hidden_dims: Sequence[int]) -> list[np.ndarray]:
    """Degrees 1..D-1 repeated in turn, for each hidden layer: all degrees occur about equally often.

    Layers with fewer units have some of the degrees, evenly spaced up to D-1, as no unit sees
    inputs beyond the largest degree.
    """
    largest = max(1, dim - 1)
    turns = [np.arange(width) % largest + 1 for width in hidden_dims]
    spaced = [(np.arange(width) + 1) * largest // width for width in hidden_dims]
    return [s if width < largest else t for width, s, t in zip(hidden_dims, spaced, turns)]


def random_degrees(key: Array, dim: int, hidden_dims: Sequence[int]) -> list[Array]:
    """Degrees drawn uniformly, at least the smallest of the layer below (section 4.2)."""
    degrees, low = [], jnp.ones((), jnp.int32)
    for layer_key, width in zip(jax.random.split(key, len(hidden_dims)), hidden_dims):
        degrees.append(jax.random.randint(layer_key, (width,), low, max(2, dim)))
        low = degrees[-1].min()
    return degrees


def made_masks(order: Any, hidden_degrees: Sequence[Any]) -> list[Any]:
    """Masks of all layers, input to output, as boolean arrays [in, out].

    Args:
      order: [D], the place of each input in the order, a permutation of 1..D.
      hidden_degrees: degrees of each hidden layer.  Order and degrees may be numpy or traced arrays.
    """
    degrees = [order, *hidden_degrees]
    masks = [above[None, :] >= below[:, None] for below, above in zip(degrees[:-1], degrees[1:])]
    return [*masks, order[None, :] > degrees[-1][:, None]]


def natural_order(dim: int, reverse: bool = False) -> np.ndarray:
    """Places 1..D, or D..1."""
    places = np.arange(1, dim + 1)
    return places[::-1].copy() if reverse else places


class MADE(nn.Module):
    """Masked network from [B, D] to `num_outputs` numbers for each input, [B, D, num_outputs].

    Attributes:
      dim: number D of inputs.
      hidden_dims: widths of the hidden layers; none makes it a masked linear map.
      num_outputs: numbers for each input.
      reverse: order D..1 instead of 1..D.
      activation: activation of the hidden layers.
      direct: adds a masked linear map from the inputs straight to the outputs.
      zero_init: starts with all outputs 0.
      dtype: compute type, or None for the inputs' own.
    """

    dim: int
    hidden_dims: tuple[int, ...]
    num_outputs: int = 1
    reverse: bool = False
    activation: Callable[[Array], Array] = nn.relu
    direct: bool = False
    zero_init: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array | None = None,
        order: Any = None,
        hidden_degrees: Sequence[Any] | None = None,
    ) -> Array:
        """Outputs for x.

        Args:
          x: inputs [B, D].
          condition: vector [B, K] that every unit may see, or None.
          order, hidden_degrees: arguments of `made_masks`; None for the network's own.
        """
        if x.shape[-1] != self.dim:
            raise UserError(f"MADE was built for {self.dim} inputs, got {x.shape[-1]}")
        order = natural_order(self.dim, self.reverse) if order is None else order
        degrees = sequential_degrees(self.dim, self.hidden_dims) if hidden_degrees is None else hidden_degrees
        masks = made_masks(order, degrees)
        h = x
        for index, (width, mask) in enumerate(zip(self.hidden_dims, masks)):
            h = masked_dense(self, f"hidden_{index}", h, mask, width, 1, nn.initializers.lecun_normal(), self.dtype)
            if condition is not None:
                h = h + nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"condition_{index}")(condition)
            h = self.activation(h)
        init = nn.initializers.zeros_init() if self.zero_init else nn.initializers.lecun_normal()
        out = masked_dense(self, "output", h, masks[-1], self.dim, self.num_outputs, init, self.dtype)
        if self.direct and self.hidden_dims:
            mask = made_masks(order, [])[0]
            out = out + masked_dense(self, "direct", x, mask, self.dim, self.num_outputs, init, self.dtype)
        if condition is not None:
            # Units of the first place see no hidden unit at all, so the condition must reach the outputs too.
            dense = nn.Dense(self.dim * self.num_outputs, False, self.dtype, kernel_init=init, name="condition_output")
            out = out + dense(condition)
        return out.reshape(-1, self.dim, self.num_outputs)


def masked_dense(
    module: nn.Module, name: str, x: Array, mask: Any, width: int, repeat: int, init: Callable, dtype: Any
) -> Array:
    """x @ (kernel * mask) + bias with parameters owned by `module`; each mask column serves `repeat` outputs."""
    kernel = module.param(f"{name}_kernel", init, (x.shape[-1], width * repeat))
    bias = module.param(f"{name}_bias", nn.initializers.zeros_init(), (width * repeat,))
    if repeat > 1:
        mask = jnp.repeat(jnp.asarray(mask), repeat, axis=1)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=dtype)
    return x @ jnp.where(mask, kernel, jnp.zeros_like(kernel)) + bias[None, :]
