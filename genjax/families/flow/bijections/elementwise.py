"""Maps of single numbers with unconstrained parameters, for couplings and autoregressive maps.

    additive   z = x + t                                (NICE, Dinh et al. 2014, arXiv:1410.8516, eq. 12)
    affine     z = (x + t) exp(s)                       (RealNVP, arXiv:1605.08803, eq. 7; MAF, arXiv:1705.07057, eq. 4)
    spline     z = a monotone rational-quadratic spline (Durkan et al. 2019, arXiv:1906.04032)

Parameters of zero give the identity (with a sigmoid scale, nearly).

Parameters of numbers [..., D] are [..., P D]: the first parameters of all numbers, then all
second parameters, and so on.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.nn.splines import rational_quadratic_spline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elementwise(abc.ABC):
    """A monotone map of numbers with `num_parameters` parameters each."""

    @property
    @abc.abstractmethod
    def num_parameters(self) -> int:
        """Number P of parameters for each number."""

    @abc.abstractmethod
    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        """Returns z and log dz/dx, of x's shape [..., D]; parameters are [..., num_parameters * D]."""

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
        return x + parameters, jnp.zeros_like(x)

    def inverse(self, z: Array, parameters: Array) -> tuple[Array, Array]:
        return z - parameters, jnp.zeros_like(z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine(Elementwise):
    """z = (x + t) exp(s).

    Attributes:
      scale: how s depends on its parameter r: `tanh` s = bound tanh(r / bound), which is bounded;
        `sigmoid` exp(s) = sigmoid(r + 2), Glow's choice; `exp` s = r.
      bound: largest |s| of `tanh`.
    """

    scale: Literal["tanh", "sigmoid", "exp"] = "tanh"
    bound: float = 3.0

    @property
    def num_parameters(self) -> int:
        return 2

    def _shift_and_log_scale(self, parameters: Array) -> tuple[Array, Array]:
        # The gradient of a split is a concatenation; the gradient of slices would be a sum of padded arrays.
        shift, raw = jnp.split(parameters, 2, axis=-1)
        if self.scale == "tanh":
            return shift, self.bound * jnp.tanh(raw / self.bound)
        return shift, jax.nn.log_sigmoid(raw + 2.0) if self.scale == "sigmoid" else raw

    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        t, s = self._shift_and_log_scale(parameters)
        return (x + t) * jnp.exp(s), s

    def inverse(self, z: Array, parameters: Array) -> tuple[Array, Array]:
        t, s = self._shift_and_log_scale(parameters)
        return z * jnp.exp(-s) - t, -s


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

    def _apply(self, x: Array, parameters: Array, inverse: bool) -> tuple[Array, Array]:
        parameters = parameters.reshape(*x.shape[:-1], self.num_parameters, x.shape[-1]).swapaxes(-1, -2)
        return rational_quadratic_spline(x, parameters, self.bound, inverse)

    def forward(self, x: Array, parameters: Array) -> tuple[Array, Array]:
        return self._apply(x, parameters, inverse=False)

    def inverse(self, z: Array, parameters: Array) -> tuple[Array, Array]:
        return self._apply(z, parameters, inverse=True)
