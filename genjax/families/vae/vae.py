"""The variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082).

    p(x, z) = N(z; 0, I) p(x | decoder(z)),    q(z | x) = N(z; mu(x), diag(sigma(x))^2)

    log p(x) >= elbo(x) = E_q[log p(x | z)] - KL(q(z | x) || N(0, I))                                     (eq. 3)
    z = mu(x) + sigma(x) epsilon,    epsilon ~ N(0, I)                                                    (eq. 9)

The loss is the mean of -E_q[log p(x | z)] + penalty(KL), where the penalty of the VAE is w(t) sum_d max(mean KL_d,
free_bits): w(t) rises linearly to 1 over `kl_warmup_steps` (Bowman et al. 2016), and `free_bits` follow Kingma et al.
2016, eq. 15.

Importance weights give the likelihood itself (Burda et al. 2016, eq. 8), from below, and tightly for many samples:

    log p(x) >= E log 1/S sum_s w_s,    w_s = p(x, z_s) / q(z_s | x),    z_s ~ q(z | x)

Models with other objectives subclass `VAE` and override `loss` or `kl_penalty`; models with another prior or posterior
override `posterior` and the methods that call it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from genjax.batch import (
    Array,
    Batch,
    ComputeDtype,
    Metrics,
    PyTree,
    batch_size,
    check_data_shape,
    cross_device_mean,
    example_keys,
)
from genjax.errors import UserError, filled
from genjax.gradients import BatchLoss, gradient_step
from genjax.model import TrainState
from genjax.nn.distributions import (
    Bernoulli,
    DiagonalGaussian,
    OutputDistribution,
    standard_normal_log_prob,
)
from genjax.nn.encoder_decoder import MLPNetwork, Network, OutputDecoder
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support, only_of_support


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE:
    """Variational autoencoder with a diagonal Gaussian posterior and a standard normal prior.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      latent_dim: number of latent dimensions.
      network: encoder and decoder.
      output: distribution of the data given the decoder's output.
      free_bits: nats that each latent dimension may use on average without cost.
      kl_warmup_steps: number of steps over which the weight of the KL rises from 0 to 1.
      num_importance_samples: samples for the importance-weighted `nll` of `evaluate`; 0 leaves it out.
      importance_chunk_size: number of importance samples decoded at once for each example, which bounds the memory.
      sample_output: whether `sample` returns means of the output distribution (as most
        published pictures show) or draws.
      compute_dtype: type that the networks compute in; parameters and likelihoods are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    latent_dim: int = 32
    network: Network = MLPNetwork()
    output: OutputDistribution = Bernoulli()
    free_bits: float = 0.0
    kl_warmup_steps: int = 0
    num_importance_samples: int = 0
    importance_chunk_size: int = 50
    sample_output: Literal["mean", "draw"] = "mean"
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam()

    def support(self) -> Support:
        """The values that the output distribution scores."""
        return self.output.support()

    # Networks.

    def encoder(self) -> Any:
        """The Linen module (x, condition) -> [B, 2 latent_dim], the mean and log scale of q(z | x)."""
        return self.network.encoder(2 * self.latent_dim, jnp.dtype(self.compute_dtype))

    def decoder(self) -> Any:
        """The Linen module (z, condition) -> [B, *data_shape, P], parameters of p(x | z)."""
        return OutputDecoder(self.network, self.output, filled(self, "data_shape"), jnp.dtype(self.compute_dtype))

    def condition(self, batch: Batch) -> Array | None:
        """The condition of encoder and decoder, [B, C], or None."""
        return None

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`.
        """
        check_data_shape(batch["x"], self.data_shape)
        encoder_key, decoder_key = jax.random.split(key)
        condition = self.condition(batch)
        latents = jnp.zeros((batch_size(batch), self.latent_dim))
        params = {
            "encoder": self.encoder().init(encoder_key, batch["x"], condition)["params"],
            "decoder": self.decoder().init(decoder_key, latents, condition)["params"],
        }
        return TrainState.create(params, self.optimizer)

    def posterior(self, params: PyTree, batch: Batch) -> DiagonalGaussian:
        """q(z | x) of each example, shapes [B, latent_dim]."""
        outputs = self.encoder().apply({"params": params["encoder"]}, batch["x"], self.condition(batch))
        return DiagonalGaussian(*jnp.split(outputs.astype(jnp.float32), 2, axis=-1))

    def output_parameters(self, params: PyTree, latents: Array, condition: Array | None = None) -> Array:
        """Parameters of p(x | z) for latents [B, latent_dim], shape [B, *data_shape, P]."""
        return self.decoder().apply({"params": params["decoder"]}, latents, condition)

    # Bounds.

    def noise(self, key: Array, batch: Batch, num_samples: int) -> Array:
        """Standard normal noise that belongs to the examples, shape [num_samples, B, latent_dim]."""
        draw = lambda k: jax.random.normal(k, (num_samples, self.latent_dim))
        return jax.vmap(draw, out_axes=1)(example_keys(key, batch))

    def log_likelihood_given(self, params: PyTree, batch: Batch, latents: Array) -> Array:
        """log p(x | z) in nats for latents [S, B, latent_dim], shape [S, B]; NaN for values of x that have no
        likelihood.
        """
        num_samples, size = latents.shape[:2]
        condition = self.condition(batch)
        if condition is not None:
            condition = jnp.tile(condition, (num_samples, 1))
        parameters = self.output_parameters(params, latents.reshape(num_samples * size, -1), condition)
        # One axis of values, because XLA on CPU sums slowly over a last axis of length 1 (grey pictures).
        parameters = parameters.reshape(num_samples, size, -1, parameters.shape[-1])
        log_likelihood = self.output.log_prob(parameters, batch["x"].reshape(1, size, -1)).sum(-1)
        return only_of_support(self.support(), log_likelihood, batch["x"])

    def elbo_terms(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array]:
        """One-sample estimate of E_q[log p(x | z)], shape [B], and the exact KL, shape [B, latent_dim], in nats."""
        posterior = self.posterior(params, batch)
        latents = posterior.with_sample_axis().sample(self.noise(key, batch, 1))  # [1, B, latent_dim]
        return self.log_likelihood_given(params, batch, latents)[0], posterior.kl_to_standard_normal()

    def log_weights(self, params: PyTree, batch: Batch, posterior: DiagonalGaussian, latents: Array) -> Array:
        """log p(x, z) / q(z | x) in nats for latents [S, B, latent_dim], shape [S, B]."""
        log_ratio = standard_normal_log_prob(latents) - posterior.with_sample_axis().log_prob(latents)
        return self.log_likelihood_given(params, batch, latents) + log_ratio

    def kl_penalty(self, kl: Array, step: Array) -> Array:
        """The term of the loss, a scalar, for the KL of each example and dimension, [B, latent_dim], at a step."""
        kl = kl.mean(0)
        if self.free_bits:
            # The mean over all devices decides; each device differentiates its own share.
            kl = jnp.where(cross_device_mean(jax.lax.stop_gradient(kl)) > self.free_bits, kl, self.free_bits)
        penalty = kl.sum()
        if self.kl_warmup_steps:
            penalty *= jnp.minimum(1.0, (step + 1.0) / self.kl_warmup_steps)
        return penalty

    # The contract.

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the negative bound with its penalty, in nats, and metrics."""
        return self._penalised(self.elbo_terms(params, batch, key), step)

    def _penalised(self, terms: tuple[Array, Array], step: Array) -> tuple[Array, Metrics]:
        """The loss of `elbo_terms`, and metrics."""
        log_likelihood, kl = terms
        reconstruction = -log_likelihood.mean()
        metrics = {
            "elbo": -reconstruction - kl.sum(-1).mean(),
            "kl": kl.sum(-1).mean(),
            "reconstruction": reconstruction,
        }
        return reconstruction + self.kl_penalty(kl, step), metrics

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics in nats an example: loss, elbo, kl, reconstruction = -E_q[log p(x | z)]."""
        return gradient_step(self.objective(state.step), self.optimizer)(state, batch, key)

    def objective(self, step: Array) -> Callable[[PyTree, Batch, Array], tuple[Array, Metrics]]:
        """The loss at a step as `gradient_step` takes it."""
        if self.free_bits:
            # Whether a dimension is free is decided by the mean over the whole batch.
            return BatchLoss(self.elbo_terms, lambda terms, batch, key: self._penalised(terms, step))
        return functools.partial(self.loss, step=step)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example in nats, shape [B] each.

        `elbo` (one sample of z, exact KL), `kl`, `reconstruction` = -E_q[log p(x | z)]; `nll_bound`, the negative elbo
        of the data before its transform where the batch has `log_abs_det`; and the importance-weighted `nll` with
        `num_importance_samples`.
        """
        log_likelihood, kl = self.elbo_terms(state.eval_params, batch, key)
        kl = kl.sum(-1)
        elbo = log_likelihood - kl
        log_abs_det = batch.get("log_abs_det", 0.0)
        metrics = {"elbo": elbo, "nll_bound": -elbo - log_abs_det, "kl": kl, "reconstruction": -log_likelihood}
        if self.num_importance_samples:
            metrics["nll"] = -self.log_likelihood(state, batch, key, self.num_importance_samples) - log_abs_det
        return metrics

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for values that have no likelihood under `output`, outside of `jit`.

        Raises:
          UserError: naming them.
        """
        self.support().check(batch["x"])

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Decodes draws from the prior, shape [num_samples, *data_shape]; see `sample_output`."""
        return self._generate(state, key, num_samples, None)

    def _generate(self, state: TrainState, key: Array, num_samples: int, condition: Array | None) -> Array:
        prior_key, output_key = jax.random.split(key)
        latents = jax.random.normal(prior_key, (num_samples, self.latent_dim))
        parameters = self.output_parameters(state.eval_params, latents, condition)
        if self.sample_output == "draw":
            return self.output.sample(parameters, output_key)
        return self.output.mean(parameters)

    # Capabilities.

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """Mean of q(z | x), shape [B, latent_dim]."""
        return self.posterior(state.eval_params, batch).mean

    def decode(self, state: TrainState, latents: Array) -> Array:
        """Mean of p(x | z), shape [B, *data_shape]."""
        return self.output.mean(self.output_parameters(state.eval_params, latents))

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Mean of p(x | z) at the mean of q(z | x), the shape of x."""
        del key
        latents = self.encode(state, batch)
        return self.output.mean(self.output_parameters(state.eval_params, latents, self.condition(batch)))

    def log_prob_bound(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """One-sample estimate of the elbo in nats, shape [B]."""
        log_likelihood, kl = self.elbo_terms(state.eval_params, batch, key)
        return log_likelihood - kl.sum(-1)

    def log_likelihood(self, state: TrainState, batch: Batch, key: Array, num_samples: int) -> Array:
        """Importance-weighted estimate of log p(x) in nats, a lower bound in expectation, shape [B].

        Memory does not grow with `num_samples`: weights are summed over chunks of `importance_chunk_size` samples.
        """
        if num_samples < 1:
            raise UserError(f"num_samples={num_samples}; an importance-weighted estimate needs at least one")
        params = state.eval_params
        posterior = self.posterior(params, batch)
        chunk = min(self.importance_chunk_size, num_samples)

        def add_chunk(total: Array, index: Array) -> tuple[Array, None]:
            noise = self.noise(jax.random.fold_in(key, index), batch, chunk)
            latents = posterior.with_sample_axis().sample(noise)
            log_weights = self.log_weights(params, batch, posterior, latents)  # [chunk, B]
            # The last chunk may be longer than the number of remaining samples.
            counted = (index * chunk + jnp.arange(chunk) < num_samples)[:, None]
            log_weights = jnp.where(counted, log_weights, -jnp.inf)
            return jnp.logaddexp(total, jax.nn.logsumexp(log_weights, axis=0)), None

        start = jnp.full((batch_size(batch),), -jnp.inf)
        total, _ = jax.lax.scan(add_chunk, start, jnp.arange(-(-num_samples // chunk)))
        return total - jnp.log(float(num_samples))
