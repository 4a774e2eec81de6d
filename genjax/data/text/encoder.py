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

from genjax.data.base import ArrayExamples, DataError, Examples, Outline
from genjax.data.text.base import DelimitedText
from genjax.data.text.documents import Documents, open_documents, read_documents


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
        tokenizer = self.make_tokenizer()
        rows = [tokenizer.encode(text) for text in self.documents(split)]
        if self.sentence_pairs:
            return self._paired(rows, split)
        # One row, with a separator between documents.
        joined = [part for row in rows for part in (row, [self.separator_token])][:-1]
        ids = np.concatenate(joined).astype(np.int32) if joined else np.zeros(0, np.int32)
        size = self.sequence_length - 2
        if len(ids) < size:
            raise DataError(
                f"the split {split} of {self.name} has {len(ids)} tokens, "
                f"which is less than one window of {size} and its two marks "
                f"(data.sequence_length={self.sequence_length}); give a longer text or a smaller length"
            )
        windows = [ids[i : i + size] for i in range(0, len(ids), size)]
        tokens, mask = self.pad([[self.start_token, *w, self.separator_token] for w in windows], self.sequence_length)
        return ArrayExamples({"tokens": tokens, "mask": mask, "num_characters": self._characters(tokens)})

    def _characters(self, tokens: np.ndarray) -> np.ndarray:
        """Characters of each row of tokens [N, T], int32 [N]."""
        own = self.make_tokenizer().num_characters
        return np.append(own, np.zeros(4, np.int32))[tokens].sum(1).astype(np.int32)

    def _paired(self, rows: list[np.ndarray], split: str) -> Examples:
        size = (self.sequence_length - 3) // 2
        parts = [row[i : i + size] for row in rows for i in range(0, len(row) - size + 1, size)]
        document = np.repeat(np.arange(len(rows)), [len(row) // size for row in rows])
        first = np.flatnonzero(document[1:] == document[:-1])
        if len(parts) < 3 or not len(first):
            raise DataError(
                f"the split {split} of {self.name} has {len(parts)} parts of {size} tokens, too few for pairs of them; "
                f"give a longer text or a smaller data.sequence_length={self.sequence_length}"
            )
        rng = np.random.default_rng(0)
        label = rng.permutation(np.arange(len(first)) % 2).astype(np.int32)
        # Any part except the following one: the step is never a multiple of the number of parts.
        others = (first + 1 + rng.integers(1, len(parts), len(first))) % len(parts)
        second = np.where(label == 0, first + 1, others)
        start, separator = self.start_token, self.separator_token
        pairs = [[start, *parts[a], separator, *parts[b], separator] for a, b in zip(first, second)]
        tokens, mask = self.pad(pairs, self.sequence_length)
        types = np.broadcast_to((np.arange(self.sequence_length) > size + 1).astype(np.int32), tokens.shape)
        characters = self._characters(tokens)
        return ArrayExamples(
            {"tokens": tokens, "mask": mask, "types": types * mask, "label": label, "num_characters": characters}
        )

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
