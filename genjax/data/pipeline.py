"""Batches as a function of (seed, step): any process can ask for the batch of any step, in any order.

The stream of examples is one shuffled epoch after the other.  Batch t starts at place t * batch_size of the stream, so
no example is left out, and a batch may span two epochs.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections.abc import Iterator

import numpy as np
from absl import flags

from genjax.data.base import RESIDENT_BYTES, ChoosesBatches, Data, DataError, Examples
from genjax.data.permutation import permuted

#: Number of examples of a large set whose content is compared between two starts of a run.
NUM_COMPARED = 16


def shuffled_indices(seed: int, step: int, batch_size: int, count: int, stream: int = 0) -> np.ndarray:
    """Indices [batch_size] of a step's batch, in a stream of shuffled epochs of `count` examples.

    Each stream number has its own order.
    """
    epochs, offsets = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64), count)
    return np.concatenate(
        [permuted((seed, int(e), stream), offsets[epochs == e], count) for e in range(epochs[0], epochs[-1] + 1)]
    )


def _is_small(arrays: dict[str, np.ndarray] | None) -> bool:
    """Whether a set lies in memory and is small enough to be held on the device."""
    return arrays is not None and sum(a.nbytes for a in arrays.values()) <= RESIDENT_BYTES


def _leave_interrupts_to_the_run(index: int, count: int) -> None:
    """Lets worker processes ignore Ctrl-C, which a terminal sends to them too: a run needs them until its end."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Pipeline:
    """Training batches of a split by step.

    Args:
      data: the data set.
      split: which split.
      seed: decides the order.
      process_index, process_count: which slice of the global batch this process reads.

    Raises:
      DataError: the set cannot be read, is empty, or its batch cannot be divided among the processes.
    """

    def __init__(self, data: Data, split: str, seed: int, process_index: int = 0, process_count: int = 1) -> None:
        if data.batch_size % process_count:
            raise DataError(f"data.batch_size={data.batch_size} cannot be divided among {process_count} processes")
        self.data, self.seed = data, seed
        self.examples = check_not_empty(data, split)
        size = data.batch_size // process_count
        self._slice = slice(process_index * size, (process_index + 1) * size)

    @property
    def resident(self) -> bool:
        """Whether the set is to be held on the device."""
        if self.data.resident is not None:
            return self.data.resident
        return _is_small(self.examples.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole split; it is read if it is not in memory."""
        arrays = self.examples.arrays()
        return self.examples.gather(np.arange(len(self.examples))) if arrays is None else arrays

    def fingerprint(self) -> str:
        """A digest of the number of examples and of their content: all examples of a small set,
        some of a larger set.
        """
        count, arrays = len(self.examples), self.examples.arrays()
        if not _is_small(arrays):
            arrays = self.examples.gather(np.linspace(0, count - 1, NUM_COMPARED).astype(np.int64))
        digest = hashlib.sha256(str(count).encode())
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def indices(self, step: int) -> np.ndarray:
        """Indices of the global batch of a step, shape [batch_size]."""
        size = self.data.batch_size
        own = self.examples.batch_indices(step, size, self.seed) if isinstance(self.examples, ChoosesBatches) else None
        return shuffled_indices(self.seed, step, size, len(self.examples)) if own is None else own

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's slice of the batch of a step."""
        return self.examples.gather(self.indices(step)[self._slice])

    def iterate(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches of the steps from `start` to `stop`, read ahead by threads or worker processes.

        Close the iterator to end the workers; otherwise memory that they share with this process is not released.
        """
        if start >= stop:
            return
        import grain  # takes half a second, and sets that lie on the device do without

        steps = grain.MapDataset.range(start, stop).map(self.batch)
        if self.data.num_workers:
            dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
            # Grain reads absl flags, which must count as parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self.data.num_workers)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_leave_interrupts_to_the_run)
        else:
            dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        with contextlib.closing(iter(dataset)) as batches:
            yield from batches


def check_not_empty(data: Data, split: str) -> Examples:
    """The examples of a split, which must not be empty.

    Raises:
      DataError: there is no such split, or it has none.
    """
    examples = data.load(split)
    if not len(examples):
        raise DataError(f"the split {split} of the data set {data.name} has no examples")
    return examples


def random_order(count: int, limit: int | None = None) -> np.ndarray:
    """The fixed order that "the first examples" of a split refers to, a permutation [count]; its first `limit` places.

    Many sets are sorted by class, so the first examples in a set's own order are no fair part of it.
    """
    return permuted((0,), np.arange(count if limit is None else min(limit, count)), count)


def first_examples(count: int, limit: int | None = None) -> np.ndarray:
    """Indices of the first `limit` examples in `random_order`; all examples in the set's order if
    `limit` is no limit.
    """
    return np.arange(count) if limit is None or limit >= count else random_order(count, limit)


def full_batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the places 0 to `count` - 1 in batches [size], so that one compiled program serves all of them.

    Beside each batch stands the number of its own places; the last place fills up the last batch.
    """
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1), min(size, count - start)


def evaluation_batches(
    data: Data,
    split: str,
    size: int,
    limit: int | None = None,
    indices: np.ndarray | None = None,
    part: int = 0,
    num_parts: int = 1,
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields the examples of a split once each, in the order of `first_examples`.

    Args:
      data: the data set.
      split: which split.
      size: examples of a batch.
      limit: largest number of examples, or None for all.
      indices: in place of a limit, the examples and their order.
      part, num_parts: read the part of this number among `num_parts` equal parts of each batch, and no other example.

    Yields:
      A batch with leading axis `size / num_parts` and `example_index`, the place of each example in this order, and a
      mask that is 0 where the last batch is padded with copies of the last example.
    """
    examples = check_not_empty(data, split)
    available, own = len(examples), size // num_parts
    count = len(indices) if indices is not None else available if limit is None else min(limit, available)

    def order(places: np.ndarray) -> np.ndarray:
        # As `first_examples`, for these places alone.
        if indices is not None:
            return indices[places]
        return places if count == available else permuted((0,), places, available)

    for start in range(0, count, size):
        index = np.arange(start + part * own, start + (part + 1) * own)
        batch = examples.gather(order(np.minimum(index, count - 1)))
        # Modulo 2^31, as JAX has numbers of 32 bits.
        yield {**batch, "example_index": (index % 2**31).astype(np.int32)}, (index < count).astype(np.float32)
