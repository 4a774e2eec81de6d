"""A trained run as an object: its model and state, ready to sample and evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax import config
from genjax.config import ConfigError
from genjax.model import ChecksCondition, GenerativeModel, TrainState
from genjax.training import host
from genjax.training.checkpoints import Checkpoints
from genjax.training.engine import Engine
from genjax.training.experiment import Experiment, load_config


@dataclasses.dataclass(frozen=True)
class Run:
    """A run restored from its working directory.

    Attributes:
      name: name of the experiment.
      workdir: where the run lies.
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

        Raises:
          ValueError: a condition is not one that the model knows, such as a token outside its vocabulary.
        """
        # Here and not in `model.sample`, which is compiled and sees no values.
        if isinstance(self.model, ChecksCondition):
            self.model.check_condition(**condition)
        return self.engine.sample(self.state, key, num_samples, **condition)

    def evaluate(self, split: str | None = None) -> dict[str, float]:
        """Mean of every metric of the model over a split (`evaluation.split` unless given), and `num_examples`."""
        return self.engine.evaluate(self.state, split or self.experiment.evaluation.split)

    def write_samples(self, samples: np.ndarray, stem: str | Path) -> list[Path]:
        """Writes samples as their domain shows them (a PNG grid, a scatter plot, ...); returns the files."""
        return self.experiment.data.write_samples(samples, Path(stem))


def restore(workdir: str | Path, step: int | None = None, overrides: Mapping[str, Any] | None = None) -> Run:
    """Restores a run from its working directory alone.

    Args:
      workdir: directory of a run of `experiments.train`.
      step: which checkpoint, by default the latest sound one.
      overrides: fields by path to change, e.g. {"evaluation.num_examples": 100}; the state must still fit.

    Raises:
      ConfigError: there is no run or no checkpoint.
      CheckpointError: no checkpoint can be used.
    """
    workdir = Path(workdir).expanduser()
    name, experiment, batch = load_config(workdir)
    experiment = config.apply_overrides(on_this_machine(experiment), overrides or {})
    return open_run(workdir, name, experiment, batch, step)


def on_this_machine(experiment: Experiment) -> Experiment:
    """Forgets the devices of the training: where a run was trained does not decide where it is used."""
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


def open_run(workdir: Path, name: str, experiment: Experiment, batch: dict[str, Any], step: int | None = None) -> Run:
    """Restores a run whose configuration was read already; see `restore`."""
    host.initialize(experiment.training)
    checkpoints = Checkpoints(workdir, writable=False)
    step = checkpoints.latest() if step is None else step
    if step is None:
        raise ConfigError(f"{workdir} has no checkpoint yet; train with --workdir={workdir} first")
    mesh = experiment.training.mesh or _fitting_mesh(experiment.data.batch_size)
    training = dataclasses.replace(experiment.training, mesh=mesh)
    experiment = dataclasses.replace(experiment, data=experiment.data.beside(workdir), training=training)
    engine = Engine(experiment, batch_spec=batch)
    return Run(name, workdir, experiment, checkpoints.restore(step, engine.abstract_state), engine)


def _fitting_mesh(batch_size: int) -> str:
    """The largest number of devices that divides the batch."""
    count = next(n for n in range(jax.device_count(), 0, -1) if batch_size % n == 0)
    return f"data:{count}"
