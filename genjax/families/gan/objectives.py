"""Losses of discriminator and generator, and gradient penalties.

With scores r = D(x) of data and f = D(G(z)) of samples, z ~ N(0, I), the discriminator and the generator minimise

    minimax               E softplus(-r) + E softplus(f)       -E softplus(f)
    non_saturating        the same                             E softplus(-f)
    least_squares         1/2 E (r - 1)^2 + 1/2 E f^2          1/2 E (f - 1)^2
    hinge                 E relu(1 - r) + E relu(1 + f)        -E f
    wasserstein           E f - E r                            -E f
    relativistic          E softplus(f - r)                    E softplus(r - f)
    relativistic_average  E softplus(F - r) + E softplus(f - R)    r and f exchanged, with R = E r and F = E f

by Goodfellow et al. 2014, eq. 1 and section 3; Mao et al. 2017, arXiv:1611.04076; Miyato et al. 2018, arXiv:1802.05957;
Arjovsky et al. 2017, arXiv:1701.07875; and Jolicoeur-Martineau 2019, arXiv:1807.00734.  The discriminator may add

    wgan_gp      w E (|grad D(u)| - 1)^2,  u = e x + (1 - e) G(z),  e ~ U(0, 1)
    r1           w / 2 E |grad D(x)|^2
    r2           w / 2 E |grad D(G(z))|^2
    r1_r2        both

by Gulrajani et al. 2017, arXiv:1704.00028, and Mescheder et al. 2018, arXiv:1801.04406.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, cross_device_mean
from genjax.errors import UserError

Objective = Literal[
    "minimax",
    "non_saturating",
    "least_squares",
    "hinge",
    "wasserstein",
    "relativistic",
    "relativistic_average",
]
Penalty = Literal["none", "wgan_gp", "r1", "r2", "r1_r2"]
#: Objectives whose generator loss depends on the scores of data too.
RELATIVISTIC = ("relativistic", "relativistic_average")


def _against_average(above: Array, below: Array, counted: Array | None) -> Array:
    """Sum of softplus(mean of below - above) and softplus(below - mean of above): large if `above` is not above."""
    average = lambda scores: cross_device_mean(jnp.mean(scores, where=counted))
    return jax.nn.softplus(average(below) - above) + jax.nn.softplus(below - average(above))


def discriminator_objective(name: Objective, real: Array, fake: Array, counted: Array | None = None) -> Array:
    """The discriminator's loss for each pair of scores of data and samples, shape [B].

    Args:
      name: the objective.
      real: scores of data, [B].
      fake: scores of samples, [B].
      counted: bool [B], the pairs that means are taken over; None for all.

    Raises:
      UserError: the objective is unknown.
    """
    match name:
        case "minimax" | "non_saturating":
            return jax.nn.softplus(-real) + jax.nn.softplus(fake)
        case "least_squares":
            return 0.5 * (real - 1.0) ** 2 + 0.5 * fake**2
        case "hinge":
            return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)
        case "wasserstein":
            return fake - real
        case "relativistic":
            return jax.nn.softplus(fake - real)
        case "relativistic_average":
            return _against_average(real, fake, counted)
    raise UserError(f"unknown objective {name!r}; choose one of {', '.join(Objective.__args__)}")


def generator_objective(name: Objective, fake: Array, real: Array | None = None, counted: Array | None = None) -> Array:
    """The generator's loss for each score of a sample, shape [B].

    Args:
      name: the objective.
      fake: scores of samples, [B].
      real: scores of data, [B]; only the relativistic objectives need them.
      counted: bool [B], the pairs that means are taken over; None for all.

    Raises:
      UserError: the objective is unknown, or needs `real`.
    """
    match name:
        case "minimax":
            return -jax.nn.softplus(fake)
        case "non_saturating":
            return jax.nn.softplus(-fake)
        case "least_squares":
            return 0.5 * (fake - 1.0) ** 2
        case "hinge" | "wasserstein":
            return -fake
    if name in RELATIVISTIC:
        if real is None:
            raise UserError(f"the generator's {name} objective needs the scores of data too")
        return discriminator_objective(name, fake, real, counted)
    raise UserError(f"unknown objective {name!r}; choose one of {', '.join(Objective.__args__)}")


def score_boundary(name: Objective, real: Array, fake: Array) -> Array:
    """The score above which the discriminator takes an example for data, a scalar, given scores [B] of data and
    samples.

    For objectives of differences of scores it is halfway between the mean scores.
    """
    match name:
        case "minimax" | "non_saturating" | "hinge":
            return jnp.zeros(())
        case "least_squares":
            return jnp.full((), 0.5)
    return 0.5 * cross_device_mean(real.mean() + fake.mean())


def class_cross_entropy(logits: Array, condition: Array) -> Array:
    """Cross entropy in nats of class logits [B, K] and classes as one-hot vectors [B, K], shape [B]."""
    return -jnp.sum(jax.nn.log_softmax(logits) * condition, axis=-1)


def squared_gradient_norm(score: Callable[[Array], Array], x: Array) -> Array:
    """|grad D(x)|^2 of each example, for `score` of [B, ...] to [B] that treats examples separately, shape [B]."""
    gradient = jax.grad(lambda y: score(y).sum())(x)
    return (gradient.astype(jnp.float32) ** 2).reshape(x.shape[0], -1).sum(-1)


def centred_penalty(weight: float, score: Callable[[Array], Array], *sets: Array) -> Array:
    """weight / 2 E |grad D|^2 of each of some sets of examples [B, ...], summed: R1 of data, R2 of
    samples; a scalar.
    """
    if not weight:
        return jnp.zeros(())
    return 0.5 * weight * sum(squared_gradient_norm(score, x).mean() for x in sets)


def gradient_penalty(name: Penalty, score: Callable[[Array], Array], x: Array, fake: Array, mixture: Array) -> Array:
    """The penalty of weight 1, a mean over examples.

    Args:
      name: name of the penalty.
      score: the discriminator, a function of [B, ...] to [B] that treats examples separately.
      x: data, [B, ...].
      fake: samples, [B, ...].
      mixture: e of wgan_gp, [B] in [0, 1].

    Returns:
      Scalar.
    """
    match name:
        case "r1":
            return centred_penalty(1.0, score, x)
        case "r2":
            return centred_penalty(1.0, score, fake)
        case "r1_r2":
            return centred_penalty(1.0, score, x, fake)
        case "wgan_gp":
            e = mixture.reshape(-1, *[1] * (x.ndim - 1))
            # The gradient of a norm is not finite at 0.
            norm = jnp.sqrt(squared_gradient_norm(score, e * x + (1.0 - e) * fake) + 1e-12)
            return jnp.mean((norm - 1.0) ** 2)
    return jnp.zeros(())


def lazily(penalty: Callable[[], Array], every: int, step: Array) -> Array:
    """`every` times a penalty in one of `every` steps, otherwise 0, so that the mean over steps is the same."""
    if every == 1:
        return penalty()
    return jax.lax.cond(step % every == 0, lambda: every * penalty(), lambda: jnp.zeros(()))
