"""Losses of pairs of answers, of which the first was chosen and the second rejected.

With lp the log-probability of an answer given its prompt, ref that of the reference (reference.py), n the number of
the answer's tokens, w the chosen and l the rejected answer, and h = beta ((lp_w - ref_w) - (lp_l - ref_l)):

    DPO      -(1 - e) log sigma(h) - e log sigma(-h)                       Rafailov et al. 2023, arXiv:2305.18290;
             e: labels are wrong with this probability (cDPO, Mitchell 2023)
    robust   (-(1 - e) log sigma(h) + e log sigma(-h)) / (1 - 2 e)         Ray Chowdhury et al. 2024, arXiv:2403.00409
    hinge    max(0, 1 - h)                                                 SLiC, Zhao et al. 2023, arXiv:2305.10425
    IPO      (h / beta - 1 / (2 beta))^2, with means over tokens           Azar et al. 2023, arXiv:2310.12036, eq. 17
    KTO      lambda_w (1 - sigma(beta (r_w - z))) + lambda_l (1 - sigma(beta (z - r_l))), r = lp - ref,
             z = max(0, mean of r over mismatched pairs)                   Ethayarajh et al. 2024, arXiv:2402.01306
    ORPO     -lp_w / n_w - lambda log sigma(log odds_w - log odds_l), odds = p / (1 - p), p = exp(lp / n)
                                                                           Hong et al. 2024, arXiv:2403.07691, eq. 6, 7
    SimPO    -log sigma(beta (lp_w / n_w - lp_l / n_l) - gamma)            Meng et al. 2024, arXiv:2405.14734, eq. 6

DPO's optimum for infinitely many preferences of a Bradley-Terry reward r is reference exp(r / beta) / Z: the policy
that maximises E r - beta KL(policy | reference).
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError


class PairScores(NamedTuple):
    """What a loss reads of pairs, [B] each.

    Attributes:
      chosen, rejected: log-probability of the answer under the policy, in nats.
      chosen_reference, rejected_reference: the same under the reference; zeros if the loss has none.
      chosen_length, rejected_length: number of tokens of the answer, its end included.
      drift: KTO's z, a scalar; 0 for other losses.
    """

    chosen: Array
    rejected: Array
    chosen_reference: Array
    rejected_reference: Array
    chosen_length: Array
    rejected_length: Array
    drift: Array | float = 0.0

    @property
    def means(self) -> tuple[Array, Array]:
        """Log-probabilities a token."""
        return self.chosen / jnp.maximum(self.chosen_length, 1), self.rejected / jnp.maximum(self.rejected_length, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceLoss(abc.ABC):
    """Base of the losses."""

    #: Whether the loss compares with a reference, and with the drift of mismatched answers from it.
    needs_reference: ClassVar[bool] = True
    needs_drift: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, scores: PairScores) -> Array:
        """Loss of each pair, [B]."""

    @abc.abstractmethod
    def rewards(self, scores: PairScores) -> tuple[Array, Array]:
        """Implicit reward of the chosen and of the rejected answers, [B] each; accuracy and margin compare these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceLoss(PreferenceLoss):
    """Base of losses of h, whose reward is beta log(policy / reference).

    Attributes:
      beta: how dear it is to leave the reference.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)

    def rewards(self, scores: PairScores) -> tuple[Array, Array]:
        chosen = self.beta * (scores.chosen - scores.chosen_reference)
        return chosen, self.beta * (scores.rejected - scores.rejected_reference)

    def margin(self, scores: PairScores) -> Array:
        """h, [B]."""
        chosen, rejected = self.rewards(scores)
        return chosen - rejected


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(ReferenceLoss):
    """Direct preference optimisation.

    Attributes:
      label_smoothing: probability e that a label is wrong, below 0.5.
      robust: with e, the loss whose mean over wrong labels is the loss without them, in place of the cross-entropy.
    """

    label_smoothing: float = 0.0
    robust: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.label_smoothing < 0.5:
            raise UserError(f"model.method.label_smoothing={self.label_smoothing} must lie in [0, 0.5)")

    def __call__(self, scores: PairScores) -> Array:
        h, e = self.margin(scores), self.label_smoothing
        right, wrong = jax.nn.log_sigmoid(h), jax.nn.log_sigmoid(-h)
        if self.robust:
            return (e * wrong - (1.0 - e) * right) / (1.0 - 2.0 * e)
        return -(1.0 - e) * right - e * wrong if e else -right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hinge(ReferenceLoss):
    """The hinge loss of the margin.

    Attributes: see `ReferenceLoss`.
    """

    def __call__(self, scores: PairScores) -> Array:
        return jnp.maximum(1.0 - self.margin(scores), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IPO(ReferenceLoss):
    """Identity preference optimisation.

    Attributes:
      token_means: take means over the answers' tokens, as the authors' experiments do; otherwise sums, as the equation
        is written.
    """

    token_means: bool = True

    def __call__(self, scores: PairScores) -> Array:
        chosen, rejected = scores.chosen - scores.chosen_reference, scores.rejected - scores.rejected_reference
        if self.token_means:
            chosen, rejected = scores._replace(chosen=chosen, rejected=rejected).means
        return (chosen - rejected - 0.5 / self.beta) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class KTO(ReferenceLoss):
    """Kahneman-Tversky optimisation: each answer for itself, against the drift of the policy from the reference.

    The drift z is an estimate of their divergence from answers to other prompts of the batch, of which there must be at
    least two; no gradient flows through it.  The mean over mismatched pairs has one expectation in batches of every
    size.  As z is held at 0 from below, it is larger on average, the more so the smaller the batch.

    Attributes:
      desirable_weight: weight lambda_w of chosen answers.
      undesirable_weight: weight lambda_l of rejected answers.
    """

    needs_drift: ClassVar[bool] = True

    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __call__(self, scores: PairScores) -> Array:
        """Mean of the losses of the two answers, [B]."""
        chosen, rejected = scores.chosen - scores.chosen_reference, scores.rejected - scores.rejected_reference
        good = self.desirable_weight * jax.nn.sigmoid(self.beta * (scores.drift - chosen))
        bad = self.undesirable_weight * jax.nn.sigmoid(self.beta * (rejected - scores.drift))
        return 0.5 * (good + bad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ORPO(PreferenceLoss):
    """Odds ratio preference optimisation: learns the chosen answers, and pushes the odds of the rejected ones down.

    Attributes:
      weight: weight lambda of the odds ratio.
    """

    needs_reference: ClassVar[bool] = False

    weight: float = 0.1

    def __post_init__(self) -> None:
        check_positive(weight=self.weight)

    def __call__(self, scores: PairScores) -> Array:
        chosen, rejected = scores.means
        log_odds = (chosen - _log_complement(chosen)) - (rejected - _log_complement(rejected))
        return -chosen - self.weight * jax.nn.log_sigmoid(log_odds)

    def rewards(self, scores: PairScores) -> tuple[Array, Array]:
        chosen, rejected = scores.means
        return self.weight * chosen, self.weight * rejected


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPO(PreferenceLoss):
    """Simple preference optimisation: log-probabilities a token as rewards, which must differ by a margin.

    Attributes:
      beta: factor on log-probabilities a token.
      gamma: margin of the rewards.
    """

    needs_reference: ClassVar[bool] = False

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if self.gamma < 0:
            raise UserError(f"model.method.gamma={self.gamma} must not be negative")

    def __call__(self, scores: PairScores) -> Array:
        chosen, rejected = self.rewards(scores)
        return -jax.nn.log_sigmoid(chosen - rejected - self.gamma)

    def rewards(self, scores: PairScores) -> tuple[Array, Array]:
        chosen, rejected = scores.means
        return self.beta * chosen, self.beta * rejected


def _log_complement(log_p: Array) -> Array:
    """log(1 - p) of log p <= 0, finite in its value and gradient up to p = 1 (Maechler 2012)."""
    log_p = jnp.minimum(log_p, -1e-6)
    small = log_p < -0.6931471805599453
    # Both branches get values that they can take, since gradients flow through both.
    from_p = jnp.log1p(-jnp.exp(jnp.where(small, log_p, -1.0)))
    return jnp.where(small, from_p, jnp.log(-jnp.expm1(jnp.where(small, -1.0, log_p))))


def check_positive(**fields: float) -> None:
    """Raises UserError unless the fields of a method, by name, are positive."""
    for name, value in fields.items():
        if not value > 0:
            raise UserError(f"model.method.{name}={value} must be positive")
