"""What a data set is to the engine: examples by index, a transform on the device, and files that show samples."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from genjax.errors import UserError

#: Sets up to this size are held on the device, unless `resident` says otherwise.
RESIDENT_BYTES = 256 * 2**20
#: Fractions of a set without splits of its own that become validation and test.
HELD_OUT_FRACTION = 0.1


class DataError(UserError):
    """A data set that cannot be read; the message says why and what would be right."""


class Examples(Protocol):
    """Random access to the examples of a split.

    A method `batch_indices(step, batch_size, seed) -> indices [batch_size] or None` replaces the shuffled order of training.
    """

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples of these indices [B] as arrays with leading axis B."""
        ...

    def arrays(self) -> dict[str, np.ndarray] | None:
        """All examples as arrays with leading axis `len(self)`, or None where they do not lie in memory."""
        ...


class ArrayExamples:
    """Examples that lie in memory as arrays with one leading axis."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = dict(arrays)
        lengths = {name: len(a) for name, a in self._arrays.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the arrays of a data set differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: a[indices] for name, a in self._arrays.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        return self._arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(abc.ABC):
    """A data set with its domain.  Every split is called train, validation or test.

    Attributes:
      name: which set.
      dir: where it lies; for TFDS sets by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      batch_size: examples of a training step, over all devices and processes.
      eval_batch_size: examples of one call of the evaluation; rounded up to a multiple of the devices.
      resident: hold the training set on the device; by default where it takes at most 256 MiB.
      num_workers: processes that read batches of a set that is not resident; 0 for threads.
    """

    name: str
    dir: str | None = None
    batch_size: int = 128
    eval_batch_size: int = 500
    resident: bool | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        for field in ("batch_size", "eval_batch_size"):
            if getattr(self, field) < 1:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least 1")

    @abc.abstractmethod
    def load_split(self, split: str) -> Examples:
        """Opens a split.

        Raises:
          DataError: there is no such split, or it cannot be read.
        """

    @abc.abstractmethod
    def spec(self) -> dict[str, Any]:
        """What models are filled from: data_shape, num_classes, vocab_size, ..., whatever the domain has."""

    @abc.abstractmethod
    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes samples of a model as something to look at or listen to.

        Args:
          samples: samples in the form of a transformed batch, shape [N, ...].
          stem: path of the file without its suffix.

        Returns:
          The files written.
        """

    def load(self, split: str) -> Examples:
        """`load_split`, read once per process."""
        return _load(self, split)

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Random changes of training batches only; runs inside the compiled step."""
        del key
        return batch

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Raw batch to what a model sees; runs inside the compiled step."""
        del key
        return batch

    def save(self, workdir: Path) -> None:  # noqa: B027
        """Writes beside a run what samples need later and the configuration does not say, such as a tokenizer.

        The first process of a run writes; then the others call it too, to see that they would have written the same.
        """

    def beside(self, workdir: Path) -> Data:
        """The same data, with what `save` wrote there."""
        return self

    def going_on(self, workdir: Path) -> Data:
        """The same data as a run that lies there goes on with: what flags do not name is what `save` wrote there."""
        return self.beside(workdir)

    def starting_from(self, folder: str | Path) -> Data:
        """The same data as a model that starts from the checkpoint of this folder must read them.

        Raises:
          DataError: the data mean something else by what the checkpoint knows, such as their tokens.
        """
        del folder
        return self

    def knows_tokens_of(self, folder: str | Path) -> bool:
        """Whether the first of the data's tokens are known to be those of a checkpoint, so that others may be added."""
        del folder
        return False

    def label_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; empty where there are no classes."""
        return ()

    def protocol(self) -> str:
        """How examples are prepared, in a few words, for the line above every evaluation."""
        return "as stored"


@functools.lru_cache(maxsize=16)
def _load(data: Data, split: str) -> Examples:
    return data.load_split(split)


def split_indices(count: int, split: str, name: str) -> np.ndarray:
    """Indices of a split of a set that has none of its own: a fixed random tenth each for validation and test.

    Args:
      count: number of examples of the whole set.
      split: train, validation or test.
      name: the set's name, for the message.

    Returns:
      Increasing indices.
    """
    check_split(split, ("train", "validation", "test"), name)
    held_out = int(count * HELD_OUT_FRACTION)
    order = np.random.default_rng(0).permutation(count)
    parts = {
        "test": order[:held_out],
        "validation": order[held_out : 2 * held_out],
        "train": order[2 * held_out :],
    }
    return np.sort(parts[split])


def split_of_file(path: Path, root: Path) -> str:
    """The split of a file in a folder without splits of its own: a tenth each is validation and test.

    A hash of the path below the folder, without the suffix, decides.  So a file keeps its split whatever files come and go,
    and files of one name in two folders are in the same split.
    """
    # Systems write accents in one character or in two.
    name = unicodedata.normalize("NFC", path.relative_to(root).with_suffix("").as_posix())
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < HELD_OUT_FRACTION:
        return "test"
    return "validation" if place < 2 * HELD_OUT_FRACTION else "train"


def split_files(paths: Iterable[Path], root: Path, split: str, name: str) -> list[Path]:
    """The files of a split of a folder without splits of its own, perhaps none; see `split_of_file`.

    Raises:
      DataError: there is no such split.
    """
    check_split(split, ("train", "validation", "test"), name)
    return [path for path in paths if split_of_file(path, root) == split]


def check_any_files(chosen: Sequence[Path], count: int, root: Path, split: str) -> None:
    """Raises DataError where `split_files` chose none of the `count` files for a split."""
    if not chosen:
        raise DataError(
            f"of the {count} files below {root} none falls into the split {split}: their names decide, a tenth each for "
            "validation and test; add files"
        )


def check_split(split: str, known: Any, name: str) -> None:
    """Raises DataError if a set has no such split."""
    if split not in known:
        raise DataError(f"the data set {name} has no split {split!r}; it has {', '.join(known)}")
