"""The contractive autoencoder (Rifai et al. 2011).

    loss = -log p(x | decoder(h)) + weight ||J||_F^2,    J = dh / dx                                            (eq. 4)

The norm is exact for any encoder.  It takes one reverse pass of the batch for each dimension of the code, one after the
other, so that memory does not grow with the dimensions.  For h = sigmoid(W x + b) it is sum_j (h_j (1 -
h_j))^2 sum_i W_ji^2 (eq. 7).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from genjax.batch import Array, Metrics, PyTree
from genjax.families.autoencoder.autoencoder import Autoencoder
from genjax.nn.mlp import Activation


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContractiveAutoencoder(Autoencoder):
    """Autoencoder with a penalty on the Jacobian of its code.

    Attributes:
      weight: weight of the squared Frobenius norm.
      code_activation: activation of the code.
    """

    weight: float = 0.1
    code_activation: Activation = "sigmoid"

    def jacobian_norm(self, params: PyTree, x: Array) -> Array:
        """||dh / dx||_F^2 of each example x [B, ...], shape [B]."""
        _, pullback = jax.vjp(lambda x: self.code(params, x), x)

        def row(index: Array) -> Array:
            # Examples do not influence each other, so one pass gives row `index` of every example's Jacobian.
            unit = jax.nn.one_hot(index, self.latent_dim)
            (gradient,) = pullback(jnp.broadcast_to(unit, (x.shape[0], self.latent_dim)))
            return jnp.square(gradient.astype(jnp.float32)).reshape(x.shape[0], -1).sum(-1)

        return jax.lax.map(row, jnp.arange(self.latent_dim)).sum(0)

    def regulariser(self, params: PyTree, x: Array, codes: Array) -> tuple[Array, Metrics]:
        norm = self.jacobian_norm(params, x).mean()
        return self.weight * norm, {"jacobian_norm": norm}
