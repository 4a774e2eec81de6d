"""Recurrent mixture density networks (Bishop 1994; Graves 2013, arXiv:1308.0850): time series with intervals, strokes.

    p(x_1 .. x_T) = prod_t sum_k pi_k(h_t) N(x_t; mu_k(h_t), S_k(h_t)),   h_t = recurrent(h_{t-1}, x_{t-1})

S_k is diagonal, or, for two features, has a correlation rho_k as well (Graves 2013, eq. 24 and 25).  The
last features may be 0 or 1, such as whether the pen is lifted; they have probabilities of their own (eq. 26).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, PyTree
from genjax.errors import UserError, filled
from genjax.families.recurrent.framewise import FramewiseModel
from genjax.model import TrainState
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.recurrent import Recurrent, RecurrentStack
from genjax.optimizers import Adam, Optimizer


class Parameters(NamedTuple):
    """Distribution of a frame: K Gaussians of D features, and E features that are 0 or 1.

    Attributes:
      log_weights: [..., K].
      means: [..., K, D].
      log_scales: logarithms of standard deviations, [..., K, D].
      correlations: correlations of the two features, [..., K], or None.
      logits: logits of the features that are 0 or 1, [..., E].
    """

    log_weights: Array
    means: Array
    log_scales: Array
    correlations: Array | None
    logits: Array


class MixtureNetwork(nn.Module):
    """Recurrent layers and the mixture's parameters."""

    data_dim: int
    num_binary: int
    num_components: int
    correlated: bool
    config: Recurrent
    output_dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, carry: PyTree | None = None, dropout_keys: Array | None = None
    ) -> tuple[Parameters, PyTree]:
        """x [B, T, D + E] -> the distribution of the next frame, [B, T, ...], and states."""
        h, carry = RecurrentStack(self.config, self.dtype, name="stack")(x, carry, None, dropout_keys)
        h = dropout(h, self.output_dropout, fold_in(dropout_keys, 101))
        k, d = self.num_components, self.data_dim
        sizes = {"log_weights": k, "means": k * d, "log_scales": k * d, "correlations": k if self.correlated else 0}
        sizes["logits"] = self.num_binary

        def spread(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            """Initial means that differ, as equal components would stay equal."""
            return jnp.zeros(shape, dtype).at[k : k + k * d].set(jax.random.normal(key, (k * d,)))

        out = nn.Dense(sum(sizes.values()), dtype=self.dtype, bias_init=spread, name="output")(h).astype(jnp.float32)
        ends = [sum(list(sizes.values())[: i + 1]) for i in range(len(sizes) - 1)]
        parts = dict(zip(sizes, jnp.split(out, ends, axis=-1)))
        shape = (*out.shape[:2], k, d)
        # Bounded away from 1, where there is no density.
        correlations = 0.99 * jnp.tanh(parts["correlations"]) if self.correlated else None
        return Parameters(
            log_weights=jax.nn.log_softmax(parts["log_weights"], axis=-1),
            means=parts["means"].reshape(shape),
            log_scales=jnp.clip(parts["log_scales"].reshape(shape), -7.0, 7.0),
            correlations=correlations,
            logits=parts["logits"],
        ), carry


def mixture_log_prob(parameters: Parameters, x: Array) -> Array:
    """log p of frames x [..., D + E] in nats (a density in the first D features)."""
    size = parameters.means.shape[-1]
    continuous, binary = x[..., :size], x[..., size:]
    z = (jnp.expand_dims(continuous, -2) - parameters.means) * jnp.exp(-parameters.log_scales)
    if parameters.correlations is None:
        square, log_determinant = (z**2).sum(-1), 0.0
    else:
        rho = parameters.correlations
        square = ((z**2).sum(-1) - 2.0 * rho * z[..., 0] * z[..., 1]) / (1.0 - rho**2)
        log_determinant = 0.5 * jnp.log1p(-(rho**2))
    log_normal = -0.5 * square - log_determinant - parameters.log_scales.sum(-1) - 0.5 * size * math.log(2.0 * math.pi)
    log_prob = jax.nn.logsumexp(parameters.log_weights + log_normal, axis=-1)
    return log_prob + (binary * parameters.logits - jax.nn.softplus(parameters.logits)).sum(-1)


def draw_frame(key: Array, parameters: Parameters, temperature: float = 1.0) -> Array:
    """Draws one frame [D + E] from parameters without leading axes; the temperature is a factor on the variance."""
    choice, noise, flips = jax.random.split(key, 3)
    k = jax.random.categorical(choice, parameters.log_weights)
    epsilon = jax.random.normal(noise, parameters.means[k].shape)
    if parameters.correlations is not None:
        rho = parameters.correlations[k]
        epsilon = epsilon.at[1].set(rho * epsilon[0] + jnp.sqrt(1.0 - rho**2) * epsilon[1])
    continuous = parameters.means[k] + temperature**0.5 * jnp.exp(parameters.log_scales[k]) * epsilon
    binary = jax.random.bernoulli(flips, jax.nn.sigmoid(parameters.logits)).astype(jnp.float32)
    return jnp.concatenate([continuous, binary])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureDensityModel(FramewiseModel):
    """Autoregressive model of real-valued sequences `x` [B, T, D], with `mask` [B, T] if they differ in length.

    Attributes:
      data_shape: times and features (T, D); None takes the data set's.
      network: the recurrent layers.
      num_components: number K of Gaussians.
      num_binary: number of last features that are 0 or 1; None takes the data set's.
      correlated: whether the two features that are not binary have a correlation.
      output_dropout: rate of dropout of the output map's input.
      temperature: factor on the variance of samples; forecasts have the learned variance.
      compute_dtype: type that the network computes in.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    network: Recurrent = Recurrent(cell="lstm", hidden_dim=64)
    num_components: int = 5
    num_binary: int | None = None
    correlated: bool = False
    output_dropout: float = 0.0
    temperature: float = 1.0
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=3e-3, clip_norm=1.0)

    def __post_init__(self) -> None:
        if self.network.bidirectional:
            raise UserError(
                "a model of what comes next cannot read from the end: set model.network.bidirectional=false"
            )

    def module(self) -> MixtureNetwork:
        """The Linen module."""
        num_features, num_binary = filled(self, "data_shape")[1], self.num_binary or 0
        size = num_features - num_binary
        if size < 1 or self.correlated and size != 2:
            raise UserError(
                f"of {num_features} features model.num_binary={num_binary} are 0 or 1; at least one must be left, and "
                "with model.correlated two"
            )
        return MixtureNetwork(
            size,
            num_binary,
            self.num_components,
            self.correlated,
            self.network,
            self.output_dropout,
            jnp.dtype(self.compute_dtype),
        )

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
        """Draws futures of sequences [B, P, D], shape [num_samples, B, num_steps, D]; quantiles of
        them are intervals.
        """
        batch = past.shape[0]
        rows = jnp.broadcast_to(past[None], (num_samples, *past.shape)).reshape(-1, *past.shape[1:])
        future = self._continue(state, key, rows, num_steps)
        return future.reshape(num_samples, batch, num_steps, -1)

    def intervals(
        self,
        state: TrainState,
        key: Array,
        past: Array,
        num_steps: int,
        levels: tuple[float, ...] = (0.5, 0.9),
        num_samples: int = 200,
    ) -> tuple[Array, Array]:
        """Medians of the future [B, num_steps, D], and central intervals [len(levels), 2, B, num_steps, D]."""
        futures = self.forecast(state, key, past, num_steps, num_samples)
        ends = jnp.array([[(1.0 - level) / 2.0, (1.0 + level) / 2.0] for level in levels])
        bounds = jnp.quantile(futures, ends.reshape(-1), axis=0)
        return jnp.median(futures, axis=0), bounds.reshape(*ends.shape, *bounds.shape[1:])

    def _continue(self, state: TrainState, key: Array, past: Array, num_steps: int, temperature: float = 1.0) -> Array:
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
            now = jax.tree.map(lambda a: a[:, 0], parameters)
            x = jax.vmap(functools.partial(draw_frame, temperature=temperature))(fold_in(keys, place), now)
            return (x, carry), x

        return jax.lax.scan(step, (text[:, -1], carry), jnp.arange(num_steps))[1].swapaxes(0, 1)

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws sequences, [num_samples, T, D]."""
        nothing = jnp.zeros((num_samples, 0, self.data_shape[1]))
        return self._continue(state, key, nothing, self.data_shape[0], self.temperature)
