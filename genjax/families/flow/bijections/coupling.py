"""Coupling: one part of an example sets the parameters of a map of the other part (NICE, RealNVP, Glow, spline flows).

    z_a = x_a,    z_b = g(x_b; theta = network(x_a)),    log|det| = sum log g'(x_b)

The Jacobian is triangular, and the inverse needs the network once, never its inverse.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from genjax.errors import UserError
from genjax.families.flow.bijections.base import Array, Bijection, Params, sum_rest
from genjax.families.flow.bijections.elementwise import Affine, Elementwise


def checkerboard(height: int, width: int, flip: bool) -> np.ndarray:
    """[H, W, 1] booleans, True where the example stays."""
    rows, columns = np.indices((height, width))
    return ((rows + columns) % 2 == int(flip))[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coupling(Bijection):
    """One coupling layer.

    Attributes:
      network: a module called with (x_a, num_outputs, condition); for a checkerboard x_a has holes of 0.
      transform: the elementwise map g.
      partition: division of an example: `half` of the last axis, `alternate` places of it, or
        `checkerboard` pixels of an image.
      flip: swap the two parts.
    """

    network: nn.Module
    transform: Elementwise = Affine()
    partition: Literal["half", "alternate", "checkerboard"] = "half"
    flip: bool = False

    def _parts(self, x: Array) -> tuple[Array, Array]:
        if self.partition == "alternate":
            a, b = x[..., 0::2], x[..., 1::2]
        else:
            a, b = jnp.split(x, [(x.shape[-1] + 1) // 2], axis=-1)
        if a.shape[-1] == 0 or b.shape[-1] == 0:
            raise UserError(
                f"a coupling cannot part {x.shape[-1]} number in two; use a checkerboard, a squeeze before it, "
                "or other layers"
            )
        return (b, a) if self.flip else (a, b)

    def _join(self, a: Array, b: Array) -> Array:
        if self.flip:
            a, b = b, a
        if self.partition == "half":
            return jnp.concatenate([a, b], -1)
        # Interleave the two parts; an odd size has one more number at the end.
        n = b.shape[-1]
        pairs = jnp.stack([a[..., :n], b], -1).reshape(*b.shape[:-1], 2 * n)
        return pairs if a.shape[-1] == n else jnp.concatenate([pairs, a[..., n:]], -1)

    def _parameters(self, params: Params, a: Array, num: int, condition: Array | None) -> Array:
        return self.network.apply({"params": params}, a, num * self.transform.num_parameters, condition)

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        if self.partition == "checkerboard":
            a, num = x, x.shape[-1]
        else:
            a, b = self._parts(x)
            num = b.shape[-1]
        outputs = num * self.transform.num_parameters
        return self.network.init(key, a, outputs, condition)["params"]

    def _apply(self, params: Params, x: Array, condition: Array | None, inverse: bool) -> tuple[Array, Array]:
        apply = self.transform.inverse if inverse else self.transform.forward
        if self.partition == "checkerboard":
            stays = jnp.broadcast_to(checkerboard(*x.shape[1:3], self.flip)[None], x.shape)
            parameters = self._parameters(params, jnp.where(stays, x, 0.0), x.shape[-1], condition)
            moved, log_derivative = apply(x, parameters)
            return jnp.where(stays, x, moved), sum_rest(jnp.where(stays, 0.0, log_derivative))
        a, b = self._parts(x)
        b, log_derivative = apply(b, self._parameters(params, a, b.shape[-1], condition))
        return self._join(a, b), sum_rest(log_derivative)

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return self._apply(params, x, condition, inverse=False)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return self._apply(params, z, condition, inverse=True)
