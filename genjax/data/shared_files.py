"""Files that are made once and read by every process: one makes them under a lock, the others wait for it.

They lie beside the data, in the folder .genjax, or where that cannot be written in ~/.cache/genjax/tokens.  Their names are
digests of what decides their content.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

#: Version of how texts are read and encoded, raised where the same files would now give another content.
_VERSION = 2
#: Where files lie if there is no writing beside the data.
USER_FOLDER = Path("~/.cache/genjax/tokens")


def name_of(*parts: str) -> str:
    """The name of a file: a digest of what decides its content."""
    return hashlib.sha256("\n".join([f"version {_VERSION}", *parts]).encode()).hexdigest()[:32]


def find_place(folder: Path | None, name: str, is_complete: Callable[[Path], bool]) -> Path | None:
    """Path without suffix where files of this name lie or can be written; None where no folder lets itself be written."""
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
    """Holds the lock of files at `path`; gives a name for unfinished ones that no other writer has.

    A lock of a shared disk may hold on one machine alone, and some disks know none: then several may write at once.
    """
    with path.with_suffix(".lock").open("w") as lock:
        writer = platform.node()
        try:
            # Other processes wait for the one that writes; a killed one lets go.
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            writer = f"{writer}-{os.getpid()}"
        yield writer
