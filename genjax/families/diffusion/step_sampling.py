"""Importance sampling of the steps of a chain (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.3).

    L = sum_t L_t = E_{t ~ p_t} [L_t / p_t],    p_t proportional to sqrt(E[L_t^2])                              (eq. 18)

The mean is over the last ten values of each L_t; p_t is uniform until every step has ten values.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from genjax.batch import Array

#: Number of last losses that are kept for each step.
LENGTH = 10
#: Probability of drawing a step uniformly, so that a step with tiny losses is seen again (0.001
#: in the authors' program).
UNIFORM_SHARE = 0.001


class StepHistory(flax.struct.PyTreeNode):
    """The last losses of each step 1, ..., T.

    Attributes:
      losses: L_t, [T, LENGTH], a ring buffer for each step.
      counts: number of losses seen, int32 [T]; kept below 2 LENGTH by subtracting LENGTH, so that it never overflows.
    """

    losses: Array
    counts: Array

    @classmethod
    def empty(cls, num_timesteps: int) -> StepHistory:
        """The history of T steps before the first loss."""
        return cls(jnp.zeros((num_timesteps, LENGTH)), jnp.zeros((num_timesteps,), jnp.int32))

    def filled(self) -> Array:
        """Share of the steps that have LENGTH losses."""
        return jnp.mean((self.counts >= LENGTH).astype(jnp.float32))

    def probabilities(self) -> Array:
        """p_t of the steps 1, ..., T, shape [T]."""
        count = self.counts.shape[0]
        # A tiny constant keeps the sum positive if all losses are 0.
        root = jnp.sqrt(jnp.mean(jnp.square(self.losses), axis=1)) + 1e-30
        weighted = (1.0 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / count
        return jnp.where(jnp.all(self.counts >= LENGTH), weighted, 1.0 / count)

    def with_losses(self, steps: Array, losses: Array) -> StepHistory:
        """The history after the losses [B] of steps [B], one after the other; losses of step 0 are not kept."""
        count = self.counts.shape[0]
        # Rows beyond the last row are dropped.
        rows = jnp.where(steps > 0, steps - 1, count)
        order = jnp.argsort(rows)
        rows, losses = rows[order], losses[order]
        rank = jnp.arange(rows.shape[0]) - jnp.searchsorted(rows, rows)
        drawn = jnp.zeros_like(self.counts).at[rows].add(1, mode="drop")
        known = jnp.minimum(rows, count - 1)
        # If more losses come than fit, the last are kept, so that each has its own place.
        kept = jnp.where(rank >= drawn[known] - LENGTH, rows, count)
        places = (self.counts[known] + rank) % LENGTH
        counts = self.counts + drawn
        counts = jnp.where(counts < LENGTH, counts, LENGTH + counts % LENGTH)
        return StepHistory(self.losses.at[kept, places].set(losses, mode="drop"), counts)
