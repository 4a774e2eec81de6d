"""Quality of samples in a feature space: figures of samples against data, and of data against data (the floor).

`FeatureStatistics` takes features in batch after batch.  It keeps moments of all of them, and a random sample of
`reservoir_size` feature vectors, used for nearest-neighbour metrics and the kernel distance; so memory does not grow
with the number of pictures, and sets may lie class after class.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from genjax.errors import UserError
from genjax.evaluation.neighbors import density_coverage, precision_recall
from genjax.evaluation.samples import ClassProbabilities, KernelBlocks, Moments, Reservoir, frechet_distance

#: Metrics that compare two sets, in the order of a report.
METRICS = ("frechet", "kernel", "classes", "precision_recall", "density_coverage")


class FeatureStatistics:
    """Statistics of the features of a set of pictures.

    Args:
      reservoir_size: number of feature vectors in the random sample that is kept.
      reference: complete statistics of the data, for a set whose kernel distance from the data is wanted.
      block_size: number of vectors in a block of the kernel distance.
    """

    def __init__(
        self, reservoir_size: int = 10000, reference: FeatureStatistics | None = None, block_size: int = 1000
    ) -> None:
        self._reservoir_size, self._block_size = reservoir_size, block_size
        self._kept = Reservoir(reservoir_size)
        self._halves = (Moments(), Moments())
        self.classes: ClassProbabilities | None = None
        self.kernel = None if reference is None else KernelBlocks(reference.kept, block_size, reservoir_size)

    def add(self, features: np.ndarray, logits: np.ndarray | None = None) -> FeatureStatistics:
        """Adds features [B, D], and logits [B, K] if there are any."""
        self._kept.add(np.asarray(features, np.float32))
        parity = (self.count + np.arange(len(features))) % 2
        for which, half in enumerate(self._halves):
            if (parity == which).any():
                half.add(features[parity == which])
        if self.kernel is not None:
            self.kernel.add(features)
        if logits is not None:
            self.classes = self.classes or ClassProbabilities()
            self.classes.add(logits)
        return self

    @property
    def count(self) -> int:
        """Number of pictures so far."""
        return sum(half.count for half in self._halves)

    @property
    def moments(self) -> Moments:
        """Mean and covariance of all features."""
        return Moments().merge(self._halves[0]).merge(self._halves[1])

    @property
    def kept(self) -> np.ndarray:
        """A random sample of the features in a random order, [at most reservoir_size, D]."""
        return self._kept.sample

    def half(self, which: int, reference: FeatureStatistics | None = None) -> FeatureStatistics:
        """Statistics of one half of the pictures, half 0 or 1, without the classes."""
        result, kept = FeatureStatistics(self._reservoir_size, reference, self._block_size), self.kept[which::2]
        result._halves = (self._halves[which], Moments())
        result._kept.add(kept)
        if result.kernel is not None:
            result.kernel.add(kept)
        return result


def figures(data: FeatureStatistics, other: FeatureStatistics, metrics: Collection[str] = METRICS) -> dict[str, float]:
    """The figures of another set compared with the data; the figures `classes` need logits.

    Args:
      data: complete statistics of the data.
      other: complete statistics of samples or of other data, made with `reference=data` if the kernel distance is
        wanted.
      metrics: names of metrics from METRICS.

    Raises:
      UserError: a set is too small for a figure.
    """
    result: dict[str, float] = {}
    if "frechet" in metrics:
        result["frechet_distance"] = frechet_distance(data.moments, other.moments)
    if "kernel" in metrics:
        if other.kernel is None:
            raise UserError("the kernel distance needs statistics that were made with reference=data")
        result |= other.kernel.result()
    if "classes" in metrics and other.classes is not None:
        result |= other.classes.result()
    if "precision_recall" in metrics:
        result |= precision_recall(data.kept, other.kept)
    if "density_coverage" in metrics:
        result |= density_coverage(data.kept, other.kept)
    return result


def floor(data: FeatureStatistics, metrics: Collection[str] = METRICS) -> dict[str, float]:
    """The figures of one half of the data against the other half: a perfect model with as many
    samples would get them.
    """
    first = data.half(0)
    return figures(first, data.half(1, first), metrics)


def warnings(sizes: Mapping[str, int], num_features: int) -> list[str]:
    """Sentences that the reader of a Frechet distance must know about the two sets.

    Args:
      sizes: number of pictures of each set, by what the set is called.
      num_features: width of the feature vectors.
    """
    small = [f"the {count} {name}" for name, count in sizes.items() if count <= num_features]
    if not small:
        return []
    return [
        f"{' and '.join(small)} are no more than the {num_features} features, so their covariance is singular: "
        "the Frechet distance is then mostly a matter of the counts, and comparable with figures of the same counts "
        "alone; the kernel distance is unbiased for any"
    ]
