"""Tokenizers of a corpus: trained once, on a bounded part of the text that is spread over all of it.

The first process that asks for a tokenizer trains it and writes it to a file (genjax/data/files.py).  The other
processes, of this run and of later runs, read the file.  For unigram pieces correctness depends on this: the library
tokenizers sums expectations in a varying order, so that two trainings on the same text give two different tokenizers.

Text is cut into blocks of 10,000 characters.  Block i is kept if

    frac(i / golden ratio) < 2^-k

with the smallest k for which the kept blocks have at most `limit` characters.  The kept blocks are spread evenly over
the text, and over every m-th block of it, so that sources and targets which take turns are both seen.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from genjax import buckets
from genjax.data.base import DataError
from genjax.data.files import find_place, name_of, only_writer
from genjax.data.text.documents import Documents
from genjax.data.text.tokenizer import Tokenizer, read_tokenizer

#: Characters of a block of text.
BLOCK = 10_000
#: 2^32 over the golden ratio; multiples of it modulo 2^32 are spread evenly (Knuth, The Art of Computer Programming
#: 6.4).
_GOLDEN = 2654435769

_logger = logging.getLogger(__name__)


def spread_sample(texts: Iterable[str], limit: int) -> tuple[list[str], int]:
    """Blocks of the texts with at most `limit` characters in all (unless there is only one block); and the number of
    characters of the texts.

    Only these blocks and one text are in memory.
    """
    kept: list[tuple[int, str]] = []
    size, total, bound = 0, 0, 2**32
    blocks = (text[i : i + BLOCK] for text in texts for i in range(0, len(text), BLOCK))
    for number, block in enumerate(blocks):
        total += len(block)
        place = number * _GOLDEN % 2**32
        if place >= bound:
            continue
        kept.append((place, block))
        size += len(block)
        while size > limit and len(kept) > 1:
            bound //= 2
            kept = [(place, block) for place, block in kept if place < bound]
            size = sum(len(block) for _, block in kept)
    return [block for _, block in kept], total


def sampled(corpora: Sequence[Documents], limit: int, what: str) -> list[str]:
    """The sample of a corpus, with a line in the log where it is not all of it."""
    blocks, total = spread_sample((text for corpus in corpora for text in corpus), limit)
    size = sum(map(len, blocks))
    if size < total:
        _logger.warning(
            "%s sees %d of %d characters, spread over all of it (data.tokenizer_sample=%d)", what, size, total, limit
        )
    return blocks


def made_once(make: Callable[[], Tokenizer], corpora: Sequence[Documents], settings: Sequence[str]) -> Tokenizer:
    """The tokenizer of a corpus from its file, which the first process writes.

    Args:
      make: function that makes the tokenizer.
      corpora: the texts that it is made of; their identity finds the file again.
      settings: everything else that the tokenizer depends on.

    Raises:
      DataError: the file cannot be written or read.
    """
    name = name_of("tokenizer", *(corpus.identity for corpus in corpora), *settings, _library_version())
    # The suffix is not a text's suffix, so that a folder of texts does not include the file.
    file_of = lambda path: path.with_suffix(".tokenizer")
    path = find_place(corpora[0].folder, name, lambda path: file_of(path).is_file())
    if path is None:
        return make()
    file = file_of(path)
    if not file.is_file():
        with only_writer(path) as writer:
            if not file.is_file():
                text = make().to_json()
                part = path.with_name(f"{path.name}.{writer}.part")
                try:
                    part.write_text(text, encoding="utf-8")
                    _keep_first(part, file)
                except OSError as error:
                    raise DataError(f"the tokenizer of a text cannot be kept in {file}: {error.strerror}") from None
    return read_tokenizer(file)


def _keep_first(part: Path, file: Path) -> None:
    """Gives a finished file its name, unless another machine's writer was first; all processes use the first file."""
    try:
        os.link(part, file)
    except FileExistsError:
        pass
    except OSError:
        # The disk knows no links.
        part.replace(file)
        return
    part.unlink()


def _library_version() -> str:
    try:
        return importlib.metadata.version("tokenizers")
    except importlib.metadata.PackageNotFoundError:
        return ""


def in_memory(texts: Sequence[str], folder: str | None) -> Documents:
    """Texts in memory as a corpus, whose identity is their content.

    Args:
      texts: the texts.
      folder: file or folder of the texts, or None.
    """
    digest, size = hashlib.sha256(), 0
    for text in texts:
        encoded = text.encode()
        size += len(encoded)
        digest.update(b"%d\0" % len(encoded) + encoded)
    place = None if folder is None else buckets.folder(folder)
    if place is not None and not place.is_dir():
        place = place.parent
    return Documents(len(texts), size, digest.hexdigest(), place, lambda: iter(texts))
