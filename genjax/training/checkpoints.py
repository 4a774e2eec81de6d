"""Checkpoints of a run: asynchronous, atomic, checked byte for byte; the latest and the best are kept.

A checkpoint is a flat dict of arrays named by their place in the state (`params/encoder/Dense_0/kernel`), so that it
can be restored on another mesh or in part, and errors can name the arrays that do not fit.  Each process writes what
its devices hold, and a checkpoint is complete when all have; else it is unfinished, and the one before it is used.
Checkpoints lie on a disk (genjax/training/local_store.py) or in a bucket (bucket_store.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax.buckets import mirror_of
from genjax.errors import UserError
from genjax.training.bucket_store import BucketStore
from genjax.training.local_store import LocalStore, StoreError

_logger = logging.getLogger(__name__)

DIRECTORY = "checkpoints"
#: Waits for what is being written, and marks the checkpoint complete.
Finish = Callable[[], None]
#: A start looks at no more checkpoints than these for a sound one.
_MOST_STEPS = 64


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message is one sentence for the user."""


class Store(Protocol):
    """Where checkpoints lie."""

    directory: Any

    def open(self) -> None: ...
    def give_up(self) -> None: ...
    def close(self) -> None: ...
    def steps(self) -> list[int]: ...
    def is_complete(self, step: int) -> bool: ...
    def damage(self, step: int, part: int = 0, num_parts: int = 1) -> str | None: ...
    def set_aside(self, step: int) -> None: ...
    def metrics(self, step: int) -> dict[str, float] | None: ...
    def rate(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def write(self, step: int, leaves: Mapping[str, Any], metrics: Mapping[str, float] | None) -> Finish: ...
    def shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]: ...
    def read(self, step: int, like: Mapping[str, Any]) -> dict[str, jax.Array]: ...


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, as in `params/encoder/Dense_0/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(like: Any, leaves: Mapping[str, Any]) -> Any:
    """Puts leaves by path into the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in flatten(like)])


class Checkpoints:
    """The checkpoints under a working directory."""

    def __init__(
        self,
        workdir: Path,
        keep: int = 3,
        best_metric: str | None = None,
        best_mode: str = "min",
        writable: bool = True,
    ) -> None:
        """Opens (and for a writer makes) the folder.

        Args:
          workdir: the run's directory, or the mirror of one in a bucket.
          keep: number of latest checkpoints that are kept, at least two.
          best_metric: metric whose best checkpoint is kept too, or None.
          best_mode: "min" or "max".
          writable: whether this process saves.  If so, unfinished checkpoints, and damaged checkpoints after the last
            sound one, are moved out of the way; all processes of a run must open it together.
        """
        # A new checkpoint is complete only when its digests are written, which happens after
        # orbax has applied the policy.
        self._keep, self._best_metric, self._best_mode = max(keep, 2), best_metric, best_mode
        mirror, chosen = mirror_of(workdir), self.kept if writable else None
        self._store: Store = (
            LocalStore(workdir.resolve() / DIRECTORY, chosen)
            if mirror is None
            else BucketStore(mirror, DIRECTORY, chosen)
        )
        self._pending: tuple[int, Future[None]] | None = None
        self._written: set[int] = set()
        # One thread, which completes checkpoints while the run goes on.
        self._finisher = ThreadPoolExecutor(max_workers=1)
        self._failed = self._given_up = False
        # The damage, or None, of each checkpoint whose bytes were read already.
        self._known_damage: dict[int, str | None] = {}
        if not writable:
            return
        self._tidy()
        self._store.open()

    @property
    def directory(self) -> Any:
        """Where the checkpoints lie: a path, or the address of a bucket."""
        return self._store.directory

    def _tidy(self) -> None:
        """Moves unusable checkpoints out of the way of new ones; checkpoints before the last sound one are not read."""
        if jax.process_index() == 0:
            for step in self.steps():
                if not self._store.is_complete(step):
                    self._set_aside(step, "it was not completed")
        for step in reversed(self._agreed_steps()):
            reason = self._damage(step, together=True)
            if not reason:
                break
            if jax.process_index() == 0:
                self._set_aside(step, reason)

    def _agreed_steps(self) -> list[int]:
        """The last steps of the first process."""
        steps = self.steps()
        if jax.process_count() == 1:
            return steps
        last = np.array(steps[-_MOST_STEPS:], np.int32)
        padded = np.pad(last, (_MOST_STEPS - len(last), 0), constant_values=-1)
        return [step for step in multihost_utils.broadcast_one_to_all(padded).tolist() if step >= 0]

    def _damage(self, step: int, together: bool = False) -> str | None:
        """The damage of a checkpoint, or None; its bytes are read once, by each process of a run its part of them."""
        if step not in self._known_damage:
            count = jax.process_count() if together else 1
            found = self._store.damage(step, jax.process_index() if together else 0, count)
            if count > 1:
                seen = multihost_utils.process_allgather(np.array(found is not None))
                if seen.any() and found is None:
                    found = f"process {int(np.argmax(seen))} found it damaged"
            self._known_damage[step] = found
        return self._known_damage[step]

    def steps(self) -> list[int]:
        """Steps of all checkpoints, also of damaged ones, in order."""
        return self._store.steps()

    def _set_aside(self, step: int, reason: str) -> None:
        _logger.warning("checkpoint %d in %s is left out: %s", step, self.directory, reason)
        self._store.set_aside(step)

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics that rate a checkpoint, or None if it has no rating."""
        return self._store.metrics(step)

    def best(self, known: Mapping[int, Mapping[str, float] | None] | None = None) -> int | None:
        """Step of the best checkpoint by `best_metric`, the first of equal ones; None if no checkpoint has the metric.

        Args:
          known: metrics of all checkpoints, by step; by default they are read from disk.
        """
        if known is None:
            known = {step: self.metrics(step) for step in self.steps()}
        rated = {
            step: float(metrics[self._best_metric])
            for step, metrics in known.items()
            if self._best_metric in (metrics or {})
        }
        # NaN cannot be ordered.
        rated = {step: value for step, value in rated.items() if math.isfinite(value)}
        choose = min if self._best_mode == "min" else max
        return choose(rated, key=rated.get, default=None)

    def kept(self, known: Mapping[int, Mapping[str, float] | None]) -> set[int]:
        """Chooses, of checkpoints with their metrics, the latest and the best one; a store asks after each new one."""
        last = sorted(known)[-self._keep :]
        # The newest checkpoint replaces the best one only when it is complete.
        best = self.best({step: metrics for step, metrics in known.items() if step != last[-1]})
        return {*last} if best is None else {*last, best}

    # ------------------------------------------------------------------------------------------------------------------
    # Writing

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to write a checkpoint and returns once the state may be changed again.

        If the checkpoint exists already (the run was stopped before its evaluation), `metrics` are added to it.

        Raises:
          CheckpointError: this checkpoint, or the previous one, cannot be written; older checkpoints are untouched.
        """
        self.wait()
        # What this process has written the first one may be completing still.
        if step in self._written or self._store.is_complete(step):
            if metrics is not None and self.metrics(step) is None and jax.process_index() == 0:
                self._store.rate(step, metrics)
            return
        try:
            finish = self._store.write(step, flatten(state), metrics)
        except Exception as error:
            raise self._write_error(step, error) from error
        self._written.add(step)
        self._pending = (step, self._finisher.submit(finish))

    def wait(self) -> None:
        """Waits until the last checkpoint is complete.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._pending is None:
            return
        (step, finished), self._pending = self._pending, None
        try:
            finished.result()
        except Exception as error:
            raise self._write_error(step, error) from error
        # It belongs to the bytes that were just written.
        self._known_damage[step] = None

    def _write_error(self, step: int, error: Exception) -> CheckpointError:
        self._failed = True
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if any(sign in str(error) for sign in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC")):
            reason = "no space is left on the device"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.directory} ({reason[:300]}); "
            "earlier checkpoints are untouched, and the same command goes on from the last of them"
        )

    def give_up(self) -> None:
        """Lets `close` not wait for other processes, and raise nothing: the run ends by another error."""
        self._failed = self._given_up = True
        self._store.give_up()

    def close(self) -> None:
        """Waits for what is being written, and releases the folder."""
        try:
            with contextlib.suppress(CheckpointError) if self._given_up else contextlib.nullcontext():
                self.wait()
        finally:
            self._finisher.shutdown()
            # Orbax raises the error of a failed write again when it is closed.
            with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
                self._store.close()

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def latest(self) -> int | None:
        """Step of the latest sound checkpoint, or None.

        Raises:
          CheckpointError: there are checkpoints, and all of them are damaged.
        """
        return self._latest(self.steps(), together=False)

    def agreed_latest(self) -> int | None:
        """`latest` for all processes of a run, which must ask together; each reads its part of the bytes.

        Raises:
          CheckpointError: as `latest`, in all processes.
        """
        return self._latest(self._agreed_steps(), together=jax.process_count() > 1)

    def _latest(self, steps: list[int], together: bool) -> int | None:
        reasons = {}
        for step in reversed(steps):
            reason = self._damage(step, together)
            if reason is None:
                return step
            reasons[step] = reason
            _logger.warning("checkpoint %d in %s is left out: %s", step, self.directory, reason)
        if steps:
            told = "; ".join(f"{step}: {reason}" for step, reason in reasons.items())
            raise CheckpointError(f"no checkpoint in {self.directory} can be used ({told})")
        return None

    def restore(self, step: int, like: Any) -> Any:
        """Reads a checkpoint into the structure, shapes, types and places of `like`.

        Args:
          step: which one.
          like: pytree of `jax.ShapeDtypeStruct` with shardings, which may differ from the shardings at saving.

        Raises:
          CheckpointError: the checkpoint is damaged, or belongs to another model.
        """
        place = f"{self.directory}/{step}"
        steps = self.steps()
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.directory}; there are {known}")
        if reason := self._damage(step):
            raise CheckpointError(f"checkpoint {place} cannot be used: {reason}")
        wanted, saved = flatten(like), self._store.shapes(step)
        places = {name: _place_in(saved, name) for name in wanted}
        _check_fits(place, {places[name]: leaf for name, leaf in wanted.items()}, saved)
        leaves = self._read(step, {places[name]: leaf for name, leaf in wanted.items()})
        return unflatten(like, {name: leaves[place] for name, place in places.items()})

    def _read(self, step: int, like: Mapping[str, Any]) -> dict[str, jax.Array]:
        try:
            return self._store.read(step, like)
        except StoreError as error:
            raise CheckpointError(f"checkpoint {self.directory}/{step} cannot be used: {error}") from None

    def parameters(self, step: int) -> Parameters:
        """The parameters of a checkpoint, none of which is read yet."""
        return Parameters(self, step, self._store.shapes(step))


class Parameters:
    """Parameters of a checkpoint by path below `params`, averaged where averages were kept.

    What a family learns beside them, such as a codebook of moving averages, is among them by its path below `learned`.

    Attributes:
      shapes: shape and type of each.
    """

    def __init__(self, checkpoints: Checkpoints, step: int, saved: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        self._checkpoints, self._step = checkpoints, step
        # `extra` comes first, for checkpoints of earlier versions; see `_place_in`.
        roots = ("extra/", "learned/", "params/", "ema_params/")
        self._places = {n.removeprefix(root): n for root in roots for n in saved if n.startswith(root)}
        self.shapes = {name: saved[place] for name, place in self._places.items()}

    def read(self, shardings: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Reads some of them, each to its sharding; a process reads what its devices hold, and nothing else."""
        like = {
            self._places[name]: jax.ShapeDtypeStruct(
                self.shapes[name].shape, self.shapes[name].dtype, sharding=sharding
            )
            for name, sharding in shardings.items()
        }
        leaves = self._checkpoints._read(self._step, like) if like else {}
        return {name: leaves[self._places[name]] for name in shardings}

    def on_host(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Reads some of them whole, in each process that asks."""
        # One device of each process, as arrays of a run belong to all of its processes.
        devices = [next(d for d in jax.devices() if d.process_index == i) for i in range(jax.process_count())]
        everywhere = NamedSharding(Mesh(devices, ("process",)), PartitionSpec())
        read = self.read(dict.fromkeys(names, everywhere))
        return {name: np.asarray(leaf.addressable_data(0)) for name, leaf in read.items()}


def _check_fits(place: str, wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in saved]
    problems += [f"{name} is not part of the model" for name in saved if name not in wanted]
    for name, leaf in wanted.items():
        if name in saved and tuple(saved[name].shape) != tuple(leaf.shape):
            problems.append(f"{name} has shape {tuple(saved[name].shape)}, the model {tuple(leaf.shape)}")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(f"checkpoint {place} is of another model: {shown}")


def _place_in(saved: Mapping[str, Any], name: str) -> str:
    """The path of an array in a checkpoint; what stands in `learned` stood in `extra` of earlier versions."""
    earlier = name.replace("learned/", "extra/", 1)
    return earlier if name.startswith("learned/") and name not in saved and earlier in saved else name
