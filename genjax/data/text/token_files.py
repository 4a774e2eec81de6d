"""Rows of token ids: in memory for small corpora, else in a file that is written once and mapped into memory.

A large corpus is encoded by the first process that asks for it, in parts, so that neither its text nor its tokens need
fit into memory.  The file (genjax/data/files.py) is found again
by the names, sizes and times of the texts' files, the tokenizer, and the marks between documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from genjax.data.base import DataError
from genjax.data.files import find_place, name_of, only_writer
from genjax.data.text.documents import Documents
from genjax.data.text.tokenizer import Tokenizer

#: Texts up to this size are encoded at every start.
MEMORY_BYTES = 64 * 2**20


class MappedTokens:
    """Ids in a file, mapped and not read; a copy in another process maps it again."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._ids = np.memmap(path, self._dtype, mode="r")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._ids[index])

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedTokens, (self._path, self._dtype)


def token_row(
    tokenizer: Tokenizer, documents: Documents, end: int | None = None, separate: bool = False
) -> tuple[np.ndarray | MappedTokens, np.ndarray]:
    """The ids of all documents in one row.

    Args:
      tokenizer: tokenizer that encodes the texts.
      documents: the texts.
      end: token before the first document and after each document, or None.
      separate: whether `end` stands before each document as well.

    Returns:
      Ids [N], uint16 where they fit and else uint32, and the place where each document begins, int64.

    Raises:
      DataError: a text cannot be read or encoded, or there is no room for the file.
    """
    size = max(tokenizer.vocab_size, -1 if end is None else end + 1)
    dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
    if documents.num_bytes > MEMORY_BYTES:
        name = name_of(documents.identity, tokenizer.to_json(), f"{end} {separate}")
        path = find_place(documents.folder, name, _complete)
        if path is not None:
            return _stored(path, dtype, tokenizer, documents, end, separate)
    rows = [row.astype(dtype) for row in _rows(tokenizer, documents, end, separate)]
    return np.concatenate(rows) if rows else np.zeros(0, dtype), _starts([len(row) for row in rows])


def _rows(tokenizer: Tokenizer, documents: Iterable[str], end: int | None, separate: bool) -> Iterator[np.ndarray]:
    """Ids of each document and its marks."""
    for i, ids in enumerate(tokenizer.encode_all(documents)):
        before = [] if end is None or not (separate or i == 0) else [end]
        behind = [] if end is None else [end]
        yield np.concatenate([np.array(before, ids.dtype), ids, np.array(behind, ids.dtype)])


def _starts(lengths: Any) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64) - np.asarray(lengths, np.int64)


def _complete(path: Path) -> bool:
    return path.with_suffix(".npy").is_file() and path.with_suffix(".ids").is_file()


def _stored(
    path: Path, dtype: np.dtype, tokenizer: Tokenizer, documents: Documents, end: int | None, separate: bool
) -> tuple[MappedTokens, np.ndarray]:
    """The row in `path`.ids and the documents' lengths in `path`.npy, which is written last."""
    if not _complete(path):
        with only_writer(path) as writer:
            if not _complete(path):
                try:
                    _write(path, writer, dtype, _rows(tokenizer, documents, end, separate))
                except OSError as error:
                    raise DataError(f"the tokens of a large text cannot be kept in {path}: {error.strerror}") from None
    return MappedTokens(path.with_suffix(".ids"), dtype), _starts(np.load(path.with_suffix(".npy")))


def _write(path: Path, writer: str, dtype: np.dtype, rows: Iterable[np.ndarray]) -> None:
    """Writes both files under names of the writer's own, as a lock of a shared disk may hold on one machine alone."""
    parts = {suffix: path.with_name(f"{path.name}.{writer}{suffix}.part") for suffix in (".ids", ".npy")}
    sizes = []
    with parts[".ids"].open("wb") as file:
        for row in rows:
            row.astype(dtype).tofile(file)
            sizes.append(len(row))
        file.flush()
        os.fsync(file.fileno())
    with parts[".npy"].open("wb") as file:
        np.save(file, np.array(sizes, np.int64))
    for suffix, part in parts.items():
        part.replace(path.with_suffix(suffix))
