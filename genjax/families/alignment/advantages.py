"""Advantages: how much better an answer, or a token of it, was than expected.

Answers are rows of N places; `mask` [B, N] is True at their tokens, which stand at the beginning of the row, the end
token included.  Whatever stands elsewhere in rewards and values changes nothing.

    GAE         A_t = sum_k (gamma lambda)^k delta_t+k,   delta_t = r_t + gamma V_t+1 - V_t   (Schulman et al. 2016)
    group       A_i = r_i - mean_j r_j, perhaps divided by the standard deviation       (GRPO, Shao et al. 2024)
    leave one   A_i = r_i - mean_{j != i} r_j                                           (RLOO, Ahmadian et al. 2024)
    to go       A_t = sum_{k >= t} gamma^(k - t) r_k                                    (REINFORCE++, Hu et al. 2025)

The expectation of A grad log pi over all groups, beside the gradient of the expected reward (tests enumerate all groups
of two answers of a policy over 15 sequences): leave one out gives it exactly; the group's mean gives (G - 1) / G of it,
a right direction; after division by the group's standard deviation it is no multiple of it (grpo.py has the figures).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from genjax.batch import Array, cross_device_sum

#: Added to a group's standard deviation, as in GRPO's reference code.
DEVIATION_EPSILON = 1e-4


def generalized_advantages(
    rewards: Array, values: Array, mask: Array, discount: float = 1.0, trace_decay: float = 0.95
) -> tuple[Array, Array]:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    Args:
      rewards: reward of each token, [B, N].
      values: expected sum of rewards from each token on, [B, N]; behind the end it counts as 0.
      mask: True at tokens of the answer.
      discount: gamma.
      trace_decay: lambda; 1 gives sums of rewards less the value, 0 gives the error of one step.

    Returns:
      Advantages A and returns A + V, what the values should have been; [B, N], 0 behind the end.
    """
    rewards, values = (jnp.where(mask, a, 0.0).astype(jnp.float32) for a in (rewards, values))
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    errors = rewards + discount * following - values

    def back(later: Array, error: Array) -> tuple[Array, Array]:
        advantage = error + discount * trace_decay * later
        return advantage, advantage

    advantages = jax.lax.scan(back, jnp.zeros_like(errors[:, 0]), errors.T, reverse=True)[1].T
    return jnp.where(mask, advantages, 0.0), jnp.where(mask, advantages + values, 0.0)


def rewards_to_go(rewards: Array, mask: Array, discount: float = 1.0) -> Array:
    """Discounted sum of the rewards of each token [B, N] and the tokens behind it, [B, N]."""
    zeros = jnp.zeros_like(rewards)
    return generalized_advantages(rewards, zeros, mask, discount, 1.0)[0]


def whitened(values: Array, mask: Array) -> Array:
    """Values [B, N] less their mean, over their standard deviation, both of all tokens of the batch on all devices.

    The deviation divides by the number of tokens less one.  Fewer than two tokens are returned as they are.
    """
    weights = mask.astype(jnp.float32)
    values = jnp.where(mask, values, 0.0).astype(jnp.float32)
    count, total = cross_device_sum((weights.sum(), values.sum()))
    centered = jnp.where(mask, values - total / jnp.maximum(count, 1.0), 0.0)
    variance = cross_device_sum(jnp.square(centered).sum()) / jnp.maximum(count - 1.0, 1.0)
    return jnp.where(count < 2.0, values, centered * jax.lax.rsqrt(variance + 1e-8))


def group_advantages(rewards: Array, scale: str = "group") -> Array:
    """Rewards [Q, G] of G answers to each of Q prompts, relative to the mean of their group.

    The group's mean holds the answer's own reward, so that without a scale the expected gradient is (G - 1) / G of the
    reward's gradient.  The scales `group` and `batch` change its direction too: easy and hard prompts weigh more (Liu
    et al. 2025, arXiv:2503.20783, section 3.1).

    Args:
      rewards: [Q, G].
      scale: what rewards are divided by: the standard deviation of their `group` (GRPO) or of the whole `batch` on all
        devices, or nothing, `none` (Dr. GRPO).  Deviations divide by the number of rewards less one.
    """
    centered = rewards - rewards.mean(1, keepdims=True)
    match scale:
        case "none":
            return centered
        case "group":
            return centered / (rewards.std(1, ddof=1, keepdims=True) + DEVIATION_EPSILON)
    count, total = cross_device_sum((jnp.asarray(rewards.size, jnp.float32), rewards.sum()))
    variance = cross_device_sum(jnp.square(rewards - total / count).sum()) / (count - 1.0)
    return centered / (jnp.sqrt(variance) + DEVIATION_EPSILON)


def leave_one_out_advantages(rewards: Array) -> Array:
    """Rewards [Q, G] less the mean of the other rewards of their group (Kool et al. 2019); unbiased."""
    size = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdims=True)) * (size / (size - 1))
