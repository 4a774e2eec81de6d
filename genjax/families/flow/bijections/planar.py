"""Planar and radial maps (Rezende & Mohamed 2015, arXiv:1505.05770).

    planar   z = x + u tanh(w.x + b),                log|det| = log(1 + (1 - tanh^2) w.u)            (eqs. 10-12)
    radial   z = x + beta h(r) (x - x_0),            h = 1 / (alpha + r),  r = |x - x_0|             (eq. 14)
             log|det| = (D - 1) log(1 + beta h) + log(1 + beta h + beta h' r)

with w.u >= -1 and beta >= -alpha, so that both maps are invertible (appendix A).  The planar inverse is the root of one
increasing function of one number; the radial inverse is the root of a quadratic.  With a condition, a linear map of the
condition is added to the parameters, as for a posterior that depends on an encoder.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from genjax.families.flow.bijections.base import Array, Bijection, Params


def _with_condition(params: Params, condition: Array | None, size: int) -> dict[str, Array]:
    """Parameters for each example: [size or 1, ...]."""
    own = {name: value[None] for name, value in params.items() if not name.startswith("from_condition")}
    if condition is None:
        return own
    for name, value in own.items():
        shift = condition @ params[f"from_condition_{name}"]
        own[name] = value + shift.reshape(size, *value.shape[1:])
    return own


def _condition_kernels(params: Params, condition: Array | None) -> Params:
    if condition is None:
        return params
    kernels = {
        f"from_condition_{name}": jnp.zeros((condition.shape[-1], value.size), value.dtype)
        for name, value in params.items()
    }
    return {**params, **kernels}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planar(Bijection):
    """Pushes vectors along u at a plane with normal w."""

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        u_key, w_key = jax.random.split(key)
        dim = x.shape[-1]
        params = {
            "u": 0.1 * jax.random.normal(u_key, (dim,), x.dtype),
            "w": jax.random.normal(w_key, (dim,), x.dtype) / dim**0.5,
            "b": jnp.zeros(1, x.dtype),
        }
        return _condition_kernels(params, condition)

    def _parameters(self, params: Params, condition: Array | None, size: int) -> tuple[Array, Array, Array, Array]:
        own = _with_condition(params, condition, size)
        u, w, b = own["u"], own["w"], own["b"]
        product = (w * u).sum(-1, keepdims=True)
        # Invertibility depends on w.u only; u is moved along w so that w.u becomes softplus(w.u) - 1 > -1.
        u = u + (jax.nn.softplus(product) - 1.0 - product) * w / (w**2).sum(-1, keepdims=True)
        return u, w, b, jax.nn.softplus(product) - 1.0  # [B or 1, D] twice, [B or 1, 1] twice

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        u, w, b, slope = self._parameters(params, condition, x.shape[0])
        t = jnp.tanh((x * w).sum(-1, keepdims=True) + b)
        return x + u * t, jnp.log1p(slope * (1.0 - t**2))[:, 0]

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        u, w, b, slope = self._parameters(params, condition, z.shape[0])
        target = (z * w).sum(-1, keepdims=True) + b

        # a + slope tanh(a) = target, increasing in a; the root lies within |slope| of the target.
        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            above = middle + slope * jnp.tanh(middle) > target
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        reach = jnp.broadcast_to(jnp.abs(slope), target.shape)
        low, high = jax.lax.fori_loop(0, 60, halve, jax.lax.stop_gradient((target - reach, target + reach)))
        a = jax.lax.stop_gradient(0.5 * (low + high))
        # One Newton step at the root does not move it, and gives its gradient.
        t = jnp.tanh(a)
        a = a - (a + slope * t - target) / jax.lax.stop_gradient(1.0 + slope * (1.0 - t**2))
        t = jnp.tanh(a)
        return z - u * t, -jnp.log1p(slope * (1.0 - t**2))[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Radial(Bijection):
    """Contracts or expands vectors around x_0."""

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        params = {
            "center": 0.5 * jax.random.normal(key, (x.shape[-1],), x.dtype),
            "raw_alpha": jnp.zeros(1, x.dtype),
            "raw_beta": jnp.zeros(1, x.dtype),
        }
        return _condition_kernels(params, condition)

    def _parameters(self, params: Params, condition: Array | None, size: int) -> tuple[Array, Array, Array]:
        own = _with_condition(params, condition, size)
        alpha = jax.nn.softplus(own["raw_alpha"])
        return own["center"], alpha, jax.nn.softplus(own["raw_beta"]) - alpha

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        center, alpha, beta = self._parameters(params, condition, x.shape[0])
        r = _norm(x - center)
        h = 1.0 / (alpha + r)
        return x + beta * h * (x - center), self._log_det(x.shape[-1], alpha, beta, r)

    def _log_det(self, dim: int, alpha: Array, beta: Array, r: Array) -> Array:
        h = 1.0 / (alpha + r)
        return ((dim - 1) * jnp.log1p(beta * h) + jnp.log1p(beta * h - beta * h**2 * r))[:, 0]

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        center, alpha, beta = self._parameters(params, condition, z.shape[0])
        # |z - x_0| = r (1 + beta / (alpha + r)) is a quadratic in r with one root that is not negative.
        distance = _norm(z - center)
        p = alpha + beta - distance
        r = 0.5 * (jnp.sqrt(p**2 + 4.0 * alpha * distance) - p)
        x = center + (z - center) / (1.0 + beta / (alpha + r))
        return x, -self._log_det(z.shape[-1], alpha, beta, r)


def _norm(x: Array) -> Array:
    """Length of each vector, [B, 1]; the small number keeps the gradient at 0 finite."""
    return jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-24)
