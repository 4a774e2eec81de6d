"""A bijection repeated many times with separate parameters, compiled once by a scan over depth."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from genjax.families.flow.bijections.base import Array, Bijection, Params, fold, is_concrete, no_change, place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeat(Bijection):
    """`count` copies of a bijection that keeps shapes; parameters have a leading axis [count].

    Outside of `jit` the copies run one by one, so that an error can name the copy.

    Attributes:
      bijection: the bijection that is repeated.
      count: number of copies.
      recompute: compute activations again through the inverse when the gradient is taken.
    """

    bijection: Bijection
    count: int
    recompute: bool = False

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        def body(x: Array, key: Array) -> tuple[Array, Params]:
            params = self.bijection.init(key, x, condition)
            return self.bijection.forward(params, x, condition)[0], params

        keys = jax.random.split(key, self.count)
        if not is_concrete(keys, x, condition):
            return jax.lax.scan(body, x, keys)[1]
        params = []
        for index in range(self.count):
            with place(f"{index:02d}"):
                x, own = body(x, keys[index])
            params.append(own)
        return jax.tree.map(lambda *parts: jnp.stack(parts), *params)

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        if self.recompute and not is_concrete(params, x, condition, keys):
            return _reversible(self, params, x, condition, keys)
        return self._scan(params, x, condition, keys, inverse=False)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return self._scan(params, z, condition, keys, inverse=True)

    def _scan(
        self, params: Params, x: Array, condition: Array | None, keys: Array | None, inverse: bool
    ) -> tuple[Array, Array]:
        apply = self.bijection.inverse if inverse else self.bijection.forward

        def body(carry: tuple[Array, Array], row: tuple[Array | int, Params]) -> tuple[tuple[Array, Array], None]:
            (x, total), (index, own) = carry, row
            x, log_det = apply(own, x, condition, fold(keys, index))
            return (x, total + log_det), None

        carry = (x, no_change(x))
        if not is_concrete(params, x, condition, keys):
            return jax.lax.scan(body, carry, (jnp.arange(self.count), params), reverse=inverse)[0]
        for index in reversed(range(self.count)) if inverse else range(self.count):
            with place(f"{index:02d}"):
                carry, _ = body(carry, (index, jax.tree.map(lambda a, i=index: a[i], params)))
        return carry


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reversible(
    repeat: Repeat, params: Params, x: Array, condition: Array | None, keys: Array | None
) -> tuple[Array, Array]:
    return repeat._scan(params, x, condition, keys, inverse=False)


def _reversible_forward(repeat: Repeat, params: Params, x: Array, condition: Array | None, keys: Array | None):
    z, log_det = repeat._scan(params, x, condition, keys, inverse=False)
    return (z, log_det), (params, z, condition, keys)


def _reversible_backward(repeat: Repeat, residuals: tuple, cotangents: tuple[Array, Array]):
    params, z, condition, keys = residuals
    z_bar, log_det_bar = cotangents

    def body(carry, row):
        (z, z_bar, condition_bar), (index, own) = carry, row
        own_keys = fold(keys, index)
        x = repeat.bijection.inverse(own, z, condition, own_keys)[0]
        call = lambda p, x, c: repeat.bijection.forward(p, x, c, own_keys)
        own_bar, z_bar, c_bar = jax.vjp(call, own, x, condition)[1]((z_bar, log_det_bar))
        return (x, z_bar, jax.tree.map(jnp.add, condition_bar, c_bar)), own_bar

    start = (z, z_bar, jax.tree.map(jnp.zeros_like, condition))
    rows = (jnp.arange(repeat.count), params)
    (_, x_bar, condition_bar), params_bar = jax.lax.scan(body, start, rows, reverse=True)
    return params_bar, x_bar, condition_bar, None


_reversible.defvjp(_reversible_forward, _reversible_backward)
