"""Variational autoencoders whose objective asks for disentangled codes.

beta-VAE (Higgins et al. 2017), with a capacity C that rises from 0 (Burgess et al. 2018, arXiv:1804.03599, eq. 8):

    loss = -E_q[log p(x | z)] + beta KL            loss = -E_q[log p(x | z)] + gamma |KL - C(t)|

beta-TCVAE (Chen et al. 2018, arXiv:1802.04942, eq. 4) weights the parts of the KL, which with the aggregated posterior
q(z) = 1/N sum_n q(z | x_n) are

    E KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j))                      (eq. 2)
                           mutual information   total correlation       dimension-wise KL

From a batch of B of N examples, log q(z_n) is estimated as the logarithm of an unbiased estimate of q(z_n): the
example's own component weighs 1/N, and the others share the rest equally (their appendix C.2):

    q(z_n) ~ 1/N q(z_n | x_n) + (N - 1)/N 1/(B - 1) sum_{m != n} q(z_n | x_m)
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_gather, own_part
from genjax.errors import UserError
from genjax.families.vae.vae import VAE
from genjax.gradients import BatchLoss
from genjax.nn.distributions import DiagonalGaussian, gaussian_log_prob, standard_normal_log_prob


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaVAE(VAE):
    """VAE with a weighted KL.

    Attributes:
      beta: weight of the KL.
    """

    beta: float = 4.0

    def kl_penalty(self, kl: Array, step: Array) -> Array:
        """The VAE's penalty times beta."""
        return self.beta * super().kl_penalty(kl, step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapacityVAE(VAE):
    """VAE whose KL is held at a capacity that rises linearly from 0, so `free_bits` and `kl_warmup_steps` must stay 0.

    Attributes:
      gamma: weight of the distance between KL and capacity.
      max_capacity: capacity at the end, in nats.
      capacity_steps: number of steps over which the capacity rises.
    """

    gamma: float = 100.0
    max_capacity: float = 25.0
    capacity_steps: int = 10_000

    def __post_init__(self) -> None:
        if self.free_bits or self.kl_warmup_steps:
            raise UserError("model.free_bits and model.kl_warmup_steps must be 0: the capacity says what the KL may be")

    def capacity(self, step: Array) -> Array:
        """Capacity at a step, in nats."""
        return self.max_capacity * jnp.minimum(1.0, step / max(self.capacity_steps, 1))

    def kl_penalty(self, kl: Array, step: Array) -> Array:
        """gamma |KL - C(t)| of each example, averaged: the capacity bounds the KL of each example."""
        return self.gamma * jnp.abs(kl.sum(-1) - self.capacity(step)).mean()


def aggregated_posterior_log_probs(
    latents: Array, posterior: DiagonalGaussian, own_index: Array, num_examples: int
) -> tuple[Array, Array]:
    """Estimates log q(z) and sum_j log q(z_j) of latents drawn from some of the posteriors.

    Args:
      latents: [B, D], latents[n] drawn from the component own_index[n].
      posterior: q(z | x) of each of M examples, shapes [M, D].
      own_index: [B], the component that each latent was drawn from.
      num_examples: N, the size of the data set that the M examples are drawn from.

    Returns:
      Both in nats, shape [B].
    """
    log_probs = gaussian_log_prob(latents[:, None], posterior.mean[None], posterior.log_scale[None])  # [B, M, D]
    others = max(posterior.mean.shape[0] - 1, 1)
    own = own_index[:, None] == jnp.arange(posterior.mean.shape[0])[None]
    rest = math.log((num_examples - 1) / (num_examples * others)) if num_examples > 1 else -jnp.inf
    log_weights = jnp.where(own, -math.log(num_examples), rest)  # [B, M]
    joint = jax.nn.logsumexp(log_probs.sum(-1) + log_weights, axis=1)
    marginals = jax.nn.logsumexp(log_probs + log_weights[..., None], axis=1)  # [B, D]
    return joint, marginals.sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaTCVAE(VAE):
    """VAE with separate weights of mutual information, total correlation and dimension-wise KL.

    Attributes:
      beta: weight of the total correlation.
      mutual_information_weight: weight of the mutual information of data and code.
      dimension_weight: weight of the dimension-wise KL.
      num_examples: size of the training set, for the estimate of q(z); None treats a batch as the whole set.
    """

    beta: float = 6.0
    mutual_information_weight: float = 1.0
    dimension_weight: float = 1.0
    num_examples: int | None = None

    def kl_parts(self, posterior: DiagonalGaussian, latents: Array) -> dict[str, Array]:
        """Estimates of the three parts of the KL for latents [B, D], one of each posterior, each of
        shape [B] in nats.
        """
        components = cross_device_gather(posterior)
        size = components.mean.shape[0]
        own_index = own_part(jnp.arange(size), latents.shape[0])
        num_examples = self.num_examples or size
        joint, product = aggregated_posterior_log_probs(latents, components, own_index, num_examples)
        return {
            "mutual_information": posterior.log_prob(latents) - joint,
            "total_correlation": joint - product,
            "dimension_kl": product - standard_normal_log_prob(latents),
        }

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the weighted bound in nats, and metrics."""
        return self.objective(step)(params, batch, key)

    def objective(self, step: Array) -> BatchLoss:
        """The loss at a step; q(z) is estimated from the whole batch."""

        def outputs(params: PyTree, batch: Batch, key: Array) -> tuple[Array, DiagonalGaussian, Array]:
            """log p(x | z) [B], q(z | x), and z [B, D]."""
            posterior = self.posterior(params, batch)
            latents = posterior.with_sample_axis().sample(self.noise(key, batch, 1))
            return self.log_likelihood_given(params, batch, latents)[0], posterior, latents[0]

        def loss(outputs: tuple[Array, DiagonalGaussian, Array], batch: Batch, key: Array) -> tuple[Array, Metrics]:
            log_likelihood, posterior, latents = outputs
            reconstruction = -log_likelihood.mean()
            parts = {name: part.mean() for name, part in self.kl_parts(posterior, latents).items()}
            penalty = (
                self.mutual_information_weight * parts["mutual_information"]
                + self.beta * parts["total_correlation"]
                + self.dimension_weight * parts["dimension_kl"]
            )
            if self.kl_warmup_steps:
                penalty *= jnp.minimum(1.0, (step + 1.0) / self.kl_warmup_steps)
            kl = posterior.kl_to_standard_normal().sum(-1).mean()
            metrics = {"elbo": -reconstruction - kl, "kl": kl, "reconstruction": reconstruction, **parts}
            return reconstruction + penalty, metrics

        return BatchLoss(outputs, loss)

    def __post_init__(self) -> None:
        if self.num_examples is not None and self.num_examples < 2:
            raise UserError(f"model.num_examples={self.num_examples} must be at least 2, or none")
        if self.free_bits:
            raise UserError("model.free_bits must be 0: beta-TCVAE weights parts of the KL that are not per dimension")
