"""Posteriors that samplers are judged by, as log-densities of dicts on an unconstrained space."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

SCHOOL_EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
SCHOOL_ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


def eight_schools(position: dict[str, Array]) -> Array:
    """Rubin 1981, non-centred: theta = mu + tau z; mu ~ N(0, 5), tau = exp(log_tau) ~ half-Cauchy(5), z ~ N(0, 1) [8]."""
    mu, log_tau, z = position["mu"], position["log_tau"], position["z"]
    tau = jnp.exp(log_tau)
    residual = (SCHOOL_EFFECTS - mu - tau * z) / SCHOOL_ERRORS
    # The last term is the Jacobian of the exponential.
    return -0.5 * ((residual**2).sum() + (z**2).sum() + (mu / 5.0) ** 2) - jnp.log1p((tau / 5.0) ** 2) + log_tau


def funnel(position: dict[str, Array], centred: bool = False) -> Array:
    """Neal 2003: v ~ N(0, 3), x_i ~ N(0, exp(v / 2)); non-centred, x = exp(v / 2) z, unless `centred`."""
    v, x = position["v"], position["x"]
    if not centred:
        return -0.5 * ((v / 3.0) ** 2 + (x**2).sum())
    return -0.5 * ((v / 3.0) ** 2 + (x**2).sum() * jnp.exp(-v)) - 0.5 * x.shape[0] * v


def correlated_gaussian(correlation: float = 0.9, dim: int = 2):
    """Log-density of N(0, S), S_ij = correlation^|i - j|, at position x [dim]."""
    index = np.arange(dim)
    precision = np.linalg.inv(correlation ** np.abs(index[:, None] - index[None])).astype(np.float32)
    return lambda x: -0.5 * x @ (precision @ x)


def logistic_regression(x: Array, y: Array, prior_scale: float = 2.5):
    """Log-posterior of weights [D] given features x [N, D] and labels y [N] of 0 and 1; weights ~ N(0, prior_scale)."""

    def log_density(weights: Array) -> Array:
        logits = x @ weights
        return (y * logits - jax.nn.softplus(logits)).sum() - 0.5 * ((weights / prior_scale) ** 2).sum()

    return log_density
