"""Checkpoints on a disk that all processes share, written and read by orbax; all use of orbax is here.

When a checkpoint is complete, the digests of its files are written into it.  Each process makes the digests of the
files that it wrote, and at a start each process checks its part of all files.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from genjax.training.records import finite_json

_logger = logging.getLogger(__name__)

DIGESTS_FILE = "digests.json"
#: Paths, inside a checkpoint, of the metrics that rate it and of the index of its arrays; orbax writes both.
METRICS_FILE = Path("metrics") / "metrics"
ARRAYS_FILE = Path("state") / "manifest.ocdbt"
#: Seconds that the first process waits for the digests of the others, beside ten times what its own took.
WAIT = 120.0

#: Metrics by step to the steps of the checkpoints that are kept.
Keep = Callable[[Mapping[int, Mapping[str, float] | None]], set[int]]


class StoreError(Exception):
    """A checkpoint could not be written; `Checkpoints` tells the user."""


def _files(directory: Path) -> list[Path]:
    """The files of a checkpoint that have digests."""
    return [p for p in sorted(directory.rglob("*")) if p.is_file() and not p.name.startswith("digests.")]


def _digests(directory: Path, names: Sequence[str]) -> dict[str, str]:
    """Digests of files of a checkpoint, read by as many threads as there are cores."""

    def digest(name: str) -> str:
        with (directory / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        return dict(zip(names, threads.map(digest, names)))


def damage(directory: Path, part: int = 0, num_parts: int = 1) -> str | None:
    """Description of the damage of a checkpoint directory, or None if it is sound.

    Args:
      directory: the checkpoint.
      part, num_parts: read the part of this number among `num_parts` equal parts of the files.
    """
    try:
        expected = json.loads((directory / DIGESTS_FILE).read_text())
    except FileNotFoundError:
        return "it was not completed"
    except (ValueError, OSError):
        return f"{DIGESTS_FILE} cannot be read"
    present = {str(path.relative_to(directory)) for path in _files(directory)}
    if missing := [name for name in expected if name not in present]:
        return f"its file {missing[0]} is missing"
    found = _digests(directory, list(expected)[part::num_parts])
    return next((f"its file {name} was changed" for name in found if found[name] != expected[name]), None)


def is_complete(directory: Path) -> bool:
    """Whether a checkpoint was written to its end, judging by its list of files; its bytes are not read."""
    return (directory / DIGESTS_FILE).is_file()


def can_hold(workdir: Path) -> bool:
    """Whether checkpoints can be written below a path: orbax reads * ? [ as a pattern, and would lose the arrays."""
    return not glob.has_magic(str(workdir.resolve()))


class LocalStore:
    """The checkpoints in a directory.

    Attributes:
      directory: directory of the checkpoints, one folder a step.
    """

    def __init__(self, directory: Path, keep: Keep | None) -> None:
        """`keep` chooses the checkpoints that stay when there is a new one; None for a process that does not write."""
        self.directory = directory
        self._keep = keep
        self._checkpointer = None
        self._given_up = threading.Event()

    def open(self) -> None:
        """Makes the directory, for writing; removes what orbax did not complete."""
        self._checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=self, cleanup_tmp_directories=True
        )

    def give_up(self) -> None:
        """Ends the waiting for other processes, which may have died."""
        self._given_up.set()

    def close(self) -> None:
        """Releases the directory."""
        if self._checkpointer is not None:
            self._checkpointer.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax calls it after each new checkpoint, with all of them."""
        del context
        kept = self._keep({c.step: self.metrics(c.step) if c.metrics is None else c.metrics for c in checkpoints})
        return [c.step in kept for c in checkpoints]

    def steps(self) -> list[int]:
        """Steps of all checkpoints, also of damaged ones, in order."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def is_complete(self, step: int) -> bool:
        return is_complete(self.directory / str(step))

    def damage(self, step: int, part: int = 0, num_parts: int = 1) -> str | None:
        return damage(self.directory / str(step), part, num_parts)

    def set_aside(self, step: int) -> None:
        """Moves a checkpoint out of the way of new ones."""
        place = self.directory.parent / "damaged_checkpoints"
        place.mkdir(exist_ok=True)
        target = place / str(step)
        if target.exists():
            shutil.rmtree(target)
        (self.directory / str(step)).rename(target)

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics that rate a checkpoint, or None if it has no rating."""
        try:
            saved = json.loads((self.directory / str(step) / METRICS_FILE).read_text())
            return {name: math.nan if value is None else value for name, value in saved.items()}
        except (OSError, ValueError):
            return None

    def rate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics to a checkpoint."""
        path = self.directory / str(step) / METRICS_FILE
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(finite_json(dict(metrics)))
        temporary.replace(path)

    def write(self, step: int, leaves: Mapping[str, Any], metrics: Mapping[str, float] | None) -> Callable[[], None]:
        """Starts to write; returns a function that waits for the files and marks the checkpoint complete."""
        rated = None if metrics is None else dict(metrics)
        response = self._checkpointer.save_async(step, dict(leaves), force=True, metrics=rated)

        def finish() -> None:
            response.result()
            self._complete(self.directory / str(step))

        return finish

    def _complete(self, directory: Path) -> None:
        """Makes the digests of this process's files; the first process gathers them all."""
        index, count, began = jax.process_index(), jax.process_count(), time.monotonic()
        if index == 0 and not (directory / ARRAYS_FILE).is_file():
            raise StoreError("orbax wrote no arrays")
        wait_until(directory.exists, str(directory), WAIT, self._given_up)
        # Orbax has a folder for what each process wrote.
        folders = {f"ocdbt.process_{i}": i for i in range(count)}
        names = [str(path.relative_to(directory)) for path in _files(directory)]
        owners = {name: next((folders[p] for p in Path(name).parts if p in folders), 0) for name in names}
        digests = _digests(directory, [name for name in names if owners[name] == index])
        if index > 0:
            _replace(directory / f"digests.{index}.json", digests)
            return
        limit = WAIT + 10 * (time.monotonic() - began)
        others = [directory / f"digests.{i}.json" for i in range(1, count)]
        for path in others:
            wait_until(path.exists, str(path), limit, self._given_up)
            digests |= json.loads(path.read_text())
        _replace(directory / DIGESTS_FILE, {name: digests[name] for name in names})
        for path in others:
            path.unlink()

    def shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the arrays of a checkpoint by name."""
        with ocp.training.Checkpointer(self.directory) as reader:
            saved = reader.metadata(step).metadata
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in saved.items()}

    def read(self, step: int, like: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Reads some arrays of a checkpoint, each in the shape, type and place of `like`."""
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with ocp.training.Checkpointer(self.directory, context=context) as reader:
            return reader.load(step, dict(like))


def wait_until(done: Callable[[], bool], what: str, limit: float, given_up: threading.Event) -> None:
    """Waits for what other processes do.

    Raises:
      StoreError: it is not done in `limit` seconds, or the run was given up.
    """
    began, pause = time.monotonic(), 0.01
    while not done():
        if given_up.wait(pause) or time.monotonic() - began > limit:
            raise StoreError(f"other processes did not write {what} in {time.monotonic() - began:.0f} s")
        pause = min(1.5 * pause, 0.5)


def _replace(path: Path, content: Mapping[str, str]) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content, indent=1))
    with contextlib.suppress(FileNotFoundError):
        temporary.replace(path)
