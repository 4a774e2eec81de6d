"""Rank-normalised split R-hat and effective sample sizes (Vehtari et al. 2021, arXiv:1903.08008).

All take draws [chains, draws] of one quantity; `summarize` maps them over the quantities of a vector.  For
draws with a NaN all results are NaN.  For draws that never change R-hat is NaN, as there is no variance
within the chains to compare with.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from genjax.batch import Array


def split(draws: Array) -> Array:
    """Halves of the chains as separate chains."""
    half = draws.shape[1] // 2
    return jnp.concatenate([draws[:, :half], draws[:, -half:]])


def rank_normalize(draws: Array) -> Array:
    """Normal scores of the ranks among all draws (eq. 14); ties share the mean of their ranks.

    NaN if a draw is NaN.
    """
    ordered = jnp.sort(draws.reshape(-1))
    below, up_to = (jnp.searchsorted(ordered, draws, side) for side in ("left", "right"))
    ranks = 0.5 * (below + up_to + 1)
    return _unless_nan(draws, jax.scipy.special.ndtri((ranks - 0.375) / (draws.size + 0.25)))


def _unless_nan(draws: Array, value: Array) -> Array:
    return jnp.where(jnp.isnan(draws).any(), jnp.nan, value)


def _r_hat(draws: Array) -> Array:
    length = draws.shape[1]
    within = draws.var(1, ddof=1).mean()
    between = draws.mean(1).var(ddof=1)
    apart = jnp.where(between > 0, jnp.inf, jnp.nan)
    return jnp.where(within > 0, jnp.sqrt((length - 1) / length + between / jnp.where(within > 0, within, 1.0)), apart)


def r_hat(draws: Array) -> Array:
    """The larger of bulk and folded rank-normalised split R-hat; 1 at convergence."""
    draws = split(jnp.asarray(draws))
    folded = jnp.abs(draws - jnp.median(draws))
    bulk, folded = _r_hat(rank_normalize(draws)), _r_hat(rank_normalize(folded))
    # Draws of two values around their median become one value when folded, which says nothing.
    return _unless_nan(draws, jnp.where(folded > bulk, folded, bulk))


def effective_sample_size(draws: Array) -> Array:
    """Effective number of independent draws for the mean, by Geyer's initial monotone sequence (section 3.2)."""
    draws = jnp.asarray(draws)
    chains, length = draws.shape
    if length < 4:
        return _unless_nan(draws, float(draws.size))
    centred = draws - draws.mean(1, keepdims=True)
    spectrum = jnp.fft.rfft(centred, 2 * length)
    power = spectrum.real**2 + spectrum.imag**2
    covariance = jnp.fft.irfft(power, 2 * length)[:, :length].mean(0) / length
    variance = covariance[0] * length / (length - 1)
    total = variance * (length - 1) / length
    if chains > 1:
        total = total + draws.mean(1).var(ddof=1)
    rho = (1 - (variance - covariance) / jnp.maximum(total, 1e-30)).at[0].set(1.0)
    # The last lags rest on too few products.
    pairs = rho[: (length - 2) // 2 * 2].reshape(-1, 2).sum(1)
    negative = pairs < 0
    stop = jnp.where(negative.any(), negative.argmax(), len(pairs) - 1)
    monotone = jnp.where(jnp.arange(len(pairs)) < stop, jax.lax.cummin(pairs), 0.0)
    # The even lag of the first pair that is left out counts once.
    tau = -1 + 2 * monotone.sum() + jnp.maximum(rho[2 * stop], 0.0)
    size = draws.size / jnp.maximum(tau, 1 / jnp.log10(draws.size))
    # Draws that never change have no effective size.
    return _unless_nan(draws, jnp.where(jnp.ptp(draws) == 0, float(draws.size), size))


def bulk_ess(draws: Array) -> Array:
    """Effective sample size of the rank-normalised split chains."""
    return effective_sample_size(rank_normalize(split(jnp.asarray(draws))))


def tail_ess(draws: Array) -> Array:
    """The smaller effective sample size of the indicators of the 5% and 95% quantiles."""
    draws = jnp.asarray(draws)
    indicator = lambda q: (draws <= jnp.quantile(draws, q)).astype(jnp.float32)
    return _unless_nan(draws, jnp.minimum(*(effective_sample_size(split(indicator(q))) for q in (0.05, 0.95))))


@jax.jit
def summarize(draws: Array) -> dict[str, Array]:
    """Mean, standard deviation, R-hat, bulk and tail ESS of each column of draws [chains, draws, D], each [D]."""
    columns = jnp.moveaxis(draws, 2, 0)
    quantities = {"mean": jnp.mean, "standard_deviation": jnp.std, "r_hat": r_hat, "bulk_ess": bulk_ess}
    return {name: jax.lax.map(f, columns) for name, f in {**quantities, "tail_ess": tail_ess}.items()}
