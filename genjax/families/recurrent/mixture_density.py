"""Recurrent mixture density networks (Bishop 1994; Graves 2013, arXiv:1308.0850): time series with intervals.

p(x_1 .. x_T) = prod_t sum_k pi_k(h_t) N(x_t; mu_k(h_t), diag(sigma_k(h_t))^2),   h_t = recurrent(h_{t-1}, x_{t-1})
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.families.recurrent.framewise import FramewiseModel
from genjax.model import Array, Batch, PyTree, TrainState
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.recurrent import Recurrent, RecurrentStack
from genjax.optimizers import Adam, Optimizer


class MixtureNetwork(nn.Module):
    """Recurrent layers and the mixture's parameters."""

    data_dim: int
    num_components: int
    config: Recurrent
    output_dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, carry: PyTree | None = None, dropout_keys: Array | None = None
    ) -> tuple[tuple[Array, Array, Array], PyTree]:
        """x [B, T, D] -> log-weights [B, T, K], means and log-scales [B, T, K, D], and states."""
        h, carry = RecurrentStack(self.config, self.dtype, name="stack")(x, carry, None, dropout_keys)
        h = dropout(h, self.output_dropout, fold_in(dropout_keys, 101))
        k, d = self.num_components, self.data_dim
        # Means start apart, or the components stay the same.
        spread = lambda key, shape, dtype=jnp.float32: jnp.concatenate(  # noqa: E731
            [jnp.zeros(k), jax.random.normal(key, (k * d,)), jnp.zeros(k * d)]
        )
        out = nn.Dense(k + 2 * k * d, dtype=self.dtype, bias_init=spread, name="output")(h).astype(jnp.float32)
        weights, means, scales = jnp.split(out, [k, k + k * d], axis=-1)
        shape = (*out.shape[:2], k, d)
        scales = jnp.clip(scales.reshape(shape), -7.0, 7.0)
        return (jax.nn.log_softmax(weights, axis=-1), means.reshape(shape), scales), carry


def mixture_log_prob(parameters: tuple[Array, Array, Array], x: Array) -> Array:
    """log p of x [..., D] in nats, given log-weights [..., K], means and log-scales [..., K, D]."""
    log_weights, means, log_scales = parameters
    z = (jnp.expand_dims(x, -2) - means) * jnp.exp(-log_scales)
    log_normal = (-0.5 * z**2 - log_scales - 0.5 * math.log(2.0 * math.pi)).sum(-1)
    return jax.nn.logsumexp(log_weights + log_normal, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureDensityModel(FramewiseModel):
    """Autoregressive model of real-valued sequences `x` [B, T, D], with `mask` [B, T] where they differ in length.

    Attributes:
      data_shape: times and features (T, D); None takes the data set's.
      network: the recurrent layers.
      num_components: number K of Gaussians.
      output_dropout: of what enters the output map.
      temperature: factor on the variance of what `sample` draws.
      compute_dtype: type that the network computes in.
      optimizer: learning rule.
    """

    data_shape: tuple[int, ...] | None = None
    network: Recurrent = Recurrent(cell="lstm", hidden_dim=64)
    num_components: int = 5
    output_dropout: float = 0.0
    temperature: float = 1.0
    compute_dtype: str = "float32"
    optimizer: Optimizer = Adam(learning_rate=3e-3, clip_norm=1.0)

    def module(self) -> MixtureNetwork:
        """The Linen module."""
        if self.data_shape is None:
            raise ValueError("MixtureDensityModel.data_shape is None; give it, or resolve the experiment")
        dtype = jnp.dtype(self.compute_dtype)
        return MixtureNetwork(self.data_shape[1], self.num_components, self.network, self.output_dropout, dtype)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step."""
        return TrainState.create(self.module().init(key, batch["x"][:1, :1])["params"], self.optimizer)

    def _nll(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> tuple[Array, Array]:
        x = batch["x"]
        before = jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
        parameters, _ = self.module().apply({"params": params}, before, None, dropout_keys)
        mask = batch["mask"].astype(jnp.float32) if "mask" in batch else jnp.ones(x.shape[:2])
        return -mixture_log_prob(parameters, x) * mask, mask

    def forecast(self, state: TrainState, key: Array, past: Array, num_steps: int, num_samples: int = 100) -> Array:
        """Draws futures of sequences [B, P, D], shape [num_samples, B, num_steps, D]; quantiles of them are intervals."""
        batch = past.shape[0]
        rows = jnp.broadcast_to(past[None], (num_samples, *past.shape)).reshape(-1, *past.shape[1:])
        future = self._continue(state, key, rows, num_steps)
        return future.reshape(num_samples, batch, num_steps, -1)

    def _continue(self, state: TrainState, key: Array, past: Array, num_steps: int) -> Array:
        """One future of each sequence [B, P, D] (P may be 0), [B, num_steps, D]."""
        module, params = self.module(), {"params": state.eval_params}
        batch = past.shape[0]
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
        text = jnp.concatenate([jnp.zeros((batch, 1, past.shape[-1])), past], axis=1)
        carry = self.network.init_carry(batch)
        if text.shape[1] > 1:
            _, carry = module.apply(params, text[:, :-1], carry)

        def step(state: tuple[Array, PyTree], place: Array) -> tuple[tuple[Array, PyTree], Array]:
            x, carry = state
            parameters, carry = module.apply(params, x[:, None], carry)
            log_weights, means, log_scales = jax.tree.map(lambda a: a[:, 0], parameters)

            def draw(key: Array, w: Array, m: Array, s: Array) -> Array:
                choice, noise = jax.random.split(key)
                k = jax.random.categorical(choice, w)
                return m[k] + self.temperature**0.5 * jnp.exp(s[k]) * jax.random.normal(noise, m[k].shape)

            x = jax.vmap(draw)(fold_in(keys, place), log_weights, means, log_scales)
            return (x, carry), x

        return jax.lax.scan(step, (text[:, -1], carry), jnp.arange(num_steps))[1].swapaxes(0, 1)

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws sequences, [num_samples, T, D]."""
        return self._continue(state, key, jnp.zeros((num_samples, 0, self.data_shape[1])), self.data_shape[0])
