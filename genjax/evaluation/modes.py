"""Coverage of the modes of a known mixture, and share of good samples (as in Srivastava et al. 2017, arXiv:1705.07761).

A sample is good if it lies within three standard deviations of a mode.  A mode is covered if it is the nearest mode of
a good sample (section 4.1).  Of samples of two-dimensional Gaussians, 1 - exp(-9/2) = 98.9 % are good.
"""

from __future__ import annotations

import numpy as np

from genjax.errors import UserError


def mode_coverage(
    samples: np.ndarray, means: np.ndarray, scale: float, num_deviations: float = 3.0, num_needed: int = 1
) -> dict[str, float]:
    """Measures samples of a mixture of Gaussians with equal weights.

    Args:
      samples: [N, D].
      means: means of the components, [K, D].
      scale: standard deviation of every component.
      num_deviations: largest distance of a good sample from its mode, in standard deviations.
      num_needed: smallest number of good samples of a covered mode.

    Returns:
      `modes_covered` out of K, `high_quality_share` in [0, 1], and `mode_entropy`, the entropy of the modes of good
      samples in nats, at most log K.

    Raises:
      UserError: the shapes do not fit.
    """
    samples, means = np.asarray(samples, np.float64), np.asarray(means, np.float64)
    if samples.ndim != 2 or means.ndim != 2 or samples.shape[1] != means.shape[1]:
        raise UserError(f"samples {samples.shape} and means {means.shape} must be [N, D] and [K, D]")
    distances = np.sqrt(((samples[:, None] - means[None]) ** 2).sum(-1))
    nearest, good = distances.argmin(1), distances.min(1) <= num_deviations * scale
    counts = np.bincount(nearest[good], minlength=len(means))
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return {
        "modes_covered": int((counts >= num_needed).sum()),
        "high_quality_share": float(good.mean()),
        "mode_entropy": float(-(shares * np.log(shares)).sum()) if len(shares) else 0.0,
    }
