"""Checkpoints in a bucket: each process writes the parts of arrays that its devices hold, and reads what they need.

    STEP/part.P.N       bytes of pieces of arrays, one after the other, written by process P
    STEP/index.P.json   where each piece stands, written after all parts of process P
    STEP/complete.json  sizes and marks (such as the ETag) of all objects, written last, by the first process

A piece is what one device holds of an array; of equal copies one is written.  Pieces have digests, which are compared
when a piece is read whole.  Objects never change in a bucket by themselves, so that a checkpoint is checked by a
listing, and no byte is read for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.buckets import Mirror, listing, mark_of
from genjax.training.local_store import WAIT, Keep, StoreError, wait_until
from genjax.training.records import finite_json

COMPLETE_FILE, METRICS_FILE = "complete.json", "metrics.json"
#: Pieces are joined to objects of about this size.
PART_BYTES = 64 * 2**20
#: Objects that are written or read at once.
NUM_THREADS = 16


class Piece(NamedTuple):
    """A block of an array, and where its bytes stand in a part."""

    name: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    part: str
    offset: int
    digest: str


class BucketStore:
    """The checkpoints of a run whose directory is in a bucket.

    Attributes:
      directory: address of the directory of the checkpoints.
    """

    def __init__(self, mirror: Mirror, name: str, keep: Keep | None) -> None:
        """`name` is the folder of the checkpoints; `keep` chooses the checkpoints that stay when there is a new one."""
        self._mirror, self._files, self._keep = mirror, mirror.files, keep
        self._given_up = threading.Event()
        self.directory = f"{mirror.url}/{name}"

    def open(self) -> None:
        """A bucket's directories need not be made."""

    def give_up(self) -> None:
        """Ends the waiting for other processes, which may have died."""
        self._given_up.set()

    def close(self) -> None:
        """Nothing is held."""

    def _place(self, step: int, *names: str) -> str:
        return "/".join([self.directory, str(step), *names])

    def _read_json(self, step: int, name: str) -> Any:
        """The content of an object of a checkpoint, or None."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads(self._files.cat_file(self._place(step, name)))
        return None

    def steps(self) -> list[int]:
        """Steps of all checkpoints, also of damaged ones, in order."""
        try:
            found = self._files.ls(self.directory, detail=False)
        except FileNotFoundError:
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in found]
        return sorted(int(name) for name in names if name.isdigit())

    def is_complete(self, step: int) -> bool:
        return self._files.exists(self._place(step, COMPLETE_FILE))

    def damage(self, step: int, part: int = 0, num_parts: int = 1) -> str | None:
        """Description of the damage of a checkpoint, or None if it is sound; only the first of several parts looks."""
        if part > 0:
            return None
        expected = self._read_json(step, COMPLETE_FILE)
        if expected is None:
            return "it was not completed"
        found = self._marks(step)
        for name, mark in expected.items():
            if name not in found:
                return f"its object {name} is missing"
            if found[name] != mark:
                return f"its object {name} was changed"
        return None

    def _marks(self, step: int) -> dict[str, str]:
        found = listing(self._files, self._place(step))
        written = {n: info for n, info in found.items() if n not in (COMPLETE_FILE, METRICS_FILE)}
        return {name: f"{info['size']} {mark_of(info)}" for name, info in written.items()}

    def set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way of new ones; what was not completed is removed."""
        if self.is_complete(step):
            target = f"{self._mirror.url}/damaged_checkpoints/{step}"
            for name in listing(self._files, self._place(step)):
                # Within the bucket: no byte passes through this machine.
                self._files.copy(self._place(step, name), f"{target}/{name}")
        self._remove(step)

    def _remove(self, step: int) -> None:
        # Without its mark it is no checkpoint, whatever is left of it.
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._place(step, COMPLETE_FILE))
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._place(step), recursive=True)

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics that rate a checkpoint, or None if it has no rating."""
        saved = self._read_json(step, METRICS_FILE)
        return saved and {name: math.nan if value is None else value for name, value in saved.items()}

    def rate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics to a checkpoint."""
        self._files.pipe_file(self._place(step, METRICS_FILE), finite_json(dict(metrics)).encode())

    # ------------------------------------------------------------------------------------------------------------------
    # Writing

    def write(self, step: int, leaves: Mapping[str, Any], metrics: Mapping[str, float] | None) -> Callable[[], None]:
        """Copies this process's pieces to the host; returns a function that uploads them and marks the checkpoint
        complete.
        """
        arrays = {name: [list(np.shape(leaf)), str(leaf.dtype)] for name, leaf in leaves.items()}
        blocks = [(name, *block) for name, leaf in leaves.items() for block in _own_blocks(leaf)]

        def finish() -> None:
            began = time.monotonic()
            index = jax.process_index()
            self._upload(step, index, arrays, blocks)
            blocks.clear()
            if index == 0:
                self._complete(step, metrics, WAIT + 10 * (time.monotonic() - began))

        return finish

    def _upload(self, step: int, process: int, arrays: dict[str, Any], blocks: list[Any]) -> None:
        def put(numbered: tuple[int, list[Any]]) -> list[Piece]:
            number, group = numbered
            part, offset, pieces, contents = f"part.{process}.{number}", 0, [], []
            for name, start, block in group:
                content = block.tobytes()
                pieces.append(Piece(name, start, block.shape, part, offset, hashlib.sha256(content).hexdigest()))
                contents.append(content)
                offset += len(content)
            self._files.pipe_file(self._place(step, part), b"".join(contents))
            return pieces

        with ThreadPoolExecutor(NUM_THREADS) as threads:
            pieces = [piece for own in threads.map(put, enumerate(_grouped(blocks))) for piece in own]
        content = json.dumps({"arrays": arrays, "pieces": pieces}).encode()
        self._files.pipe_file(self._place(step, f"index.{process}.json"), content)

    def _complete(self, step: int, metrics: Mapping[str, float] | None, limit: float) -> None:
        for i in range(jax.process_count()):
            index = self._place(step, f"index.{i}.json")
            wait_until(functools.partial(self._files.exists, index), index, limit, self._given_up)
        found = self._marks(step)
        # What was logged up to this step is kept with it.
        self._mirror.push()
        if self._mirror.lease is not None:
            self._mirror.lease.check()
        if metrics is not None:
            self.rate(step, metrics)
        self._files.pipe_file(self._place(step, COMPLETE_FILE), json.dumps(found, indent=1).encode())
        complete = [known for known in self.steps() if self.is_complete(known)]
        kept = self._keep({known: self.metrics(known) for known in complete})
        for known in complete:
            if known not in kept:
                self._remove(known)

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def _index(self, step: int) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, list[Piece]]]:
        """Shapes and types of the arrays, and their pieces."""
        names = [name for name in listing(self._files, self._place(step)) if name.startswith("index.")]
        shapes: dict[str, jax.ShapeDtypeStruct] = {}
        pieces: dict[str, list[Piece]] = {}
        for name in names:
            content = self._read_json(step, name)
            for array, (shape, dtype) in content["arrays"].items():
                shapes[array] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
            for array, start, shape, *rest in content["pieces"]:
                pieces.setdefault(array, []).append(Piece(array, tuple(start), tuple(shape), *rest))
        return shapes, pieces

    def shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the arrays of a checkpoint by name."""
        return self._index(step)[0]

    def read(self, step: int, like: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Reads some arrays of a checkpoint, each in the shape, type and place of `like`; a process reads what its
        devices hold.
        """
        shapes, pieces = self._index(step)

        def array(name: str) -> jax.Array:
            dtype, wanted, known = shapes[name].dtype, like[name], {}

            def block(index: tuple[slice, ...]) -> np.ndarray:
                bounds = tuple(s.indices(size)[:2] for s, size in zip(index, wanted.shape))
                if bounds not in known:
                    known[bounds] = self._block(step, pieces[name], bounds, dtype).astype(wanted.dtype)
                return known[bounds]

            return jax.make_array_from_callback(wanted.shape, wanted.sharding, block)

        with ThreadPoolExecutor(NUM_THREADS) as threads:
            return dict(zip(like, threads.map(array, like)))

    def _block(self, step: int, pieces: list[Piece], bounds: tuple[tuple[int, int], ...], dtype: Any) -> np.ndarray:
        """The part of an array within bounds [begin, end) of each axis."""
        result = np.empty([end - begin for begin, end in bounds], dtype)
        filled = 0
        for piece in pieces:
            ends = [start + size for start, size in zip(piece.start, piece.shape)]
            both = [(max(b, s), min(e, t)) for (b, e), s, t in zip(bounds, piece.start, ends)]
            if any(low >= high for low, high in both):
                continue
            inside = tuple(slice(low - s, high - s) for (low, high), s in zip(both, piece.start))
            target = tuple(slice(low - b, high - b) for (low, high), (b, _) in zip(both, bounds))
            result[target] = self._piece(step, piece, inside, dtype)
            filled += math.prod(high - low for low, high in both)
        if filled != result.size:
            raise StoreError(f"pieces of the array {pieces[0].name} are missing")
        return result

    def _piece(self, step: int, piece: Piece, inside: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """A block of a piece; of its first axis no more rows than these are read."""
        rows = piece.shape[0] if piece.shape else 1
        first, last = (inside[0].start, inside[0].stop) if inside else (0, 1)
        row_bytes = math.prod(piece.shape[1:]) * dtype.itemsize
        begin = piece.offset + first * row_bytes
        end = begin + (last - first) * row_bytes
        content = self._files.cat_file(self._place(step, piece.part), start=begin, end=end)
        if last - first == rows and hashlib.sha256(content).hexdigest() != piece.digest:
            raise StoreError(f"bytes of the array {piece.name} in {piece.part} were changed")
        block = np.frombuffer(content, dtype).reshape([last - first, *piece.shape[1:]] if piece.shape else [])
        return block[(slice(None), *inside[1:])] if piece.shape else block


def _own_blocks(leaf: Any) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Where each block begins that this process writes, and a copy of it on the host."""
    if not isinstance(leaf, jax.Array):
        if jax.process_index() == 0:
            yield (0,) * np.ndim(leaf), np.array(leaf)
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            # The step that follows may overwrite the device's memory, which is the host's on a CPU.
            yield tuple(s.start or 0 for s in shard.index), np.array(shard.data)


def _grouped(blocks: list[Any]) -> Iterator[list[Any]]:
    """Blocks one after the other, in groups of about PART_BYTES."""
    group: list[Any] = []
    size = 0
    for block in blocks:
        if group and size + block[-1].nbytes > PART_BYTES:
            yield group
            group, size = [], 0
        group.append(block)
        size += block[-1].nbytes
    if group:
        yield group
