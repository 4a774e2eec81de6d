"""Files that one process makes, under a lock, and every process reads.

The files lie beside the data in the folder .genjax, or, if that cannot be written, in ~/.cache/genjax/tokens.  Their
names are digests of everything that their content depends on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from genjax import buckets
from genjax.data.base import DataError

#: Version of how texts are read and encoded; it is raised when the same texts give another content.
_VERSION = 2
#: Folder of the files if the folder beside the data cannot be written.
USER_FOLDER = Path("~/.cache/genjax/tokens")


def name_of(*parts: str) -> str:
    """The name of a file: a digest of everything that its content depends on."""
    return hashlib.sha256("\n".join([f"version {_VERSION}", *parts]).encode()).hexdigest()[:32]


def find_place(folder: Path | None, name: str, is_complete: Callable[[Path], bool]) -> Path | None:
    """Path, without suffix, of existing files of this name, or of files to write; None if no folder can be written."""
    beside = [] if folder is None else [folder / ".genjax"]
    places = [*beside, USER_FOLDER.expanduser()]
    for place in places:
        if is_complete(place / name):
            return place / name
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.lock").touch()
        except OSError:
            continue
        return place / name
    return None


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[str]:
    """Holds the lock of the files at `path`, and yields a name for unfinished files that no other writer uses.

    On a shared disk a lock may hold on one machine only, and some disks have no locks: then several processes may write
    at once.
    """
    with path.with_suffix(".lock").open("w") as lock:
        writer = platform.node()
        try:
            # Other processes wait for the writing process; if it is killed, the lock is released.
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            writer = f"{writer}-{os.getpid()}"
        yield writer


def write_whole(path: Path, content: str) -> None:
    """Writes a file atomically: other processes see the whole file or none, even if this process is killed."""
    temporary = path.with_suffix(".new")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


def find_file(directory: str | None, names: Sequence[str], what: str) -> Path:
    """Path of the first of the files `names` that exists in a folder.

    Raises:
      DataError: the folder is not given, is not a folder, or has none of the files.
    """
    if not directory:
        raise DataError(f"{what} needs the folder of its files: --data.dir=FOLDER")
    root = buckets.folder(directory)
    if not root.is_dir():
        raise DataError(f"--data.dir={directory} is not a folder")
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{root} has no file {' or '.join(names)}, which {what} needs")


def archive(directory: str | None, name: str) -> Path:
    """Path of a file `name` that `data.dir` is or holds.

    Raises:
      DataError: there is none.
    """
    path = buckets.folder(directory or ".")
    path = path if path.is_file() else path / name
    if not path.is_file():
        raise DataError(f"there is no file {path}; say with --data.dir where {name} lies")
    return path


def read_utf8(file: Path) -> str:
    """The text of a file without its byte order mark, lines ended by LF.

    Raises:
      DataError: it cannot be read, or is not UTF-8.
    """
    return _decoded(file).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: Path) -> list[str]:
    """The lines of a file without its byte order mark; they end at LF or CR LF, and a CR elsewhere is a blank.

    Raises:
      DataError: it cannot be read, or is not UTF-8.
    """
    return lines_of(_decoded(file))


def read_objects(file: Path, like: str, needed: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file of JSON lines, each with its place for messages about it; empty lines are left out.

    Args:
      file: the file.
      like: an object as it should be, for messages.
      needed: keys that every object must have.

    Raises:
      DataError: a line is no object, or lacks a key.
    """
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        place = f"line {number} of {file}"
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or any(key not in row for key in needed):
            raise DataError(f"{place} is not like {like}: {line[:60]!r}")
        yield place, row


def lines_of(text: str) -> list[str]:
    """Lines of a text, which end at LF or CR LF and nowhere else; a CR elsewhere is a blank."""
    lines = text.replace("\r\n", "\n").replace("\r", " ").split("\n")
    return lines if lines[-1] else lines[:-1]


def _decoded(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); convert or remove it") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None


def walk_files(root: Path, suffixes: tuple[str, ...], above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields the files of `files_below` in no order.

    Args:
      root: the folder.
      suffixes: suffixes in small letters.
      above: real paths of the folders above; links to them are not followed, as this would never end.

    Raises:
      DataError: a folder cannot be read.
    """
    here = os.path.realpath(root)
    if here in above or not os.path.isdir(root):
        return
    try:
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"the folder {root} cannot be read ({error.strerror})") from None
    for entry in entries:
        if entry.is_dir():
            yield from walk_files(Path(entry.path), suffixes, (*above, here))
        elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
            yield Path(entry.path)


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files with one of the suffixes under a folder, in the order of their paths; links are followed.

    Hidden files and files in hidden folders are left out: systems and editors leave copies there, which would be in
    several splits at once.
    """
    return sorted(walk_files(root, suffixes))


def with_ending(stem: str | Path, ending: str) -> Path:
    """A path with an ending such as .png added, unless it has it; a dot in the name, as in `rate0.1`, begins no
    ending.
    """
    path = Path(stem)
    return path if path.suffix == ending else path.with_name(path.name + ending)
