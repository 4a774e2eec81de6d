"""The training loop: dispatches compiled steps, and between them writes metrics, checkpoints and pictures.

The host never waits for the step that runs: metrics are fetched one dispatch late.  A dispatch ends at every step where
something is due (a line, an evaluation, a checkpoint).  This depends on the step alone, so that a resumed run makes the
same dispatches and gives the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from genjax import buckets
from genjax.config import ConfigError
from genjax.data import HasPrompts, check_not_empty
from genjax.errors import Interrupted, UserError
from genjax.metrics import Ratio, divided
from genjax.model import ChecksSteps, FollowsHints, HasWarnings, Reconstructs, TrainState, takes
from genjax.training import host, start
from genjax.training.checkpoints import Checkpoints
from genjax.training.engine import Engine
from genjax.training.experiment import (
    CONFIG_FILE,
    Experiment,
    check_resumable,
    check_same_kind,
    load_config,
    load_fingerprint,
    resolve,
    save_config,
)
from genjax.training.finite import FiniteWatch, NonFiniteError
from genjax.training.records import Progress, Records, format_metrics, parameter_overview
from genjax.training.runs import Run
from genjax.training.schedule import dispatches, events
from genjax.training.signals import StopSignals
from genjax.training.watchdog import Watchdog, lost_processes_told
from genjax.training.workdir import full_disk_told, locked, prepare_workdir

SAMPLES_DIRECTORY = "samples"
#: Number of skipped updates in a row after which a run stops with an error.
MOST_SKIPPED = 100

#: Function that draws further pictures of a run into a folder and returns the files by name.
Draw = Callable[[Run, Path], Mapping[str, Path]]


_logger = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    workdir: str | Path,
    name: str = "experiment",
    quiet: bool = False,
    draw: Draw | None = None,
    flags: Sequence[str] = (),
) -> TrainState:
    """Trains an experiment to its last step, from its own last checkpoint if there is one.

    Args:
      experiment: what to train.
      workdir: directory of configuration, checkpoints, metrics and samples.
      name: name of the experiment in the saved configuration.
      quiet: print nothing.
      draw: function to call with every sheet of samples, in runs of one process.
      flags: fields of the experiment as the command line gave them, for the record.

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
            f"training.best_metric={experiment.training.best_metric} rates checkpoints by evaluations, "
            "and there are none; give training.evaluate_every"
        )
    host.initialize(experiment.training)
    workdir = prepare_workdir(workdir)
    with (
        full_disk_told(workdir),
        lost_processes_told(),
        locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext(),
    ):
        return _train(experiment, workdir, name, quiet or jax.process_index() > 0, draw, flags)


def _train(
    experiment: Experiment, workdir: Path, name: str, quiet: bool, draw: Draw | None, flags: Sequence[str]
) -> TrainState:
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
        resolved = resolve(dataclasses.replace(experiment, data=experiment.data.going_on(workdir)), earlier=saved.model)
        # The experiment is compared and saved as the flags give it, so that the next start compares the same values.
        described = dataclasses.replace(resolved, data=experiment.data)
        check_resumable(workdir, names, saved, described)
    if isinstance(resolved.model, ChecksSteps):
        resolved.model.check_steps(resolved.training.num_steps)
    # Several processes save at once, as one of them may find what another one has just written.
    saves_first = saved is not None or jax.process_count() > 1
    return _Loop(Engine(resolved), described, workdir, name, quiet, draw, flags, saves_first).run()


