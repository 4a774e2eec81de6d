"""A trained run as an object: its model and state, ready to sample and evaluate."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from genjax import buckets, config
from genjax.config import ConfigError
from genjax.data.pipeline import full_batches
from genjax.model import ChecksCondition, GenerativeModel, HasClasses, HasPolicy, TrainState, takes
from genjax.training import host
from genjax.training.checkpoints import Checkpoints
from genjax.training.engine import Engine
from genjax.training.experiment import Experiment, load_config


@dataclasses.dataclass(frozen=True)
class Run:
    """A run restored from its working directory.

    Attributes:
      name: name of the experiment.
      workdir: directory of the run.
      experiment: its resolved configuration.
      state: its state, on the mesh.
      engine: compiles evaluation and sampling.
    """

    name: str
    workdir: Path
    experiment: Experiment
    state: TrainState
    engine: Engine

    @property
    def model(self) -> GenerativeModel:
        """The model, which is its own configuration."""
        return self.experiment.model

    @property
    def step(self) -> int:
        """Number of updates that the state has seen."""
        return int(self.state.step)

    def sample(self, key: jax.Array, num_samples: int, **condition: Any) -> np.ndarray:
        """Draws samples in the form that training batches have, shape [num_samples, ...].

        More samples than `data.eval_batch_size` are drawn in batches of this size, each with its own key.
        Conditions with a row for each sample are divided in the same way; other conditions, such as a prompt [P] or
        one class, hold for all samples.

        Raises:
          UserError: the model does not have the condition, or its value (a class or a token, say) does not exist.
        """
        # Checked here, because `model.sample` is compiled and sees no values.
        if isinstance(self.model, ChecksCondition):
            self.model.check_condition(**condition)
        if condition.get("label") is not None and isinstance(self.model, HasClasses):
            self.model.check_labels(condition["label"])
        size = self.experiment.data.eval_batch_size
        if num_samples <= size:
            return self.engine.sample(self.state, key, num_samples, **condition)
        if "label" not in condition and takes(self.model, "label"):
            # Classes run through all batches in turn; otherwise each batch would begin with the first class.
            condition["label"] = np.arange(num_samples, dtype=np.int32) % self.model.num_classes
        parts = []
        for i, (rows, _) in enumerate(full_batches(num_samples, size)):
            own = {n: c[rows] if _has_rows(n, c, num_samples) else c for n, c in condition.items()}
            parts.append(self.engine.sample(self.state, jax.random.fold_in(key, i), size, **own))
        return np.concatenate(parts)[:num_samples]

    def evaluate(self, split: str | None = None) -> dict[str, float]:
        """Mean of every metric of the model over a split (`evaluation.split` unless given), and `num_examples`."""
        return self.engine.evaluate(self.state, split or self.experiment.evaluation.split)

    def write_samples(self, samples: np.ndarray, stem: str | Path) -> list[Path]:
        """Writes samples as their domain shows them (a PNG grid, a scatter plot, ...); returns the files."""
        return self.experiment.data.write_samples(samples, Path(stem))


def policy_run(run: Run) -> Run:
    """The run as one of the policy that its model trains, which writes texts; other runs as they are."""
    if not isinstance(run.model, HasPolicy):
        return run
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, model=run.model.policy))


def _has_rows(name: str, condition: Any, num_samples: int) -> bool:
    """Whether a condition has one row for each sample."""
    shape = np.shape(condition)
    # A prompt [P] is for all samples, even if it has as many tokens as there are samples.
    return len(shape) > (1 if name == "prompt" else 0) and shape[0] == num_samples


def restore(
    workdir: str | Path, step: int | Literal["best"] | None = None, overrides: Mapping[str, Any] | None = None
) -> Run:
    """Restores a run from its working directory alone.

    Args:
      workdir: directory of a run of `experiments.train`, also in a bucket.
      step: step of the checkpoint; by default the latest sound checkpoint; "best" for the
        best by `training.best_metric`.
      overrides: fields by path to change, e.g. {"evaluation.num_examples": 100}; the state must still fit.

    Raises:
      ConfigError: there is no run or no checkpoint.
      CheckpointError: no checkpoint can be used.
    """
    workdir = buckets.workdir(workdir)
    name, experiment, batch = load_config(workdir)
    experiment = config.apply_overrides(on_this_machine(experiment), overrides or {})
    return open_run(workdir, name, experiment, batch, step)


def on_this_machine(experiment: Experiment) -> Experiment:
    """The experiment without its settings of devices: a run may be used on other devices than it was trained on."""
    training = dataclasses.replace(
        experiment.training,
        mesh=None,
        parallelism="jit",
        distributed=False,
        coordinator_address=None,
        num_processes=None,
        process_id=None,
    )
    return dataclasses.replace(experiment, training=training)


def open_run(
    workdir: Path,
    name: str,
    experiment: Experiment,
    batch: dict[str, Any],
    step: int | Literal["best"] | None = None,
) -> Run:
    """Restores a run whose configuration was read already; see `restore`."""
    host.initialize(experiment.training)
    training = experiment.training
    checkpoints = Checkpoints(workdir, best_metric=training.best_metric, best_mode=training.best_mode, writable=False)
    if step == "best":
        step = checkpoints.best()
        if step is None:
            raise ConfigError(
                f"no checkpoint in {buckets.shown(workdir)} was rated; train with --training.best_metric=METRIC and "
                "--training.evaluate_every=N, or leave --step=best out for the latest one"
            )
    step = checkpoints.latest() if step is None else step
    if step is None:
        place = buckets.shown(workdir)
        raise ConfigError(f"{place} has no checkpoint yet; train with --workdir={shlex.quote(place)} first")
    mesh = experiment.training.mesh or _fitting_mesh(experiment.data.batch_size)
    training = dataclasses.replace(training, mesh=mesh)
    experiment = dataclasses.replace(experiment, data=experiment.data.beside(workdir), training=training)
    engine = Engine(experiment, batch_spec=batch)
    return Run(name, workdir, experiment, checkpoints.restore(step, engine.abstract_state), engine)


def _fitting_mesh(batch_size: int) -> str:
    """The largest number of devices that divides the batch."""
    count = next(n for n in range(jax.device_count(), 0, -1) if batch_size % n == 0)
    return f"data:{count}"
