"""Linear and parameter-free maps: ActNorm, invertible 1x1 convolution, permutations, squeeze, logit.

ActNorm          z = (x + b) exp(s), where b and s give the first batch mean 0, variance 1 a channel
                                                               (Kingma & Dhariwal 2018, arXiv:1807.03039, 3.1)
InvertibleLinear z = W x a pixel, W = P L (U + diag(sign exp(s))), log|det W| = sum s     (eqs. 10-11)
Squeeze          2x2 pixels become 4 channels                  (Dinh et al. 2017, arXiv:1605.08803, 3.6)
Logit            z = logit(alpha + (1 - 2 alpha) x) for x in [0, 1]                       (4.1)
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from genjax.errors import UserError
from genjax.families.flow.bijections.base import Array, Bijection, Params, no_change, sum_rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActNorm(Bijection):
    """Shift and scale of each channel (for vectors, of each number), initialised from the first batch.

    Attributes:
      minimum_scale: smallest standard deviation that the initial scale divides by.  Channels that are constant in the
        first batch (in a batch of one vector, all of them) start at scale 1.
    """

    minimum_scale: float = 1e-3

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        axes = tuple(range(x.ndim - 1))
        mean, deviation = x.mean(axes), x.std(axes)
        # Up to rounding: after earlier layers, constant inputs may differ in the last bit.
        constant = deviation <= 1e-6 * jnp.abs(x).max(axes)
        deviation = jnp.where(constant, 1.0, jnp.maximum(deviation, self.minimum_scale))
        return {"shift": -mean, "log_scale": -jnp.log(deviation)}

    def _broadcast(self, params: Params, x: Array) -> tuple[Array, Array, Array]:
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        log_det = params["log_scale"].sum() * math.prod(x.shape[1:-1])
        return params["shift"].reshape(shape), params["log_scale"].reshape(shape), log_det

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        shift, log_scale, log_det = self._broadcast(params, x)
        return (x + shift) * jnp.exp(log_scale), no_change(x) + log_det

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        shift, log_scale, log_det = self._broadcast(params, z)
        return z * jnp.exp(-log_scale) - shift, no_change(z) - log_det


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(Bijection):
    """z = x exp(s) for each number of an example: NICE's rescaling layer (Dinh et al. 2014, section 3.3)."""

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        return {"log_scale": jnp.zeros(x.shape[1:], x.dtype)}

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return x * jnp.exp(params["log_scale"])[None], no_change(x) + params["log_scale"].sum()

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return z * jnp.exp(-params["log_scale"])[None], no_change(z) - params["log_scale"].sum()


