"""Which examples a model that answers sources is shown when samples of it are asked for."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import numpy as np

from genjax.training import Run


def examples_to_answer(run: Run, num_samples: int, key: Any) -> dict[str, Any] | None:
    """Examples of the evaluation split with `source`, `source_mask` and `tokens`; None if the model answers no text."""
    data, model = run.experiment.data, run.model
    if not hasattr(data, "write_answers") or "source_mask" not in inspect.signature(model.sample).parameters:
        return None
    examples = data.load(run.experiment.evaluation.split)
    batch = data.transform(examples.gather(np.arange(num_samples) % len(examples)), key)
    return jax.device_get(model.with_source(batch, key) if hasattr(model, "with_source") else batch)
