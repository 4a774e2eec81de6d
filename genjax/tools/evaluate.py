"""The evaluation of a run on a split, with the protocol behind its numbers."""

from __future__ import annotations

import time
from typing import Any

from genjax.training import Run
from genjax.training.records import version


def measure(run: Run) -> dict[str, Any]:
    """Evaluates a run on `evaluation.split`.

    Returns:
      `step`, `split`, `protocol` (data, estimator and time), `version` of the code, `num_examples`, and the metrics by
      name.
    """
    settings, data = run.experiment.evaluation, run.experiment.data
    began = time.monotonic()
    metrics = run.evaluate()
    seconds = time.monotonic() - began
    count = metrics.pop("num_examples")
    protocol = (
        f"{run.name}, step {run.step}: {type(run.model).__name__} on {data.name}, split {settings.split}, "
        f"{count} examples, {data.protocol()}, seed {settings.seed}, {seconds:.1f} s"
    )
    measured = {"step": run.step, "split": settings.split, "protocol": protocol, "version": version()}
    return {**measured, "num_examples": count, **metrics}