class _Loop:
    """One call of `train`."""

    def __init__(
        self,
        engine: Engine,
        described: Experiment,
        workdir: Path,
        name: str,
        quiet: bool,
        draw: Draw | None,
        flags: Sequence[str],
        saves_first: bool,
    ) -> None:
        self.engine, self.workdir, self.name = engine, workdir, name
        self.described, self.flags, self.saves_first = described, flags, saves_first
        self.draw = draw if jax.process_count() == 1 else None
        self.experiment, self.training = engine.experiment, engine.experiment.training
        if self.training.evaluate_every is not None or isinstance(self.experiment.model, Reconstructs):
            # Otherwise the run would fail only at its first evaluation.
            check_not_empty(self.experiment.data, self.experiment.evaluation.validation_split)
        self.primary = jax.process_index() == 0
        self.checkpoints = Checkpoints(
            workdir, self.training.keep_checkpoints, self.training.best_metric, self.training.best_mode
        )
        self.quiet = quiet
        self.watch = FiniteWatch(engine, self.checkpoints)

    def _save(self) -> None:
        """Writes the configuration and what belongs to the data, such as a tokenizer, or compares it with a run's."""
        if self.primary:
            fingerprint = self.engine.pipeline.fingerprint()
            if load_fingerprint(self.workdir) not in (None, fingerprint):
                _logger.warning(
                    "the training data of %s (%s) have changed since this run was started, "
                    "and it goes on with what they are now; what was held out then may be trained on",
                    self.workdir,
                    self.experiment.data.name,
                )
            save_config(self.workdir, self.name, self.described, self.engine.batch_spec, fingerprint, self.flags)
            self.experiment.data.save(self.workdir)
        if jax.process_count() > 1:
            # Tokens must mean the same in all processes: the first saves its tokenizer, the
            # others compare theirs with it.
            mirror = buckets.mirror_of(self.workdir)
            if self.primary and mirror is not None:
                mirror.push()
            multihost_utils.sync_global_devices("saved")
            if not self.primary:
                if mirror is not None:
                    mirror.pull()
                self.experiment.data.save(self.workdir)

    def run(self) -> TrainState:
        if self.saves_first:
            self._save()
        state = start.first_state(self.engine, self.checkpoints, self.quiet)
        if not self.saves_first:
            # So that a start that is refused leaves nothing that the mended command would be compared with.
            self._save()
        begun = int(np.asarray(self.engine.collect(state).step))
        if begun > self.training.num_steps:
            raise ConfigError(
                f"{buckets.shown(self.workdir)} is at step {begun} already, "
                f"beyond training.num_steps={self.training.num_steps}"
            )
        if not self.quiet:
            print(parameter_overview(self.engine.abstract_state.params), flush=True)
        self.records = Records(self.workdir, begun, self.training.tensorboard) if self.primary else None
        self.progress = Progress(begun, self.training.num_steps, self.quiet)
        try:
            boundaries = list(dispatches(begun, self.training))
            with (
                Watchdog(self.training.hang_timeout) as self.watchdog,
                StopSignals() as signals,
                contextlib.closing(self.engine.inputs(boundaries)) as inputs,
            ):
                if begun and (missed := self._missed(begun)):
                    self._events(state, begun, missed)
                return self._steps(state, begun, boundaries, inputs, signals)
        except (UserError, Interrupted):
            raise
        except Exception:
            # Perhaps another process has died, and will write no more of a checkpoint.
            self.checkpoints.give_up()
            raise
        finally:
            with contextlib.ExitStack() as stack:
                stack.callback(self.checkpoints.close)
                if self.records is not None:
                    stack.callback(self.records.close)
                stack.callback(self.progress.close)

    def _steps(
        self,
        state: TrainState,
        begun: int,
        boundaries: list[tuple[int, int]],
        inputs: Iterator[dict[str, Any]],
        signals: StopSignals,
    ) -> TrainState:
        training = self.training
        window: list[dict[str, np.ndarray | Ratio]] = []
        pending: tuple[int, Any] | None = None
        window_began, window_start = time.monotonic(), begun
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
                window.append(self.watch.fetch(*pending))
                self.watchdog.beat(f"step {first}")
            pending = (first, metrics)
            self.progress.advance(last)

            if last % training.log_every == 0 or last == training.num_steps:
                window.append(self.watch.fetch(*pending))
                pending = None
                self.watchdog.beat(f"step {last}")
                seconds = time.monotonic() - window_began
                self._log(last, window, (last - window_start) / max(seconds, 1e-9))
                window, window_began, window_start = [], time.monotonic(), last
                if self.watch.num_skipped >= min(MOST_SKIPPED, training.num_steps):
                    raise NonFiniteError(self.watch.why_skipped(state, last))
            stopping = signals.asked(last, training.log_every)
            if due := events(last, training, stopping):
                if pending is not None:
                    # A state is saved only after its loss and its gradient were checked to be finite.
                    window.append(self.watch.fetch(*pending))
                    pending = None
                began = time.monotonic()
                self._events(state, last, due)
                self.watchdog.beat(f"{', '.join(sorted(due))} at step {last}")
                window_began += time.monotonic() - began
            if stopping:
                self._stop(state, last, signals)
        if profiled is not None and number >= profiled:
            jax.profiler.stop_trace()
        self.checkpoints.wait()
        return self.engine.collect(state)

    def _stop(self, state: TrainState, step: int, signals: StopSignals) -> None:
        """Saves the state after a step, unless it is saved already, and ends the run."""
        self._events(state, step, {"save"})
        number = signals.received or signal.SIGTERM
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} at step {step}; the state is saved in "
            f"{self.checkpoints.directory}, and the same command goes on from there",
            number,
        )

    def _missed(self, step: int) -> set[str]:
        """Names of what was due after the step that a run resumes from, and was not done, as the run was stopped
        there.
        """
        split = self.experiment.evaluation.validation_split
        done = [
            self.records is not None and self.records.has(step, split),
            any((self.workdir / SAMPLES_DIRECTORY).glob(f"samples_{step:08d}.*")),
        ]
        if jax.process_count() > 1:
            # The first process writes the traces.
            done = multihost_utils.broadcast_one_to_all(np.array(done)).tolist()
        missed = events(step, self.training) - {name for name, is_done in zip(("evaluate", "draw"), done) if is_done}
        return missed if missed & {"evaluate", "draw"} else set()

    def _events(self, state: TrainState, step: int, due: set[str]) -> None:
        """Does what is due after a step, whose loss was seen to be finite, in this order.

        1. `evaluate`: the metrics are printed and recorded.
        2. `save`: the checkpoint has these metrics beside it, which decide whether it is the best.
        3. `draw`: last, so that samples that cannot be drawn lose neither.
        """
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

    @functools.cached_property
    def conditions(self) -> dict[str, np.ndarray]:
        """What the samples on a sheet follow: texts and hints of the first validation examples, or training.prompts."""
        model, data, count = self.experiment.model, self.experiment.data, self.training.num_samples
        reads = takes(model, "tokens") and isinstance(data, HasPrompts)
        follows = isinstance(model, FollowsHints) and takes(model, "hint")
        if not (reads or follows):
            return {}
        # As the model sees them in evaluations, where a caption that is too long is cut.
        examples = data.load(self.experiment.evaluation.validation_split)
        batch = data.transform(examples.gather(np.arange(count) % len(examples)), jax.random.key(0))
        found = {name: batch[name] for name in ("tokens", "mask")} if reads else {}
        if reads and (texts := self.training.prompts):
            found = data.prompts([texts[i % len(texts)] for i in range(count)])
        return jax.device_get({**found, "hint": model.hints(batch)} if follows else found)

    def _draw(self, state: TrainState, step: int) -> None:
        key = jax.random.key(self.training.seed)
        samples = self.engine.sample(state, key, self.training.num_samples, **self.conditions)
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
                    f"step {step}: warning: the {name} are not finite and are not written: "
                    "the parameters have diverged, or an adaptive solver ran out of steps (model.sampler.num_steps)"
                )
                continue
            for path in self.experiment.data.write_samples(arrays, directory / f"{name}_{step:08d}"):
                self.records.picture(step, name, path)
        if self.draw is not None:
            run = Run(self.name, self.workdir, self.experiment, state, self.engine)
            for name, path in self.draw(run, directory).items():
                self.records.picture(step, name, path)

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
