"""Invertible maps with log-determinants, and how to compose them.

A bijection is a frozen dataclass that holds no arrays, as models do; its parameters are a dict that `init` returns.
`forward` goes from data x to noise z, `inverse` back.  Both also return the log-determinant of
the map that was applied, so

    log p(x) = log p_Z(f(x)) + log |det df/dx|                        with (z, log_det) = forward(params, x)

Composition adds log-determinants.  A `Chain` with `recompute` stores no activations for the gradient: it walks back
from z through the inverses, so that memory does not grow with depth (Gomez et al. 2017, arXiv:1707.04585).
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bijection(abc.ABC):
    """An invertible map of each example of a batch.

    All methods take `condition`, a vector for each example [B, K] or None, on which the map may depend, and `keys`,
    one random key for each example [B] or None, for maps whose log-determinant may be estimated.
    """

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        """Returns parameters for inputs like x, whose values a data-dependent start may use."""
        return {}

    @abc.abstractmethod
    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns z and log |det dz/dx| [B]."""

    @abc.abstractmethod
    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns x and log |det dx/dz| [B]."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one z for one x of `shape`."""
        return shape


def sum_rest(a: Array) -> Array:
    """Sum over all axes but the first, [B]."""
    return a.reshape(a.shape[0], -1).sum(-1)


def no_change(x: Array) -> Array:
    """The log-determinant of a map that preserves volume, [B]."""
    return jnp.zeros(x.shape[0], x.dtype)


class LayerError(UserError):
    """The output of a layer is not finite; the message names the layer by its path."""

    def __init__(self, what: str, path: str, count: str) -> None:
        super().__init__(
            f"the {what} of layer {path} is not finite for {count} examples; "
            "look at the range of its inputs, or lower the learning rate"
        )
        self._parts = (what, path, count)

    def within(self, name: str) -> LayerError:
        """The same error for an outer map, whose part `name` contains the layer."""
        what, path, count = self._parts
        return LayerError(what, f"{name}/{path}", count)


@contextlib.contextmanager
def place(name: str) -> Iterator[None]:
    """Adds a part's name in front of the layer's path in errors that are raised inside."""
    try:
        yield
    except LayerError as error:
        raise error.within(name) from None


def is_concrete(*trees: Any) -> bool:
    """Whether all values are known, as they are outside of `jit` and without a gradient."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def check_finite(name: str, y: Array, log_det: Array) -> None:
    """Raises an error if the output of a layer outside `jit` is not finite.

    Raises:
      LayerError: names the layer and the number of affected examples.
    """
    if not is_concrete(y, log_det):
        return
    # In numpy, because inside `jit` even operations on constants of jnp give tracers.
    for what, values in (("log-determinant", log_det), ("output", y)):
        bad = int(np.sum(~np.isfinite(np.asarray(values)).reshape(len(values), -1).all(-1)))
        if bad:
            raise LayerError(what, name, f"{bad} of {len(values)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain(Bijection):
    """Bijections one after the other, the first next to the data.

    Attributes:
      layers: the maps.
      recompute: compute activations again through the inverses when the gradient is taken, instead of storing them.
    """

    layers: tuple[Bijection, ...]
    recompute: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers: place and class."""
        return tuple(f"{i:02d}_{type(layer).__name__.lower()}" for i, layer in enumerate(self.layers))

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        params = {}
        for index, (name, layer) in enumerate(zip(self.names, self.layers)):
            with place(name):
                own = layer.init(jax.random.fold_in(key, index), x, condition)
                if own:
                    params[name] = own
                x, log_det = layer.forward(own, x, condition)
            check_finite(name, x, log_det)
        return params

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        if self.recompute and not is_concrete(params, x, condition, keys):
            return _reversible(self, params, x, condition, keys)
        return self._forward(params, x, condition, keys)

    def _forward(self, params: Params, x: Array, condition: Array | None, keys: Array | None) -> tuple[Array, Array]:
        total = no_change(x)
        for index, (name, layer) in enumerate(zip(self.names, self.layers)):
            with place(name):
                x, log_det = layer.forward(params.get(name, {}), x, condition, fold(keys, index))
            check_finite(name, x, log_det)
            total = total + log_det
        return x, total

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        total = no_change(z)
        for index in reversed(range(len(self.layers))):
            name, layer = self.names[index], self.layers[index]
            with place(name):
                z, log_det = layer.inverse(params.get(name, {}), z, condition, fold(keys, index))
            check_finite(name, z, log_det)
            total = total + log_det
        return z, total

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape


