"""Quality of forecasts that are given as samples, on the host in float64.

coverage     share of true values within the central interval of a level; calibrated if it is the level
width        mean width of that interval
CRPS         E|X - y| - E|X - X'| / 2 with X, X' drawn from the forecast: mean absolute error of a whole distribution
             (Gneiting & Raftery 2007, eq. 21), estimated without bias from S samples
"""

from __future__ import annotations

import numpy as np

from genjax.errors import UserError


def central_interval(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the interval with mass `level` in the middle, of samples [S, ...].

    Raises:
      UserError: the level lies outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise UserError(f"the level {level} of an interval must lie between 0 and 1")
    lower, upper = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return lower, upper


def crps(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """CRPS of samples [S, ...] for true values [...], of their shape; smaller is better.

    Raises:
      UserError: there is one sample, or the shapes differ.
    """
    samples, truth = np.asarray(samples, np.float64), np.asarray(truth, np.float64)
    size = len(samples)
    if size < 2 or samples.shape[1:] != truth.shape:
        raise UserError(f"samples must have the shape [S, *{truth.shape}] with S of at least 2, not {samples.shape}")
    # Sum of |x_i - x_j| over pairs, from the sorted values.
    ranks = 2 * np.arange(1, size + 1) - size - 1
    spread = np.tensordot(ranks, np.sort(samples, axis=0), axes=1) / (size * (size - 1))
    return np.abs(samples - truth).mean(0) - spread


def forecast_metrics(
    samples: np.ndarray, truth: np.ndarray, levels: tuple[float, ...] = (0.5, 0.9)
) -> dict[str, float]:
    """Means over all true values: crps, error of the median, and coverage and width of each level.

    Args:
      samples: drawn futures, [S, ...].
      truth: true values, [...].
      levels: probability masses of the intervals.
    """
    metrics = {
        "crps": float(crps(samples, truth).mean()),
        "median_absolute_error": float(np.abs(np.median(samples, axis=0) - truth).mean()),
    }
    for level in levels:
        lower, upper = central_interval(samples, level)
        name = f"{100 * level:g}"
        metrics[f"coverage_{name}"] = float(((truth >= lower) & (truth <= upper)).mean())
        metrics[f"width_{name}"] = float((upper - lower).mean())
    return metrics
