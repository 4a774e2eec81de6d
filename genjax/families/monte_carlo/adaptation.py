"""Warm-up: dual averaging of the step size, and estimation of the metric in windows that double in length, as in Stan.

    log eps_t = mu - sqrt(t) / gamma / (t + t_0) * sum_i (delta - a_i),      mu = log(10 eps_0)

(Hoffman & Gelman 2014, eq. 6, with gamma .05, t_0 10, kappa .75).  All chains share step size and metric, which
are estimated from the positions of all chains.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from genjax.batch import Array


class Adaptation(NamedTuple):
    """State of the warm-up.

    Attributes:
      log_step: logarithm of the step size of the next transition of the warm-up.
      log_average: logarithm of the averaged step size, for after the warm-up.
      gap, count, mu: state of the dual averaging.
      inverse_mass: metric, [D] or [D, D].
      num_seen, mean, scatter: moments of the positions of the present window.
    """

    log_step: Array
    log_average: Array
    gap: Array
    count: Array
    mu: Array
    inverse_mass: Array
    num_seen: Array
    mean: Array
    scatter: Array


def start_adaptation(dim: int, step_size: float, dense_mass: bool) -> Adaptation:
    """The state before the first transition of positions of `dim` numbers."""
    mass = jnp.eye(dim) if dense_mass else jnp.ones(dim)
    # Arrays of their own, because a training step donates them.
    number = lambda value: jnp.full((), value, jnp.float32)
    log_step = np.log(step_size)
    return Adaptation(
        number(log_step), number(log_step), number(0.0), number(0.0), number(np.log(10.0) + log_step), mass,
        number(0.0), jnp.zeros(dim), jnp.zeros_like(mass),
    )  # fmt: skip


def adapt(state: Adaptation, q: Array, acceptance: Array, target: float, collect: Array, end: Array) -> Adaptation:
    """The state after a transition.

    Args:
      state: the state before it.
      q: new positions of all chains [C, D].
      acceptance: their acceptance probabilities [C].
      target: acceptance to reach.
      collect: whether the positions belong to a window.
      end: whether the window ends, and the metric is renewed.
    """
    chains, dim = q.shape
    dense = state.inverse_mass.ndim == 2
    count = state.count + 1
    gap = state.gap + (target - jnp.nan_to_num(acceptance).mean() - state.gap) / (count + 10.0)
    log_step = state.mu - jnp.sqrt(count) / 0.05 * gap
    weight = count**-0.75
    log_average = weight * log_step + (1 - weight) * state.log_average
    # Chan's update of mean and scatter by the positions of all chains.
    total = state.num_seen + chains
    delta = q.mean(0) - state.mean
    centred = q - q.mean(0)[None]
    outer = centred.T @ centred if dense else (centred**2).sum(0)
    cross = (delta[:, None] * delta[None]) if dense else delta**2
    old = state.num_seen, state.mean, state.scatter
    new = total, state.mean + delta * chains / total, state.scatter + outer + cross * state.num_seen * chains / total
    num_seen, mean, scatter = (jnp.where(collect, n, o) for n, o in zip(new, old))
    # Shrunk to the identity, as in Stan.
    shrunk = scatter / jnp.maximum(num_seen - 1, 1.0) * num_seen / (num_seen + 5.0)
    shrunk = shrunk + 1e-3 * 5.0 / (num_seen + 5.0) * (jnp.eye(dim) if dense else jnp.ones(dim))
    fresh = lambda value: jnp.where(end, jnp.zeros_like(value), value)
    return Adaptation(
        jnp.where(end, log_average, log_step),
        log_average,
        fresh(gap),
        fresh(count),
        jnp.where(end, jnp.log(10.0) + log_average, state.mu),
        jnp.where(end, shrunk, state.inverse_mass),
        fresh(num_seen),
        fresh(mean),
        fresh(scatter),
    )


def window_begin(num_warmup: int) -> int:
    """The first transition whose positions enter the metric."""
    return int(0.15 * num_warmup)


def window_ends(num_warmup: int) -> np.ndarray:
    """Steps [num_warmup] after which the metric is renewed: windows of 25, 50, 100, ...
    between the first 15% and last 10%.
    """
    ends = np.zeros(num_warmup, bool)
    at, size, last = window_begin(num_warmup), 25, int(0.9 * num_warmup)
    while at + size <= last:
        # A window extends to the end if the rest is too short for another window.
        at = last if at + 3 * size > last else at + size
        ends[at - 1] = True
        size *= 2
    return ends
