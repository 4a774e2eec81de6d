"""Diffusion of tokens: masked diffusion, and D3PM with uniform or absorbing noise.

Tokens are corrupted independently; at time t each keeps its value with probability alpha(t), and otherwise becomes

    mask (absorbing)     or    a uniformly drawn symbol (uniform)

Masked diffusion in continuous time with alpha(t) = 1 - t (Sahoo et al. 2024, arXiv:2406.07524, eq. 10; Shi et al. 2024,
arXiv:2406.04329) has the bound

    -log p(x) <= E_t 1 / t sum_{i masked} -log p(x_i | z_t)

D3PM (Austin et al. 2021, arXiv:2107.03006) has T steps and a network p(x | z_t); with K symbols
and r = alpha(t) / alpha(s),

    q(z_s = j | z_t = i, x) ~ q(z_t = i | z_s = j) q(z_s = j | x)                                               (eq. 3)
    bound = sum_{k=2}^T KL(q(z_(k-1) | z_k, x) || sum_x' q(z_(k-1) | z_k, x') p(x' | z_k)) - log p(x | z_1)

and the prior's KL, which is 0 where alpha(1) = 0.  The loss is the bound, plus cross_entropy_weight
times -log p(x | z_t) (eq. 5).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.families.diffusion.networks import sinusoidal_embedding
from genjax.families.diffusion.times import spread_uniforms
from genjax.gradients import gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.attention import Attention
from genjax.nn.dropout import dropout, fold_in
from genjax.optimizers import Adam, Optimizer


class TokenDenoiser(nn.Module):
    """Bidirectional transformer with adaptive norms: tokens [B, T] of K + 1 symbols and times [B] to logits [B, T, K].

    Attributes:
      vocab_size: K; the symbol K is the mask.
      hidden_dim: width.
      num_layers: blocks.
      num_heads: heads of attention.
      dropout_rate: dropout in the inner layers.
      dtype: type to compute in.
    """

    vocab_size: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, t: Array, dropout_keys: Array | None = None) -> Array:
        dtype, width = self.dtype, self.hidden_dim
        time = sinusoidal_embedding(1000.0 * t, max(2 * (width // 8), 16)).astype(dtype)
        time = jax.nn.silu(nn.Dense(width, dtype=dtype)(jax.nn.silu(nn.Dense(width, dtype=dtype)(time))))
        h = nn.Embed(self.vocab_size + 1, width, dtype=dtype, name="symbols")(tokens)
        norm = lambda a: nn.LayerNorm(use_scale=False, use_bias=False, dtype=dtype)(a)
        zeros = nn.initializers.zeros
        for i in range(self.num_layers):
            adapt = nn.Dense(6 * width, dtype=dtype, kernel_init=zeros, name=f"adapt_{i}")(time)
            b1, s1, g1, b2, s2, g2 = jnp.split(adapt[:, None], 6, axis=-1)
            # rotary positions need no length
            rotary = width // self.num_heads // 2 * 2
            attend = Attention(self.num_heads, rotary_dim=rotary, dtype=dtype, name=f"attention_{i}")
            h = h + (1.0 + g1) * attend(norm(h) * (1.0 + s1) + b1)[0]
            y = jax.nn.gelu(nn.Dense(4 * width, dtype=dtype, name=f"widen_{i}")(norm(h) * (1.0 + s2) + b2))
            y = dropout(y, self.dropout_rate, fold_in(dropout_keys, i))
            h = h + (1.0 + g2) * nn.Dense(width, dtype=dtype, name=f"narrow_{i}")(y)
        return nn.Dense(self.vocab_size, dtype=dtype, name="logits")(norm(h)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedDiffusion:
    """Masked (absorbing) diffusion of token sequences in continuous time.

    Attributes:
      vocab_size: number of symbols K; None takes the data set's.
      sequence_length: length of a sequence; None takes the data set's.
      hidden_dim: width of the transformer.
      num_layers: blocks of the transformer.
      num_heads: heads of the transformer.
      dropout_rate: dropout of the transformer.
      num_steps_sampling: number of steps of `sample`.
      temperature: temperature of symbols in samples.
      num_bound_samples: number of times for the bound of one example in `evaluate`, one from each of equal strata.
      compute_dtype: type that the network computes in.
      optimizer: optimizer and learning-rate schedule.
    """

    vocab_size: int | None = None
    sequence_length: int | None = None
    hidden_dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    dropout_rate: float = 0.0
    num_steps_sampling: int = 64
    temperature: float = 1.0
    num_bound_samples: int = 8
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=1e-3, ema_decay=0.999)

    def check(self) -> None:
        """Raises UserError for settings that cannot work."""
        filled(self, "vocab_size", "sequence_length")
        for name in ("num_steps_sampling", "num_bound_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.temperature > 0.0:
            raise UserError(f"temperature={self.temperature} must be above 0; 0.01 is close to the likeliest symbols")
        if self.hidden_dim % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} must divide hidden_dim={self.hidden_dim}")

    def module(self) -> TokenDenoiser:
        """The network."""
        self.check()
        dtype = jnp.dtype(self.compute_dtype)
        return TokenDenoiser(
            self.vocab_size, self.hidden_dim, self.num_layers, self.num_heads, self.dropout_rate, dtype
        )

    def log_probs(self, params: PyTree, z: Array, t: Array, dropout_keys: Array | None = None) -> Array:
        """log p(x_i | z_t), [B, T, K], for tokens z [B, T] of which K is the mask, at times [B]."""
        return jax.nn.log_softmax(self.module().apply({"params": params}, z, t, dropout_keys))

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step."""
        params = self.module().init(key, batch["tokens"][:1], jnp.ones((1,)))["params"]
        return TrainState.create(params, self.optimizer)

    def corrupt(self, tokens: Array, keep: Array, keys: Array) -> Array:
        """z_t given x [B, T]: each token is kept with probability keep [B], and otherwise masked."""
        kept = jax.vmap(lambda k, p: jax.random.bernoulli(k, p, tokens.shape[1:]))(keys, keep)
        return jnp.where(kept, tokens, self.vocab_size)

    def _bound(
        self, params: PyTree, tokens: Array, weights: Array, t: Array, keys: Array, dropout_keys: Array | None
    ) -> Array:
        """The bound's integrand at times [B], nats of the whole sequence, [B]."""
        z = self.corrupt(tokens, 1.0 - t, keys)
        log_probs = self.log_probs(params, z, t, dropout_keys)
        nll = -jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
        return jnp.where(z == self.vocab_size, nll * weights, 0.0).sum(-1) / t

    @staticmethod
    def _weights(batch: Batch) -> Array:
        """Which tokens count, [B, T]."""
        mask = batch.get("mask")
        return jnp.ones(batch["tokens"].shape) if mask is None else mask.astype(jnp.float32)

    def _bound_estimate(self, params: PyTree, batch: Batch, key: Array, index: Array, count: int) -> Array:
        """The bound from one time in stratum number `index` of `count` equal strata, [B]."""
        base = jax.vmap(jax.random.fold_in, in_axes=(0, None))(example_keys(key, batch), index)
        keys = jax.vmap(lambda k: jax.random.split(k, 2))(base)
        t = jnp.maximum((index + jax.vmap(jax.random.uniform)(keys[:, 0])) / count, 1e-4)
        return self._bound(params, batch["tokens"], self._weights(batch), t, keys[:, 1], None)

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the bound in nats over T, and metrics."""
        keys = jax.vmap(jax.random.split)(example_keys(key, batch))
        t = jnp.maximum(spread_uniforms(key, batch), 1e-4)
        weights = self._weights(batch)
        bound = self._bound(params, batch["tokens"], weights, t, keys[:, 0], keys[:, 1])
        # Divided by a constant, so that gradients of microbatches and devices add up to the whole batch's gradient.
        return bound.sum() / weights.size, {"nll_bound_per_token": Ratio(bound.sum(), weights.sum())}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, nll_bound_per_token (nats)."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def log_prob_bound(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """An estimate of the lower bound on log p(tokens) in nats, [B]."""

        def add(total: Array, index: Array) -> tuple[Array, None]:
            return total + self._bound_estimate(state.eval_params, batch, key, index, self.num_bound_samples), None

        zero = jnp.zeros((batch["tokens"].shape[0],))
        total, _ = jax.lax.scan(add, zero, jnp.arange(self.num_bound_samples))
        return -total / self.num_bound_samples

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """`nll_bound` of each sequence in nats [B], and `nll_bound_per_token` over all tokens, which is also `loss`."""
        nll = -self.log_prob_bound(state, batch, key)
        per_token = Ratio(nll, self._weights(batch).sum(-1))
        return {"loss": per_token, "nll_bound": nll, "nll_bound_per_token": per_token}

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("prompt",)

    def sample(self, state: TrainState, key: Array, num_samples: int, *, prompt: Array | None = None) -> Array:
        """Draws tokens [num_samples, sequence_length] by unmasking from t = 1 to 0.

        Args:
          state: trained state.
          key: random key.
          num_samples: how many.
          prompt: tokens [num_samples, sequence_length] whose symbols below vocab_size stay;
            -1 or vocab_size is filled in.
        """
        shape = (num_samples, self.sequence_length)
        z = jnp.full(shape, self.vocab_size, jnp.int32)
        if prompt is not None:
            if prompt.shape != shape:
                raise UserError(f"prompt has shape {prompt.shape}, but samples have shape {shape}")
            z = jnp.where((prompt >= 0) & (prompt < self.vocab_size), prompt, z).astype(jnp.int32)
        steps = self.num_steps_sampling

        def body(z: Array, index: Array) -> tuple[Array, None]:
            t, s = 1.0 - index / steps, 1.0 - (index + 1) / steps
            draw_key, reveal_key = jax.random.split(jax.random.fold_in(key, index))
            log_probs = self.log_probs(state.eval_params, z, jnp.full((num_samples,), t))
            symbols = jax.random.categorical(draw_key, log_probs / self.temperature)
            # A masked token is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t).
            reveal = jax.random.bernoulli(reveal_key, (t - s) / t, z.shape) | (index == steps - 1)
            return jnp.where((z == self.vocab_size) & reveal, symbols, z), None

        return jax.lax.scan(body, z, jnp.arange(steps))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class D3PM(MaskedDiffusion):
    """Discrete diffusion in T steps with alpha(k / T) = 1 - k / T (the absorbing schedule; cosine otherwise).

    Attributes:
      noise: absorbing, or uniform over the symbols.
      num_timesteps: number T of steps, also of `sample`; `num_steps_sampling` is not used.
      cross_entropy_weight: weight of the auxiliary -log p(x | z_t), per token.
    """

    noise: Literal["absorbing", "uniform"] = "uniform"
    num_timesteps: int = 100
    cross_entropy_weight: float = 0.01

    def check(self) -> None:
        super().check()
        if self.num_timesteps < 1:
            raise UserError(f"num_timesteps={self.num_timesteps} must be at least 1")
        if self.num_steps_sampling != MaskedDiffusion.num_steps_sampling:
            raise UserError(
                f"D3PM samples by the {self.num_timesteps} steps of its chain (num_timesteps); "
                "leave num_steps_sampling out"
            )

    def keep_probability(self, t: Array) -> Array:
        """alpha(t): the probability that a token is unchanged; 0 at the end."""
        if self.noise == "absorbing":
            return 1.0 - t
        return jnp.sin(0.5 * jnp.pi * (1.0 - t)) ** 2

    def corrupt(self, tokens: Array, keep: Array, keys: Array) -> Array:
        if self.noise == "absorbing":
            return super().corrupt(tokens, keep, keys)
        keys = jax.vmap(jax.random.split)(keys)
        kept = jax.vmap(lambda k, p: jax.random.bernoulli(k, p, tokens.shape[1:]))(keys[:, 0], keep)
        drawn = jax.vmap(lambda k: jax.random.randint(k, tokens.shape[1:], 0, self.vocab_size))(keys[:, 1])
        return jnp.where(kept, tokens, drawn)

    def log_posterior(self, z: Array, x_probs: Array, alpha_t: Array, alpha_s: Array) -> Array:
        """log of q(z_s | z_t, x), averaged over x under its probabilities, [B, T, K + 1] (the last symbol is the mask).

        Args:
          z: z_t, [B, T].
          x_probs: probabilities of x, [B, T, K]; one-hot for the posterior itself.
          alpha_t: keep probabilities [B] at t.
          alpha_s: keep probabilities [B] at s < t.
        """
        size = self.vocab_size
        alpha_t, alpha_s = (a[:, None, None] for a in (alpha_t, alpha_s))
        here = jax.nn.one_hot(z, size + 1)
        x_probs = jnp.pad(x_probs, ((0, 0), (0, 0), (0, 1)))
        if self.noise == "absorbing":
            # Visible tokens stay.  Masked tokens were masked before, or are revealed as x.
            mask = jax.nn.one_hot(jnp.full_like(z, size), size + 1)
            reveal = (alpha_s - alpha_t) / (1.0 - alpha_t)
            masked = (z == size)[..., None]
            probs = jnp.where(masked, reveal * x_probs + (1.0 - reveal) * mask, here)
        else:
            ratio = alpha_t / alpha_s
            uniform = jnp.ones((1, 1, size + 1)).at[..., -1].set(0.0) / size
            likelihood = ratio * here + (1.0 - ratio) * uniform  # q(z_t | z_s = j), by j, up to a constant
            # For x' the normaliser is q(z_t | x'), which differs between x' = z_t and the rest.
            evidence = alpha_t * here + (1.0 - alpha_t) * uniform
            share = jnp.where(uniform > 0.0, x_probs / jnp.maximum(evidence, 1e-20), 0.0)
            probs = likelihood * (alpha_s * share + (1.0 - alpha_s) * uniform * share.sum(-1, keepdims=True))
        return jnp.log(jnp.maximum(probs, 1e-20))

    def _term(
        self, params: PyTree, tokens: Array, weights: Array, step: Array, keys: Array, dropout_keys: Array | None
    ) -> tuple[Array, Array]:
        """T times the bound's term at steps [B], and the cross-entropy, nats of the whole sequence, [B] each."""
        t, s = step / self.num_timesteps, (step - 1) / self.num_timesteps
        alpha_t, alpha_s = self.keep_probability(t), self.keep_probability(s)
        z = self.corrupt(tokens, alpha_t, keys)
        log_probs = self.log_probs(params, z, t, dropout_keys)
        cross_entropy = -jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
        own = self.log_posterior(z, jax.nn.one_hot(tokens, self.vocab_size), alpha_t, alpha_s)
        model = self.log_posterior(z, jnp.exp(log_probs), alpha_t, alpha_s)
        # At k = 1 the posterior is x itself, and the divergence is -log p(x | z_1).
        divergence = (jnp.exp(own) * (own - model)).sum(-1)
        return (
            self.num_timesteps * (divergence * weights).sum(-1),
            (cross_entropy * weights).sum(-1),
        )

    def _steps(self, keys: Array, index: Array | int, count: int) -> Array:
        """Steps 1 to T [B] from stratum number `index` of `count` equal strata."""
        place = (index + jax.vmap(jax.random.uniform)(keys)) / count
        return jnp.clip(jnp.ceil(place * self.num_timesteps), 1, self.num_timesteps)

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the bound plus the weighted cross-entropy, in nats over T, and metrics."""
        keys = jax.vmap(lambda k: jax.random.split(k, 3))(example_keys(key, batch))
        weights = self._weights(batch)
        step = self._steps(keys[:, 0], 0, 1)
        bound, cross_entropy = self._term(params, batch["tokens"], weights, step, keys[:, 1], keys[:, 2])
        count = weights.sum()
        metrics = {
            "nll_bound_per_token": Ratio(bound.sum(), count),
            "cross_entropy": Ratio(cross_entropy.sum(), count),
        }
        return (bound + self.cross_entropy_weight * cross_entropy).sum() / weights.size, metrics

    def _bound_estimate(self, params: PyTree, batch: Batch, key: Array, index: Array, count: int) -> Array:
        base = jax.vmap(jax.random.fold_in, in_axes=(0, None))(example_keys(key, batch), index)
        keys = jax.vmap(lambda k: jax.random.split(k, 2))(base)
        step = self._steps(keys[:, 0], index, count)
        return self._term(params, batch["tokens"], self._weights(batch), step, keys[:, 1], None)[0]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ()

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws tokens [num_samples, sequence_length] by the T reverse steps."""
        shape, steps = (num_samples, self.sequence_length), self.num_timesteps
        start_key, key = jax.random.split(key)
        z = jnp.full(shape, self.vocab_size, jnp.int32)
        if self.noise == "uniform":
            z = jax.random.randint(start_key, shape, 0, self.vocab_size)

        def body(z: Array, index: Array) -> tuple[Array, None]:
            t = jnp.full((num_samples,), 1.0 - index / steps)
            log_probs = self.log_probs(state.eval_params, z, t) / self.temperature
            alpha_t, alpha_s = self.keep_probability(t), self.keep_probability(t - 1.0 / steps)
            logits = self.log_posterior(z, jax.nn.softmax(log_probs), alpha_t, alpha_s)
            return jax.random.categorical(jax.random.fold_in(key, index), logits), None

        z = jax.lax.scan(body, z, jnp.arange(steps))[0]
        return jnp.minimum(z, self.vocab_size - 1)