@functools.lru_cache(maxsize=256)
def _permutation_and_signs(dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """P [D, D] and the signs of U's diagonal [D] of a random rotation; they are not learned."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    permutation, _, upper = scipy.linalg.lu(q * np.sign(np.diag(r))[None, :])
    return permutation, np.sign(np.diag(upper))


#: Matrix product in full float32.  By default GPUs round the inputs of products to ten bits, but not the inputs of the
#: triangular inverse.  With this rounding, gradients of 24 steps of Glow, recomputed through the inverse, are 1% off.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvertibleLinear(Bijection):
    """A learned matrix on the channels of each pixel (on the whole of a vector): a 1x1 convolution in LU form.

    Attributes:
      seed: seed of the permutation P and the signs, which are fixed; the initial rotation has the model's random key.
    """

    seed: int = 0

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        dim = x.shape[-1]
        q, _ = jnp.linalg.qr(jax.random.normal(key, (dim, dim)))
        _, lower, upper = jax.scipy.linalg.lu(q)
        # W = P L U is orthogonal too if its permutation of rows and its signs of columns differ from q's.
        diagonal = jnp.diag(upper)
        upper = upper * (jnp.sign(diagonal) * _permutation_and_signs(dim, self.seed)[1])[None, :]
        return {
            "lower": jnp.tril(lower, -1).astype(x.dtype),
            "upper": jnp.triu(upper, 1).astype(x.dtype),
            "log_diagonal": jnp.log(jnp.abs(diagonal)).astype(x.dtype),
        }

    def _factors(self, params: Params, dim: int) -> tuple[Array, Array, Array]:
        permutation, signs = _permutation_and_signs(dim, self.seed)
        dtype = params["lower"].dtype
        diagonal = jnp.asarray(signs, dtype) * jnp.exp(params["log_diagonal"])
        lower = jnp.tril(params["lower"], -1) + jnp.eye(dim, dtype=dtype)
        return jnp.asarray(permutation, dtype), lower, jnp.triu(params["upper"], 1) + jnp.diag(diagonal)

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        permutation, lower, upper = self._factors(params, x.shape[-1])
        log_det = params["log_diagonal"].sum() * math.prod(x.shape[1:-1])
        return _product(x, _product(permutation, _product(lower, upper)).T), no_change(x) + log_det

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        permutation, lower, upper = self._factors(params, z.shape[-1])
        log_det = params["log_diagonal"].sum() * math.prod(z.shape[1:-1])
        columns = _product(permutation.T, z.reshape(-1, z.shape[-1]).T)
        columns = jax.scipy.linalg.solve_triangular(lower, columns, lower=True, unit_diagonal=True)
        columns = jax.scipy.linalg.solve_triangular(upper, columns)
        return columns.T.reshape(z.shape), no_change(z) - log_det


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permute(Bijection):
    """A fixed permutation of the last axis.

    Attributes:
      seed: seed of the permutation; None reverses the order.
    """

    seed: int | None = None

    def _order(self, dim: int) -> np.ndarray:
        return np.arange(dim)[::-1] if self.seed is None else np.random.default_rng(self.seed).permutation(dim)

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return x[..., self._order(x.shape[-1])], no_change(x)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return z[..., np.argsort(self._order(z.shape[-1]))], no_change(z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squeeze(Bijection):
    """[B, H, W, C] to [B, H / 2, W / 2, 4 C]."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 3 or shape[0] % 2 or shape[1] % 2:
            raise UserError(
                f"squeeze needs images of even height and width, got shape {shape}; pad or crop them, "
                "or use fewer levels"
            )
        return (shape[0] // 2, shape[1] // 2, 4 * shape[2])

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        h, w, c = self.output_shape(x.shape[1:])
        x = x.reshape(-1, h, 2, w, 2, c // 4).transpose(0, 1, 3, 5, 2, 4)  # [B, H/2, W/2, C, 2, 2]
        return x.reshape(-1, h, w, c), no_change(x)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        b, h, w, c = z.shape
        z = z.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)  # [B, H, 2, W, 2, C / 4]
        return z.reshape(b, 2 * h, 2 * w, c // 4), no_change(z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flatten(Bijection):
    """[B, ...] to [B, D].

    Attributes:
      shape: shape of one example.
    """

    shape: tuple[int, ...]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return x.reshape(x.shape[0], -1), no_change(x)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return z.reshape(z.shape[0], *self.shape), no_change(z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logit(Bijection):
    """Numbers of [0, 1] to the real line.

    Attributes:
      alpha: distance that is kept from 0 and from 1.
    """

    alpha: float = 0.05

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        check_range(x, 0.0, 1.0)
        y = self.alpha + (1.0 - 2.0 * self.alpha) * x
        log_y, log_rest = jnp.log(y), jnp.log1p(-y)
        return log_y - log_rest, sum_rest(math.log1p(-2.0 * self.alpha) - log_y - log_rest)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        x = (jax.nn.sigmoid(z) - self.alpha) / (1.0 - 2.0 * self.alpha)
        log_det = sum_rest(jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z) - math.log1p(-2.0 * self.alpha))
        return x, log_det


def check_range(x: Array, low: float, high: float) -> None:
    """Raises an error if values are out of their declared range, outside `jit` (inside `jit` the loss becomes NaN).

    Raises:
      UserError: names the declared range and the range of the values.
    """
    if isinstance(x, jax.core.Tracer):
        return
    # In numpy, because inside `jit` even operations on constants of jnp give tracers.
    smallest, largest = (float(f(np.asarray(x))) for f in (np.min, np.max))
    if not (low <= smallest and largest <= high):
        raise UserError(
            f"values are declared to lie in [{low:g}, {high:g}], but reach from {smallest:g} to {largest:g}"
        )
