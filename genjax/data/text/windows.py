"""Text: the embedded corpus, TFDS text sets, a file or folder of the user; packed into windows without loss of tokens.

The ids of a split form one row, with an end token after each document if there are several documents.  Window i holds
the T + 1 tokens from i * stride on: T inputs and their targets.  With the stride T, which is the default, every token
but the first is predicted exactly once an epoch.  A large corpus is encoded once and mapped into memory
(token_files.py); give it as a folder of files, since a text is read and encoded as a whole.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data.base import RESIDENT_BYTES, DataError, Examples, Outline
from genjax.data.files import with_ending
from genjax.data.text.base import TokenizedData
from genjax.data.text.documents import Documents, open_documents, read_documents
from genjax.data.text.token_files import MappedTokens, token_row
from genjax.data.text.tokenizer import Tokenizer


class Windows:
    """Windows of a row of tokens.

    Args:
      ids: the row, [N].
      documents: where each document begins, int64, for `segment_ids`; or None.
      characters: number of characters of each id, [V].
      length: tokens T that are predicted of a window.
      stride: tokens between the beginnings of windows.
      order: contiguous, or anything else for the engine's.
    """

    def __init__(
        self,
        ids: np.ndarray | MappedTokens,
        documents: np.ndarray | None,
        characters: np.ndarray,
        length: int,
        stride: int,
        order: str,
    ) -> None:
        self._ids, self._documents, self._characters, self._length = ids, documents, characters, length
        self._stride, self.order = stride, order
        targets = len(ids) - 1
        self._last = targets if stride == length else targets - length
        # The last window of overlapping ones ends with the row.
        self._count = max(-(-targets // length) if stride == length else -(-self._last // stride) + 1, 1)
        size = self._count * (length + 1) * 5
        self._arrays = self.gather(np.arange(self._count)) if size <= RESIDENT_BYTES else None

    def __len__(self) -> int:
        return self._count

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        starts = np.minimum(np.asarray(indices, np.int64) * self._stride, self._last)
        places = starts[:, None] + np.arange(self._length + 1)[None]
        inside, mask = np.minimum(places, len(self._ids) - 1), places < len(self._ids)
        tokens = self._ids[inside].astype(np.int32)
        batch = {
            "tokens": tokens,
            "mask": mask,
            "num_characters": (self._characters[tokens] * mask)[:, 1:].sum(1, dtype=np.int32),
            # Its number modulo 2^31, as JAX has numbers of 32 bits: what follows a window has the number after.
            "window": (np.asarray(indices, np.int64) % 2**31).astype(np.int32),
        }
        if self._documents is not None:
            batch["segment_ids"] = np.searchsorted(self._documents, inside, side="right").astype(np.int32)
        return batch

    def arrays(self) -> dict[str, np.ndarray] | None:
        return self._arrays

    def batch_indices(self, step: int, batch_size: int, seed: int) -> np.ndarray | None:
        """Windows of a training step in contiguous order, where row b of a batch goes on in row b of the next; else
        None.
        """
        del seed
        if self.order != "contiguous":
            return None
        count = len(self)
        per_row = -(-count // batch_size)
        return (np.arange(batch_size) * per_row + step % per_row) % count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(TokenizedData):
    """Token windows `tokens` int32 [B, T + 1], with `mask`, `num_characters` and `window` (its number modulo 2^31).

    Attributes:
      name: python_topics, the embedded texts of Python's help; file for the user's file or folder at data.dir; or the
        name of a TFDS set with a text feature, such as tiny_shakespeare.
      sequence_length: tokens T that are predicted of each window.
      stride: tokens between the beginnings of training windows; by default sequence_length.
      order: shuffled; or contiguous, where each row of a batch goes on from the one before, for carried states.
      pack_separately: tokens do not see documents other than their own (`segment_ids`).
    """

    renamed: ClassVar[dict[str, str]] = {"separate_documents": "pack_separately"}

    name: str = "python_topics"
    sequence_length: int = 128
    stride: int | None = None
    order: Literal["shuffled", "contiguous"] = "shuffled"
    pack_separately: bool = False

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

    def corpus(self, split: str) -> Documents:
        return open_documents(self.name, self.dir, split)

    def _end_token(self) -> int | None:
        """What ends each document, where there are several."""
        return _end_of(self.make_tokenizer()) if _num_documents(self.name, self.dir) > 1 else None

    def special_ids(self) -> dict[str, int]:
        end = self._end_token()
        return self.make_tokenizer().special or ({} if end is None else {"start": end, "separator": end})

    def load_split(self, split: str) -> Examples:
        tokenizer, end = self.make_tokenizer(), self._end_token()
        # Documents that do not see each other need a start of their own.
        ids, starts = token_row(tokenizer, self.corpus(split), end, separate=self.pack_separately)
        documents = starts if self.pack_separately and end is not None else None
        if len(ids) < self.sequence_length + 1:
            raise DataError(
                f"the split {split} of {self.name} has {len(ids)} tokens, which is less than one context of "
                f"data.sequence_length={self.sequence_length} and its target; give a longer text or a smaller length"
            )
        characters = np.append(tokenizer.num_characters, 0)
        stride = self.stride if self.stride is not None and split == "train" else self.sequence_length
        return Windows(ids, documents, characters, self.sequence_length, stride, self.order if split == "train" else "")

    def outline(self) -> Outline | None:
        """What a batch of several documents looks like, if the settings tell the size of the vocabulary."""
        if self.name == "python_topics" or self.tokenizer == "characters" or self.tokenizer_file is not None:
            return None
        end = 256 if self.tokenizer == "bytes" else self.vocab_size
        tokens = {"vocab_size": end + 1, "start_token": end, "end_token": end}
        row = (self.sequence_length + 1,)
        example = {
            "tokens": (row, "int32"),
            "mask": (row, "bool"),
            "num_characters": ((), "int32"),
            "window": ((), "int32"),
        }
        if self.pack_separately:
            example["segment_ids"] = (row, "int32")
        return Outline({"sequence_length": self.sequence_length, **tokens}, example)

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
        path = with_ending(stem, ".txt")
        rule = "\n" + "-" * 80 + "\n"
        path.write_text(rule.join(self.decode(row) for row in samples) + "\n", encoding="utf-8")
        return [path]

    def protocol(self) -> str:
        # What a model predicts of a window, from what, is the model's to say: a diffusion model has all of it at once.
        return (
            f"tokenizer {self.tokenizer_name}, windows of {self.sequence_length} tokens side by side, "
            "each with the token that follows and on its own"
        )


@functools.lru_cache(maxsize=16)
def _num_documents(name: str, directory: str | None) -> int:
    """Number of training texts."""
    return len(open_documents(name, directory, "train"))


def _end_of(tokenizer: Tokenizer) -> int:
    """The token that ends a document: the separator of a checkpoint's tokenizer, or the first id
    above our tokenizer's.
    """
    return tokenizer.special.get("separator", tokenizer.vocab_size)
