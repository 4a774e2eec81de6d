"""A statistical watermark in generated text (Kirchenbauer et al. 2023, arXiv:2301.10226, algorithm 2 and eq. 3).

The previous token seeds a random split of the vocabulary; the share `green_fraction` of it is green, and its logits are
raised by `delta`.  A text of T tokens with g green ones is scored by

    z = (g - gamma T) / sqrt(T gamma (1 - gamma)),

which is about standard normal for text that was written without knowledge of the split.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watermark:
    """Settings of the watermark.

    Attributes:
      seed: the secret that decides the splits.
      green_fraction: share gamma of the vocabulary that is green.
      delta: what is added to green logits.
    """

    seed: int = 0
    green_fraction: float = 0.25
    delta: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.green_fraction < 1.0:
            raise ValueError(f"the watermark's green_fraction={self.green_fraction} must lie between 0 and 1")
        if not math.isfinite(self.delta):
            raise ValueError(f"the watermark's delta={self.delta} must be finite")

    def num_green(self, vocab_size: int) -> int:
        """Number of green tokens.

        Raises:
          ValueError: so few tokens that none or all would be green.
        """
        count = round(self.green_fraction * vocab_size)
        if not 0 < count < vocab_size:
            raise ValueError(
                f"the watermark's green_fraction={self.green_fraction} of {vocab_size} tokens is {count} of them; "
                "some must be green and some not"
            )
        return count

    def green(self, previous: Array, vocab_size: int) -> Array:
        """Which tokens are green after each of `previous` [B], bool [B, V]."""
        count = self.num_green(vocab_size)

        def split(token: Array) -> Array:
            scores = jax.random.uniform(jax.random.fold_in(jax.random.key(self.seed), token), (vocab_size,))
            return scores.argsort().argsort() < count

        return jax.vmap(split)(previous)

    def shift(self, logits: Array, previous: Array) -> Array:
        """Raises the green logits, [B, V]."""
        return logits + self.delta * self.green(previous, logits.shape[-1])

    def z_score(self, tokens: Array, vocab_size: int, mask: Array | None = None) -> Array:
        """Detects the watermark in tokens [B, T], whose first one is only the seed of the second; z [B].

        Every pair of neighbours counts once, so that repeated phrases are no evidence (section 4.1 of the paper).

        Args:
          tokens: [B, T].
          vocab_size: number of tokens.
          mask: True where tokens are no padding, [B, T].
        """
        previous, current = tokens[:, :-1], tokens[:, 1:]
        shape = current.shape
        green = self.green(previous.reshape(-1), vocab_size)
        hits = jnp.take_along_axis(green, current.reshape(-1, 1), axis=1).reshape(shape)
        counted = jnp.ones(shape, bool) if mask is None else mask[:, 1:].astype(bool)
        counted = counted & jax.vmap(_first_of_equals)(previous, current, counted)
        total = counted.sum(1)
        gamma = self.num_green(vocab_size) / vocab_size
        return ((hits & counted).sum(1) - gamma * total) / jnp.sqrt(jnp.maximum(total, 1) * gamma * (1.0 - gamma))


def _first_of_equals(previous: Array, current: Array, counted: Array) -> Array:
    """One place of each pair that occurs, and a counted one where there is any; bool, all arguments [T]."""
    order = jnp.lexsort((~counted, current, previous))
    left, right = previous[order], current[order]
    again = (left[1:] == left[:-1]) & (right[1:] == right[:-1])
    first = jnp.concatenate([jnp.ones((1,), bool), ~again])
    return jnp.zeros_like(counted).at[order].set(first)
