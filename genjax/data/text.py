"""Text: the embedded corpus, TFDS text sets, a file or folder of the user; packed into windows without loss of tokens.

The ids of a split stand in one row, with an end token after each document where there are several.  Window i holds
the T + 1 tokens from i * stride on: T inputs and their targets.  With the stride T, which is the default, every token but
the first is predicted exactly once an epoch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data import sources
from genjax.data.base import RESIDENT_BYTES, DataError, Examples, check_split
from genjax.data.tokenization import Tokenizer
from genjax.data.tokenized import TokenizedData, read_utf8

SUFFIXES = (".txt", ".md", ".rst", ".py", ".csv", ".json", ".html", ".tex")


class Windows:
    """Windows of a row of tokens; `segments` number the documents."""

    def __init__(
        self, ids: np.ndarray, segments: np.ndarray | None, characters: np.ndarray, length: int, stride: int, order: str
    ):
        self._ids, self._segments, self._length = ids, segments, length
        self._characters = np.concatenate([[0], np.cumsum(characters[ids], dtype=np.int64)])
        targets = len(ids) - 1
        count = -(-targets // length) if stride == length else (targets - length) // stride + 1
        self._starts = np.arange(max(count, 1)) * stride
        if stride != length and self._starts[-1] + length < targets:
            self._starts = np.append(self._starts, targets - length)
        self.order = order
        size = len(self._starts) * (length + 1) * 5
        self._arrays = self.gather(np.arange(len(self._starts))) if size <= RESIDENT_BYTES else None

    def __len__(self) -> int:
        return len(self._starts)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        starts = self._starts[indices]
        places = starts[:, None] + np.arange(self._length + 1)[None]
        inside = np.minimum(places, len(self._ids) - 1)
        stop = np.minimum(starts + self._length + 1, len(self._ids))
        batch = {
            "tokens": self._ids[inside],
            "mask": places < len(self._ids),
            "num_characters": (self._characters[stop] - self._characters[starts + 1]).astype(np.int32),
            "window": np.asarray(indices, np.int32),
        }
        if self._segments is not None:
            batch["segment_ids"] = self._segments[inside]
        return batch

    def arrays(self) -> dict[str, np.ndarray] | None:
        return self._arrays

    def batch_indices(self, step: int, batch_size: int) -> np.ndarray | None:
        """Windows of a training step in contiguous order, where row b of a batch goes on in row b of the next; else None."""
        if self.order != "contiguous":
            return None
        count = len(self)
        per_row = -(-count // batch_size)
        return (np.arange(batch_size) * per_row + step % per_row) % count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(TokenizedData):
    """Token windows `tokens` int32 [B, T + 1], with `mask`, `num_characters` and `window` (its number).

    Attributes:
      name: python_topics, the embedded texts of Python's help; file for the user's file or folder at data.dir; or the
        name of a TFDS set with a text feature, such as tiny_shakespeare.
      sequence_length: tokens T that are predicted of each window.
      stride: tokens between the beginnings of training windows; by default sequence_length.
      order: shuffled; or contiguous, where each row of a batch goes on from the one before, for carried states.
      separate_documents: tokens do not see documents other than their own (`segment_ids`).
    """

    name: str = "python_topics"
    sequence_length: int = 128
    stride: int | None = None
    order: Literal["shuffled", "contiguous"] = "shuffled"
    separate_documents: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length < 1:
            raise DataError(f"data.sequence_length={self.sequence_length} must be at least 1")
        if self.stride is not None and not 1 <= self.stride <= self.sequence_length:
            raise DataError(
                f"data.stride={self.stride} must lie between 1 and data.sequence_length, or tokens are lost"
            )
        if self.order == "contiguous" and self.stride not in (None, self.sequence_length):
            raise DataError("data.order=contiguous needs windows that follow each other: leave data.stride out")

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def documents(self, split: str) -> list[str]:
        """The texts of a split.  Splits of one text are its parts: 80%, 10% and 10%, in this order."""
        return read_documents(self.name, self.dir, split)

    @property
    def _num_documents(self) -> int:
        return len(self.documents("train"))

    def _end_token(self) -> int | None:
        """What ends each document, where there are several."""
        return _end_of(self.make_tokenizer()) if self._num_documents > 1 else None

    def special_ids(self) -> dict[str, int]:
        end = self._end_token()
        return self.make_tokenizer().special or ({} if end is None else {"start": end, "separator": end})

    def load_split(self, split: str) -> Examples:
        tokenizer, end = self.make_tokenizer(), self._end_token()
        encoded = [tokenizer.encode(text) for text in self.documents(split)]
        segments = None
        if end is not None:
            # Documents that do not see each other need a start of their own.
            first = [end] if self.separate_documents else []
            encoded = [np.concatenate([first, ids, [end]]) for ids in encoded]
            if not self.separate_documents:
                encoded[0] = np.append(end, encoded[0])
            else:
                segments = np.concatenate([np.full(len(ids), i + 1, np.int32) for i, ids in enumerate(encoded)])
        ids = np.concatenate(encoded).astype(np.int32) if encoded else np.zeros(0, np.int32)
        if len(ids) < self.sequence_length + 1:
            raise DataError(
                f"the split {split} of {self.name} has {len(ids)} tokens, which is less than one context of "
                f"data.sequence_length={self.sequence_length} and its target; give a longer text or a smaller length"
            )
        characters = np.append(tokenizer.num_characters, 0)
        stride = self.stride if self.stride is not None and split == "train" else self.sequence_length
        return Windows(ids, segments, characters, self.sequence_length, stride, self.order if split == "train" else "")

    def spec(self) -> dict[str, Any]:
        """vocab_size, sequence_length, start_token, and end_token where there are several documents."""
        tokenizer, end = self.make_tokenizer(), self._end_token()
        spec: dict[str, Any] = {"sequence_length": self.sequence_length}
        if end is not None:
            size = max(tokenizer.vocab_size, end + 1)
            return {**spec, "vocab_size": size, "start_token": end, "end_token": end}
        # One text has no start; a sample begins after a line's end, where there is one.
        newline = [i for i, piece in enumerate(tokenizer.pieces) if piece == b"\n"]
        return {**spec, "vocab_size": tokenizer.vocab_size, "start_token": newline[0] if newline else 0}

    # ------------------------------------------------------------------------------------------------------------------
    # Batches and samples

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return {**batch, "tokens": batch["tokens"].astype(jnp.int32)}

    def decode(self, tokens: np.ndarray) -> str:
        """Text of ids [N] up to the end token, a first one left out."""
        tokenizer = self.make_tokenizer()
        ids = np.asarray(tokens).tolist()
        end = _end_of(tokenizer)
        if ids and ids[0] == end:
            ids = ids[1:]
        ids = ids[: ids.index(end)] if end in ids else ids
        # The table of a checkpoint may be longer than its tokenizer.
        return tokenizer.decode(i for i in ids if i < tokenizer.vocab_size)

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes one text file with a line of dashes between samples."""
        path = Path(stem).with_suffix(".txt")
        rule = "\n" + "-" * 80 + "\n"
        path.write_text(rule.join(self.decode(row) for row in samples) + "\n", encoding="utf-8")
        return [path]

    def protocol(self) -> str:
        return (
            f"tokenizer {self.tokenizer_name}, windows of {self.sequence_length} tokens one after the other, each token after "
            "the first predicted once, with the tokens before it in its window"
        )


