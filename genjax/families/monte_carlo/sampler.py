"""Many chains in one compiled call, with warm-up: dual averaging of the step size and estimation of the metric.

    log eps_t = mu - sqrt(t) / gamma / (t + t_0) * sum_i (delta - a_i),      mu = log(10 eps_0)

(Hoffman & Gelman 2014, eq. 6, with gamma .05, t_0 10, kappa .75).  Step size and metric are shared by all chains, whose
positions all enter the estimates; the metric is renewed at the ends of windows that double in length, as in Stan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from genjax.families.monte_carlo import diagnostics
from genjax.families.monte_carlo.kernels import KERNELS, TARGETS

Array = jax.Array


class Draws(NamedTuple):
    """Draws of all chains.

    Attributes:
      positions: the pytree of the start with leading axes [chains, draws].
      acceptance: mean acceptance probabilities [chains, draws].
      diverging: [chains, draws].
      num_gradients: gradient evaluations [chains, draws].
      step_size: the step size after the warm-up.
      inverse_mass: the metric after the warm-up, [D] or [D, D].
    """

    positions: Any
    acceptance: Array
    diverging: Array
    num_gradients: Array
    step_size: Array
    inverse_mass: Array

    def to_arviz(self) -> dict[str, dict[str, np.ndarray]]:
        """Groups that `arviz.from_dict(**groups)` takes."""
        named = self.positions if isinstance(self.positions, dict) else {"x": self.positions}
        stats = {"acceptance_rate": self.acceptance, "diverging": self.diverging, "n_steps": self.num_gradients}
        arrays = lambda group: {name: np.asarray(a) for name, a in group.items()}  # noqa: E731
        return {"posterior": arrays(named), "sample_stats": arrays(stats)}

    def summary(self) -> dict[str, np.ndarray]:
        """Mean, standard deviation, R-hat, bulk and tail ESS of each number, each [D], in the order of ravel_pytree."""
        flat = jax.vmap(jax.vmap(lambda p: ravel_pytree(p)[0]))(self.positions)
        columns = np.moveaxis(np.asarray(flat, np.float64), 2, 0)
        apply = lambda f: np.array([f(c) for c in columns])  # noqa: E731
        return {
            "mean": apply(np.mean),
            "standard_deviation": apply(np.std),
            "r_hat": apply(diagnostics.r_hat),
            "bulk_ess": apply(diagnostics.bulk_ess),
            "tail_ess": apply(diagnostics.tail_ess),
        }


def run_chains(
    key: Array,
    log_density: Callable[[Any], Array],
    start: Any,
    num_warmup: int = 500,
    num_draws: int = 500,
    kernel: str = "nuts",
    dense_mass: bool = False,
    step_size: float = 0.1,
    **options: Any,
) -> Draws:
    """Draws from an unnormalised density.

    Args:
      key: random key.
      log_density: log-density of a pytree of floats, without its constant.
      start: pytree with a leading axis of chains.
      num_warmup: transitions that adapt step size and metric; they are thrown away.
      num_draws: transitions that are kept.
      kernel: random_walk, mala, hmc, nuts, or slice.
      dense_mass: estimate a full metric.
      step_size: at the start of the warm-up; the step size itself where there is none.
      options: of the kernel, such as num_leapfrog or max_depth.

    Raises:
      ValueError: an unknown kernel, or a start of density zero.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is none of {', '.join(KERNELS)}")
    unravel = ravel_pytree(jax.tree.map(lambda a: a[0], start))[1]
    flat = jax.vmap(lambda p: ravel_pytree(p)[0])(start)
    density = lambda q: log_density(unravel(q))  # noqa: E731
    if not np.isfinite(np.asarray(jax.vmap(density)(flat))).all():
        raise ValueError("the log-density is not finite at the start of some chain: start where it is")
    transition = functools.partial(KERNELS[kernel], log_density=density, **options)
    run = functools.partial(_run, transition, TARGETS[kernel], num_warmup, num_draws, dense_mass)
    positions, info, step, mass = jax.jit(run)(key, flat, jnp.asarray(step_size, flat.dtype))
    swap = lambda a: a.swapaxes(0, 1)  # noqa: E731
    positions = jax.vmap(jax.vmap(unravel))(swap(positions))
    return Draws(positions, *map(swap, info), step, mass)


