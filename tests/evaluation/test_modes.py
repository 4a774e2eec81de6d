"""Modes covered, on samples whose places are known."""

import numpy as np
import pytest

from genjax.data import procedural
from genjax.evaluation.modes import mode_coverage


def test_the_mixture_itself_covers_everything():
    rng = np.random.default_rng(0)
    samples = procedural.DENSITIES["grid_gaussians"](rng, 20000)
    found = mode_coverage(samples, procedural.grid_gaussians_means(), 0.05)
    assert found["modes_covered"] == 25
    np.testing.assert_allclose(found["high_quality_share"], 1 - np.exp(-4.5), atol=3e-3)
    np.testing.assert_allclose(found["mode_entropy"], np.log(25), atol=1e-2)


def test_collapse_and_far_samples_are_seen():
    means = procedural.eight_gaussians_means()
    one = mode_coverage(np.tile(means[:1], (10, 1)), means, 0.2)
    assert one == {"modes_covered": 1, "high_quality_share": 1.0, "mode_entropy": 0.0}
    far = mode_coverage(np.full((4, 2), 9.0), means, 0.2)
    assert far == {"modes_covered": 0, "high_quality_share": 0.0, "mode_entropy": 0.0}
    with pytest.raises(ValueError, match="must be"):
        mode_coverage(np.zeros((3, 1)), means, 0.2)
