"""Many chains in one compiled call: a function from a log-density to draws.

`MonteCarlo` does the same on the contract of genjax/model.py, for posteriors that are experiments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.monte_carlo import diagnostics
from genjax.families.monte_carlo.adaptation import adapt, start_adaptation, window_begin, window_ends
from genjax.families.monte_carlo.kernels import Info, Kernel, Nuts


class Draws(NamedTuple):
    """Draws of all chains.

    Attributes:
      positions: the pytree of the start with leading axes [chains, draws].
      acceptance: mean acceptance probabilities [chains, draws].
      diverging: whether transitions diverged [chains, draws].
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
        """Groups for `arviz.from_dict(**groups)`."""
        named = self.positions if isinstance(self.positions, dict) else {"x": self.positions}
        stats = {"acceptance_rate": self.acceptance, "diverging": self.diverging, "n_steps": self.num_gradients}
        arrays = lambda group: {name: np.asarray(a) for name, a in group.items()}
        return {"posterior": arrays(named), "sample_stats": arrays(stats)}

    def summary(self) -> dict[str, np.ndarray]:
        """Mean, standard deviation, R-hat, bulk and tail ESS of each number, each [D], in the order of ravel_pytree."""
        flat = jax.vmap(jax.vmap(lambda p: ravel_pytree(p)[0]))(self.positions)
        return jax.tree.map(np.asarray, diagnostics.summarize(flat))


NUTS = Nuts()


def run_chains(
    key: Array,
    log_density: Callable[[Any], Array],
    start: Any,
    num_warmup: int = 500,
    num_draws: int = 500,
    kernel: Kernel = NUTS,
    dense_mass: bool = False,
    step_size: float = 0.1,
) -> Draws:
    """Draws from an unnormalised density.

    Args:
      key: random key.
      log_density: log-density of a pytree of floats, without its constant.
      start: pytree with a leading axis of chains.
      num_warmup: number of transitions that adapt step size and metric; they are not kept.
      num_draws: number of transitions that are kept.
      kernel: kernel that moves the chains.
      dense_mass: whether to estimate a full metric.
      step_size: step size at the start of the warm-up; the fixed step size if there is no warm-up.

    Raises:
      UserError: a start of density zero.
    """
    unravel = ravel_pytree(jax.tree.map(lambda a: a[0], start))[1]
    flat = jax.vmap(lambda p: ravel_pytree(p)[0])(start)
    density = lambda q: log_density(unravel(q))
    if not np.isfinite(np.asarray(jax.vmap(density)(flat))).all():
        raise UserError("the log-density is not finite at the start of some chain: start where it is")
    run = functools.partial(_run, density, kernel, num_warmup, num_draws, dense_mass, step_size)
    positions, info, step, mass = jax.jit(run)(key, flat)
    swap = lambda a: a.swapaxes(0, 1)
    positions = jax.vmap(jax.vmap(unravel))(swap(positions))
    return Draws(positions, *map(swap, info), step, mass)


def move(kernel: Kernel, density: Callable, key: Array, q: Array, step: Array, mass: Array) -> tuple[Array, Info]:
    """One transition of all chains q [C, R * D]."""
    one = lambda key, q: kernel.step(key, q, density, step, mass)
    return jax.vmap(one)(jax.random.split(key, len(q)), q)


def _run(density, kernel, num_warmup, num_draws, dense, step_size, key, q):
    dim = q.shape[1]
    q = jnp.tile(q, (1, kernel.num_replicas))
    adaptation = start_adaptation(q.shape[1], step_size, dense)
    warm_key, key = jax.random.split(key)

    def warm(carry, inputs):
        q, adaptation = carry
        key, collect, end = inputs
        q, info = move(kernel, density, key, q, jnp.exp(adaptation.log_step), adaptation.inverse_mass)
        if kernel.target_acceptance is not None:
            adaptation = adapt(adaptation, q, info.acceptance, kernel.target_acceptance, collect, end)
        return (q, adaptation), None

    if num_warmup:
        collect = np.arange(num_warmup) >= window_begin(num_warmup)
        steps = (jax.random.split(warm_key, num_warmup), collect, window_ends(num_warmup))
        (q, adaptation), _ = jax.lax.scan(warm, (q, adaptation), steps)
    step, mass = jnp.exp(adaptation.log_average), adaptation.inverse_mass

    def draw(q, key):
        q, info = move(kernel, density, key, q, step, mass)
        return q, (q[:, :dim], info)

    _, (positions, info) = jax.lax.scan(draw, q, jax.random.split(key, num_draws))
    return positions, info, step, mass
