"""Claims about what likelihoods are held against."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from genjax.evaluation.likelihood import density_grid, fit_gaussian, gaussian_log_prob, roc_auc


def test_the_fitted_normal_has_the_density_of_its_eigenvectors():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 3)) @ rng.normal(size=(3, 3)) + 2.0
    mean, covariance = fit_gaussian(x)
    values, vectors = np.linalg.eigh(covariance)
    rotated = (x - mean) @ vectors
    expected = (-0.5 * (rotated**2 / values + np.log(2 * np.pi * values))).sum(-1)
    np.testing.assert_allclose(gaussian_log_prob(x, mean, covariance), expected, rtol=1e-8)
    # The mean log-likelihood at the optimum is minus the entropy.
    entropy = 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * covariance))
    assert gaussian_log_prob(x, mean, covariance).mean() == pytest.approx(-entropy, abs=1e-4)


def test_constant_columns_have_a_density():
    x = np.zeros((10, 2))
    assert np.isfinite(gaussian_log_prob(x, *fit_gaussian(x))).all()


def test_roc_area_is_that_of_sklearn_with_ties():
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 10, 200), rng.integers(3, 13, 300)
    expected = roc_auc_score(np.repeat([0, 1], [200, 300]), np.concatenate([low, high]))
    assert roc_auc(low, high) == pytest.approx(expected)
    assert roc_auc(np.asarray([-np.inf]), np.asarray([0.0])) == 1.0
    with pytest.raises(ValueError, match="none of them NaN"):
        roc_auc(np.asarray([np.nan]), high)


def test_a_normal_density_integrates_to_one():
    mean, covariance = np.asarray([0.5, -0.5]), np.asarray([[1.0, 0.6], [0.6, 1.0]])
    log_prob = lambda points: gaussian_log_prob(points, mean, covariance)
    low, high = np.full(2, -6.0), np.full(2, 6.0)
    density, integral = density_grid(log_prob, low, high, 60)
    assert integral == pytest.approx(1.0, abs=1e-6)
    assert density.shape == (60, 60) and density[:30].sum() < density[30:].sum()
