"""Maps of single numbers, steered by unconstrained parameters, for couplings and autoregressive maps.

    additive   z = x + t                                    (NICE, Dinh et al. 2014, arXiv:1410.8516, eq. 12)
    affine     z = (x + t) exp(s)                           (RealNVP, arXiv:1605.08803, eq. 7; MAF, arXiv:1705.07057, eq. 4)
    spline     z = a monotone rational-quadratic spline     (Durkan et al. 2019, arXiv:1906.04032)

All parameters zero gives the identity (a sigmoid scale: nearly so).
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.nn.splines import rational_quadratic_spline

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elementwise(abc.ABC):
    """A monotone map of numbers with `num_parameters` parameters each."""

    @property
    @abc.abstractmethod
    def num_parameters(self) -> int:
        """How many parameters one number takes."""

    @abc.abstractmethod
    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        """Returns z and log dz/dx, of x's shape; parameters are [*x.shape, num_parameters]."""

    @abc.abstractmethod
    def inverse(self, z: Array, parameters: Array) -> tuple[Array, Array]:
        """Returns x and log dx/dz."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Additive(Elementwise):
    """z = x + t."""

    @property
    def num_parameters(self) -> int:
        return 1

    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        return x + parameters[..., 0], jnp.zeros_like(x)

    def inverse(self, z: Array, parameters: Array) -> tuple[Array, Array]:
        return z - parameters[..., 0], jnp.zeros_like(z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine(Elementwise):
    """z = (x + t) exp(s).

    Attributes:
      scale: how s follows from its parameter r: `tanh` s = bound tanh(r / bound), which cannot run away;
        `sigmoid` exp(s) = sigmoid(r + 2), Glow's choice; `exp` s = r.
      bound: largest |s| of `tanh`.
    """

    scale: Literal["tanh", "sigmoid", "exp"] = "tanh"
    bound: float = 3.0

    @property
    def num_parameters(self) -> int:
        return 2

    def _log_scale(self, raw: Array) -> Array:
        if self.scale == "tanh":
            return self.bound * jnp.tanh(raw / self.bound)
        return jax.nn.log_sigmoid(raw + 2.0) if self.scale == "sigmoid" else raw

    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        s = self._log_scale(parameters[..., 1])
        return (x + parameters[..., 0]) * jnp.exp(s), s

    def inverse(self, z: Array, parameters: Array) -> tuple[Array, Array]:
        s = self._log_scale(parameters[..., 1])
        return z * jnp.exp(-s) - parameters[..., 0], -s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spline(Elementwise):
    """A rational-quadratic spline on [-bound, bound], the identity outside.

    Attributes:
      num_bins: number of bins.
      bound: half the width of the interval.
    """

    num_bins: int = 8
    bound: float = 3.0

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_bins - 1

    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        return rational_quadratic_spline(x, parameters, self.bound)

    def inverse(self, z: Array, parameters: Array) -> tuple[Array, Array]:
        return rational_quadratic_spline(z, parameters, self.bound, inverse=True)
