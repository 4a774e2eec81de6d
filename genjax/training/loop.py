"""The training loop: dispatches compiled steps, and between them writes metrics, checkpoints and pictures.

The host never waits for the step that runs: metrics are fetched one dispatch late.  A dispatch ends at every step where
something is due (a line, an evaluation, a checkpoint).  This depends on the step alone, so that a resumed run makes the
same dispatches and gives the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from genjax.config import ConfigError
from genjax.config.trees import leaves, override
from genjax.data import check_not_empty
from genjax.errors import Interrupted, UserError
from genjax.metrics import Ratio, divided
from genjax.model import (
    CanDiagnose,
    ChecksStart,
    ChecksSteps,
    HasPretrained,
    HasWarnings,
    Reconstructs,
    TrainState,
)
from genjax.training import host
from genjax.training.checkpoints import Checkpoints, can_hold, warm_start
from genjax.training.engine import Engine
from genjax.training.experiment import (
    CONFIG_FILE,
    Experiment,
    Training,
    check_resumable,
    check_same_kind,
    load_config,
    load_fingerprint,
    resolve,
    save_config,
)
from genjax.training.records import Progress, Records, format_metrics, parameter_overview
from genjax.training.runs import Run

SAMPLES_DIRECTORY = "samples"
LOCK_FILE = "lock"
#: Number of skipped updates in a row after which a run stops with an error.
MOST_SKIPPED = 100
#: Error numbers of the system for a file that cannot grow.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: Function that draws further pictures of a run into a folder and returns the files by name.
Draw = Callable[[Run, Path], Mapping[str, Path]]


_logger = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """A loss or a gradient that is not finite; the message names the step and the checkpoint to go back to."""


def dispatches(start: int, training: Training) -> Iterator[tuple[int, int]]:
    """Yields the (start, stop) steps of each compiled call: at most `steps_per_dispatch`,
    ending where something is due.
    """
    periods = [training.steps_per_dispatch, training.log_every, training.checkpoint_every]
    periods += [p for p in (training.evaluate_every, training.sample_every) if p is not None]
    while start < training.num_steps:
        stop = min(min((start // p + 1) * p for p in periods), training.num_steps)
        yield start, stop
        start = stop


def prepare_workdir(workdir: Path) -> Path:
    """Makes the working directory and checks that it can be written.

    Raises:
      ConfigError: it cannot.
    """
    workdir = Path(workdir).expanduser()
    if not can_hold(workdir):
        raise ConfigError(
            f"--workdir={workdir}: checkpoints in {workdir.resolve()} would lack their arrays, as orbax takes the characters "
            "* ? [ of a path for a pattern; give a directory without them"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A different name in each process, as several processes of a run check at once.
        with tempfile.NamedTemporaryFile(dir=workdir) as probe:
            probe.write(b"genjax")
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written ({error.strerror}); give a directory that can"
        ) from None
    return workdir


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a working directory for one run; the system releases the lock when the process ends in any way.

    Raises:
      ConfigError: another run holds it.
    """
    with (workdir / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{workdir} is being trained in by {file.read().strip() or 'another process'}; wait for it or end it, or "
                "give another --workdir"
            ) from None
        except OSError as error:
            # Some network file systems have no locks.
            _logger.warning("%s cannot be locked (%s): do not start two runs in it", workdir, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def _told_in_one_sentence(workdir: Path) -> Iterator[None]:
    """Turns the system's errors about a full disk into a ConfigError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise ConfigError(
            f"{error.filename or workdir} could not be written ({error.strerror}); the checkpoints are untouched, and the "
            "same command goes on from the last of them"
        ) from None


class _StopSignals:
    """Notes the first SIGTERM or SIGINT, which the loop then acts on; a second SIGINT stops at once."""

    def __enter__(self) -> _StopSignals:
        self.received: int | None = None
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *unused: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(
    experiment: Experiment,
    workdir: str | Path,
    name: str = "experiment",
    quiet: bool = False,
    draw: Draw | None = None,
) -> TrainState:
    """Trains an experiment to its last step, from its own last checkpoint if there is one.

    Args:
      experiment: what to train.
      workdir: directory of configuration, checkpoints, metrics and samples.
      name: name of the experiment in the saved configuration.
      quiet: print nothing.
      draw: function to call with every sheet of samples, in runs of one process.

    Returns:
      The state after the last step, on the mesh.

    Raises:
      ConfigError: the experiment cannot run, or the directory holds another experiment.
      CheckpointError: a checkpoint cannot be written, or there are checkpoints and none can be read.
      NonFiniteError: the loss or its gradient is not finite.
      Interrupted: a signal asked the run to stop; its state is saved.
    """
    if experiment.training.best_metric is not None and experiment.training.evaluate_every is None:
        raise ConfigError(
            f"training.best_metric={experiment.training.best_metric} rates checkpoints by evaluations, and there are none; "
            "give training.evaluate_every"
        )
    host.initialize(experiment.training)
    workdir = prepare_workdir(workdir)
    with (
        _told_in_one_sentence(workdir),
        locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext(),
    ):
        return _train(experiment, workdir, name, quiet or jax.process_index() > 0, draw)


def _train(experiment: Experiment, workdir: Path, name: str, quiet: bool, draw: Draw | None) -> TrainState:
    saved_name, saved = load_config(workdir)[:2] if (workdir / CONFIG_FILE).exists() else (name, None)
    if saved is None:
        resolved = described = resolve(experiment)
    else:
        if experiment.training.best_metric is None:
            # A resumed run keeps its best checkpoint even if the flag was left out.
            best = {"best_metric": saved.training.best_metric, "best_mode": saved.training.best_mode}
            experiment = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, **best))
        names = (saved_name, name)
        check_same_kind(workdir, names, saved, experiment)
        resolved = resolve(dataclasses.replace(experiment, data=experiment.data.going_on(workdir)))
        # The experiment is compared and saved as the flags give it, so that the next start compares the same values.
        described = dataclasses.replace(resolved, data=experiment.data)
        check_resumable(workdir, names, saved, described)
    if isinstance(resolved.model, ChecksSteps):
        resolved.model.check_steps(resolved.training.num_steps)
    return _Run(Engine(resolved), described, workdir, name, quiet, draw).run()


class _Run:
    """One call of `train`."""

    def __init__(
        self, engine: Engine, described: Experiment, workdir: Path, name: str, quiet: bool, draw: Draw | None
    ) -> None:
        self.engine, self.workdir, self.name = engine, workdir, name
        self.draw = draw if jax.process_count() == 1 else None
        self.experiment, self.training = engine.experiment, engine.experiment.training
        if self.training.evaluate_every is not None or isinstance(self.experiment.model, Reconstructs):
            # Otherwise the run would fail only at its first evaluation.
            check_not_empty(self.experiment.data, self.experiment.evaluation.validation_split)
        self.primary = jax.process_index() == 0
        if self.primary:
            fingerprint = engine.pipeline.fingerprint()
            if load_fingerprint(workdir) not in (None, fingerprint):
                _logger.warning(
                    "the training data of %s (%s) have changed since this run was started, and it goes on with what they are "
                    "now; what was held out then may be trained on",
                    workdir,
                    self.experiment.data.name,
                )
            save_config(workdir, name, described, engine.batch_spec, fingerprint)
            engine.experiment.data.save(workdir)
        if jax.process_count() > 1:
            # Tokens must mean the same in all processes: the first saves its tokenizer, the
            # others compare theirs with it.
            multihost_utils.sync_global_devices("saved")
            if not self.primary:
                engine.experiment.data.save(workdir)
        self.checkpoints = Checkpoints(
            workdir, self.training.keep_checkpoints, self.training.best_metric, self.training.best_mode
        )
        self.quiet = quiet
        self.last_finite: dict[str, float] = {}
        self.last_finite_step = 0
        self.num_skipped = 0

    def _first_state(self) -> TrainState:
        """The first state: of the run's own checkpoint, else from another library's
        checkpoint or another run, else new.
        """
        step = self.checkpoints.latest()
        if step is not None:
            state = self.checkpoints.restore(step, self.engine.abstract_state)
            if not self.quiet:
                print(f"going on from the checkpoint of step {step} in {self.checkpoints.directory}", flush=True)
            return self.engine.distribute(state)
        model, source = self.experiment.model, self.training.init_from
        if isinstance(model, ChecksStart):
            model.check_start(None if source is None else load_config(Path(source))[1].model)
        state = self.engine.init()
        if isinstance(model, HasPretrained) and model.pretrained is not None:
            plain = self.engine.collect(state)
            state = self._started(plain, model.pretrained_params(plain.params))
        if source is not None:
            plain = self.engine.collect(state)
            taken = warm_start(plain.params, source, self.training.init_prefix, model)
            if plain.learned and not self.training.init_prefix:
                plain = plain.replace(learned=warm_start(plain.learned, source, (), model))
            state = self._started(plain, taken)
        return state

    def _started(self, plain: TrainState, params: Any) -> TrainState:
        """The first state with other parameters, on its devices."""
        # Copied, because the step donates its state and one buffer cannot be donated twice.
        ema = plain.ema_params
        if ema is not None:
            names = set(ema) if isinstance(ema, dict) and set(ema) != set(params) else None
            ema = jax.tree.map(lambda a: a.copy(), params if names is None else {n: params[n] for n in names})
        return self.engine.distribute(plain.replace(params=params, ema_params=ema))

    def run(self) -> TrainState:
        state = self._first_state()
        start = int(np.asarray(self.engine.collect(state).step))
        if start > self.training.num_steps:
            raise ConfigError(
                f"{self.workdir} is at step {start} already, beyond training.num_steps={self.training.num_steps}"
            )
        if not self.quiet:
            print(parameter_overview(self.engine.abstract_state.params), flush=True)
        self.records = Records(self.workdir, start, self.training.tensorboard) if self.primary else None
        self.progress = Progress(start, self.training.num_steps, self.quiet)
        try:
            boundaries = list(dispatches(start, self.training))
            with _StopSignals() as signals, contextlib.closing(self.engine.inputs(boundaries)) as inputs:
                if start and (missed := self._missed(start)):
                    self._events(state, start, missed)
                return self._steps(state, start, boundaries, inputs, signals)
        finally:
            with contextlib.ExitStack() as stack:
                stack.callback(self.checkpoints.close)
                if self.records is not None:
                    stack.callback(self.records.close)
                stack.callback(self.progress.close)

    def _steps(
        self,
        state: TrainState,
        start: int,
        boundaries: list[tuple[int, int]],
        inputs: Iterator[dict[str, Any]],
        signals: _StopSignals,
    ) -> TrainState:
        training = self.training
        window: list[dict[str, np.ndarray | Ratio]] = []
        pending: tuple[int, Any] | None = None
        window_began, window_start = time.monotonic(), start
        profiled = 2 if training.profile_steps and len(boundaries) > 2 else None
        for number, (first, last) in enumerate(boundaries):
            try:
                rows = next(inputs)
            except Exception:
                if signals.received is None or jax.process_count() > 1:
                    raise
                # The signal has also ended the processes that read batches.
                self._stop(state, first, signals)
            if number == profiled:
                jax.block_until_ready(state)
                jax.profiler.start_trace(str(self.workdir / "profile"))
            state, metrics = self.engine.advance(state, rows)
            if profiled is not None and number >= profiled and last - boundaries[profiled][0] >= training.profile_steps:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
                self.progress.line(f"profile in {self.workdir / 'profile'}")
                profiled = None
            if pending is not None:
                window.append(self._fetch(*pending))
            pending = (first, metrics)
            self.progress.advance(last)

            if last % training.log_every == 0 or last == training.num_steps:
                window.append(self._fetch(*pending))
                pending = None
                seconds = time.monotonic() - window_began
                self._log(last, window, (last - window_start) / max(seconds, 1e-9))
                window, window_began, window_start = [], time.monotonic(), last
                if self.num_skipped >= min(MOST_SKIPPED, training.num_steps):
                    raise NonFiniteError(self._why_skipped(state, last))
            stopping = self._asked_to_stop(signals, last)
            if due := self._due(last, stopping):
                if pending is not None:
                    # A state is saved only after its loss and its gradient were checked to be finite.
                    window.append(self._fetch(*pending))
                    pending = None
                began = time.monotonic()
                self._events(state, last, due)
                window_began += time.monotonic() - began
            if stopping:
                self._stop(state, last, signals)
        if profiled is not None and number >= profiled:
            jax.profiler.stop_trace()
        self.checkpoints.wait()
        return self.engine.collect(state)

    def _stop(self, state: TrainState, step: int, signals: _StopSignals) -> None:
        """Saves the state after a step, unless it is saved already, and ends the run."""
        self._events(state, step, {"save"})
        number = signals.received or signal.SIGTERM
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} at step {step}; the state is saved in {self.checkpoints.directory}, "
            "and the same command goes on from there",
            number,
        )

    def _asked_to_stop(self, signals: _StopSignals, step: int) -> bool:
        if jax.process_count() == 1:
            return signals.received is not None
        # All processes must stop at the same step.  Asking costs a collective, so they ask only where a line is due.
        if step % self.training.log_every:
            return False
        return bool(np.any(multihost_utils.process_allgather(np.array(signals.received is not None))))

    def _due(self, step: int, stopping: bool) -> set[str]:
        """Names of what is due after a step: evaluate, save, draw.

        A run that is asked to stop only saves; `_missed` names the rest when the run is resumed.
        """
        training, last = self.training, step == self.training.num_steps
        every = lambda period: period is not None and step % period == 0
        evaluates = training.evaluate_every is not None and (last or every(training.evaluate_every))
        due = {
            "evaluate": evaluates and not stopping,
            "save": stopping
            or last
            or every(training.checkpoint_every)
            or (evaluates and training.best_metric is not None),
            "draw": (last or every(training.sample_every)) and not stopping,
        }
        return {name for name, is_due in due.items() if is_due}

    def _missed(self, step: int) -> set[str]:
        """Names of what was due after the step that a run resumes from, and was not done, as the
        run was stopped there.
        """
        split = self.experiment.evaluation.validation_split
        done = [
            self.records is not None and self.records.has(step, split),
            any((self.workdir / SAMPLES_DIRECTORY).glob(f"samples_{step:08d}.*")),
        ]
        if jax.process_count() > 1:
            # The first process writes the traces.
            done = multihost_utils.broadcast_one_to_all(np.array(done)).tolist()
        missed = self._due(step, stopping=False) - {
            name for name, is_done in zip(("evaluate", "draw"), done) if is_done
        }
        return missed if missed & {"evaluate", "draw"} else set()

    def _events(self, state: TrainState, step: int, due: set[str]) -> None:
        training, metrics = self.training, None
        plain = self.engine.collect(state)
        if "evaluate" in due:
            metrics = self.engine.evaluate(plain, self.experiment.evaluation.validation_split)
            self.progress.line(f"step {step}: {self.experiment.evaluation.validation_split}  {format_metrics(metrics)}")
            if self.records is not None:
                self.records.write(step, self.experiment.evaluation.validation_split, metrics)
        if "save" in due:
            self.checkpoints.save(step, plain, metrics)
        if metrics is not None and training.best_metric is not None and training.best_metric not in metrics:
            raise ConfigError(
                f"training.best_metric={training.best_metric} is not among the metrics of an evaluation, "
                f"which are {', '.join(metrics)}"
            )
        if "draw" in due:
            self._draw(plain, step)

    def _draw(self, state: TrainState, step: int) -> None:
        key = jax.random.key(self.training.seed)
        samples = self.engine.sample(state, key, self.training.num_samples)
        pictures = [("samples", samples)]
        if isinstance(self.experiment.model, Reconstructs):
            pictures.append(("reconstructions", self.engine.reconstruct(state, self.training.num_samples)))
        if not self.primary:
            return
        directory = self.workdir / SAMPLES_DIRECTORY
        directory.mkdir(exist_ok=True)
        for name, arrays in pictures:
            if np.issubdtype(arrays.dtype, np.floating) and not np.isfinite(arrays).all():
                self.progress.line(
                    f"step {step}: warning: the {name} are not finite and are not written: the parameters have diverged, or an "
                    "adaptive solver ran out of steps (model.sampler.num_steps)"
                )
                continue
            for path in self.experiment.data.write_samples(arrays, directory / f"{name}_{step:08d}"):
                self.records.picture(step, name, path)
        if self.draw is not None:
            run = Run(self.name, self.workdir, self.experiment, state, self.engine)
            for name, path in self.draw(run, directory).items():
                self.records.picture(step, name, path)

    def _fetch(self, first: int, metrics: Any) -> dict[str, np.ndarray | Ratio]:
        """Metrics of a dispatch on the host; looks at every step's loss and gradient.

        A loss may still be finite when its gradient has just spoilt the parameters, which must not become a checkpoint.
        """
        fetched = self.engine.fetch(metrics)
        watched = {
            # A step that counts nothing has the ratio 0 / 0, whose parts are both finite.
            name: np.logical_and.reduce([np.isfinite(part) for part in jax.tree.leaves(v)])
            for name, v in fetched.items()
            if name == "loss" or name.endswith("gradient_norm")
        }
        values = divided(fetched)
        finite = np.logical_and.reduce(list(watched.values()))
        good = len(finite) if finite.all() else int(np.argmin(finite))
        skipped = [v == 1.0 for name, v in values.items() if name.endswith("skipped")]
        for was_skipped in np.logical_or.reduce(skipped) if skipped else []:
            self.num_skipped = self.num_skipped + 1 if was_skipped else 0
        if good:
            self.last_finite = {name: float(v[good - 1]) for name, v in values.items()}
            self.last_finite_step = first + good
        if good < len(finite):
            self.checkpoints.wait()
            step = self.checkpoints.latest()
            back = (
                f"the checkpoint of step {step} in {self.checkpoints.directory} is sound"
                if step is not None
                else ("no checkpoint was written before")
            )
            name = min((name for name, sound in watched.items() if not sound[good]), key=len)
            raise NonFiniteError(
                f"the {name} became {values[name][good]} at step {first + good + 1}; the last finite metrics, of step "
                f"{self.last_finite_step}, were {format_metrics(self.last_finite) or 'none'}; "
                f"{self._diagnosis(first + good)}{back}; lower the learning "
                "rate, clip the gradient (optimizer.clip_norm), or skip such updates (optimizer.skip_nonfinite)"
            )
        return fetched

    def _why_skipped(self, state: TrainState, step: int) -> str:
        """A sentence about updates that are all skipped, with the metrics of another update that is not skipped."""
        count, experiment = self.num_skipped, self.experiment
        for path, _, value in leaves(experiment):
            if path.endswith("skip_nonfinite") and value:
                experiment = override(experiment, path, False)
        engine = Engine(experiment)
        inputs = next(engine.inputs([(step, step + 1)]))
        metrics = divided(engine.fetch(engine.advance(state, inputs)[1]))
        metrics = {name: float(v[0]) for name, v in metrics.items()}
        return (
            f"the last {count} updates were all skipped, up to step {step}, as a loss or a gradient is not finite: the next "
            f"would have {format_metrics(metrics)}; see that the data are what the model's output takes "
            "(data.preprocessing), lower the learning rate, or clip the gradient (optimizer.clip_norm)"
        )

    def _diagnosis(self, step: int) -> str:
        """The model's diagnosis of a step, found by replaying the dispatch from the state at its start."""
        if not isinstance(self.experiment.model, CanDiagnose) or jax.process_count() > 1:
            return ""
        state = self._first_state()
        start = int(np.asarray(self.engine.collect(state).step))
        before = [(first, last) for first, last in dispatches(start, self.training) if last <= step]
        for inputs in self.engine.inputs(before):
            state, _ = self.engine.advance(state, inputs)
        try:
            self.engine.diagnose(state, step)
        except ValueError as error:
            return f"{error}; "
        return ""

    def _log(self, step: int, window: list[dict[str, np.ndarray | Ratio]], rate: float) -> None:
        """Means over the steps since the last line, without skipped updates; NaN if all were skipped."""
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *window)
        if "skipped" in rows:
            taken = rows["skipped"] == 0
            kept = lambda v: v[taken] if taken.any() else np.array([np.nan])
            rows = {**jax.tree.map(kept, rows), "skipped": rows["skipped"]}
        means = divided(jax.tree.map(lambda v: np.mean(v, dtype=np.float64), rows))
        metrics = {name: float(v) for name, v in means.items()}
        metrics["steps_per_second"] = rate
        if self.records is not None:
            self.records.write(step, "train", metrics)
        self.progress.metrics(step, metrics)
        if isinstance(self.experiment.model, HasWarnings):
            for text in self.experiment.model.warnings(metrics):
                self.progress.line(f"step {step}: warning: {text}")
