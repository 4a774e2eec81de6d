"""Distances between two sets of feature vectors, streamed on the host in float64 and bounded memory.

    frechet_distance   |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))                (Heusel et al. 2017, arXiv:1706.08500)
    kernel_distance    unbiased MMD^2 with k(x, y) = (x . y / D + 1)^3         (Binkowski et al. 2018, arXiv:1801.01401)
    class_score        exp E_x KL(p(c | x) | E_x p(c | x))                     (Salimans et al. 2016, arXiv:1606.03498)

The trace of the square root is the sum of the square roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
symmetric.  `Moments`, `KernelBlocks` and `ClassProbabilities` take one batch after the other.  None of them
keeps all vectors: `KernelBlocks` keeps a random sample of fixed size.  With p of the Inception network the class
score is the Inception score.
"""

from __future__ import annotations

import numpy as np

from genjax.errors import UserError


def _features(x: np.ndarray, least: int = 2) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < least:
        raise UserError(f"features must have the shape [N, D] with N of at least {least}, not {x.shape}")
    return x


class Moments:
    """Mean and covariance of vectors that come in batches; memory D^2 for any number of them.

    Attributes:
      count: number of vectors so far.
      mean: their mean [D].
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, x: np.ndarray) -> Moments:
        """Takes a batch [B, D] in (Chan et al. 1979: scatter about the joint mean)."""
        x = _features(x, 1)
        batch = Moments()
        batch.count, batch.mean = len(x), x.mean(0)
        centred = x - batch.mean
        batch._scatter = centred.T @ centred
        return self.merge(batch)

    def merge(self, other: Moments) -> Moments:
        """Adds the vectors of another `Moments`."""
        if not other.count:
            return self
        if not self.count:
            self.count, self.mean, self._scatter = other.count, other.mean, other._scatter.copy()
            return self
        total = self.count + other.count
        difference = other.mean - self.mean
        self._scatter += other._scatter
        self._scatter += np.outer(difference, difference) * (self.count * other.count / total)
        self.mean = self.mean + difference * (other.count / total)
        self.count = total
        return self

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D].

        Raises:
          UserError: there are fewer than two vectors.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least two vectors, not {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(x: np.ndarray | Moments, y: np.ndarray | Moments) -> float:
    """Squared Frechet distance of the Gaussians with the moments of two sets of features [N, D] and [M, D].

    With fewer vectors than features a covariance is singular, and the distance is far above the distributions'
    distance.

    Raises:
      UserError: a set is no matrix, has fewer than two rows, or the two have other numbers of features.
    """
    first, second = (each if isinstance(each, Moments) else Moments().add(_features(each)) for each in (x, y))
    if first.mean.shape != second.mean.shape:
        raise UserError(f"one set has {len(first.mean)} features, the other {len(second.mean)}")
    difference = first.mean - second.mean
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second.covariance @ root), 0.0)).sum()
    trace = np.trace(first.covariance) + np.trace(second.covariance)
    return float(difference @ difference + trace - 2.0 * cross)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared kernel distance of two sets of features [N, D] and [M, D]; it may be negative.

    Raises:
      UserError: a set is no matrix or has fewer than two rows.
    """
    x, y = _features(x), _features(y)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1.0) ** 3

    def within(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2.0 * kernel(x, y).mean())


