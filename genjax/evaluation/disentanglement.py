"""Disentanglement: how well single dimensions of a code represent single factors of the data, if the factors are known.

Both scores take codes (means of q(z | x)) and factors of the same examples, ideally of a set with all combinations.
Factors with only one value are left out.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import mutual_info_score

from genjax.errors import UserError


def _checked(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes in float64, and the factors [N, K] that have several values.

    Raises:
      UserError: a code is not finite, or every factor has only one value.
    """
    codes, factors = np.asarray(codes, np.float64), np.asarray(factors)
    if not np.isfinite(codes).all():
        raise UserError("codes must be finite for their factors to be told apart; the run has diverged")
    varied = factors[:, (factors != factors[:1]).any(0)]
    if not varied.shape[1]:
        raise UserError("every factor has the same value in all examples, so codes cannot tell them apart")
    return codes, varied


def _discretize(codes: np.ndarray, num_bins: int) -> np.ndarray:
    """Bin of each value of each dimension, int [N, D]; bins have equal width over the dimension's range."""
    result = np.empty(codes.shape, np.int64)
    for dimension, column in enumerate(codes.T):
        edges = np.histogram_bin_edges(column, num_bins)[1:-1]
        result[:, dimension] = np.digitize(column, edges)
    return result


def mutual_information(codes: np.ndarray, factors: np.ndarray, num_bins: int = 20) -> np.ndarray:
    """Mutual information in nats of every discretised dimension with every factor, shape [D, K].

    Args:
      codes: [N, D].
      factors: integers [N, K].
      num_bins: bins of equal width for each dimension.
    """
    bins = _discretize(np.asarray(codes, np.float64), num_bins)
    return np.array([[mutual_info_score(bins[:, d], factor) for factor in factors.T] for d in range(bins.shape[1])])


def mutual_information_gap(codes: np.ndarray, factors: np.ndarray, num_bins: int = 20) -> float:
    """Mutual information gap (Chen et al. 2018, arXiv:1802.04942, eq. 6) with discretised codes.

        MIG = 1/K sum_k (I(z_(1); v_k) - I(z_(2); v_k)) / H(v_k)

    where z_(1), z_(2) are the dimensions with the most information on the factor v_k.  Codes are discretised as by
    Locatello et al. 2019 (arXiv:1811.12359), so that their numbers can be compared.

    Args:
      codes: [N, D] with D of at least 2.
      factors: integers [N, K].
      num_bins: bins of equal width for each dimension.

    Returns:
      A number from 0 to 1; 1 if only one dimension has information on each factor.
    """
    codes, factors = _checked(codes, factors)
    if codes.shape[1] < 2:
        raise UserError("the mutual information gap needs codes of at least two dimensions")
    information = np.sort(mutual_information(codes, factors, num_bins), axis=0)
    entropy = np.array([mutual_info_score(factor, factor) for factor in factors.T])
    return float(np.mean((information[-1] - information[-2]) / entropy))


def factor_vae_score(
    codes: np.ndarray,
    factors: np.ndarray,
    rng: np.random.Generator,
    num_votes: int = 800,
    examples_per_vote: int = 64,
) -> float:
    """FactorVAE's score (Kim & Mnih 2018, arXiv:1802.05983, section 4).

    For one vote, choose a random factor and a random value of it, take `examples_per_vote` examples with this value,
    and find the dimension with the smallest variance relative to its variance over all examples.  The majority of votes
    maps dimensions to factors; the score is the accuracy of this map on as many new votes.  Dimensions that hardly vary
    are left out, and so are values that only one example has.  Codes that do not vary at all score 1/K.

    Args:
      codes: [N, D].
      factors: integers [N, K].
      rng: generator for the votes.
      num_votes: number of votes for the map, and again for its accuracy.
      examples_per_vote: number of examples of a vote.

    Returns:
      Accuracy between 1/K (chance) and 1.
    """
    codes, factors = _checked(codes, factors)
    variance = codes.var(0)
    active = np.flatnonzero(variance > 1e-3 * max(variance.max(), 1e-12))
    if not len(active):
        return 1.0 / factors.shape[1]
    scaled = codes[:, active] / np.sqrt(variance[active])
    with_value = [[np.flatnonzero(column == value) for value in np.unique(column)] for column in factors.T]
    # One example does not vary in any dimension.
    with_value = [several for members in with_value if (several := [m for m in members if len(m) > 1])]
    if not with_value:
        raise UserError(f"the {len(codes)} examples have no two of one value of a factor; give more")

    def votes() -> np.ndarray:
        """Counts [active dimensions, K]."""
        counts = np.zeros((len(active), len(with_value)), np.int64)
        for _ in range(num_votes):
            factor = rng.integers(len(with_value))
            members = with_value[factor][rng.integers(len(with_value[factor]))]
            chosen = rng.choice(members, examples_per_vote)
            counts[scaled[chosen].var(0).argmin(), factor] += 1
        return counts

    majority = votes().argmax(1)
    return float(votes()[np.arange(len(active)), majority].sum() / num_votes)
