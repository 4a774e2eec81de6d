"""How the next token is chosen from logits.

    temperature   p^(1/tau), renormalised; 0 is greedy
    top-k         the k likeliest (Fan et al. 2018)
    top-p         the smallest set of likeliest tokens with mass >= p (nucleus, Holtzman et al. 2020)
    min-p         tokens with at least min_p times the largest probability (Nguyen et al. 2024)
    typical       tokens whose surprise is nearest to the entropy, up to mass >= typical_p (Meister et al. 2023)
    repetition    logits of tokens seen before are divided (positive) or multiplied by the penalty (Keskar et al. 2019)

The repetition penalty is applied first, then the others in this order.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError

#: Logit of a token that is not allowed; finite, so that gradients and differences stay finite.
FORBIDDEN = -1e30
#: Vocabularies up to this size are ranked by comparing all pairs, which is several times as fast as sorting.
COMPARED = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the choice; None leaves a filter out.

    Attributes:
      temperature: tau; 0 takes the likeliest token.
      top_k: number of likeliest tokens that are kept.
      top_p: probability mass of the likeliest tokens that are kept.
      min_p: smallest probability that is kept, as a share of the largest probability.
      typical_p: probability mass of the most typical tokens that are kept.
      repetition_penalty: 1 for none; above 1, tokens of prompt and continuation become unlikelier.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"sampling.temperature={self.temperature} must not be negative")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"sampling.top_k={self.top_k} must be at least 1")
        for name in ("top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise UserError(f"sampling.{name}={value} must lie in (0, 1]")
        if self.repetition_penalty <= 0:
            raise UserError(f"sampling.repetition_penalty={self.repetition_penalty} must be positive")

    @property
    def needs_seen(self) -> bool:
        """Whether `filter` needs to know which tokens were seen."""
        return self.repetition_penalty != 1.0

    def filter(
        self,
        logits: Array,
        seen: Array | None = None,
        temperature: Array | None = None,
        top_p: Array | None = None,
    ) -> Array:
        """Unnormalised log-probabilities to draw tokens from, float32 [..., V].

        Args:
          logits: [..., V].
          seen: tokens that the repetition penalty falls on, bool [..., V].
          temperature, top_p: values of each row [..., 1] instead of the fields; this temperature must be positive.
        """
        logits = logits.astype(jnp.float32)
        if self.needs_seen and seen is not None:
            penalised = jnp.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = jnp.where(seen, penalised, logits)
        if temperature is None and self.temperature == 0.0:
            best = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=bool)
            return jnp.where(best, 0.0, FORBIDDEN)
        logits = logits / (self.temperature if temperature is None else temperature)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = jnp.where(_largest(logits, self.top_k), logits, FORBIDDEN)
        if top_p is not None:
            # Before the last token the sum may be rounded to 1.
            logits = jnp.where(_likeliest(logits, jnp.where(top_p < 1.0, top_p, jnp.inf)), logits, FORBIDDEN)
        elif self.top_p is not None and self.top_p < 1.0:
            logits = jnp.where(_likeliest(logits, self.top_p), logits, FORBIDDEN)
        if self.min_p is not None:
            # p < min_p max p, in logarithms.
            largest = logits.max(-1, keepdims=True)
            logits = jnp.where(logits < largest + jnp.log(self.min_p), FORBIDDEN, logits)
        if self.typical_p is not None and self.typical_p < 1.0:
            logits = jnp.where(_most_typical(logits, self.typical_p), logits, FORBIDDEN)
        return logits

    def noise(self, keys: Array, vocab_size: int) -> Array | None:
        """Gumbel noise [B, V] for `draw`, from a key for each row [B]; None if the choice is greedy."""
        if self.temperature == 0.0:
            return None
        return jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,)))(keys)

    def draw(self, noise: Array | None, logits: Array) -> Array:
        """Draws tokens, int32 [B], from filtered logits [B, V]: the largest sum of logit and noise (Gumbel 1954)."""
        return (logits if noise is None else logits + noise).argmax(-1).astype(jnp.int32)


#: Draws every token with its own probability.
PLAIN = Sampling()


def _largest(logits: Array, count: int) -> Array:
    """True at the `count` largest of the last axis [..., V], and at all values equal to the smallest of these."""
    if logits.shape[-1] <= COMPARED:
        return (logits[..., :, None] > logits[..., None, :]).sum(-2) < count
    return logits >= jax.lax.top_k(logits, count)[0][..., -1:]


def _unsort(kept: Array, order: Array) -> Array:
    inverse = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(kept, inverse, axis=-1)


def _likeliest(logits: Array, mass: float | Array) -> Array:
    order = jnp.argsort(-logits, axis=-1)
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    return _unsort(before < mass, order)


def _most_typical(logits: Array, mass: float) -> Array:
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    probs = jnp.exp(log_probs)
    entropy = -(probs * log_probs).sum(-1, keepdims=True)
    order = jnp.argsort(jnp.abs(-log_probs - entropy), axis=-1)
    ordered = jnp.take_along_axis(probs, order, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    return _unsort(before < mass, order)