def window_ends(num_warmup: int) -> np.ndarray:
    """Steps [num_warmup] after which the metric is renewed: windows of 25, 50, 100, ... between the first 15% and last 10%."""
    ends = np.zeros(num_warmup, bool)
    at, size, last = int(0.15 * num_warmup), 25, int(0.9 * num_warmup)
    while at + size <= last:
        # A window too short to be followed by another takes all that is left.
        at = last if at + 3 * size > last else at + size
        ends[at - 1] = True
        size *= 2
    return ends


def _run(transition, target, num_warmup, num_draws, dense, key, q, step_size):
    chains, dim = q.shape
    begin = int(0.15 * num_warmup)

    def move(key, q, step, mass):
        keys = jax.random.split(key, chains)
        return jax.vmap(lambda k, x: transition(k, x, step_size=step, inverse_mass=mass))(keys, q)

    zero = jnp.zeros((), q.dtype)
    mass = jnp.eye(dim, dtype=q.dtype) if dense else jnp.ones(dim, q.dtype)

    def adapt(carry, inputs):
        q, log_step, log_average, gap, count, mu, mass, (n, mean, scatter) = carry
        key, end, collect = inputs
        q, info = move(key, q, jnp.exp(log_step), mass)
        count = count + 1
        accepted = jnp.nan_to_num(info.acceptance).mean()
        gap = gap + (target - accepted - gap) / (count + 10.0)
        log_step = mu - jnp.sqrt(count) / 0.05 * gap
        weight = count**-0.75
        log_average = weight * log_step + (1 - weight) * log_average
        # Chan's update of mean and scatter by the positions of all chains.
        total = n + chains
        delta = q.mean(0) - mean
        centred = q - q.mean(0)[None]
        outer = centred.T @ centred if dense else (centred**2).sum(0)
        cross = (delta[:, None] * delta[None]) if dense else delta**2
        updated = (total, mean + delta * chains / total, scatter + outer + cross * n * chains / total)
        moments = jax.tree.map(lambda new, old: jnp.where(collect, new, old), updated, (n, mean, scatter))
        n, _, scatter = moments
        # Shrunk to the identity, as in Stan.
        shrunk = scatter / jnp.maximum(n - 1, 1.0) * n / (n + 5.0)
        shrunk = shrunk + 1e-3 * 5.0 / (n + 5.0) * (jnp.eye(dim) if dense else jnp.ones(dim))
        mass = jnp.where(end, shrunk, mass)
        moments = jax.tree.map(lambda m: jnp.where(end, jnp.zeros_like(m), m), moments)
        mu = jnp.where(end, jnp.log(10.0) + log_average, mu)
        log_step = jnp.where(end, log_average, log_step)
        gap, count = jnp.where(end, 0.0, gap), jnp.where(end, 0.0, count)
        return (q, log_step, log_average, gap, count, mu, mass, moments), None

    moments = (zero, jnp.zeros(dim, q.dtype), jnp.zeros_like(mass))
    log_step = jnp.log(step_size)
    warm_key, key = jax.random.split(key)
    if num_warmup and target < 1.0:
        carry = (q, log_step, log_step, zero, zero, jnp.log(10.0) + log_step, mass, moments)
        steps = (jax.random.split(warm_key, num_warmup), window_ends(num_warmup), np.arange(num_warmup) >= begin)
        (q, _, log_step, _, _, _, mass, _), _ = jax.lax.scan(adapt, carry, steps)
    elif num_warmup:
        q = jax.lax.scan(
            lambda q, k: (move(k, q, step_size, mass)[0], None), q, jax.random.split(warm_key, num_warmup)
        )[0]
    step = jnp.exp(log_step)

    def draw(q, key):
        q, info = move(key, q, step, mass)
        return q, (q, info)

    _, (positions, info) = jax.lax.scan(draw, q, jax.random.split(key, num_draws))
    return positions, info, step, mass
