"""Distances of feature sets against other computations of them."""

import numpy as np
import pytest

from genjax.evaluation.samples import frechet_distance, kernel_distance

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)), RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4)) + 1.0


def test_frechet_distance_matches_the_general_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = np.cov(X, rowvar=False), np.cov(Y, rowvar=False)
    expected = np.sum((X.mean(0) - Y.mean(0)) ** 2) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    np.testing.assert_allclose(frechet_distance(X, Y), expected, rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(X, X), 0.0, atol=1e-8)


def test_kernel_distance_matches_its_sums():
    k = lambda a, b: (a @ b / 4 + 1) ** 3  # noqa: E731
    pairs = lambda s: np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])  # noqa: E731
    expected = pairs(X) + pairs(Y) - 2 * np.mean([k(a, b) for a in X for b in Y])
    np.testing.assert_allclose(kernel_distance(X, Y), expected, rtol=1e-9)


def test_features_must_be_matrices():
    with pytest.raises(ValueError, match="shape"):
        frechet_distance(np.zeros(3), np.zeros(3))
