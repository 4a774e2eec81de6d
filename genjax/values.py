"""The values of data, and the values that a model can score.

`spec()` of data describes their `x`: `range` (low, high), and `num_levels`, the number of evenly spaced values of x
from low to high, or None if x fills the range.  Data that do not know this, such as tables, leave both out.

A model that cannot score every value has a method `support()`, which returns the values that it can score.  An
experiment whose data have other values is refused when it is resolved (`check_spec`).  In compiled code, where an error
cannot be raised, examples with other values get the likelihood NaN (`only_of_support`), which stops the run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lattice:
    """Evenly spaced values.

    Attributes:
      low: smallest value.
      high: largest value.
      num_levels: number of values; None takes the data set's.
    """

    low: float = 0.0
    high: float = 1.0
    num_levels: int | None = None

    @property
    def levels(self) -> int:
        """`num_levels`, which must be known.

        Raises:
          UserError: neither the configuration nor the data give it.
        """
        if self.num_levels is None:
            raise UserError(f"{type(self).__name__}.num_levels is None; give the number of levels, e.g. 256")
        return self.num_levels

    def unit(self, x: Array) -> Array:
        """Values moved to [0, 1], shape of x."""
        return (x - self.low) / (self.high - self.low)

    def level(self, x: Array) -> Array:
        """Index of a value on the lattice, int32."""
        return jnp.round((x - self.low) * ((self.levels - 1) / (self.high - self.low))).astype(jnp.int32)

    def value(self, level: Array) -> Array:
        """Value of the lattice with an index."""
        return self.low + level * ((self.high - self.low) / (self.levels - 1))

    def contains(self, x: Array) -> Array:
        """Whether each value is on the lattice, up to a hundredth of its spacing; x [...] may be of numpy or of JAX."""
        place = self.unit(x) * (self.levels - 1)
        nearest = place.round()
        return (abs(place - nearest) < 0.01) & (nearest >= 0) & (nearest < self.levels)

    def as_support(self, name: str, remedy: str) -> Support:
        """The support that has only the values of the lattice, which have probabilities and no density."""
        return Support(
            name=name, remedy=remedy, low=self.low, high=self.high, num_levels=self.num_levels, density=False
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Support:
    """The values of x that a model can score.

    Attributes:
      name: name of the model or distribution, for messages.
      remedy: settings to change, for messages.
      low: smallest value.
      high: largest value.
      num_levels: number of evenly spaced values from low to high, one of which each level must
        be; None allows all between.
      levels: whether data with levels are scored.
      density: whether data that fill their range are scored, by a density.
    """

    name: str
    remedy: str
    low: float = -math.inf
    high: float = math.inf
    num_levels: int | None = None
    levels: bool = True
    density: bool = True

    def contains(self, x: Array) -> Array:
        """Whether each value is scored; x [...] may be of numpy or of JAX."""
        if self.num_levels is None:
            return (x >= self.low) & (x <= self.high)
        return Lattice(low=self.low, high=self.high, num_levels=self.num_levels).contains(x)

    def check(self, x: Array | np.ndarray, whose: str = "examples") -> None:
        """Refuses values that are not scored; traced values pass.

        Args:
          x: values [...].
          whose: owner of the values, for the message.

        Raises:
          UserError: names the range of the values, or a value.
        """
        if isinstance(x, (jax.core.Tracer, jax.ShapeDtypeStruct)):
            return
        # In numpy, because inside `jit` even operations on constants of jnp give tracers.
        values: Any = np.asarray(x)
        wrong = values[~np.asarray(self.contains(values))]
        if not wrong.size:
            return
        smallest, largest = float(values.min()), float(values.max())
        if self.num_levels is None or smallest < self.low - 1e-6 or largest > self.high + 1e-6:
            raise UserError(
                f"{whose} have values from {smallest:g} to {largest:g}, but {self.name} declares {self.low:g} to "
                f"{self.high:g}; change {self.remedy}"
            )
        raise UserError(
            f"{whose} have values such as {float(wrong[0]):g}, which is none of the {self.num_levels} levels that "
            f"{self.name} has from {self.low:g} to {self.high:g}; change {self.remedy}"
        )

    def check_spec(self, spec: Mapping[str, Any]) -> None:
        """Refuses data with values that are not scored.

        Args:
          spec: `spec()` of the data.

        Raises:
          UserError: names the values of the data and the values that are scored.
        """
        if spec.get("range") is None:
            return
        (low, high), count = spec["range"], spec["num_levels"]
        if count is None and not self.density:
            raise UserError(
                f"the data fill the range from {low:g} to {high:g}, as dequantised levels do, and {self.name} gives no "
                f"density but probabilities of levels; change {self.remedy}"
            )
        if count is not None and not self.levels:
            raise UserError(
                f"the data are {count} levels, which have no density, and {self.name} gives a density, "
                f"which would grow without end; change {self.remedy}"
            )
        if count is not None or self.num_levels is None:
            self.check(np.linspace(low, high, count or 2), "the data")


def only_of_support(support: Support | None, log_likelihood: Array, x: Array) -> Array:
    """Log-likelihoods [..., B] of examples x [B, ...], NaN for examples with values outside `support`, which may be
    None.
    """
    if support is None:
        return log_likelihood
    # NaN stops the run, as an error cannot be raised under jit.
    valid = support.contains(x).reshape(x.shape[0], -1).all(-1)
    return jnp.where(valid.reshape((1,) * (log_likelihood.ndim - 1) + valid.shape), log_likelihood, jnp.nan)
