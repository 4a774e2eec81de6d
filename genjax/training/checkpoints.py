"""Checkpoints of a run: asynchronous, atomic, checked byte for byte; the latest and the best are kept.

All use of orbax is here.  A checkpoint is a flat dict of arrays named by their place in the state
(`params/encoder/Dense_0/kernel`), so that it can be restored on another mesh or in part, and errors can name the arrays
that do not fit.  When a checkpoint is complete, the digests of its files are written into it.  If they are missing or
do not match, the checkpoint is unfinished or damaged, and the previous checkpoint is used.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax.config import ConfigError
from genjax.errors import UserError
from genjax.model import HasExtraTokens, HasVocabulary, MergesUpdates
from genjax.nn.tokens import with_more_tokens
from genjax.training.experiment import load_config
from genjax.training.records import finite_json

_logger = logging.getLogger(__name__)

DIRECTORY = "checkpoints"
DIGESTS_FILE = "digests.json"
#: Paths, inside a checkpoint, of the metrics that rate it and of the index of its arrays; orbax writes both.
METRICS_FILE = Path("metrics") / "metrics"
ARRAYS_FILE = Path("state") / "manifest.ocdbt"


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message is one sentence for the user."""


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, as in `params/encoder/Dense_0/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(like: Any, leaves: Mapping[str, Any]) -> Any:
    """Puts leaves by path into the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in flatten(like)])


def _digests(directory: Path) -> dict[str, str]:
    """Digests of the files of a checkpoint, read by as many threads as there are cores."""

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    paths = [p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != DIGESTS_FILE]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        return {str(p.relative_to(directory)): found for p, found in zip(paths, threads.map(digest, paths))}


def damage(directory: Path) -> str | None:
    """Description of the damage of a checkpoint directory, or None if it is sound."""
    try:
        expected = json.loads((directory / DIGESTS_FILE).read_text())
    except FileNotFoundError:
        return "it was not completed"
    except (ValueError, OSError):
        return f"{DIGESTS_FILE} cannot be read"
    found = _digests(directory)
    for name in expected:
        if name not in found:
            return f"its file {name} is missing"
        if found[name] != expected[name]:
            return f"its file {name} was changed"
    return None


def is_complete(directory: Path) -> bool:
    """Whether a checkpoint was written to its end, judging by its list of files; its bytes are not read."""
    return (directory / DIGESTS_FILE).is_file()


def can_hold(workdir: Path) -> bool:
    """Whether checkpoints can be written below a path: orbax reads * ? [ as a pattern, and would lose the arrays."""
    return not glob.has_magic(str(workdir.resolve()))


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
          workdir: the run's directory.
          keep: number of latest checkpoints that are kept, at least two.
          best_metric: metric whose best checkpoint is kept too, or None.
          best_mode: "min" or "max".
          writable: whether this process saves.  If so, unfinished checkpoints, and damaged checkpoints after the last
            sound one, are moved out of the way.
        """
        self.directory = workdir.resolve() / DIRECTORY
        # A new checkpoint is complete only when its digests are written, which happens after
        # orbax has applied the policy.
        self._keep, self._best_metric, self._best_mode = max(keep, 2), best_metric, best_mode
        self._pending: tuple[int, Future[None]] | None = None
        # One thread, which writes digests while the run goes on.
        self._finisher = ThreadPoolExecutor(max_workers=1)
        self._checkpointer = None
        self._failed = False
        # The damage, or None, of each checkpoint whose bytes were read already.
        self._known_damage: dict[int, str | None] = {}
        if not writable:
            return
        if jax.process_index() == 0:
            self._tidy()
        self._checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=self, cleanup_tmp_directories=True
        )

    def _tidy(self) -> None:
        """Moves unusable checkpoints out of the way of new ones; checkpoints before the last sound one are not read."""
        steps = self.steps()
        for step in steps:
            if not is_complete(self.directory / str(step)):
                self._set_aside(step, "it was not completed")
        for step in reversed(self.steps()):
            if not (reason := self._damage(step)):
                break
            self._set_aside(step, reason)

    def _damage(self, step: int) -> str | None:
        """The damage of a checkpoint, or None; its bytes are read once, by the first process of a run alone."""
        if jax.process_index() > 0:
            return None if is_complete(self.directory / str(step)) else "it was not completed"
        if step not in self._known_damage:
            self._known_damage[step] = damage(self.directory / str(step))
        return self._known_damage[step]

    def steps(self) -> list[int]:
        """Steps of all checkpoints on disk, also of damaged ones, in order."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def _set_aside(self, step: int, reason: str) -> None:
        _logger.warning("checkpoint %d in %s is left out: %s", step, self.directory, reason)
        place = self.directory.parent / "damaged_checkpoints"
        place.mkdir(exist_ok=True)
        target = place / str(step)
        if target.exists():
            shutil.rmtree(target)
        (self.directory / str(step)).rename(target)
        self._known_damage.pop(step, None)

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics that rate a checkpoint, or None if it has no rating."""
        try:
            saved = json.loads((self.directory / str(step) / METRICS_FILE).read_text())
            return {name: math.nan if value is None else value for name, value in saved.items()}
        except (OSError, ValueError):
            return None

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

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Chooses the latest checkpoints and the best one; orbax calls it after each new
        checkpoint, with all of them.
        """
        del context
        known = {c.step: self.metrics(c.step) if c.metrics is None else c.metrics for c in checkpoints}
        last = sorted(known)[-self._keep :]
        # The newest checkpoint replaces the best one only when it is complete.
        kept = {*last, self.best({step: metrics for step, metrics in known.items() if step != last[-1]})}
        return [c.step in kept for c in checkpoints]

    # ------------------------------------------------------------------------------------------------------------------
    # Writing

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to write a checkpoint and returns once the state may be changed again.

        If the checkpoint exists already (the run was stopped before its evaluation), `metrics` are added to it.

        Raises:
          CheckpointError: this checkpoint, or the previous one, cannot be written; older checkpoints are untouched.
        """
        self.wait()
        if step in self.steps():
            if metrics is not None and self.metrics(step) is None and jax.process_index() == 0:
                self._rate(step, metrics)
            return
        try:
            response = self._checkpointer.save_async(
                step, flatten(state), force=True, metrics=None if metrics is None else dict(metrics)
            )
        except Exception as error:
            raise self._write_error(step, error) from error
        self._pending = (step, self._finisher.submit(self._finish, step, response))

    def _rate(self, step: int, metrics: Mapping[str, float]) -> None:
        path = self.directory / str(step) / METRICS_FILE
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(finite_json(dict(metrics)))
        temporary.replace(path)

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

    def _finish(self, step: int, response: Any) -> None:
        """Waits for the files, and marks the checkpoint complete by their digests."""
        response.result()
        if jax.process_index() != 0:
            return
        directory = self.directory / str(step)
        if not (directory / ARRAYS_FILE).is_file():
            raise CheckpointError("orbax wrote no arrays")
        temporary = directory / (DIGESTS_FILE + ".new")
        digests = _digests(directory)
        temporary.write_text(json.dumps(digests, indent=1))
        temporary.replace(directory / DIGESTS_FILE)
        # The digests belong to the bytes that were just read.
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

    def close(self) -> None:
        """Waits for what is being written, and releases the folder."""
        try:
            self.wait()
        finally:
            self._finisher.shutdown()
            if self._checkpointer is not None:
                # Orbax raises the error of a failed write again when it is closed.
                with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
                    self._checkpointer.close()

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def latest(self) -> int | None:
        """Step of the latest sound checkpoint, or None.

        Raises:
          CheckpointError: there are checkpoints, and all of them are damaged.
        """
        steps = self.steps()
        reasons = {}
        for step in reversed(steps):
            reason = self._damage(step)
            if reason is None:
                return step
            reasons[step] = reason
            _logger.warning("checkpoint %d in %s is left out: %s", step, self.directory, reason)
        if steps:
            told = "; ".join(f"{step}: {reason}" for step, reason in reasons.items())
            raise CheckpointError(f"no checkpoint in {self.directory} can be used ({told})")
        return None

    def agreed_latest(self) -> int | None:
        """`latest` of the first process, which all processes of a run must ask for together.

        Raises:
          CheckpointError: as `latest`, in all processes.
        """
        if jax.process_count() == 1:
            return self.latest()
        found, failed = None, None
        if jax.process_index() == 0:
            try:
                found = self.latest()
            except CheckpointError as error:
                failed = error
        told = int(multihost_utils.broadcast_one_to_all(np.int32(-2 if failed else -1 if found is None else found)))
        if told == -2:
            raise failed or CheckpointError(
                f"no checkpoint in {self.directory} can be used; the first process tells why"
            )
        return None if told == -1 else told

    def restore(self, step: int, like: Any) -> Any:
        """Reads a checkpoint into the structure, shapes, types and places of `like`.

        Args:
          step: which one.
          like: pytree of `jax.ShapeDtypeStruct` with shardings, which may differ from the shardings at saving.

        Raises:
          CheckpointError: the checkpoint is damaged, or belongs to another model.
        """
        directory = self.directory / str(step)
        if not directory.is_dir():
            known = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.directory}; there are {known}")
        if reason := self._damage(step):
            raise CheckpointError(f"checkpoint {directory} cannot be used: {reason}")
        wanted, saved = flatten(like), self._metadata(directory)
        places = {name: _place_in(saved, name) for name in wanted}
        self._check_fits(directory, {places[name]: leaf for name, leaf in wanted.items()}, saved)
        with ocp.training.Checkpointer(self.directory) as reader:
            leaves = reader.load(step, {places[name]: leaf for name, leaf in wanted.items()})
        return unflatten(like, {name: leaves[place] for name, place in places.items()})

    def _check_fits(self, directory: Path, wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        problems = [f"{name} is missing" for name in wanted if name not in saved]
        problems += [f"{name} is not part of the model" for name in saved if name not in wanted]
        for name, leaf in wanted.items():
            if name in saved and tuple(saved[name].shape) != tuple(leaf.shape):
                problems.append(f"{name} has shape {tuple(saved[name].shape)}, the model {tuple(leaf.shape)}")
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(f"checkpoint {directory} is of another model: {shown}")

    def _metadata(self, directory: Path) -> dict[str, Any]:
        with ocp.training.Checkpointer(self.directory) as reader:
            return dict(reader.metadata(int(directory.name)).metadata)

    def read_parameters(self, step: int) -> dict[str, np.ndarray]:
        """Parameters of a checkpoint by path below `params`, averaged where averages were kept, on the host.

        What a family learns beside them, such as a codebook of moving averages, is included
        by its path below `learned`.
        """
        # On one device of each process, as every process reads.
        devices = [next(d for d in jax.devices() if d.process_index == i) for i in range(jax.process_count())]
        everywhere = NamedSharding(Mesh(devices, ("process",)), PartitionSpec())
        with ocp.training.Checkpointer(self.directory) as reader:
            saved = dict(reader.metadata(step).metadata)
            like = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere) for n, leaf in saved.items()}
            leaves = {name: np.asarray(leaf.addressable_data(0)) for name, leaf in reader.load(step, like).items()}
        below = lambda root: {n.removeprefix(root): v for n, v in leaves.items() if n.startswith(root)}
        # `extra` comes first, for checkpoints of earlier versions; see `_place_in`.
        return {**below("extra/"), **below("learned/"), **below("params/"), **below("ema_params/")}


def _place_in(saved: Mapping[str, Any], name: str) -> str:
    """The path of an array in a checkpoint; what stands in `learned` stood in `extra` of earlier versions."""
    earlier = name.replace("learned/", "extra/", 1)
    return earlier if name.startswith("learned/") and name not in saved and earlier in saved else name


def warm_start(params: Any, workdir: str, prefixes: tuple[str, ...], model: Any = None) -> Any:
    """Replaces parameters by the parameters of another run.

    Args:
      params: parameters after initialisation.
      workdir: the other run; its low-rank updates are added to its parameters if `params` have none.
      prefixes: paths below which parameters are taken; empty for all of them.
      model: the model of `params`; if it has more tokens than the other run's model, rows of the new tokens are made
        from the old rows (`genjax.nn.tokens.with_more_tokens`).

    Raises:
      ConfigError: nothing fits, or a shape differs.
    """
    checkpoints = Checkpoints(Path(workdir).expanduser(), writable=False)
    step = checkpoints.agreed_latest()
    if step is None:
        raise ConfigError(f"training.init_from={workdir} holds no checkpoint")
    source, target = checkpoints.read_parameters(step), flatten(params)
    if not any(name.startswith("lora/") for name in target):
        source = _merged(source, workdir)
    chosen = [n for n in target if not prefixes or any(n == p or n.startswith(p + "/") for p in prefixes)]
    if not chosen:
        known = ", ".join(sorted({n.split("/")[0] for n in target}))
        raise ConfigError(f"no parameter is below training.init_prefix={','.join(prefixes)}; the model has {known}")
    for name in chosen:
        if name not in source:
            raise ConfigError(
                f"training.init_from={workdir} has no parameter {name}; name what to take with init_prefix"
            )
        source[name] = _with_tokens_of(model, workdir, source[name], target[name].shape)
        if source[name].shape != target[name].shape:
            raise ConfigError(
                f"parameter {name} has shape {source[name].shape} in {workdir}, and {target[name].shape} here"
            )
    taken = {
        name: jax.device_put(source[name], target[name].sharding) if name in set(chosen) else target[name]
        for name in target
    }
    return unflatten(params, taken)


def _merged(source: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Parameters of another run with its low-rank updates added, for a model that has none."""
    if not any(name.startswith("lora/") for name in source):
        return source
    model = load_config(Path(workdir))[1].model
    if not isinstance(model, MergesUpdates):
        return source
    whole = model.merged_params(traverse_util.unflatten_dict(source, sep="/"))
    return {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(whole, sep="/").items()}


def _with_tokens_of(model: Any, workdir: str, array: Any, shape: tuple[int, ...]) -> Any:
    """A parameter of another run, with rows for a model's additional tokens if it has any."""
    differing = [sizes for sizes in zip(array.shape, shape) if sizes[0] != sizes[1]]
    if not _num_tokens(model)[0] or len(differing) != 1 or array.ndim != len(shape):
        return array
    (old, last), (new, new_last) = map(_num_tokens, (load_config(Path(workdir))[1].model, model))
    if last != new_last or new < old or differing != [(old + last, new + last)]:
        return array
    return with_more_tokens(array, shape, num_last=last)


def _num_tokens(model: Any) -> tuple[int, int]:
    """Number of a model's tokens that are the data's tokens, and number of tokens behind them; 0 if there are none."""
    known = model.vocab_size if isinstance(model, HasVocabulary) else None
    return known or 0, model.extra_tokens if isinstance(model, HasExtraTokens) else 0
