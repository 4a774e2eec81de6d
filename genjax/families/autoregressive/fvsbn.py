"""The fully visible sigmoid belief network (Neal 1992; Frey 1998; as in Larochelle & Murray 2011).

    p(x_d = 1 | x_<d) = sigmoid(b_d + sum_{i<d} W_di x_i)

For categorical values the same linear map gives the logits of all levels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from genjax.batch import Array, PyTree
from genjax.families.autoregressive.base import Conditionals, VectorModel
from genjax.nn.masked_dense import MADE as MaskedNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class FVSBN(VectorModel):
    """Logistic regression of every value on the values before it.

    Attributes:
      output: distribution of one value given the values before it.
    """

    def network(self) -> Any:
        """The Linen module (x, condition) -> [B, D, P]."""
        return MaskedNetwork(
            self.dim, (), self.output.num_parameters, zero_init=True, dtype=jnp.dtype(self.compute_dtype)
        )

    def init_params(self, key: Array, x: Array, label: Array | None) -> PyTree:
        return self.network().init(key, x.reshape(-1, self.dim), self.one_hot(label))["params"]

    def parameters(self, params: PyTree, x: Array, label: Array | None) -> Array:
        return self.network().apply({"params": params}, self.scaled(x), self.one_hot(label))

    def incremental(self, params: PyTree, label: Array | None, batch_size: int) -> Conditionals:
        num_parameters = self.output.num_parameters
        kernel, bias = params["output_kernel"], params["output_bias"]
        start = jnp.broadcast_to(bias[None], (batch_size, bias.size))
        if label is not None:
            start = start + self.one_hot(label) @ params["condition_output"]["kernel"]

        def parameters_of(logits: Array, d: Array) -> Array:
            return jnp.take(logits.reshape(batch_size, self.dim, num_parameters), d, axis=1)

        # Logits of values before d change too, but are not read any more.
        observe = lambda logits, d, value: logits + value[:, None] * kernel[d][None]
        return start, parameters_of, observe
