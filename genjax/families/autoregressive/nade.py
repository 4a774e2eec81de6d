"""The neural autoregressive distribution estimator (Larochelle & Murray 2011).

    h_d = sigmoid(c + W_{:, <d} x_<d),    p(x_d = 1 | x_<d) = sigmoid(b_d + V_d h_d)            (eqs. 6 and 7)

The hidden activations of all d share W, so that a_{d+1} = a_d + W_{:, d} x_d: D steps of cost H, for densities and for
samples alike (algorithm 1).  Categorical values take V_d with one row for each level.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, PyTree
from genjax.families.autoregressive.base import Conditionals, VectorModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class NADE(VectorModel):
    """One hidden layer for every value, with tied weights.

    Attributes:
      output: distribution of one value given the values before it.
      hidden_dim: number H of hidden units.
      unroll: number of steps of the recursion that are compiled together.
    """

    hidden_dim: int = 500
    unroll: int = 4

    def init_params(self, key: Array, x: Array, label: Array | None) -> PyTree:
        input_key, output_key = jax.random.split(key)
        init = nn.initializers.lecun_normal()
        width = self.output.num_parameters
        params = {
            "input_kernel": init(input_key, (self.dim, self.hidden_dim)),
            "hidden_bias": jnp.zeros(self.hidden_dim),
            "output_kernel": init(output_key, (self.hidden_dim, self.dim * width))
            .reshape(self.hidden_dim, self.dim, width)
            .swapaxes(0, 1),  # [D, H, P]
            "output_bias": jnp.zeros((self.dim, width)),
        }
        if label is not None:
            params["hidden_class_kernel"] = jnp.zeros((self.num_classes, self.hidden_dim))
            params["output_class_kernel"] = jnp.zeros((self.num_classes, self.dim, width))
        return params

    def parameters(self, params: PyTree, x: Array, label: Array | None) -> Array:
        activation, parameters_of, observe = self.incremental(params, label, x.shape[0])

        def step(activation: Array, inputs):
            d, value = inputs
            return observe(activation, d, value), parameters_of(activation, d)

        inputs = (jnp.arange(self.dim), self.scaled(x).T)
        _, parameters = jax.lax.scan(step, activation, inputs, unroll=min(self.unroll, self.dim))
        return parameters.swapaxes(0, 1)  # [B, D, P]

    def incremental(self, params: PyTree, label: Array | None, batch_size: int) -> Conditionals:
        dtype = jnp.dtype(self.compute_dtype)
        # The running sum over all inputs stays in float32.
        start = jnp.broadcast_to(params["hidden_bias"][None], (batch_size, self.hidden_dim))
        if label is not None:
            start = start + self.one_hot(label) @ params["hidden_class_kernel"]

        def parameters_of(activation: Array, d: Array) -> Array:
            hidden = jax.nn.sigmoid(activation.astype(dtype))
            out = hidden @ params["output_kernel"][d].astype(dtype) + params["output_bias"][d].astype(dtype)[None]
            if label is None:
                return out
            return out + (self.one_hot(label) @ params["output_class_kernel"][:, d]).astype(dtype)

        observe = lambda a, d, value: a + value[:, None] * params["input_kernel"][d][None]
        return start, parameters_of, observe
