"""Coverage and repetition of the data by samples, measured by nearest neighbours in a feature space.

With NND_k(y) the distance of y to its k-th nearest other member of its own set, and balls B_k(y) of that radius:

    precision  share of samples x in some B_k(y) of the data    (Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 2)
    recall     share of data y in some B_k(x) of the samples
    density    1 / (k N) sum_x #{y : x in B_k(y)}                     (Naeem et al. 2020, arXiv:2002.09797, eq. 3)
    coverage   share of data y whose B_k(y) holds a sample            (eq. 4)

Distances are Euclidean.  They are computed for a block of rows at a time, so memory holds the features and one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genjax.errors import UserError
from genjax.evaluation.likelihood import roc_auc


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances [N, M] of rows, by the binomial formula."""
    products = x @ y.T
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2.0 * products
    return np.maximum(squares, 0.0)


def _blocks(count: int, block_size: int) -> Iterator[slice]:
    return (slice(start, start + block_size) for start in range(0, count, block_size))


def neighbor_radii(x: np.ndarray, num_neighbors: int, block_size: int = 1000) -> np.ndarray:
    """Squared distance of each row of x [N, D] to its k-th nearest other row, [N].

    Raises:
      UserError: there are not more than `num_neighbors` rows.
    """
    x = np.asarray(x, np.float64)
    if len(x) <= num_neighbors:
        raise UserError(f"radii to neighbour {num_neighbors} need more than {num_neighbors} examples, not {len(x)}")
    radii = np.empty(len(x))
    for rows in _blocks(len(x), block_size):
        distances = _squared_distances(x[rows], x)
        # A row is not its own neighbour, even if rounding gives a small distance.
        distances[np.arange(len(distances)), np.arange(rows.start, rows.start + len(distances))] = np.inf
        radii[rows] = np.partition(distances, num_neighbors - 1, axis=1)[:, num_neighbors - 1]
    return radii


def precision_recall(
    data: np.ndarray, samples: np.ndarray, num_neighbors: int = 3, block_size: int = 1000
) -> dict[str, float]:
    """`precision` and `recall` with k = `num_neighbors` in both, of features [N, D] of data and [M, D] of samples."""
    data, samples = np.asarray(data, np.float64), np.asarray(samples, np.float64)
    data_radii, sample_radii = neighbor_radii(data, num_neighbors), neighbor_radii(samples, num_neighbors)
    precise, recalled = np.zeros(len(samples), bool), np.zeros(len(data), bool)
    for rows in _blocks(len(samples), block_size):
        distances = _squared_distances(samples[rows], data)
        precise[rows] = (distances <= data_radii[None, :]).any(1)
        recalled |= (distances <= sample_radii[rows, None]).any(0)
    return {"precision": float(precise.mean()), "recall": float(recalled.mean())}


def density_coverage(
    data: np.ndarray, samples: np.ndarray, num_neighbors: int = 5, block_size: int = 1000
) -> dict[str, float]:
    """`density` (may exceed 1) and `coverage` with k = `num_neighbors`, of features [N, D] of data and [M, D] of
    samples.
    """
    data, samples = np.asarray(data, np.float64), np.asarray(samples, np.float64)
    radii = neighbor_radii(data, num_neighbors)
    inside, covered = 0, np.zeros(len(data), bool)
    for rows in _blocks(len(samples), block_size):
        within = _squared_distances(samples[rows], data) <= radii[None, :]
        inside += int(within.sum())
        covered |= within.any(0)
    return {"density": inside / (num_neighbors * len(samples)), "coverage": float(covered.mean())}


class NearestNeighbors:
    """The nearest vectors of a stream to each of some queries [Q, D]; only these vectors' distances are kept.

    Args:
      queries: features whose neighbours are searched.
      num_neighbors: number of neighbours of each query.
    """

    def __init__(self, queries: np.ndarray, num_neighbors: int = 1) -> None:
        self._queries = np.asarray(queries, np.float64)
        self._squares = np.full((len(self._queries), num_neighbors), np.inf)
        self._indices = np.full((len(self._queries), num_neighbors), -1)
        self._count = 0

    def add(self, x: np.ndarray) -> NearestNeighbors:
        """Adds a batch [B, D]."""
        squares = _squared_distances(self._queries, np.asarray(x, np.float64))
        indices = np.broadcast_to(self._count + np.arange(len(x)), squares.shape)
        squares, indices = np.hstack([self._squares, squares]), np.hstack([self._indices, indices])
        kept = self._squares.shape[1]
        nearest = np.argpartition(squares, kept - 1, axis=1)[:, :kept]
        squares, indices = np.take_along_axis(squares, nearest, 1), np.take_along_axis(indices, nearest, 1)
        order = np.argsort(squares, axis=1)
        self._squares, self._indices = np.take_along_axis(squares, order, 1), np.take_along_axis(indices, order, 1)
        self._count += len(x)
        return self

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances, ascending, and positions in the stream, both [Q, num_neighbors]."""
        return np.sqrt(self._squares), self._indices


def memorization(samples_to_train: np.ndarray, held_out_to_train: np.ndarray) -> dict[str, float]:
    """Whether samples lie nearer to the training set than held-out data do.

    Args:
      samples_to_train: distance of each sample to its nearest training example [N].
      held_out_to_train: distance of each held-out example to its nearest training example [M].

    Returns:
      `memorization_auc`, the probability that a sample is nearer than a held-out example (1/2 if the model neither
      copies nor avoids training examples; the statistic of Meehan et al. 2020, arXiv:2004.05675, in one cell);
      `copied_share`, the share of samples nearer than all but one in a hundred held-out examples (1/100 if samples are
      like held-out data); and quantiles of both distances.
    """
    threshold = np.quantile(held_out_to_train, 0.01)
    quantiles = {
        f"{name}_distance_q{percent:02d}": float(np.quantile(distances, percent / 100))
        for name, distances in (("sample", samples_to_train), ("held_out", held_out_to_train))
        for percent in (1, 50, 99)
    }
    return {
        "memorization_auc": roc_auc(samples_to_train, held_out_to_train),
        "copied_share": float((samples_to_train < threshold).mean()),
        **quantiles,
    }
