"""Contrast of pairs with the other pairs of a batch, which are the negatives (van den Oord et al. 2018,
arXiv:1807.03748, eq. 4).

-log exp(s_ii) / sum_j exp(s_ij)        for similarities s_ij of the first part of pair i and the second of pair j
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from genjax.batch import Array


def equal_rows(first: Array, second: Array) -> Array:
    """Element [i, j] tells whether row i of `first` [B, ...] equals row j of `second`, bool [B, B]."""
    return jax.vmap(lambda row: (row[None] == second).reshape(second.shape[0], -1).all(1))(first)


def partner_scores(similarities: Array, excluded: Array) -> tuple[Array, Array]:
    """How well each row finds its own partner among the partners of all rows.

    Args:
      similarities: logits of every partner for each row, [B, B]; a row's own partner stands on the diagonal.
      excluded: bool [B, B], True at partners that are no negatives of a row: padding, and partners that equal the row's
        own partner and would be as right an answer.  The own partner always counts.

    Returns:
      Negative log-probability of the own partner in nats [B]; and 1 where the own partner is the likeliest, else 0,
      float32 [B].
    """
    own = jnp.arange(similarities.shape[0])
    similarities = jnp.where(excluded & (own[:, None] != own[None]), -1e30, similarities)
    nll = optax.softmax_cross_entropy_with_integer_labels(similarities, own)
    return nll, (similarities.argmax(1) == own).astype(jnp.float32)
