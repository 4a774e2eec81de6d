"""Contrast of pairs with the other pairs of a batch, which are the negatives (van den Oord et al. 2018, arXiv:1807.03748, eq. 4).

-log exp(s_ii) / sum_j exp(s_ij)        for similarities s_ij of the first part of pair i and the second of pair j
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def repeats(*arrays: Array) -> Array:
    """True at rows of arrays [B, ...] that are the row before them again, as those are that fill up a last batch; bool [B]."""
    again = jnp.ones(arrays[0].shape[0] - 1, bool)
    for array in arrays:
        again &= (array[1:] == array[:-1]).reshape(again.shape[0], -1).all(1)
    return jnp.concatenate([jnp.zeros(1, bool), again])


def partner_scores(similarities: Array, absent: Array | None = None) -> tuple[Array, Array]:
    """How well partners are found.

    Args:
      similarities: logits of each row's partners [B, B]; its own stands on the diagonal.
      absent: pairs that are none and so no negatives, bool [B], or None.

    Returns:
      Nats of the own partner [B], and 1 where it is the likeliest, else 0, float32 [B]; of absent pairs anything.
    """
    own = jnp.arange(similarities.shape[0])
    if absent is not None:
        similarities = jnp.where(absent[None], -1e30, similarities)
    nll = optax.softmax_cross_entropy_with_integer_labels(similarities, own)
    return nll, (similarities.argmax(1) == own).astype(jnp.float32)
