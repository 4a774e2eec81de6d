"""Looks for losses and gradients that are not finite, and says what is known of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from genjax.config.trees import leaves, override
from genjax.errors import UserError
from genjax.metrics import Ratio, divided
from genjax.model import CanDiagnose, TrainState
from genjax.training import start
from genjax.training.checkpoints import Checkpoints
from genjax.training.engine import Engine
from genjax.training.records import format_metrics
from genjax.training.schedule import dispatches


class NonFiniteError(UserError):
    """A loss or a gradient that is not finite; the message names the step and the checkpoint to go back to."""


class FiniteWatch:
    """Fetches the metrics of a run, and ends the run at the first that is not finite.

    Args:
      engine: the engine of the run.
      checkpoints: the run's checkpoints.

    Attributes:
      num_skipped: number of updates that were skipped in a row up to the last step fetched.
    """

    def __init__(self, engine: Engine, checkpoints: Checkpoints) -> None:
        self._engine, self._checkpoints = engine, checkpoints
        self._last_finite: dict[str, float] = {}
        self._last_finite_step = 0
        self.num_skipped = 0

    def fetch(self, first: int, metrics: Any) -> dict[str, np.ndarray | Ratio]:
        """Metrics [S] of a dispatch of S steps from step `first`, on the host.

        A loss may still be finite when its gradient has just spoilt the parameters, which must not become a checkpoint.

        Raises:
          NonFiniteError: the loss or the gradient of a step is not finite.
        """
        fetched = self._engine.fetch(metrics)
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
            self._last_finite = {name: float(v[good - 1]) for name, v in values.items()}
            self._last_finite_step = first + good
        if good < len(finite):
            self._checkpoints.wait()
            step = self._checkpoints.latest()
            back = (
                f"the checkpoint of step {step} in {self._checkpoints.directory} is sound"
                if step is not None
                else ("no checkpoint was written before")
            )
            name = min((name for name, sound in watched.items() if not sound[good]), key=len)
            raise NonFiniteError(
                f"the {name} became {values[name][good]} at step {first + good + 1}; the last finite metrics, of step "
                f"{self._last_finite_step}, were {format_metrics(self._last_finite) or 'none'}; "
                f"{self._diagnosis(first + good)}{back}; lower the learning "
                "rate, clip the gradient (optimizer.clip_norm), or skip such updates (optimizer.skip_nonfinite)"
            )
        return fetched

    def why_skipped(self, state: TrainState, step: int) -> str:
        """A sentence about updates that are all skipped, with the metrics of another update that is not skipped."""
        count, experiment = self.num_skipped, self._engine.experiment
        for path, _, value in leaves(experiment):
            if path.endswith("skip_nonfinite") and value:
                experiment = override(experiment, path, False)
        engine = Engine(experiment)
        inputs = next(engine.inputs([(step, step + 1)]))
        metrics = divided(engine.fetch(engine.advance(state, inputs)[1]))
        metrics = {name: float(v[0]) for name, v in metrics.items()}
        return (
            f"the last {count} updates were all skipped, up to step {step}, as a loss or a gradient is not finite: "
            f"the next would have {format_metrics(metrics)}; see that the data are what the model's output takes "
            "(data.preprocessing), lower the learning rate, or clip the gradient (optimizer.clip_norm)"
        )

    def _diagnosis(self, step: int) -> str:
        """The model's diagnosis of a step, found by replaying the dispatch from the state at its start."""
        experiment = self._engine.experiment
        if not isinstance(experiment.model, CanDiagnose) or jax.process_count() > 1:
            return ""
        state = start.first_state(self._engine, self._checkpoints)
        begun = int(np.asarray(self._engine.collect(state).step))
        before = [(first, last) for first, last in dispatches(begun, experiment.training) if last <= step]
        for inputs in self._engine.inputs(before):
            state, _ = self._engine.advance(state, inputs)
        try:
            self._engine.diagnose(state, step)
        except ValueError as error:
            return f"{error}; "
        return ""
