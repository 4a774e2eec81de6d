"""Collections of documents that are searched: an id and a text each.

a folder          every .txt below it is a document, whose id is its path
FILE.txt          every line that is not empty is a document, whose id is the number of the line, from 1
FILE.jsonl        an object a line: "text", and if given "id" and "title" (also the names "_id" and "contents" of
                  other collections); without an id the number of the line
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from genjax import buckets
from genjax.data.base import DataError
from genjax.data.files import files_below, read_lines, read_objects, read_utf8

_TEXTS, _IDS = ("text", "contents"), ("id", "_id")


@dataclasses.dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
      id: its name, which no other document of the collection has.
      text: its text.
      title: its title, or "".
    """

    id: str
    text: str
    title: str = ""

    @property
    def whole(self) -> str:
        """What is searched: the title, if there is one, and the text."""
        return f"{self.title}. {self.text}" if self.title else self.text


def read_collection(path: str | Path) -> list[Document]:
    """The documents of a folder or file, in its order.

    Raises:
      DataError: there is no document, one is empty, two have one id, or a line is no such object.
    """
    path = buckets.folder(path)
    if path.is_dir():
        files = files_below(path, (".txt",))
        rows = ((str(file.relative_to(path)), Document(str(file.relative_to(path)), read_utf8(file))) for file in files)
    elif path.suffix == ".jsonl":
        rows = _of_lines(path)
    else:
        lines = enumerate(read_lines(path), start=1)
        rows = ((f"line {i}", Document(str(i), line)) for i, line in lines if line.strip())
    return checked(rows, str(path))


def checked(rows: Iterator[tuple[str, Document]], source: str) -> list[Document]:
    """The documents of pairs (place, document).

    Raises:
      DataError: there is none, one is empty, or two have one id.
    """
    documents: dict[str, Document] = {}
    for place, document in rows:
        if not document.whole.strip():
            raise DataError(f"{source}: document {document.id!r} ({place}) is empty; remove it")
        if document.id in documents:
            raise DataError(
                f"{source}: two documents have the id {document.id!r} (the second at {place}); ids must differ"
            )
        documents[document.id] = document
    if not documents:
        raise DataError(f'{source} holds no document; give .txt files, a line a document, or JSON lines with "text"')
    return list(documents.values())


def _of_lines(path: Path) -> Iterator[tuple[str, Document]]:
    like = '{"id": "a", "text": "..."}'
    for place, row in read_objects(path, like):
        text = next((row[name] for name in _TEXTS if name in row), None)
        if not isinstance(text, str):
            raise DataError(f"{place} is not like {like}: it has no text")
        name = next((str(row[name]) for name in _IDS if name in row), place.split()[1])
        yield place.rpartition(" of ")[0], Document(name, text, str(row.get("title") or ""))
