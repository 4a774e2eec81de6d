"""The importance-weighted autoencoder (Burda et al. 2016, arXiv:1509.00519) and its lower-variance gradients.

    L_k(x) = E[log 1/k sum_i w_i],    w_i = p(x, z_i) / q(z_i | x),    z_i = mu(x) + sigma(x) epsilon_i          (eq. 8)

There are three estimators of the bound's gradient; the last two have less variance for the encoder.  With normalised
weights v_i = w_i / sum_j w_j:

    reparametrised          sum_i v_i   d log w_i / d(theta, phi)                                               (eq. 14)
    sticking_the_landing    the same without d log q / d phi at fixed z (Roeder et al. 2017); biased for k > 1
    doubly_reparametrised   phi: sum_i v_i^2 (d log w_i / d z_i)(d z_i / d phi)      (Tucker et al. 2019, DReG, eq. 8)
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.errors import UserError
from genjax.families.vae.vae import VAE
from genjax.model import TrainState
from genjax.nn.distributions import DiagonalGaussian


@dataclasses.dataclass(frozen=True, kw_only=True)
class IWAE(VAE):
    """Importance-weighted autoencoder.  Its bound has no separate KL, so `free_bits` and `kl_warmup_steps` must stay 0.

    Attributes:
      num_samples: k, the number of samples in the bound.
      gradient: estimator of the gradient, see genjax/families/vae/iwae.py.
    """

    num_samples: int = 5
    gradient: Literal["reparametrised", "sticking_the_landing", "doubly_reparametrised"] = "reparametrised"

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"model.num_samples={self.num_samples} must be at least 1")
        if self.free_bits or self.kl_warmup_steps:
            raise UserError(
                "model.free_bits and model.kl_warmup_steps must be 0: the bound of IWAE has no KL of its own"
            )

    def bound_weights(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, DiagonalGaussian]:
        """log w_i in nats, shape [num_samples, B], differentiable as `gradient` says, and the posterior."""
        posterior = self.posterior(params, batch)
        latents = posterior.with_sample_axis().sample(self.noise(key, batch, self.num_samples))
        if self.gradient == "reparametrised":
            return self.log_weights(params, batch, posterior, latents), posterior
        fixed = jax.lax.stop_gradient(posterior)
        if self.gradient == "doubly_reparametrised":
            values = self.log_weights(*jax.lax.stop_gradient((params, batch, posterior, latents)))
            share = jax.nn.softmax(values, axis=0)[..., None]
            # The value is z; the gradient through z is multiplied by v once more than in the bound.
            still = jax.lax.stop_gradient(latents)
            latents = still + share * (latents - still)
        return self.log_weights(params, batch, fixed, latents), posterior

    def bound(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, DiagonalGaussian]:
        """One estimate of L_k in nats, shape [B], and the posterior."""
        log_weights, posterior = self.bound_weights(params, batch, key)
        return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(float(self.num_samples)), posterior

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean over examples of -L_k in nats, and metrics."""
        bound, posterior = self.bound(params, batch, key)
        return -bound.mean(), {"bound": bound.mean(), "kl": posterior.kl_to_standard_normal().sum(-1).mean()}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Metrics of `VAE.evaluate`, and `bound` = L_k with `num_samples`; `nll_bound` = -L_k.  Shape [B] each."""
        metrics = super().evaluate(state, batch, key)
        bound = self.log_prob_bound(state, batch, key)
        return {**metrics, "bound": bound, "nll_bound": -bound - batch.get("log_abs_det", 0.0)}

    def log_prob_bound(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """One estimate of L_k in nats, shape [B]."""
        return self.bound(state.eval_params, batch, key)[0]
