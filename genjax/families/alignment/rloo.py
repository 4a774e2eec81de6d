"""RLOO: REINFORCE with the mean of the other answers as the baseline (Ahmadian et al. 2024, arXiv:2402.14740, eq. 7).

    A_i = R_i - 1 / (G - 1) sum_{j != i} R_j,    R = r - beta (log pi(y | x) - log reference(y | x))

The whole answer is one action: its importance ratio is the product of its tokens' ratios.  At the first epoch the
expected gradient is exactly the gradient of the penalised reward.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from genjax.batch import Array, Batch
from genjax.families.alignment import advantages, policy_losses
from genjax.families.alignment.policy import PolicyOptimization
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLOO(PolicyOptimization):
    """REINFORCE leave one out.

    Attributes: see `PolicyOptimization`.
    """

    level: ClassVar[policy_losses.Level] = "sequence"
    fewest_rollouts: ClassVar[int] = 2

    def with_advantages(self, state: TrainState, experience: Batch, rewards: Array) -> Batch:
        """Adds `advantages`, equal at all tokens of an answer."""
        totals = (rewards - self.penalties(experience).sum(1)).reshape(-1, self.num_rollouts)
        found = advantages.leave_one_out_advantages(totals).reshape(-1, 1)
        return {**experience, "advantages": jnp.broadcast_to(found, experience["mask"].shape)}
