"""Metrics that are quotients, and how they are averaged."""

from __future__ import annotations

from typing import Any

import flax.struct
import numpy as np


class Ratio(flax.struct.PyTreeNode):
    """A metric that is a quotient of two sums, such as nats a token.

    Parts of a batch have different numbers of tokens, so the mean of the parts' quotients is not the quotient of the
    whole batch.  Numerator and denominator are therefore averaged separately, over microbatches, devices, examples and
    the steps of a line of the log, and divided once, at the end.

    Attributes:
      numerator: float; a scalar in training, one value an example, [B], in an evaluation.
      denominator: float of the same shape.
    """

    numerator: Any
    denominator: Any

    def value(self) -> Any:
        """The quotient, computed on the host; NaN where the denominator is 0, as nothing was counted there."""
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = np.asarray(self.numerator) / np.asarray(self.denominator)
        return np.where(np.asarray(self.denominator) == 0, np.nan, quotient)[()]


def divided(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics with each `Ratio` replaced by its quotient."""
    return {name: metric.value() if isinstance(metric, Ratio) else metric for name, metric in metrics.items()}
