"""Examples whose sources a model answers when samples of it are asked for."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from genjax.data import random_order
from genjax.data.base import WritesAnswers
from genjax.model import MakesSources, takes
from genjax.training import Run


def examples_to_answer(run: Run, num_samples: int, key: Any) -> dict[str, Any] | None:
    """Examples of the evaluation split, as the model sees them; None if its samples answer no `source`.

    The examples are the first in `random_order`; if more are asked for than there are, they start again from the first.
    Text has `source`, `source_mask` and `tokens`; pictures that are translated have `source` and `x`.
    """
    if not answers_examples(run):
        return None
    model = run.model
    batch = examples_in_order(run, np.arange(num_samples), key)
    return jax.device_get(model.with_source(batch, key) if isinstance(model, MakesSources) else batch)


def answers_examples(run: Run) -> bool:
    """Whether samples of a run are answers to examples, which its data can show beside them."""
    return isinstance(run.experiment.data, WritesAnswers) and takes(run.model, "source")


def examples_in_order(run: Run, rows: np.ndarray, key: Any) -> dict[str, Any]:
    """Examples of the evaluation split at places in `random_order` (modulo their number), transformed for the model."""
    data = run.experiment.data
    examples = data.load(run.experiment.evaluation.split)
    return data.transform(examples.gather(random_order(len(examples))[rows % len(examples)]), key)
