"""Where texts come from: Python's help, a file or folder of the user, TFDS text sets; read one after the other.

The splits of one text are its first 80%, the next 10% and the last 10%.  The files of a folder are divided in the same
way, in the order of their names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genjax import buckets
from genjax.data.base import DataError, check_any_files, check_split, split_files
from genjax.data.files import files_below, read_utf8
from genjax.data.tfds import open_tfds, tfds_split

SUFFIXES = (".txt", ".md", ".rst", ".py", ".csv", ".json", ".html", ".tex")
_PARTS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


@dataclasses.dataclass(frozen=True)
class Documents:
    """The texts of a split, which are read whenever they are iterated over.

    Attributes:
      count: number of texts.
      num_bytes: approximate size of all texts.
      identity: names, sizes and times of the files, which tell the texts apart without reading them.
      folder: folder of the texts, or None if they are not on disk.
      read: function that reads the texts one after the other.
      is_part: whether this is one part of a text, which can be joined with the parts of other splits.
    """

    count: int
    num_bytes: int
    identity: str
    folder: Path | None
    read: Callable[[], Iterator[str]]
    is_part: bool = False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        return self.read()


def open_documents(name: str, directory: str | None, split: str) -> Documents:
    """The texts of a split, or of several joined by +, of python_topics, file, or a TFDS set.

    Raises:
      DataError: there is no such set or split.  While texts are read: a text cannot be read.
    """
    if "+" in split:
        return _joined([open_documents(name, directory, part) for part in split.split("+")])
    match name:
        case "python_topics":
            from pydoc_data.topics import topics

            part = _part_of_text(
                lambda: "\n\n".join(topics[topic].strip() for topic in sorted(topics)), 0, split, name, None
            )
            return dataclasses.replace(part, identity=f"{part.identity} of Python {platform.python_version()}")
        case "file":
            return _user_documents(directory, split)
    builder = open_tfds(name, directory)
    return _tfds_documents(builder, tfds_split(builder, split))


def read_documents(name: str, directory: str | None, split: str) -> list[str]:
    """The texts that `open_documents` finds, all at once."""
    return list(open_documents(name, directory, split))


def _joined(parts: list[Documents]) -> Documents:
    def read() -> Iterator[str]:
        texts = (text for part in parts for text in part)
        # Neighbouring parts of one text are one text.
        return iter(["".join(texts)]) if one else texts

    one = all(part.is_part for part in parts)
    return Documents(
        count=1 if one else sum(map(len, parts)),
        num_bytes=sum(part.num_bytes for part in parts),
        identity=" + ".join(part.identity for part in parts),
        folder=parts[0].folder,
        read=read,
        is_part=one,
    )


def _part_of_text(read: Callable[[], str], num_bytes: int, split: str, name: str, folder: Path | None) -> Documents:
    check_split(split, _PARTS, name)
    begin, end = _PARTS[split]

    def part() -> Iterator[str]:
        text = read()
        yield text[round(begin * len(text)) : round(end * len(text))]

    return Documents(1, round((end - begin) * num_bytes), f"{split} of {name}", folder, part, is_part=True)


def _user_documents(path: str | None, split: str) -> Documents:
    files = _text_files(path)
    name, root = f"file {path}", buckets.folder(path)
    if len(files) == 1:
        stat = files[0].stat()
        part = _part_of_text(lambda: read_utf8(files[0]), stat.st_size, split, name, files[0].parent)
        return dataclasses.replace(part, identity=f"{split} of {files[0].resolve()} {stat.st_size} {stat.st_mtime_ns}")
    if len(files) < 10:
        raise DataError(f"{name} has {len(files)} documents; give one, which is divided, or at least ten")
    count, files = len(files), split_files(files, root, split, name)
    check_any_files(files, count, root, split)
    digest, size = hashlib.sha256(), 0
    for file in files:
        stat = file.stat()
        size += stat.st_size
        digest.update(f"{file.relative_to(root)}\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
    identity = f"{split} of {root.resolve()} {digest.hexdigest()}"
    return Documents(len(files), size, identity, root, lambda: map(read_utf8, files))


def _text_files(path: str | None) -> list[Path]:
    """A text file, or the text files under a folder in the order of their names.

    Raises:
      DataError: there is none.
    """
    if not path:
        raise DataError("--data.name=file needs a text file or a folder of them: --data.dir=PATH")
    root = buckets.folder(path)
    files = [root] if root.is_file() else files_below(root, SUFFIXES)
    if not files:
        raise DataError(f"--data.dir={path} is neither a text file nor a folder of them ({' '.join(SUFFIXES)})")
    return files


def _tfds_documents(builder: Any, split: str) -> Documents:
    import tensorflow_datasets as tfds

    names = [n for n, f in builder.info.features.items() if isinstance(f, tfds.features.Text)]
    if not names:
        raise DataError(f"the data set {builder.name} has no text; its features are {', '.join(builder.info.features)}")
    name = "text" if "text" in names else names[0]
    count = builder.info.splits[split].num_examples
    size = int(builder.info.dataset_size)

    def read() -> Iterator[str]:
        values = (row[name] for row in builder.as_data_source(split=split))
        return (v.decode() if isinstance(v, bytes) else str(v) for v in values)

    folder = Path(builder.data_path)
    share = count / max(sum(s.num_examples for s in builder.info.splits.values()), 1)
    return Documents(count, round(share * size), f"{split} of {folder} {size}", folder, read)
