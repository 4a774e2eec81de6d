"""The interface of a data set: examples by index, a transform on the device, and files that show samples."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from genjax.errors import UserError

#: Sets up to this size are held on the device, unless `resident` says otherwise.
RESIDENT_BYTES = 256 * 2**20
#: Of a set without splits of its own, this fraction becomes the validation split, and as much the test split.
HELD_OUT_FRACTION = 0.1


class DataError(UserError):
    """A data set that cannot be read; the message says why, and what would be right."""


class Examples(Protocol):
    """Random access to the examples of a split."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at indices [B], as arrays with leading axis B."""
        ...

    def arrays(self) -> dict[str, np.ndarray] | None:
        """All examples as arrays with leading axis `len(self)`, or None if they are not in memory."""
        ...


class Outline(NamedTuple):
    """What settings alone tell of a data set, for plans that are made without it.

    Attributes:
      spec: as `Data.spec`.
      example: shape and type of each array of a raw example, by name.
    """

    spec: dict[str, Any]
    example: dict[str, tuple[tuple[int, ...], str]]


@runtime_checkable
class HasOutline(Protocol):
    """Data whose settings may tell what a batch looks like."""

    def outline(self) -> Outline | None:
        """What a batch looks like, told without reading the data; None where only the data can tell."""


@runtime_checkable
class ChoosesBatches(Protocol):
    """Examples with their own order in training, such as windows that continue the batch before."""

    def batch_indices(self, step: int, batch_size: int, seed: int) -> np.ndarray | None:
        """Indices [batch_size] of the batch of a step, or None for the shuffled order."""


class ArrayExamples:
    """Examples that lie in memory as arrays with one leading axis."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
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
    """A data set with its domain (images, text, ...).  Its splits are called train, validation and test.

    Attributes:
      name: name of the data set.
      dir: directory of the data set, also in a bucket (s3://, gs://), of which a copy is then made on this machine; for
        TFDS sets the default is $TFDS_DATA_DIR or ~/tensorflow_datasets.
      batch_size: examples of a training step, over all devices and processes.
      eval_batch_size: examples of one evaluation step; rounded up to a multiple of the number of devices.
      resident: hold the training set on the device; by default if it takes at most 256 MiB.
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
        """Values for the fields of a model that are None: data_shape, num_classes, vocab_size or others, by domain.

        Data whose x has known values give their `range` and `num_levels` too; see genjax/values.py.
        """

    @abc.abstractmethod
    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes samples of a model to files that a person can look at or listen to.

        Args:
          samples: samples in the form of a transformed batch, shape [N, ...].
          stem: path of the file without its suffix.

        Returns:
          Paths of the written files.
        """

    def load(self, split: str) -> Examples:
        """`load_split`, read once per process."""
        return _load(self, split)

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Changes a training batch at random; runs inside the compiled step, and never in evaluations."""
        del key
        return batch

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Turns a raw batch into the batch that a model sees; runs inside the compiled step."""
        del key
        return batch

    def save(self, workdir: Path) -> None:  # noqa: B027
        """Writes what later commands need and the configuration does not hold, such as a tokenizer, into `workdir`.

        The first process of a run writes the files.  The other processes then call `save` too, which checks that they
        would have written the same.
        """

    def beside(self, workdir: Path) -> Data:
        """The data with the files that `save` wrote into `workdir`."""
        return self

    def going_on(self, workdir: Path) -> Data:
        """The data for resuming the run in `workdir`.

        Settings that are not given as flags come from the files that `save` wrote.
        """
        return self.beside(workdir)

    def starting_from(self, folder: str | Path) -> Data:
        """The data for a model that starts from another library's checkpoint in `folder`: with its tokenizer, say.

        Raises:
          DataError: the data contradict the checkpoint, for instance by another tokenizer.
        """
        del folder
        return self

    def knows_tokens_of(self, folder: str | Path) -> bool:
        """Whether the vocabulary begins with the checkpoint's vocabulary, so that a model may add the rest to it."""
        del folder
        return False

    def label_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; empty if there are no classes."""
        return ()

    def protocol(self) -> str:
        """How examples are prepared, in a few words; every evaluation prints them."""
        return "as stored"


# What some data sets have for tools beside; asked for by `isinstance`.


@runtime_checkable
class WritesAnswers(Protocol):
    def write_answers(self, batch: dict[str, np.ndarray], answers: np.ndarray, stem: Path) -> list[Path]:
        """Writes answers [N, ...] of a model beside what they answer; as `Data.write_samples`."""


@runtime_checkable
class DecodesTokens(Protocol):
    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens [T]."""


@runtime_checkable
class HasTokenizer(Protocol):
    def make_tokenizer(self) -> Any:
        """The `Tokenizer` that made the tokens."""


@runtime_checkable
class RendersChats(Protocol):
    """Texts in turns, which a template writes."""

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> np.ndarray:
        """Tokens [N] of a chat, each of whose messages has role and content, up to where its next answer begins.

        `options` are what the template reads, such as `tools`.
        """

    def end_of_turn(self) -> int:
        """The token that ends an answer."""


@runtime_checkable
class JudgesTexts(Protocol):
    def judged(self, text: str) -> bool | None:
        """Whether a text is a good answer; None if it is no answer at all."""


@runtime_checkable
class HasPrompts(Protocol):
    """Data with captions, which a model may be conditional on."""

    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts as a model sees captions: `tokens` int32 [N, T] and `mask`."""

    def references(self, split: str) -> list[tuple[str, ...]]:
        """The captions of each example of a split."""


@runtime_checkable
class HasConditionColumns(Protocol):
    def condition(self, values: list[float]) -> np.ndarray:
        """What a model sees of numbers in the units of the data, float32 [K]."""


@functools.lru_cache(maxsize=16)
def _load(data: Data, split: str) -> Examples:
    return data.load_split(split)


def split_indices(count: int, split: str, name: str) -> np.ndarray:
    """Indices of a split of a set without splits of its own: a fixed random tenth is validation, another tenth is test.

    Args:
      count: number of examples of the whole set.
      split: train, validation or test.
      name: the set's name, for the error message.

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
    """The split of a file in a folder without splits of its own: a tenth is validation, another tenth is test.

    A hash of the path below `root`, without the suffix, decides.  So a file keeps its split when other files come and
    go, and files with the same relative path below two roots are in the same split.
    """
    # File systems write an accented letter as one character or as two.
    name = unicodedata.normalize("NFC", path.relative_to(root).with_suffix("").as_posix())
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < HELD_OUT_FRACTION:
        return "test"
    return "validation" if place < 2 * HELD_OUT_FRACTION else "train"


def split_files(paths: Iterable[Path], root: Path, split: str, name: str) -> list[Path]:
    """The files of a split in a folder without splits of its own (see `split_of_file`); perhaps none.

    Raises:
      DataError: there is no such split.
    """
    check_split(split, ("train", "validation", "test"), name)
    return [path for path in paths if split_of_file(path, root) == split]


def check_any_files(chosen: Sequence[Path], count: int, root: Path, split: str) -> None:
    """Raises DataError if `split_files` chose none of the `count` files for a split."""
    if not chosen:
        raise DataError(
            f"of the {count} files below {root} none falls into the split {split}: their names decide, "
            "a tenth each for validation and test; add files"
        )


def check_split(split: str, known: Any, name: str) -> None:
    """Raises DataError if a set has no such split."""
    if split not in known:
        raise DataError(f"the data set {name} has no split {split!r}; it has {', '.join(known)}")