def _end_of(tokenizer: Tokenizer) -> int:
    """The end of a document: that of a checkpoint's tokenizer, or the id above our own tokenizer's."""
    return tokenizer.special.get("separator", tokenizer.vocab_size)


def read_documents(name: str, directory: str | None, split: str) -> list[str]:
    """The texts of a split of python_topics, file, or a TFDS set; splits of one text are its parts: 80%, 10% and 10%.

    Raises:
      DataError: there is no such set or split, or it cannot be read.
    """
    if "+" in split:
        parts = [read_documents(name, directory, part) for part in split.split("+")]
        # Neighbouring parts of one text are one text.
        return ["".join(p[0] for p in parts)] if all(len(p) == 1 for p in parts) else sum(parts, [])
    match name:
        case "python_topics":
            from pydoc_data.topics import topics

            return _part(["\n\n".join(topics[topic].strip() for topic in sorted(topics))], split, name)
        case "file":
            return _part(read_texts(directory), split, f"file {directory}")
    builder = sources.open_tfds(name, directory)
    return _tfds_texts(builder, sources.tfds_split(builder, split))


def _part(texts: list[str], split: str, name: str) -> list[str]:
    check_split(split, ("train", "validation", "test"), name)
    begin, end = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}[split]
    if len(texts) == 1:
        text = texts[0]
        return [text[round(begin * len(text)) : round(end * len(text))]]
    if len(texts) < 10:
        raise DataError(f"{name} has {len(texts)} documents; give one, which is divided, or at least ten")
    return texts[round(begin * len(texts)) : round(end * len(texts))]


def read_texts(path: str | None) -> list[str]:
    """The text of a file, or those of the text files under a folder in the order of their names.

    Raises:
      DataError: there is none, or one is not UTF-8.
    """
    if not path:
        raise DataError("--data.name=file needs a text file or a folder of them: --data.dir=PATH")
    root = Path(path).expanduser()
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"--data.dir={path} is neither a text file nor a folder of them ({' '.join(SUFFIXES)})")
    return [read_utf8(file) for file in files]


def _tfds_texts(builder: Any, split: str) -> list[str]:
    import tensorflow_datasets as tfds

    names = [n for n, f in builder.info.features.items() if isinstance(f, tfds.features.Text)]
    if not names:
        raise DataError(f"the data set {builder.name} has no text; its features are {', '.join(builder.info.features)}")
    name = "text" if "text" in names else names[0]
    values = (row[name] for row in builder.as_data_source(split=split))
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
