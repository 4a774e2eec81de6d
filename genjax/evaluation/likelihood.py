"""Comparisons for likelihoods: a fitted normal distribution, other data, and the integral of a density.

The area under the ROC curve is the probability that a score of one set exceeds a score of the other set, where ties
count half (Mann-Whitney).  Likelihoods fail to detect a set that is simpler than the training set (Nalisnick et al.
2019, arXiv:1810.09136); an area below 1/2 shows this failure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genjax.errors import UserError


def fit_gaussian(x: np.ndarray, jitter: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and full covariance [D, D] of rows x [N, D], by maximum likelihood in float64.

    Args:
      x: examples; further axes are flattened.
      jitter: number added to the diagonal, so that constant columns have a density.
    """
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    return mean, covariance + jitter * np.eye(x.shape[1])


def gaussian_log_prob(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Log-density in nats of rows x [N, D] under a normal distribution, [N]."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    factor = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(factor, (x - mean).T)
    return -0.5 * (whitened**2).sum(0) - np.log(np.diag(factor)).sum() - 0.5 * x.shape[1] * np.log(2.0 * np.pi)


def roc_auc(lower: np.ndarray, higher: np.ndarray) -> float:
    """Probability that a score of `higher` exceeds a score of `lower`; ties count half.

    Raises:
      UserError: one of them is empty or holds a NaN.
    """
    lower, higher = np.ravel(lower), np.ravel(higher)
    if not len(lower) or not len(higher) or np.isnan(lower).any() or np.isnan(higher).any():
        raise UserError("the area under the ROC curve needs scores of both sets, none of them NaN")
    lower = np.sort(lower)
    below = np.searchsorted(lower, higher, "left") + np.searchsorted(lower, higher, "right")
    return float(below.mean() / (2.0 * len(lower)))


def density_grid(
    log_prob: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, size: int = 200
) -> tuple[np.ndarray, float]:
    """A two-dimensional density at the centres of the cells of a grid.

    Args:
      log_prob: log-density of points [N, 2], [N].
      low: lower corner [2].
      high: upper corner [2].
      size: number of cells along each side.

    Returns:
      The density [size, size], first axis x, and its integral over the grid.
    """
    low, high = np.asarray(low, float), np.asarray(high, float)
    width = (high - low) / size
    axes = [low[i] + width[i] * (np.arange(size) + 0.5) for i in range(2)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    density = np.exp(np.asarray(log_prob(points), np.float64)).reshape(size, size)
    return density, float(density.sum() * width.prod())
