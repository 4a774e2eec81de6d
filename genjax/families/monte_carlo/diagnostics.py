"""Rank-normalised split R-hat and effective sample sizes (Vehtari et al. 2021, arXiv:1903.08008), in numpy.

All take draws [chains, draws] of one quantity.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata


def split(draws: np.ndarray) -> np.ndarray:
    """Halves of the chains as chains of their own."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def rank_normalize(draws: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks among all draws (eq. 14)."""
    ranks = rankdata(draws, method="average").reshape(draws.shape)
    return ndtri((ranks - 0.375) / (draws.size + 0.25))


def _r_hat(draws: np.ndarray) -> float:
    length = draws.shape[1]
    within = draws.var(1, ddof=1).mean()
    if within == 0:
        return float("nan")
    return float(np.sqrt((length - 1) / length + draws.mean(1).var(ddof=1) / within))


def r_hat(draws: np.ndarray) -> float:
    """The larger of bulk and folded rank-normalised split R-hat; 1 at convergence."""
    draws = split(np.asarray(draws, np.float64))
    return max(_r_hat(rank_normalize(draws)), _r_hat(rank_normalize(np.abs(draws - np.median(draws)))))


def effective_sample_size(draws: np.ndarray) -> float:
    """Effective number of independent draws for the mean, by Geyer's initial monotone sequence (section 3.2)."""
    draws = np.asarray(draws, np.float64)
    chains, length = draws.shape
    if length < 4 or np.ptp(draws) == 0:
        return float(draws.size)
    centred = draws - draws.mean(1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * length)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, 2 * length)[:, :length].mean(0) / length
    variance = covariance[0] * length / (length - 1)
    total = variance * (length - 1) / length
    if chains > 1:
        total += draws.mean(1).var(ddof=1)
    rho = 1 - (variance - covariance) / total
    rho[0] = 1.0
    # The last lags rest on too few products.
    pairs = rho[: (length - 2) // 2 * 2].reshape(-1, 2).sum(1)
    negative = np.flatnonzero(pairs < 0)
    stop = negative[0] if len(negative) else len(pairs) - 1
    # The even lag of the first pair that is left out still counts, once.
    tau = -1 + 2 * np.minimum.accumulate(pairs[:stop]).sum() + max(rho[2 * stop], 0.0)
    return float(draws.size / max(tau, 1 / np.log10(draws.size)))


def bulk_ess(draws: np.ndarray) -> float:
    """Effective sample size of the rank-normalised split chains."""
    return effective_sample_size(rank_normalize(split(np.asarray(draws, np.float64))))


def tail_ess(draws: np.ndarray) -> float:
    """The smaller effective sample size of the indicators of the 5% and 95% quantiles."""
    draws = np.asarray(draws, np.float64)
    sizes = [effective_sample_size(split((draws <= np.quantile(draws, q)).astype(float))) for q in (0.05, 0.95)]
    return min(sizes)
