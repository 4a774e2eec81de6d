"""Losses of policy optimisation as functions of log-probabilities of answers.

With l_t = log pi(y_t | x, y_<t), old log-probabilities of the policy that drew the answers, and advantages A_t,

    token       rho_t = exp(l_t - old_t)                     PPO (Schulman et al. 2017), GRPO (Shao et al. 2024)
    mean        rho = exp(mean_t (l_t - old_t))              GSPO (Zheng et al. 2025, arXiv:2507.18071, eq. 7)
    sequence    rho = exp(sum_t (l_t - old_t))               RLOO (Ahmadian et al. 2024), the whole answer as one action
    loss_t = max(-A_t rho_t, -A_t clip(rho_t, 1 - low, 1 + high))

and the loss of a batch is a weighted sum of the losses of tokens; see `token_weights`.

KL divergences from a reference are estimated from d = l - reference, summed over an answer (Schulman 2020,
"Approximating KL divergence"):

    k1 = d,     k2 = d^2 / 2,     k3 = exp(-d) - 1 + d

As values k1 and k3 are unbiased.  As a loss they are not what they seem, since the answers come from the policy itself.
On the tabular policy of the tests (15 sequences), the expected gradient beside the gradient of KL(policy | reference):

    k1 in the loss          exactly 0: no penalty at all
    k1 in the reward        right
    k2 in the loss          right
    k3 in the loss          off by 30 %: it is the gradient of KL(reference | policy)
    rho k3, gradient through rho     right, also off-policy
    sum of k3 of tokens     the value is right, the gradient is off by 36 %
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, cross_device_mean
from genjax.metrics import Ratio

Level = Literal["token", "mean", "sequence"]
Normalization = Literal["answer", "tokens", "longest", "sum"]
Estimator = Literal["k2", "k3_with_gradient_of_k2", "weighted_k3", "token_k3"]

#: Largest exponent of a KL estimate, so that one answer cannot make the loss infinite.
_MOST_NATS = 30.0


def token_weights(mask: Array, normalization: Normalization) -> Array:
    """Weights [B, N] of tokens; the loss is the mean over rows of the weighted sum of a row.

    Args:
      mask: True at tokens of the answers, [B, N].
      normalization: what the sum over tokens is divided by.  `answer`: the length of the answer (GRPO); long wrong
        answers then weigh less than short ones, and the gradient is biased.  `tokens`: the mean length of all answers
        of the batch on all devices (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 12), which is nearly unbiased.
        `longest`: N, a constant (Dr. GRPO); unbiased.  `sum`: 1.
    """
    weights = mask.astype(jnp.float32)
    match normalization:
        case "answer":
            return weights / jnp.maximum(weights.sum(1, keepdims=True), 1.0)
        case "tokens":
            mean_length = cross_device_mean(weights.sum(1).mean())
            return weights / jnp.maximum(mean_length, 1.0 / mask.shape[0])
        case "longest":
            return weights / mask.shape[1]
    return weights


def log_ratios(log_probs: Array, old_log_probs: Array, mask: Array, level: Level) -> Array:
    """Logarithms of the importance ratios of tokens, [B, N]; at the levels `mean` and `sequence` a row's are equal."""
    difference = jnp.where(mask, log_probs - old_log_probs, 0.0)
    if level == "token":
        return difference
    total = difference.sum(1, keepdims=True)
    if level == "mean":
        total = total / jnp.maximum(mask.sum(1, keepdims=True), 1)
    return jnp.broadcast_to(total, mask.shape)


def clipped_loss(log_ratio: Array, advantages: Array, clip_low: float, clip_high: float) -> Array:
    """PPO's clipped loss (arXiv:1707.06347, eq. 7) of tokens [B, N]; clip-higher is DAPO's."""
    ratio = jnp.exp(log_ratio)
    return jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high))


def mean_of_tokens(values: Array, mask: Array) -> Ratio:
    """Mean of values [B, N] over tokens, as a metric that does not depend on how the batch is divided."""
    return Ratio(jnp.where(mask, values, 0.0).sum(1).mean(), mask.sum(1).astype(jnp.float32).mean())


def clip_fraction(log_ratio: Array, advantages: Array, mask: Array, clip_low: float, clip_high: float) -> Ratio:
    """Share of tokens of a batch whose gradient is cut off by the clip."""
    ratio = jnp.exp(log_ratio)
    cut = ((ratio > 1.0 + clip_high) & (advantages > 0)) | ((ratio < 1.0 - clip_low) & (advantages < 0))
    return mean_of_tokens(cut.astype(jnp.float32), mask)


def clipped_value_loss(values: Array, old_values: Array, returns: Array, clip: float) -> Array:
    """0.5 max((V - R)^2, (clip(V, V_old -+ clip) - R)^2) of tokens [B, N], as in PPO's reference code."""
    near = jnp.clip(values, old_values - clip, old_values + clip)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(near - returns))


def token_k3(log_probs: Array, reference: Array, mask: Array) -> Array:
    """k3 of each token [B, N], GRPO's own penalty (Shao et al. 2024, eq. 4).

    The expected sum is the KL of sequences, but its gradient is not: it is off by 36 % on the tabular policy.
    """
    difference = jnp.where(mask, log_probs - reference, 0.0)
    return jnp.exp(jnp.minimum(-difference, _MOST_NATS)) - 1.0 + difference


def sequence_kl(
    estimator: Estimator, log_probs: Array, reference: Array, mask: Array, old_log_probs: Array | None = None
) -> Array:
    """An estimate of the KL of each answer's sequence [B], whose expected gradient is the KL's own.

    Args:
      estimator: `k2`; `k3_with_gradient_of_k2`, whose value is unbiased too; or `weighted_k3`, k3 times the importance
        ratio of the sequence, which is right for answers of an older policy.
      log_probs, reference: log-probabilities of tokens under the policy and the reference, [B, N].
      mask: True at tokens of the answers.
      old_log_probs: of the policy that drew the answers; for `weighted_k3`.
    """
    difference = jnp.where(mask, log_probs - reference, 0.0).sum(1)
    k2 = 0.5 * jnp.square(difference)
    if estimator == "k2":
        return k2
    k3 = jnp.exp(jnp.minimum(-difference, _MOST_NATS)) - 1.0 + difference
    if estimator == "k3_with_gradient_of_k2":
        return k2 + jax.lax.stop_gradient(k3 - k2)
    return jnp.exp(log_ratios(log_probs, old_log_probs, mask, "sequence")[:, 0]) * k3
