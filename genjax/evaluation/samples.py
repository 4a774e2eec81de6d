"""Distances between two sets of feature vectors, on the host in float64.

    frechet_distance   |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))                    (Heusel et al. 2017, arXiv:1706.08500)
    kernel_distance    unbiased MMD^2 with k(x, y) = (x . y / D + 1)^3                 (Binkowski et al. 2018, arXiv:1801.01401)

The trace of the square root is the sum of the square roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.
"""

from __future__ import annotations

import numpy as np


def _features(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must have the shape [N, D] with N of at least 2, not {x.shape}")
    return x


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the moments of two sets of features [N, D] and [M, D].

    With fewer vectors than features a covariance is singular, and the distance is far above that of the distributions.

    Raises:
      ValueError: a set is no matrix or has fewer than two rows.
    """
    x, y = _features(x), _features(y)
    difference = x.mean(0) - y.mean(0)
    first, second = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0.0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2.0 * cross)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared kernel distance of two sets of features [N, D] and [M, D]; it may be negative.

    Raises:
      ValueError: a set is no matrix or has fewer than two rows.
    """
    x, y = _features(x), _features(y)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1.0) ** 3  # noqa: E731

    def within(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2.0 * kernel(x, y).mean())
