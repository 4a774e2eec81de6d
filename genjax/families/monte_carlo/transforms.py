"""Bijections from unconstrained to constrained parameters, so that every kernel may move in all of space.

log p(u) = log p(f(u)) + log |det df/du|
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array


class Transform(abc.ABC):
    """Base: `forward(u) -> (x, log |det dx/du| [])`, and its `inverse(x) -> u`."""

    @abc.abstractmethod
    def forward(self, u: Array) -> tuple[Array, Array]: ...

    @abc.abstractmethod
    def inverse(self, x: Array) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Positive(Transform):
    """x = exp(u)."""

    def forward(self, u: Array) -> tuple[Array, Array]:
        return jnp.exp(u), u.sum()

    def inverse(self, x: Array) -> Array:
        return jnp.log(x)


@dataclasses.dataclass(frozen=True)
class Interval(Transform):
    """x = low + (high - low) sigmoid(u)."""

    low: float = 0.0
    high: float = 1.0

    def forward(self, u: Array) -> tuple[Array, Array]:
        width = self.high - self.low
        log_det = jnp.log(width) + jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u)
        return self.low + width * jax.nn.sigmoid(u), log_det.sum()

    def inverse(self, x: Array) -> Array:
        return jax.scipy.special.logit((x - self.low) / (self.high - self.low))


@dataclasses.dataclass(frozen=True)
class Ordered(Transform):
    """Rising numbers: x_1 = u_1, x_i = x_i-1 + exp(u_i)."""

    def forward(self, u: Array) -> tuple[Array, Array]:
        return jnp.cumsum(u.at[1:].set(jnp.exp(u[1:]))), u[1:].sum()

    def inverse(self, x: Array) -> Array:
        return jnp.concatenate([x[:1], jnp.log(jnp.diff(x))])


@dataclasses.dataclass(frozen=True)
class Simplex(Transform):
    """K probabilities from K - 1 numbers by breaking a stick, v_i = sigmoid(u_i - log(K - i)) of the rest."""

    def forward(self, u: Array) -> tuple[Array, Array]:
        logits = u - jnp.log(jnp.arange(len(u), 0, -1.0))
        log_v, log_rest = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        left = jnp.concatenate([jnp.zeros(1), jnp.cumsum(log_rest)])
        x = jnp.exp(left + jnp.append(log_v, 0.0))
        return x, (log_v + log_rest + left[:-1]).sum()

    def inverse(self, x: Array) -> Array:
        left = 1.0 - jnp.concatenate([jnp.zeros(1), jnp.cumsum(x[:-1])[:-1]])
        return jax.scipy.special.logit(x[:-1] / left) + jnp.log(jnp.arange(len(x) - 1, 0, -1.0))


def unconstrained(
    log_density: Callable[[dict[str, Any]], Array], transforms: Mapping[str, Transform]
) -> Callable[[dict[str, Any]], Array]:
    """The log-density of unconstrained parameters, from the log-density of constrained parameters.

    `transforms` are by the names of parameters; parameters without a transform stay as they are.
    """

    def density(position: dict[str, Any]) -> Array:
        out, log_det = dict(position), jnp.zeros(())
        for name, transform in transforms.items():
            out[name], change = transform.forward(position[name])
            log_det += change
        return log_density(out) + log_det

    return density


def constrain(position: Mapping[str, Array], transforms: Mapping[str, Transform]) -> dict[str, Array]:
    """Constrained parameters of draws with leading axes [chains, draws]."""
    return {
        name: jax.vmap(jax.vmap(lambda u, t=transforms[name]: t.forward(u)[0]))(u) if name in transforms else u
        for name, u in position.items()
    }
