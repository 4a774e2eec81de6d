"""Gibbs sampling by conjugate blocks: each update draws one block of the parameters from its exact conditional.

    x_i ~ N(m, s^2),  m ~ N(m_0, v_0)          m | x ~ N((m_0 / v_0 + sum x_i / s^2) v, v),  1 / v = 1 / v_0 + N / s^2
    r_i ~ N(0, s^2),  s^2 ~ InvGamma(a, b)     s^2 | r ~ InvGamma(a + N / 2, b + sum r_i^2 / 2)
    y ~ N(X w, s^2),  w ~ N(0, v_0)            w | y ~ N(S X^T y / s^2, S),  S^-1 = I / v_0 + X^T X / s^2
    z ~ Categorical(p),  p ~ Dirichlet(a)      p | z ~ Dirichlet(a + counts)

(Gelman et al. 2013, Bayesian Data Analysis, chapters 2, 3 and 11.)  A kernel of `kernels.py` moves blocks without a
conjugate prior by their conditional density (Metropolis within Gibbs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.monte_carlo.kernels import Kernel

Position = dict[str, Any]
#: `(key, position) -> {name: new value}` for one block, drawn given all other blocks.
Update = Callable[[Array, Position], Position]


def normal_mean(
    key: Array, total: Array, count: Array, variance: Array, prior_mean: Array, prior_variance: Array
) -> Array:
    """Mean of normals given their sum, number and variance; elementwise."""
    precision = 1.0 / prior_variance + count / variance
    mean = (prior_mean / prior_variance + total / variance) / precision
    return mean + jax.random.normal(key, jnp.shape(mean)) / jnp.sqrt(precision)


def normal_variance(key: Array, squares: Array, count: Array, prior_shape: float, prior_scale: float) -> Array:
    """Variance of normals given the sum of their squares about the mean, and their number; elementwise."""
    shape = prior_shape + 0.5 * count
    return (prior_scale + 0.5 * squares) / jax.random.gamma(key, shape, jnp.broadcast_shapes(jnp.shape(squares)))


def regression_weights(key: Array, x: Array, y: Array, variance: Array, prior_variance: Array) -> Array:
    """Weights [D] of a linear regression of y [N] on x [N, D] with noise of this variance."""
    precision = jnp.eye(x.shape[1]) / prior_variance + x.T @ x / variance
    factor = jnp.linalg.cholesky(precision)
    mean = jax.scipy.linalg.cho_solve((factor, True), x.T @ y / variance)
    noise = jax.random.normal(key, mean.shape)
    return mean + jax.scipy.linalg.solve_triangular(factor, noise, lower=True, trans=1)


def dirichlet(key: Array, counts: Array, prior: Array | float) -> Array:
    """Probabilities [..., K] given counts [..., K]."""
    return jax.nn.softmax(jax.random.loggamma(key, counts + prior), -1)


def within(names: Sequence[str], log_density: Callable[[Position], Array], kernel: Kernel, step_size: float) -> Update:
    """An update of named blocks by one transition of a kernel on their conditional density, with the unit metric."""

    def update(key: Array, position: Position) -> Position:
        block = {name: position[name] for name in names}
        q, unravel = ravel_pytree(block)
        conditional = lambda q: log_density({**position, **unravel(q)})
        return unravel(kernel.step(key, q, conditional, jnp.asarray(step_size, q.dtype), jnp.ones_like(q))[0])

    return update


def run_gibbs(
    key: Array, updates: Sequence[Update], start: Position, num_warmup: int = 500, num_draws: int = 500
) -> Position:
    """Draws by taking the updates in turn.

    Args:
      key: random key.
      updates: updates of the blocks, which together change every parameter.
      start: parameters with a leading axis of chains.
      num_warmup: number of first rounds, which are not kept.
      num_draws: number of rounds that are kept.

    Returns:
      The parameters with leading axes [chains, draws].

    Raises:
      UserError: no update changes some parameter.
    """
    first = jax.tree.map(lambda a: a[0], start)
    changed = {name for update in updates for name in jax.eval_shape(update, key, first)}
    if set(start) - changed:
        raise UserError(
            f"no update changes {', '.join(sorted(set(start) - changed))}: the chains would not leave the start"
        )

    def sweep(position: Position, key: Array) -> tuple[Position, Position]:
        for update, k in zip(updates, jax.random.split(key, len(updates))):
            position = {**position, **update(k, position)}
        return position, position

    def chain(key: Array, position: Position) -> Position:
        warm, draw = jax.random.split(key)
        position = jax.lax.scan(lambda p, k: (sweep(p, k)[0], None), position, jax.random.split(warm, num_warmup))[0]
        return jax.lax.scan(sweep, position, jax.random.split(draw, num_draws))[1]

    chains = len(jax.tree.leaves(start)[0])
    return jax.jit(jax.vmap(chain))(jax.random.split(key, chains), start)
