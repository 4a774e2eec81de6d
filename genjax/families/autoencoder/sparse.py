"""The sparse autoencoder, with an L1 penalty or a target activation (Ng 2011, "Sparse autoencoder", CS294A).

loss = -log p(x | decoder(h)) + weight R(h)

l1   R = sum_j |h_j|
kl   R = sum_j KL(Bernoulli(rho) || Bernoulli(rho_j)),    rho_j the mean of h_j over the batch, with h in (0, 1)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_mean
from genjax.errors import UserError
from genjax.families.autoencoder.autoencoder import Autoencoder
from genjax.gradients import BatchLoss
from genjax.model import TrainState
from genjax.nn.mlp import Activation


def bernoulli_kl(target: float, mean: Array) -> Array:
    """KL(Bernoulli(target) || Bernoulli(mean)) in nats, the shape of mean, which must lie within (0, 1)."""
    entropy = -(target * jnp.log(target) + (1.0 - target) * jnp.log1p(-target))
    return -entropy - target * jnp.log(mean) - (1.0 - target) * jnp.log1p(-mean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseAutoencoder(Autoencoder):
    """Autoencoder with a penalty on its code.

    Attributes:
      penalty: "l1", or "kl" to a target activation, which needs code_activation=sigmoid.
      weight: weight of the penalty.
      target: rho, the mean activation that "kl" asks for.
      code_activation: activation of the code.
    """

    penalty: Literal["l1", "kl"] = "kl"
    weight: float = 1.0
    target: float = 0.05
    code_activation: Activation = "sigmoid"

    def init(self, key: Array, batch: Batch) -> TrainState:
        """As `Autoencoder.init`.

        Raises:
          UserError: settings that do not suit each other.
        """
        if self.penalty == "kl" and self.code_activation != "sigmoid":
            raise UserError(f"model.penalty=kl needs model.code_activation=sigmoid, not {self.code_activation}")
        if self.penalty == "kl" and not 0.0 < self.target < 1.0:
            raise UserError(f"model.target={self.target} must lie between 0 and 1")
        return super().init(key, batch)

    @property
    def objective(self) -> Callable[..., tuple[Array, tuple[Metrics, PyTree]]]:
        """The loss as `gradient_step` takes it; the mean activation of "kl" is of the whole batch."""
        if self.penalty == "l1":
            return self.loss

        def outputs(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array]:
            codes = self.code(params, batch["x"])
            return self.reconstruction_error(params, codes, batch["x"]), codes

        def loss(
            outputs: tuple[Array, Array], batch: Batch, key: Array, sums: PyTree
        ) -> tuple[Array, tuple[Metrics, PyTree]]:
            errors, codes = outputs
            return self._total(errors, *self.regulariser(None, None, codes), codes, sums)

        return BatchLoss(outputs, loss)

    def regulariser(self, params: PyTree, x: Array, codes: Array) -> tuple[Array, Metrics]:
        metrics = {"mean_activation": jnp.abs(codes).mean()}
        if self.penalty == "l1":
            value = jnp.abs(codes).sum(-1).mean()
        else:
            mean = codes.mean(0)
            # The mean over all devices; each device differentiates its share of it.
            everywhere = cross_device_mean(jax.lax.stop_gradient(mean))
            everywhere = jnp.clip(everywhere + mean - jax.lax.stop_gradient(mean), 1e-6, 1.0 - 1e-6)
            value = bernoulli_kl(self.target, everywhere).sum()
        return self.weight * value, {**metrics, "sparsity_penalty": value}
