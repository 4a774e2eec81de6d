"""GRPO and its variants: advantages relative to the other answers to a prompt, and no value network.

    A_i = (r_i - mean_j r_j) / (std_j r_j + 1e-4)            j over the G answers to a prompt
    loss = mean_i 1 / |y_i| sum_t max(-A_i rho_t, -A_i clip(rho_t, 1 - low, 1 + high))

    GRPO      Shao et al. 2024, arXiv:2402.03300, eq. 3     scale=group, normalization=answer, kl=token_k3
    Dr. GRPO  Liu et al. 2025, arXiv:2503.20783             scale=none, normalization=longest: the default here
    DAPO      Yu et al. 2025, arXiv:2503.14476, eq. 8       normalization=tokens, clip_high=.28, beta=0, oversampling
    GSPO      Zheng et al. 2025, arXiv:2507.18071           the class GSPO: one ratio an answer

Of these, Dr. GRPO's gradient alone is the gradient of the expected reward (times (G - 1) / G, and at the first epoch,
where nothing is clipped).  What the others divide by changes its direction.  On the tabular policy of the tests, with
groups of two, what is left after the best rescaling, and the cosine of the angle:

    the group's deviation, or the batch's      19 % of the true gradient's length    .982
    the answer's own length                    35 %                                  .938
    the mean length                            15 %                                  .988
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from genjax.batch import Array, Batch
from genjax.errors import UserError
from genjax.families.alignment import advantages, policy_losses
from genjax.families.alignment.policy import PolicyOptimization
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(PolicyOptimization):
    """Group relative policy optimisation, by default in the form of Dr. GRPO.

    Attributes: see `PolicyOptimization`, and
      scale: what rewards are divided by: the deviation of their group, of the whole batch, or nothing.
      normalization: what the sum over tokens is divided by: the answer's own length (GRPO), the mean length of the
        minibatch (tokens, DAPO), the longest length (Dr. GRPO), or 1 (sum).
      oversampling: number K of prompts that are answered for each that is learned from: of every K consecutive prompts
        the first whose answers differ in reward is taken (DAPO's dynamic sampling, with a fixed number of draws).
    """

    fewest_rollouts: ClassVar[int] = 2

    scale: Literal["none", "group", "batch"] = "none"
    normalization: policy_losses.Normalization = "longest"
    oversampling: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oversampling < 1:
            raise UserError(f"model.oversampling={self.oversampling} must be at least 1")

    def kept_prompts(self, rewards: Array) -> Array | None:
        if self.oversampling == 1:
            return None
        count, size = rewards.shape[0] // self.oversampling, self.oversampling
        if rewards.shape[0] % size:
            raise UserError(
                f"the {rewards.shape[0]} prompts of a step on a device are no multiple of model.oversampling={size}"
            )
        differ = (rewards.max(1) > rewards.min(1)).reshape(count, size)
        # The first of a block, if no prompt of it has answers that differ.
        return jnp.arange(count) * size + differ.argmax(1)

    def with_advantages(self, state: TrainState, experience: Batch, rewards: Array) -> Batch:
        """Adds `advantages`, equal at all tokens of an answer."""
        totals = (rewards - self.penalties(experience).sum(1)).reshape(-1, self.num_rollouts)
        found = advantages.group_advantages(totals, self.scale).reshape(-1, 1)
        return {**experience, "advantages": jnp.broadcast_to(found, experience["mask"].shape)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GSPO(GRPO):
    """Group sequence policy optimisation: the ratio of an answer is the geometric mean of its tokens' ratios.

    The paper clips at 3e-4 and 4e-4, as these ratios differ much less from 1 than the ratios of tokens.

    Attributes: see `GRPO`.
    """

    level: ClassVar[policy_losses.Level] = "mean"

    scale: Literal["none", "group", "batch"] = "group"
    normalization: policy_losses.Normalization = "answer"
    clip_low: float = 3e-4
    clip_high: float = 4e-4
