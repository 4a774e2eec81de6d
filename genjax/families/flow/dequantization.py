"""Dequantisation: a density model of pictures whose values are one of L levels.

With y = (k + u) / L, u in [0, 1)^D drawn from q(u | k), for the probability of the levels k (in nats)

    log P(k) >= E_q [ log p(y) - D log L - log q(u | k) ]

    Uniform       q = 1                                               (Theis et al. 2016, arXiv:1511.01844)
    Variational   u = sigmoid(v), v by a flow of couplings from logistic noise given k  (Flow++, Ho et al. 2019,
                                                                                         arXiv:1902.00275, eq. 12)

Flow++ draws v by convolutional couplings from normal noise.  Here dense networks see all levels as one vector, which
suits small pictures only.  The noise is logistic, so that u is uniform at the start and the bound equals the bound of
`Uniform`.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.flow.bijections import Bijection, Chain, Coupling, Permute
from genjax.families.flow.bijections.base import sum_rest
from genjax.families.flow.bijections.linear import check_range
from genjax.families.flow.networks import MLP
from genjax.values import Lattice

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dequantization(abc.ABC):
    """Noise that fills the gaps between levels.

    Attributes:
      num_levels: number L of levels; None takes the data's.
      minimum: x of the lowest level.
      maximum: x of the highest level.
    """

    num_levels: int | None = None
    minimum: float = 0.0
    maximum: float = 1.0

    @property
    def levels(self) -> int:
        """L.

        Raises:
          UserError: neither configuration nor data give it.
        """
        if self.num_levels is None:
            raise UserError("dequantization.num_levels is None; give the number of levels, e.g. 256")
        return self.num_levels

    def lattice(self) -> Lattice:
        """The levels as values of x."""
        return Lattice(low=self.minimum, high=self.maximum, num_levels=self.num_levels)

    def init(self, key: Array, x: Array) -> Params:
        """Returns the parameters, if there are any."""
        return {}

    def __call__(self, params: Params, x: Array, keys: Array) -> tuple[Array, Array]:
        """Fills the gaps.

        Args:
          params: what `init` returned.
          x: evenly spaced levels from `minimum` to `maximum`, [B, ...].
          keys: one key for each example, [B].

        Returns:
          y in [0, 1], of x's shape, NaN where x is none of the levels, and -D log L - log q(u | k), [B].

        Raises:
          UserError: values outside of `jit` are none of the levels.
        """
        check_range(x, self.minimum, self.maximum)
        lattice = self.lattice()
        lattice.as_support("dequantization", "data.preprocessing to unit, or dequantization.num_levels").check(x)
        unit = (x - self.minimum) / (self.maximum - self.minimum)
        k = jnp.round(unit * (self.levels - 1))
        u, log_q = self._noise(params, unit, keys)
        dim = math.prod(x.shape[1:])
        # The largest u can round k + u up to L, where a logit would be infinite.
        y = jnp.minimum((k + u) / self.levels, 1.0 - jnp.finfo(x.dtype).epsneg)
        # Other values have probability 0; NaN stops the run, as an error cannot be raised under jit.
        y = jnp.where(lattice.contains(x), y, jnp.nan)
        return y, -dim * math.log(self.levels) - log_q

    def quantize(self, y: Array) -> Array:
        """The level that each y in [0, 1] lies in, as x."""
        k = jnp.clip(jnp.floor(y * self.levels), 0, self.levels - 1)
        return self.minimum + (self.maximum - self.minimum) * k / (self.levels - 1)

    @abc.abstractmethod
    def _noise(self, params: Params, unit: Array, keys: Array) -> tuple[Array, Array]:
        """u in [0, 1) of the shape of `unit`, and log q(u | k) [B]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(Dequantization):
    """u uniform on [0, 1)."""

    def _noise(self, params: Params, unit: Array, keys: Array) -> tuple[Array, Array]:
        draw = lambda key: jax.random.uniform(key, unit.shape[1:], unit.dtype)
        return jax.vmap(draw)(keys), jnp.zeros(unit.shape[0], unit.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variational(Dequantization):
    """u from a learned flow given the levels; tightens the bound.

    Attributes:
      num_couplings: affine couplings of the flow, which by turns move each half of the pixels; at least 2.
      hidden_dims: widths of their networks, which see all levels.
    """

    num_couplings: int = 2
    hidden_dims: tuple[int, ...] = (128,)

    def _flow(self) -> Bijection:
        if self.num_couplings < 2:
            raise UserError(
                f"dequantization.num_couplings={self.num_couplings} must be at least 2, "
                "or half of the noise is not learned"
            )
        network = MLP(hidden_dims=self.hidden_dims)
        couplings = [Coupling(network=network, flip=index % 2 == 1) for index in range(self.num_couplings)]
        # The same permutation in all layers, which spreads the halves over the picture; another one in each layer could
        # leave some pixels unchanged.
        return Chain(layers=(Permute(seed=0), *couplings))

    def init(self, key: Array, x: Array) -> Params:
        flat = x.reshape(x.shape[0], -1)
        return {"flow": self._flow().init(key, flat, flat)}

    def _noise(self, params: Params, unit: Array, keys: Array) -> tuple[Array, Array]:
        flat = unit.reshape(unit.shape[0], -1)
        epsilon = jax.vmap(lambda key: jax.random.logistic(key, flat.shape[1:], flat.dtype))(keys)
        v, log_det = self._flow().forward(params["flow"], epsilon, flat)
        # The density of logistic noise is the slope of the sigmoid.
        log_slope = lambda a: sum_rest(jax.nn.log_sigmoid(a) + jax.nn.log_sigmoid(-a))
        return jax.nn.sigmoid(v).reshape(unit.shape), log_slope(epsilon) - log_det - log_slope(v)