def fold(keys: Array | None, index: int | Array) -> Array | None:
    """Keys for layer `index` of a chain, one for each example; None stays None."""
    return None if keys is None else jax.vmap(lambda k: jax.random.fold_in(k, index))(keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reversible(
    chain: Chain, params: Params, x: Array, condition: Array | None, keys: Array | None
) -> tuple[Array, Array]:
    return chain._forward(params, x, condition, keys)


def _reversible_forward(chain: Chain, params: Params, x: Array, condition: Array | None, keys: Array | None):
    z, log_det = chain._forward(params, x, condition, keys)
    return (z, log_det), (params, z, condition, keys)


def _reversible_backward(chain: Chain, residuals: tuple, cotangents: tuple[Array, Array]):
    params, z, condition, keys = residuals
    z_bar, log_det_bar = cotangents
    params_bar, condition_bar = {}, jax.tree.map(jnp.zeros_like, condition)
    for index in reversed(range(len(chain.layers))):
        name, layer = chain.names[index], chain.layers[index]
        own, own_keys = params.get(name, {}), fold(keys, index)
        x = layer.inverse(own, z, condition, own_keys)[0]
        call = lambda p, x, c: layer.forward(p, x, c, own_keys)  # noqa: B023
        _, pullback = jax.vjp(call, own, x, condition)
        own_bar, z_bar, c_bar = pullback((z_bar, log_det_bar))
        # The barrier keeps XLA from running all inverses first, which would store every activation.
        own_bar, z_bar, z = jax.lax.optimization_barrier((own_bar, z_bar, x))
        if name in params:
            params_bar[name] = own_bar
        condition_bar = jax.tree.map(jnp.add, condition_bar, c_bar)
    # Random keys have no gradient; a custom rule gives None for them.
    return params_bar, z_bar, condition_bar, None


_reversible.defvjp(_reversible_forward, _reversible_backward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invert(Bijection):
    """A bijection in the other direction: its inverse is the map from data to noise."""

    bijection: Bijection

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        return self.bijection.init(key, x, condition)

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return self.bijection.inverse(params, x, condition, keys)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return self.bijection.forward(params, z, condition, keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiScale(Bijection):
    """Factors half of the channels out after each level (Dinh et al. 2017, arXiv:1605.08803, section 3.6).

    Maps [B, H, W, C] to all factored-out variables side by side, [B, H W C].

    Attributes:
      shape: (H, W, C) of one example.
      levels: maps of images; each but the last must end in an even number of channels.
    """

    shape: tuple[int, ...]
    levels: tuple[Bijection, ...]

    def _shapes(self) -> list[tuple[int, ...]]:
        """Shape at the end of each level, before its split."""
        shapes, shape = [], self.shape
        for index, level in enumerate(self.levels):
            shape = level.output_shape(shape)
            shapes.append(shape)
            if index < len(self.levels) - 1:
                if shape[-1] % 2:
                    raise UserError(f"level {index} ends in {shape[-1]} channels, which cannot be split in two halves")
                shape = (*shape[:-1], shape[-1] // 2)
        return shapes

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        params = {}
        for index, level in enumerate(self.levels):
            with place(f"level_{index}"):
                own = level.init(jax.random.fold_in(key, index), x, condition)
                params[f"level_{index}"] = own
            if index < len(self.levels) - 1:
                x = level.forward(own, x, condition)[0]
                x = x[..., : x.shape[-1] // 2]
        return params

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        parts, total = [], no_change(x)
        for index, (level, shape) in enumerate(zip(self.levels, self._shapes())):
            with place(f"level_{index}"):
                x, log_det = level.forward(params[f"level_{index}"], x, condition, fold(keys, index))
            total = total + log_det
            if index < len(self.levels) - 1:
                x, out = x[..., : shape[-1] // 2], x[..., shape[-1] // 2 :]
                parts.append(out.reshape(out.shape[0], -1))
        return jnp.concatenate([*parts, x.reshape(x.shape[0], -1)], -1), total

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        shapes, total = self._shapes(), no_change(z)
        sizes = [math.prod(shape) // 2 for shape in shapes[:-1]]
        parts = jnp.split(z, [sum(sizes[: i + 1]) for i in range(len(sizes))], -1)
        x = parts[-1].reshape(-1, *shapes[-1])
        for index in reversed(range(len(self.levels))):
            if index < len(self.levels) - 1:
                x = jnp.concatenate([x, parts[index].reshape(x.shape)], -1)
            with place(f"level_{index}"):
                x, log_det = self.levels[index].inverse(params[f"level_{index}"], x, condition, fold(keys, index))
            total = total + log_det
        return x, total

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)
