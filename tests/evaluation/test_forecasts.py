"""Forecasts: the CRPS in closed form, and the coverage of intervals."""

import math

import numpy as np
import pytest

from genjax.evaluation.forecasts import central_interval, crps, forecast_metrics

RNG = np.random.default_rng(0)


def test_crps_of_a_gaussian_is_the_closed_form():
    truth = np.array([0.0, 1.5, -2.0])
    samples = RNG.normal(size=(20_000, 3))
    # Gneiting & Raftery 2007, eq. 20 at mean 0 and deviation 1.
    density = np.exp(-0.5 * truth**2) / math.sqrt(2 * math.pi)
    mass = np.array([0.5 * math.erfc(-y / math.sqrt(2)) for y in truth])
    np.testing.assert_allclose(
        crps(samples, truth), truth * (2 * mass - 1) + 2 * density - 1 / math.sqrt(math.pi), atol=0.02
    )
    pairs = np.abs(samples[:50, None] - samples[None, :50]).sum((0, 1)) / (50 * 49)
    np.testing.assert_allclose(
        crps(samples[:50], truth), np.abs(samples[:50] - truth).mean(0) - 0.5 * pairs, rtol=1e-10
    )
    with pytest.raises(ValueError, match="at least 2"):
        crps(samples[:1], truth)


def test_intervals_of_calibrated_forecasts_cover_their_mass():
    samples, truth = RNG.normal(size=(400, 3000)), RNG.normal(size=3000)
    metrics = forecast_metrics(samples, truth, (0.5, 0.9))
    assert abs(metrics["coverage_50"] - 0.5) < 0.03 and abs(metrics["coverage_90"] - 0.9) < 0.02
    assert abs(metrics["width_90"] - 2 * 1.645) < 0.05
    assert abs(metrics["median_absolute_error"] - math.sqrt(2 / math.pi)) < 0.04
    with pytest.raises(ValueError, match="between 0 and 1"):
        central_interval(samples, 90)
