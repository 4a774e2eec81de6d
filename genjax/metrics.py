"""Metrics that are quotients, and how they are averaged."""

from __future__ import annotations

from typing import Any

import flax.struct
import numpy as np


class Ratio(flax.struct.PyTreeNode):
    """A metric that is a quotient of two sums, such as nats a token.

    Parts of a batch differ in their numbers of tokens, so that the mean of their quotients is not the quotient of the
    whole.  A pytree of two leaves is averaged part by part over microbatches, devices, examples and the steps of a line,
    and divided once, at the end.

    Attributes:
      numerator: float, in training a scalar, in an evaluation one value an example, [B].
      denominator: what it is divided by, of the same shape.
    """

    numerator: Any
    denominator: Any

    def value(self) -> Any:
        """The quotient, on the host; NaN where the denominator is 0, as there is nothing to tell the mean of."""
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = np.asarray(self.numerator) / np.asarray(self.denominator)
        return np.where(np.asarray(self.denominator) == 0, np.nan, quotient)[()]


def divided(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics with the quotient in place of each `Ratio`."""
    return {name: metric.value() if isinstance(metric, Ratio) else metric for name, metric in metrics.items()}
