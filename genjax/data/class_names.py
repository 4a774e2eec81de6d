"""Names of a run's classes, saved in its directory: the meaning of its label numbers for all later data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from genjax.data.base import DataError
from genjax.data.files import read_utf8, write_whole

CLASSES_FILE = "classes.json"


def read_classes(workdir: Path) -> tuple[str, ...] | None:
    """The class names saved in a run's directory, in the order of their numbers, or None."""
    path = Path(workdir) / CLASSES_FILE
    return tuple(json.loads(read_utf8(path))) if path.is_file() else None


def check_classes(workdir: Path, classes: Sequence[str]) -> None:
    """Raises DataError if a run has learned other classes than the given ones."""
    learned = read_classes(workdir)
    if learned is not None and tuple(classes) != learned:
        raise DataError(
            f"the run has learned the classes {', '.join(map(repr, learned[:10]))} ({Path(workdir) / CLASSES_FILE}), "
            f"and the data have {', '.join(map(repr, classes[:10]))}; take data of the same classes, "
            "or another --workdir"
        )


def save_classes(workdir: Path, classes: Sequence[str]) -> None:
    """Writes the class names into a run's directory, if they are not there yet.

    Raises:
      DataError: the run has other class names.
    """
    check_classes(workdir, classes)
    path = Path(workdir) / CLASSES_FILE
    if not path.is_file():
        write_whole(path, json.dumps(list(classes), indent=1, ensure_ascii=False) + "\n")
