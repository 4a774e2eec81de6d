"""Likelihoods of values on L evenly spaced levels from -1 to 1, whose bins are 2 / (L - 1) wide.

Values on other levels, such as v / (L - 1) from 0 to 1, have other bins: they would have the mass of too wide ones.
"""

from __future__ import annotations

import jax.numpy as jnp

from genjax.batch import Array
from genjax.nn.distributions import Lattice


def are_levels(x: Array, num_levels: int) -> Array:
    """Which examples x [B, ...] have all of their values on the levels, [B]."""
    on = Lattice(low=-1.0, high=1.0, num_levels=num_levels).contains(x)
    return on.reshape(on.shape[0], -1).all(-1)


def only_of_levels(log_prob: Array, x: Array, num_levels: int | None) -> Array:
    """Log-probabilities [B] of examples x [B, ...], NaN where these are not on the levels; all where there are no levels."""
    return log_prob if num_levels is None else jnp.where(are_levels(x, num_levels), log_prob, jnp.nan)


def check_levels(x: Array, num_levels: int | None) -> None:
    """Refuses examples x [B, ...] that are not on the levels, outside of `jit`.

    Raises:
      UserError: with their range.
    """
    if num_levels is not None:
        Lattice(low=-1.0, high=1.0, num_levels=num_levels).check(x, "the likelihood", "data.preprocessing to signed")
