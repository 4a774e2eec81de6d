"""Best of n and rejection sampling: answers chosen by their reward, and a policy that learns the chosen ones.

    best of n        the answer with the largest reward among n                     (Stiennon et al. 2020, section 4.3)
    rejection        answer y is kept with probability exp((r(y) - max r) / beta)   (Liu et al. 2023, arXiv:2309.06657)

Kept answers of the reference have the distribution reference(y) exp(r(y) / beta) / Z exactly, if max r is the largest
reward of all answers; with the largest of n drawn answers, nearly.

On a set that can be listed, the distribution of the best of n is known: with F(r) = P(reward <= r),

    P(best = y) = p(y) / P(reward = r(y)) (F(r(y))^n - F(r(y)-)^n)

and with it the KL divergence from p.  The formula log n - (n - 1) / n, which is often given for it, is an upper bound
alone: it holds with equality only if no two answers have one reward and none has much probability (Beirami et al. 2024,
arXiv:2401.01879).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics
from genjax.families.alignment import policy_losses
from genjax.families.alignment.policy import PolicyOptimization
from genjax.families.alignment.rollouts import roll_out
from genjax.model import TrainState


def best_of_log_probs(log_probs: Array, rewards: Array, count: int) -> Array:
    """Log-probability that each element of a set is the best of `count` draws, [S]; of equal ones the first is best.

    Args:
      log_probs: log-probability of each element, [S].
      rewards: reward of each element, [S].
      count: number n of draws.
    """
    probs = jnp.exp(log_probs)
    mass = lambda chosen: (probs[None] * chosen).sum(1)
    below, equal = mass(rewards[None] < rewards[:, None]), mass(rewards[None] == rewards[:, None])
    total = probs.sum()
    chance = ((below + equal) / total) ** count - (below / total) ** count
    return log_probs - jnp.log(equal) + jnp.log(chance)


def best_of_kl(log_probs: Array, rewards: Array, count: int) -> Array:
    """The exact KL divergence in nats of the best of `count` draws from one draw, over a set that is listed."""
    best = best_of_log_probs(log_probs, rewards, count)
    return jnp.where(best > -jnp.inf, jnp.exp(best) * (best - log_probs), 0.0).sum()


def best_of_kl_bound(count: int) -> float:
    """log n - (n - 1) / n nats, an upper bound on the KL divergence of the best of n."""
    return math.log(count) - (count - 1) / count


def acceptance(rewards: Array, beta: float) -> Array:
    """Probability with which rejection sampling keeps each of the answers of a group, [Q, G] -> [Q, G]."""
    return jnp.exp((rewards - rewards.max(1, keepdims=True)) / beta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionSampling(PolicyOptimization):
    """Learns chosen answers of its own by maximum likelihood: RAFT (Dong et al. 2023, arXiv:2304.06767) and relatives.

    With `keep=best`, each group gives its best answer.  With `keep=tilted`, each answer weighs as much as rejection
    sampling would keep it, over the sum of its group: the expectation of what is learned, with no answer thrown away.

    Attributes: see `PolicyOptimization`, and
      keep: which answers are learned.
      temperature: beta of the rejection; not a penalty.
    """

    level: ClassVar[policy_losses.Level] = "sequence"
    fewest_rollouts: ClassVar[int] = 2

    beta: float = 0.0
    keep: Literal["best", "tilted"] = "best"
    temperature: float = 1.0

    def with_advantages(self, state: TrainState, experience: Batch, rewards: Array) -> Batch:
        """Adds `advantages`, which are weights.

        The gradient of the loss is that of minus the weighted log-likelihood, mean over prompts; its value is -1.
        """
        totals = (rewards - self.penalties(experience).sum(1)).reshape(-1, self.num_rollouts)
        if self.keep == "best":
            weights = jax.nn.one_hot(totals.argmax(1), self.num_rollouts)
        else:
            weights = acceptance(totals, self.temperature)
            weights = weights / weights.sum(1, keepdims=True)
        weights = (self.num_rollouts * weights).reshape(-1, 1)
        return {**experience, "advantages": jnp.broadcast_to(weights, experience["mask"].shape)}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """As `PolicyOptimization.evaluate`, and `best_reward` [B]: of the best of num_rollouts answers."""
        metrics = super().evaluate(state, batch, key)
        params = state.eval_params
        rollouts = roll_out(self.policy, params, batch, key, self.num_rollouts, self.longest_answer)
        rewards = self.rewards(state, rollouts, batch).reshape(-1, self.num_rollouts)
        return {**metrics, "best_reward": rewards.max(1)}
