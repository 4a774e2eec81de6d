"""A statistical watermark in generated text (Kirchenbauer et al. 2023, arXiv:2301.10226, algorithm 2 and eq. 3).

The previous token seeds a random split of the vocabulary: the share gamma = `green_fraction` of the tokens is green,
and the logits of green tokens are raised by `delta`.  The score of a text of T tokens, g of them green, is

    z = (g - gamma T) / sqrt(T gamma (1 - gamma)),

which is nearly standard normal for text that was written without knowledge of the split.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError

#: Number of splits of the vocabulary that a detection makes at a time.
SPLITS_AT_ONCE = 64
#: Largest number of entries of a table of all splits.
MOST_ENTRIES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watermark:
    """Settings of the watermark.

    Attributes:
      seed: the secret number that decides the splits.
      green_fraction: share gamma of the vocabulary that is green.
      delta: number that is added to the logits of green tokens.
    """

    seed: int = 0
    green_fraction: float = 0.25
    delta: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.green_fraction < 1.0:
            raise UserError(f"the watermark's green_fraction={self.green_fraction} must lie between 0 and 1")
        if not math.isfinite(self.delta):
            raise UserError(f"the watermark's delta={self.delta} must be finite")

    def num_green(self, vocab_size: int) -> int:
        """Number of green tokens.

        Raises:
          UserError: the vocabulary is so small that no token or every token would be green.
        """
        count = round(self.green_fraction * vocab_size)
        if not 0 < count < vocab_size:
            raise UserError(
                f"the watermark's green_fraction={self.green_fraction} of {vocab_size} tokens is {count} of them; "
                "some must be green and some not"
            )
        return count

    def green(self, previous: Array, vocab_size: int) -> Array:
        """Which tokens are green after each of `previous` [B], bool [B, V]."""
        count = self.num_green(vocab_size)
        return jax.vmap(lambda token: self._split(token, count, vocab_size))(previous)

    def _split(self, token: Array, count: int, vocab_size: int) -> Array:
        """The `count` green tokens after one token, bool [V]."""
        scores = jax.random.uniform(jax.random.fold_in(jax.random.key(self.seed), token), (vocab_size,))
        return scores.argsort().argsort() < count

    def shift(self, logits: Array, previous: Array) -> Array:
        """Raises the green logits, [B, V]."""
        return logits + self.delta * self.green(previous, logits.shape[-1])

    def z_score(self, tokens: Array, vocab_size: int, mask: Array | None = None) -> Array:
        """The score z [B] of each text; large values mean that the text carries the watermark.

        Each pair of neighbouring tokens counts once, so that repeated phrases are no evidence (section 4.1 of the
        paper).

        Args:
          tokens: the texts, [B, T]; the first token is not scored, it only seeds the split for the second.
          vocab_size: number of tokens in the vocabulary.
          mask: False at padding, [B, T].
        """
        previous, current = tokens[:, :-1], tokens[:, 1:]
        count = self.num_green(vocab_size)
        if previous.size > vocab_size and vocab_size**2 <= MOST_ENTRIES:
            # Fewer splits than pairs.
            split = lambda token: self._split(token, count, vocab_size)
            hits = jax.lax.map(split, jnp.arange(vocab_size), batch_size=SPLITS_AT_ONCE)[previous, current]
        else:
            is_green = lambda pair: self._split(pair[0], count, vocab_size)[pair[1]]
            # A few splits at a time, because all splits together are an array [B, T, V].
            hits = jax.lax.map(is_green, (previous.ravel(), current.ravel()), batch_size=SPLITS_AT_ONCE)
            hits = hits.reshape(current.shape)
        if mask is None:
            counted = jnp.ones(current.shape, bool)
        else:
            # A split that is seeded by padding says nothing about the text.
            counted = (mask[:, :-1] & mask[:, 1:]).astype(bool)
        counted = counted & jax.vmap(_first_of_equals)(previous, current, counted)
        total = counted.sum(1)
        gamma = count / vocab_size
        return ((hits & counted).sum(1) - gamma * total) / jnp.sqrt(jnp.maximum(total, 1) * gamma * (1.0 - gamma))


def _first_of_equals(previous: Array, current: Array, counted: Array) -> Array:
    """Marks one place of each distinct pair, at a counted place if there is one; bool [T], all arguments [T]."""
    order = jnp.lexsort((~counted, current, previous))
    left, right = previous[order], current[order]
    again = (left[1:] == left[:-1]) & (right[1:] == right[:-1])
    first = jnp.concatenate([jnp.ones((1,), bool), ~again])
    return jnp.zeros_like(counted).at[order].set(first)
