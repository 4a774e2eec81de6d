"""Clean text for encoders and for models that learn by restoring what was corrupted; the model does the corruption.

    alone             [start] a_1 .. a_{T-2} [separator]
    in pairs          [start] a_1 .. a_n [separator] b_1 .. b_m [separator]        types 0 .. 0 1 .. 1

Single windows follow each other, so that every token is in exactly one window.  In half of the pairs b follows a (label
0); in the other half b comes from another place (label 1; Devlin et al. 2019, section 3.1).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from genjax.data.base import RESIDENT_BYTES, DataError, Examples, Outline
from genjax.data.text.base import DelimitedText
from genjax.data.text.documents import Documents, open_documents, read_documents
from genjax.data.text.token_files import MappedTokens, token_row


class _Row:
    """A part of a row of ids."""

    def __init__(self, ids: np.ndarray | MappedTokens, begin: int, end: int) -> None:
        self._ids, self._begin, self._end = ids, begin, end

    def __len__(self) -> int:
        return self._end - self._begin

    def take(self, places: np.ndarray) -> np.ndarray:
        """Ids at places, which are inside of the part or are taken to be its last, int32."""
        return self._ids[np.minimum(places + self._begin, self._end - 1)].astype(np.int32)


class EncoderRows:
    """Rows with their marks, made when they are asked for: 8 bytes a row are held, and 20 of a pair.

    Args:
      row: the ids of all documents.
      first, second: where the parts of each row begin; `second` is None for single windows.
      label: whether the second part is from another place, int32, or None.
      size: tokens of a part.
      data: says lengths and marks.
    """

    def __init__(
        self,
        row: _Row,
        first: np.ndarray,
        second: np.ndarray | None,
        label: np.ndarray | None,
        size: int,
        data: EncoderText,
    ) -> None:
        self._row, self._first, self._second, self._label, self._size, self._data = (
            row,
            first,
            second,
            label,
            size,
            data,
        )
        # Tokens, types and masks of the rows.
        num_bytes = len(first) * data.sequence_length * 9
        self._arrays = self.gather(np.arange(len(first))) if num_bytes <= RESIDENT_BYTES else None

    def __len__(self) -> int:
        return len(self._first)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        data, size, length = self._data, self._size, self._data.sequence_length
        first = self._first[indices]
        tokens = np.full((len(first), length), data.padding_token, np.int32)
        tokens[:, 0] = data.start_token
        parts = [first] if self._second is None else [first, self._second[indices]]
        ends = np.zeros(len(first), np.int64)
        for number, part in enumerate(parts):
            begin = 1 + number * (size + 1)
            own = np.minimum(size, len(self._row) - part)  # the last window may be shorter
            inside = np.arange(size)[None] < own[:, None]
            read = self._row.take(part[:, None] + np.arange(size)[None])
            tokens[:, begin : begin + size] = np.where(inside, read, data.padding_token)
            ends = begin + own
            tokens[np.arange(len(first)), ends] = data.separator_token
        mask = np.arange(length)[None] <= ends[:, None]
        lengths = np.append(data.make_tokenizer().num_characters, np.zeros(4, np.int32))
        batch = {"tokens": tokens, "mask": mask, "num_characters": lengths[tokens].sum(1).astype(np.int32)}
        if self._label is None:
            return batch
        types = np.broadcast_to((np.arange(length) > size + 1).astype(np.int32), tokens.shape) * mask
        return {**batch, "types": types, "label": self._label[indices]}

    def arrays(self) -> dict[str, np.ndarray] | None:
        return self._arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderText(DelimitedText):
    """Windows `tokens` int32 [B, T] with `mask` and `num_characters`; in pairs also `types` [B, T] and `label` [B].

    Attributes:
      name: python_topics, the embedded texts of Python's help; file for the user's file or folder at data.dir; or the
        name of a TFDS set with a text feature.
      sequence_length: tokens T of a window, special tokens included.
      sentence_pairs: two parts of text in each window, of which the second follows the first in one half of them.
    """

    name: str = "python_topics"
    sequence_length: int = 128
    sentence_pairs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length < 8:
            raise DataError(f"data.sequence_length={self.sequence_length} must be at least 8")

    def documents(self, split: str) -> list[str]:
        return read_documents(self.name, self.dir, split)

    def corpus(self, split: str) -> Documents:
        return open_documents(self.name, self.dir, split)

    def load_split(self, split: str) -> Examples:
        # A separator between documents; the row's own first and last marks are left out.
        ids, begins = token_row(self.make_tokenizer(), self.corpus(split), end=self.separator_token)
        row = _Row(ids, 1, max(len(ids) - 1, 1))
        rows = self._pairs(row, begins, split) if self.sentence_pairs else self._windows(row, split)
        first, second, label, size = rows
        return EncoderRows(row, first, second, label, size, self)

    def _windows(self, row: _Row, split: str) -> tuple[np.ndarray, None, None, int]:
        size = self.sequence_length - 2
        if len(row) < size:
            raise DataError(
                f"the split {split} of {self.name} has {len(row)} tokens, "
                f"which is less than one window of {size} and its two marks "
                f"(data.sequence_length={self.sequence_length}); give a longer text or a smaller length"
            )
        return np.arange(0, len(row), size), None, None, size

    def _pairs(self, row: _Row, begins: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        size = (self.sequence_length - 3) // 2
        # Without the mark before the first document, and the mark behind each.
        begins = np.append(begins, len(row) + 2)
        starts = np.where(np.arange(len(begins)) == 0, 0, begins - 1)
        counts = np.maximum(starts[1:] - 1 - starts[:-1], 0) // size
        document = np.repeat(np.arange(len(counts)), counts)
        first_part = np.cumsum(counts) - counts
        place = starts[document] + (np.arange(len(document)) - first_part[document]) * size
        first = np.flatnonzero(document[1:] == document[:-1])
        if len(place) < 3 or not len(first):
            raise DataError(
                f"the split {split} of {self.name} has {len(place)} parts of {size} tokens, too few for pairs of them; "
                f"give a longer text or a smaller data.sequence_length={self.sequence_length}"
            )
        rng = np.random.default_rng(0)
        label = rng.permutation(np.arange(len(first)) % 2).astype(np.int32)
        # Any part except the following one: the step is never a multiple of the number of parts.
        others = (first + 1 + rng.integers(1, len(place), len(first))) % len(place)
        second = np.where(label == 0, first + 1, others)
        return place[first], place[second], label, size

    def outline(self) -> Outline | None:
        """What a batch looks like, if the settings tell the size of the vocabulary."""
        if self.name == "python_topics" or self.tokenizer == "characters" or self.tokenizer_file is not None:
            return None
        size = 256 if self.tokenizer == "bytes" else self.vocab_size
        start, separator, padding, mask = range(size, size + 4)
        spec = {
            "vocab_size": size + 4,
            "start_token": start,
            "separator_token": separator,
            "end_token": separator,
            "padding_token": padding,
            "mask_token": mask,
            "special_tokens": (start, separator, padding),
            "sequence_length": self.sequence_length,
        }
        row = (self.sequence_length,)
        example = {"tokens": (row, "int32"), "mask": (row, "bool"), "num_characters": ((), "int32")}
        if not self.sentence_pairs:
            return Outline(spec, example)
        return Outline({**spec, "num_classes": 2}, {**example, "types": (row, "int32"), "label": ((), "int32")})

    def spec(self) -> dict[str, Any]:
        """vocab_size, special tokens, sequence_length T, and num_classes 2 in pairs."""
        spec = {**super().spec(), "sequence_length": self.sequence_length}
        return {**spec, "num_classes": 2} if self.sentence_pairs else spec

    def decode(self, tokens: np.ndarray) -> str:
        """Text of a row [T], special tokens inside shown in brackets."""
        ids = [int(i) for i in tokens if i != self.padding_token]
        ids = ids[1:] if ids and ids[0] == self.start_token else ids
        return self._show(ids[:-1] if ids and ids[-1] == self.separator_token else ids)

    def protocol(self) -> str:
        kind = "pairs of parts of text" if self.sentence_pairs else "windows one after the other"
        return f"tokenizer {self.tokenizer_name}, {kind}, {self.sequence_length} tokens each"