class Reservoir:
    """A uniform random sample of vectors that come in batches (Vitter 1985, algorithm R); only the sample is in memory.

    The sample does not depend on how the stream is cut into batches.

    Args:
      capacity: size of the sample; all vectors where there are fewer.
      seed: seed of the sample and its order.  Two samples that are compared need different seeds: otherwise their
        blocks take the same places of both streams, and so the same classes if both streams are ordered by class.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self._capacity, self._seed, self._seen = capacity, seed, 0
        self._rng = np.random.default_rng([seed, 0])
        self._parts: list[np.ndarray] = []

    def add(self, x: np.ndarray) -> Reservoir:
        """Takes a batch [B, D] in."""
        x = np.asarray(x)
        place = np.arange(self._seen, self._seen + len(x))
        # Vector t replaces one of the kept vectors with probability capacity / (t + 1).
        place = np.where(place < self._capacity, place, np.floor(self._rng.random(len(x)) * (place + 1)).astype(int))
        room = max(self._capacity - self._seen, 0)
        if room:
            self._parts.append(x[:room].copy())
        if len(x) > room:
            self._parts = [np.concatenate(self._parts)]
            kept = np.flatnonzero(place[room:] < self._capacity) + room
            self._parts[0][place[kept]] = x[kept]
        self._seen += len(x)
        return self

    @property
    def sample(self) -> np.ndarray:
        """The sample in a random order, [at most capacity, D]."""
        rows = np.concatenate(self._parts)
        return rows[np.random.default_rng([self._seed, 1]).permutation(len(rows))]


class KernelBlocks:
    """Kernel distance of a stream of vectors to a reference, as the mean over blocks of `block_size` of each.

    Blocks are drawn at random from both sets, which may lie in any order.  Every block's estimate is unbiased, and so
    is their mean.  The blocks of the stream are disjoint.  The blocks of the reference are used in turn, so that the
    spread of the estimates tells the spread of their mean if the stream is no longer than the reference.

    Args:
      reference: features [M, D]; at least `block_size` of them are used, else all.
      block_size: number of vectors of a block.
      reservoir_size: largest size of the random sample of the stream that is kept.
    """

    def __init__(self, reference: np.ndarray, block_size: int = 1000, reservoir_size: int = 10000) -> None:
        reference = _features(reference)
        reference = Reservoir(len(reference), seed=1).add(reference).sample
        self._size = min(block_size, len(reference))
        count = len(reference) // self._size
        self._reference = [reference[i * self._size : (i + 1) * self._size] for i in range(count)]
        self._stream = Reservoir(max(reservoir_size, self._size))

    def add(self, x: np.ndarray) -> KernelBlocks:
        """Takes a batch [B, D] in."""
        self._stream.add(x)
        return self

    def result(self) -> dict[str, float]:
        """`kernel_distance`, the standard deviation over blocks, and the standard error of the mean.

        A stream shorter than a block is one short block.

        Raises:
          UserError: the stream has fewer than two vectors.
        """
        rows = _features(self._stream.sample)
        count = max(len(rows) // self._size, 1)
        blocks = [rows[i * self._size : (i + 1) * self._size] for i in range(count)]
        references = (self._reference[i % len(self._reference)] for i in range(count))
        estimates = np.array([kernel_distance(x, y) for x, y in zip(blocks, references)])
        spread = float(estimates.std(ddof=1)) if len(estimates) > 1 else float("nan")
        return {
            "kernel_distance": float(estimates.mean()),
            "kernel_distance_block_std": spread,
            "kernel_distance_standard_error": spread / len(estimates) ** 0.5,
            "kernel_distance_num_blocks": len(estimates),
        }


class ClassProbabilities:
    """Class score and shares of the classes of samples, from a classifier's logits that come in batches.

    Args:
      num_parts: number of parts of the examples, spread evenly over the set; the spread of the score is taken over
        parts.
    """

    def __init__(self, num_parts: int = 10) -> None:
        self._parts = num_parts
        self._sums: np.ndarray | None = None
        self._negative_entropies = np.zeros(num_parts)
        self._counts = np.zeros(num_parts)
        self._winners = np.zeros(0)

    def add(self, logits: np.ndarray) -> ClassProbabilities:
        """Adds logits [B, K]."""
        logits = np.asarray(logits, np.float64)
        log_p = logits - logits.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        if self._sums is None:
            self._sums, self._winners = np.zeros((self._parts, p.shape[1])), np.zeros(p.shape[1])
        # Parts are assigned by the golden ratio and not in turn, because samples of a conditional
        # model have classes in turn.
        index = self._counts.sum() + np.arange(len(p))
        part = (index * ((5.0**0.5 - 1.0) / 2.0) % 1.0 * self._parts).astype(int)
        np.add.at(self._sums, part, p)
        np.add.at(self._negative_entropies, part, (p * log_p).sum(1))
        np.add.at(self._counts, part, 1)
        self._winners += np.bincount(p.argmax(1), minlength=p.shape[1])
        return self

    @property
    def shares(self) -> np.ndarray:
        """Share of the examples that are most probably of each class [K]."""
        return self._winners / self._winners.sum()

    def result(self) -> dict[str, float]:
        """`class_score` over all, its mean and standard deviation over the parts, and the largest and smallest share.

        Raises:
          UserError: there are no logits yet.
        """
        if self._sums is None:
            raise UserError("a class score needs at least one example")
        used = self._counts > 0
        scores = [
            _score(sums, entropy, count)
            for sums, entropy, count in zip(
                self._sums[used], self._negative_entropies[used], self._counts[used], strict=True
            )
        ]
        return {
            "class_score": _score(self._sums.sum(0), self._negative_entropies.sum(), self._counts.sum()),
            "class_score_parts_mean": float(np.mean(scores)),
            "class_score_parts_std": float(np.std(scores)),
            "largest_class_share": float(self.shares.max()),
            "smallest_class_share": float(self.shares.min()),
        }


def _score(sums: np.ndarray, negative_entropy: float, count: float) -> float:
    marginal = sums / count
    positive = marginal[marginal > 0]
    return float(np.exp(negative_entropy / count - (positive * np.log(positive)).sum()))
