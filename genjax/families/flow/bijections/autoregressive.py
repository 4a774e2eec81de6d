"""Masked autoregressive maps (Papamakarios et al. 2017, arXiv:1705.07057; Kingma et al. 2016, arXiv:1606.04934).

    z_i = g(x_i; theta_i(x_1 .. x_{i-1}))        theta by one masked network (MADE)

The forward map takes one pass of the network, the inverse one pass for each number.  `Invert` turns it into the inverse
autoregressive flow, which is fast to sample.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genjax.families.flow.bijections.base import Array, Bijection, Params, sum_rest
from genjax.families.flow.bijections.elementwise import Affine, Elementwise
from genjax.nn.masked_dense import MADE


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedAutoregressive(Bijection):
    """An autoregressive map of vectors [B, D].

    Attributes:
      hidden_dims: widths of the masked network.
      transform: the elementwise map g.
      reverse: use the order D..1.
      dtype: compute type of the network.
    """

    hidden_dims: tuple[int, ...]
    transform: Elementwise = Affine(bound=5.0)
    reverse: bool = False
    dtype: Any = None

    def _network(self, dim: int) -> MADE:
        return MADE(
            dim=dim,
            hidden_dims=self.hidden_dims,
            num_outputs=self.transform.num_parameters,
            reverse=self.reverse,
            zero_init=True,
            dtype=self.dtype,
        )

    def _parameters(self, params: Params, x: Array, condition: Array | None) -> Array:
        outputs = self._network(x.shape[-1]).apply({"params": params}, x, condition)  # [B, D, P]
        return outputs.astype(x.dtype).swapaxes(1, 2).reshape(x.shape[0], -1)

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        return self._network(x.shape[-1]).init(key, x, condition)["params"]

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        z, log_derivative = self.transform.forward(x, self._parameters(params, x, condition))
        return z, sum_rest(log_derivative)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        dim = z.shape[-1]

        def body(step: Array, x: Array) -> Array:
            place = dim - 1 - step if self.reverse else step
            solved = self.transform.inverse(z, self._parameters(params, x, condition))[0]
            return jnp.where((jnp.arange(dim) == place)[None, :], solved, x)

        x = jax.lax.fori_loop(0, dim, body, jnp.zeros_like(z))
        # The parameters at the solution give the log-determinant.
        log_derivative = self.transform.inverse(z, self._parameters(params, x, condition))[1]
        return x, sum_rest(log_derivative)
