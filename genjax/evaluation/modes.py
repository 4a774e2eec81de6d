"""How many modes of a known mixture samples cover, and how many of the samples are good (as in Srivastava et al. 2017,
arXiv:1705.07761, section 4.1): a sample is of high quality within three standard deviations of a mode, and a mode is
covered that has such a sample nearest to it.  Of two-dimensional Gaussians themselves, 1 - exp(-9/2) = 98.9 % lie
within three.
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
      means: of the components, [K, D].
      scale: standard deviation of every component.
      num_deviations: how far away a good sample may be, in standard deviations.
      num_needed: good samples that a covered mode has at least.

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
