"""Restricted Boltzmann machines by contrastive divergence (Hinton 2002), persistent or not (Tieleman 2008).

    E(v, h) = -b.v - c.h - v W h,    p(v) = exp(-F(v)) / Z,    F(v) = -b.v - sum_j softplus(c_j + (v W)_j)
    gradient of log p(v) = -dF(v) + E_p dF,   the second with v' from k rounds of Gibbs sampling h | v, v | h

log Z by annealed importance sampling (Salakhutdinov & Murray 2008), over p_beta from independent bits of bias a to p:

    log p*_beta(v) = ((1 - beta) a + beta b).v + sum_j softplus(beta (c_j + (v W)_j))
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_gather
from genjax.errors import UserError
from genjax.gradients import gradient_step, unless_skipped
from genjax.model import TrainState
from genjax.optimizers import SGD, Optimizer
from genjax.values import Lattice, only_of_support


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestrictedBoltzmannMachine:
    """Bernoulli RBM of binary `x` [B, ...].

    Attributes:
      num_hidden: number of hidden bits.
      num_gibbs_steps: number k of rounds of Gibbs sampling in a training step.
      num_chains: number of persistent chains, kept in the state; 0 starts new chains at the
        data in each step (plain CD-k).
      num_sampling_steps: number of rounds of Gibbs sampling, from random bits, for a sample.
      num_temperatures: number of steps of annealed importance sampling in an evaluation.
      num_importance_chains: number of chains of annealed importance sampling.
      data_shape: shape of an example; None takes the data set's.
      optimizer: optimizer and learning-rate schedule.
    """

    num_hidden: int = 128
    num_gibbs_steps: int = 1
    num_chains: int = 128
    num_sampling_steps: int = 1000
    num_temperatures: int = 1000
    num_importance_chains: int = 128
    data_shape: tuple[int, ...] | None = None
    optimizer: Optimizer = SGD(learning_rate=0.05, weight_decay=1e-4)

    def __post_init__(self) -> None:
        if self.num_hidden < 1 or self.num_gibbs_steps < 1 or self.num_chains < 0:
            raise UserError("an RBM needs num_hidden >= 1, num_gibbs_steps >= 1 and num_chains >= 0")

    @staticmethod
    def _flat(batch: Batch) -> Array:
        return batch["x"].reshape(batch["x"].shape[0], -1)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step: small weights, visible biases by the frequencies in the batch."""
        x, keys = self._flat(batch), jax.random.split(key)
        frequency = jnp.clip(x.mean(0), 0.01, 0.99)
        bias = jax.scipy.special.logit(frequency)
        params = {
            "kernel": 0.01 * jax.random.normal(keys[0], (x.shape[1], self.num_hidden)),
            "visible_bias": bias,
            "hidden_bias": jnp.zeros(self.num_hidden),
        }
        chains = jax.random.bernoulli(keys[1], frequency[None], (self.num_chains, x.shape[1])).astype(jnp.float32)
        extra = {"base_bias": jnp.copy(bias), "chains": chains}
        return TrainState.create(params, self.optimizer, extra)

    @staticmethod
    def free_energy(params: PyTree, v: Array) -> Array:
        """F(v) in nats, [N, D] -> [N]."""
        return -(v @ params["visible_bias"]) - jax.nn.softplus(_hidden(params, v)).sum(-1)

    def gibbs(
        self, params: PyTree, key: Array, v: Array, num_steps: int, beta: Array | float = 1.0, base: Array | None = None
    ) -> Array:
        """Rounds of Gibbs sampling of v [N, D] that leave p_beta invariant."""

        def step(v: Array, key: Array) -> tuple[Array, None]:
            keys = jax.random.split(key)
            h = jax.random.bernoulli(keys[0], jax.nn.sigmoid(beta * _hidden(params, v)))
            logits = beta * _visible(params, h.astype(v.dtype))
            if base is not None:
                logits = logits + (1 - beta) * base[None]
            return jax.random.bernoulli(keys[1], jax.nn.sigmoid(logits)).astype(v.dtype), None

        return jax.lax.scan(step, v, jax.random.split(key, num_steps))[0]

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One step.

        `loss` is mean F of the data less mean F of the chains, in nats; its gradient is the gradient of the NLL.
        """
        # Under pmap too, chains start from the data of all devices; otherwise all devices would draw the same noise.
        start = state.extra["chains"] if self.num_chains else cross_device_gather(self._flat(batch))
        chains = self.gibbs(state.params, key, start, self.num_gibbs_steps)

        def loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            x = self._flat(batch)
            data, model = self.free_energy(params, x).mean(), self.free_energy(params, chains).mean()
            again = jax.nn.sigmoid(_visible(params, jax.nn.sigmoid(_hidden(params, x))))
            return data - model, {"free_energy": data, "reconstruction_error": ((x - again) ** 2).sum(-1).mean()}

        state, metrics = gradient_step(loss, self.optimizer)(state, batch, key)
        if self.num_chains:
            chains = unless_skipped(metrics, chains, start)
            state = state.replace(extra={**state.extra, "chains": chains})
        return state, metrics

    def log_partition(self, params: PyTree) -> Array:
        """log Z in nats, exact, by a sum over all states of the hidden bits.

        Raises:
          UserError: there are more than 20 hidden bits.
        """
        if self.num_hidden > 20:
            raise UserError(f"num_hidden={self.num_hidden} are too many to enumerate; use estimate_log_partition")
        h = (jnp.arange(2**self.num_hidden)[:, None] >> jnp.arange(self.num_hidden)[None]) & 1
        h = h.astype(jnp.float32)
        return jax.nn.logsumexp(h @ params["hidden_bias"] + jax.nn.softplus(_visible(params, h)).sum(1))

    def estimate_log_partition(self, params: PyTree, base_bias: Array, key: Array) -> tuple[Array, Array]:
        """log of an unbiased estimate of Z in nats, and its standard error; the logarithm is too low on average."""
        start_key, key = jax.random.split(key)
        chains = self.num_importance_chains
        v = jax.random.bernoulli(start_key, jax.nn.sigmoid(base_bias)[None], (chains, len(base_bias))).astype(
            jnp.float32
        )
        beta = jnp.linspace(0.0, 1.0, self.num_temperatures + 1)

        def log_density(v: Array, beta: Array) -> Array:
            bias = (1 - beta) * base_bias + beta * params["visible_bias"]
            return v @ bias + jax.nn.softplus(beta * _hidden(params, v)).sum(-1)

        def step(carry: tuple[Array, Array], row: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            (v, log_weight), (before, after, key) = carry, row
            log_weight = log_weight + log_density(v, after) - log_density(v, before)
            return (self.gibbs(params, key, v, 1, after, base_bias), log_weight), None

        rows = (beta[:-1], beta[1:], jax.random.split(key, self.num_temperatures))
        (_, log_weight), _ = jax.lax.scan(step, (v, jnp.zeros(chains)), rows)
        mean = jax.nn.logsumexp(log_weight) - math.log(chains)
        error = jnp.exp(log_weight - mean).std() / math.sqrt(chains)
        return mean + jax.nn.softplus(base_bias).sum() + self.num_hidden * math.log(2.0), error

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """`nll_ais`, free energy and the annealed estimate of log Z, in nats; the last, and so
        nll_ais, is too low on average.

        `nll_ais` is NaN for examples that are not binary, which have no probability.
        """
        params, x = state.eval_params, self._flat(batch)
        binary = Lattice(num_levels=2).as_support("the machine", "data.preprocessing")
        log_partition, error = self.estimate_log_partition(params, state.extra["base_bias"], key)
        free_energy = self.free_energy(params, x)
        return {
            "nll_ais": only_of_support(binary, free_energy + log_partition, x),
            "free_energy": free_energy,
            "log_partition": jnp.full_like(free_energy, log_partition),
            "log_partition_error": jnp.full_like(free_energy, error),
        }

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws binary examples [num_samples, *data_shape] by Gibbs sampling from independent bits."""
        start_key, key = jax.random.split(key)
        base = state.extra["base_bias"]
        v = jax.random.bernoulli(start_key, jax.nn.sigmoid(base)[None], (num_samples, len(base))).astype(jnp.float32)
        v = self.gibbs(state.eval_params, key, v, self.num_sampling_steps)
        return v.reshape(num_samples, *self.data_shape) if self.data_shape else v

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Probabilities of the visible bits given the mean hidden bits given x, shape of x."""
        params, x = state.eval_params, self._flat(batch)
        return jax.nn.sigmoid(_visible(params, jax.nn.sigmoid(_hidden(params, x)))).reshape(batch["x"].shape)


def _hidden(params: PyTree, v: Array) -> Array:
    """Logits of the hidden bits given the visible bits, [N, D] -> [N, H]."""
    return params["hidden_bias"][None] + v @ params["kernel"]


def _visible(params: PyTree, h: Array) -> Array:
    """Logits of the visible bits given the hidden bits, [N, H] -> [N, D]."""
    return params["visible_bias"][None] + h @ params["kernel"].T
