"""Residual flows of vectors (Behrmann et al. 2019, arXiv:1811.00995; Chen et al. 2019, arXiv:1906.02735).

    z = x + g(x),   Lip(g) <= c < 1,    x by the fixed point x <- z - g(x)
    log det(I + J) = sum_{k>=1} (-1)^{k+1} tr(J^k) / k                                         (2019a, eq. 4)
    d log det(I + J) = sum_{k>=1} (-1)^{k+1} tr(J^{k-1} dJ)                                    (2019b, eq. 8)

Both series are estimated without bias (2019b, eqs. 6-8): the first n terms, then N more with N geometric, each divided
by the probability that it is reached, and tr(A) = E[v^T A v] with v of random signs.  The gradient is the gradient of
one product w^T dJ v, w^T = v^T sum (-1)^{k+1} J^{k-1}, so the series is not stored.  In few dimensions, or without
random keys, the determinant of the whole Jacobian is taken instead.

A kernel whose largest singular value exceeds c^(1 / layers) is scaled down to it.  The value is computed exactly and
not by power iteration, so that the bound holds at each step and no state is needed.

The papers' convolutions, several scales, and learned norms other than the Euclidean norm are not implemented.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.flow.bijections import ActNorm, Bijection, Flatten
from genjax.families.flow.bijections.base import Params
from genjax.families.flow.flow import Flow


def limit_spectral_norm(kernel: Array, bound: float) -> Array:
    """Scales a kernel [in, out] so that its largest singular value is at most `bound`."""
    tall = kernel.shape[0] >= kernel.shape[1]
    fixed = jax.lax.stop_gradient(kernel)
    # The derivative of a singular value equals the derivative at fixed singular vectors, so eigh needs no gradient.
    gram = fixed.T @ fixed if tall else fixed @ fixed.T
    vector = jnp.linalg.eigh(gram)[1][:, -1]
    sigma = jnp.linalg.norm(kernel @ vector if tall else vector @ kernel)
    return kernel * jnp.minimum(1.0, bound / sigma)


def lip_swish(x: Array) -> Array:
    """x sigmoid(x) / 1.1, whose slope is at most 1 (Chen et al. 2019, section 3.3)."""
    return nn.silu(x) / 1.1


class ContractiveMLP(nn.Module):
    """A network with Lipschitz constant at most `lipschitz`.

    Attributes:
      hidden_dims: widths of the hidden layers.
      lipschitz: Lipschitz constant c.
    """

    hidden_dims: tuple[int, ...]
    lipschitz: float = 0.9

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        widths = (*self.hidden_dims, x.shape[-1])
        bound = self.lipschitz ** (1.0 / len(widths))
        h = x
        for index, width in enumerate(widths):
            kernel = self.param(f"kernel_{index}", nn.initializers.lecun_normal(), (h.shape[-1], width))
            bias = self.param(f"bias_{index}", nn.initializers.zeros_init(), (width,))
            h = h @ limit_spectral_norm(kernel, bound) + bias[None]
            if condition is not None:
                h = h + nn.Dense(width, use_bias=False, name=f"condition_{index}")(condition)
            if index < len(widths) - 1:
                h = lip_swish(h)
        return h


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual(Bijection):
    """z = x + g(x) on vectors.

    Attributes:
      network: g, a contraction.
      exact_dim: largest dimension in which the whole Jacobian is computed even if keys for an estimate are given.
      num_exact_terms: number n of terms of the series that are always computed.
      stop_probability: parameter of the geometric number of further terms; None takes 1 - c, but at most the paper's
        1/2.  Above 1 - c^2 the variance can be infinite.
      tolerance: error of the inverse, relative to 1 + max |z|.
    """

    network: ContractiveMLP
    exact_dim: int = 4
    num_exact_terms: int = 4
    stop_probability: float | None = None
    tolerance: float = 1e-5

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        return self.network.init(key, x, condition)["params"]

    def _residual(self, params: Params, x: Array, condition: Array | None) -> Array:
        return self.network.apply({"params": params}, x, condition)

    def _log_det(self, params: Params, x: Array, condition: Array | None, keys: Array | None) -> Array:
        if keys is None or x.shape[-1] <= self.exact_dim:
            row = lambda v, c: self._residual(params, v[None], None if c is None else c[None])[0]
            jacobian = jax.vmap(jax.jacfwd(row))(x, condition)
            return jnp.linalg.slogdet(jnp.eye(x.shape[-1], dtype=x.dtype)[None] + jacobian)[1]
        return self._estimated_log_det(params, x, condition, keys)

    def _estimated_log_det(self, params: Params, x: Array, condition: Array | None, keys: Array) -> Array:
        stop = self.stop_probability
        stop = min(0.5, 1.0 - self.network.lipschitz) if stop is None else stop

        def draw(key: Array) -> tuple[Array, Array]:
            count_key, sign_key = jax.random.split(key)
            uniform = jax.random.uniform(count_key, (), x.dtype, minval=1e-7)
            further = jnp.ceil(jnp.log(uniform) / jnp.log1p(-stop))
            return further, jax.random.rademacher(sign_key, x.shape[1:], x.dtype)

        further, v = jax.vmap(draw)(keys)  # [B], [B, D]
        held = jax.lax.stop_gradient((params, x, condition))
        _, pullback = jax.vjp(lambda y: self._residual(held[0], y, held[2]), held[1])

        def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            k, power, total, left = carry  # power is v^T J^(k - 1)
            beyond = jnp.maximum(k - self.num_exact_terms, 0.0)
            # P(N >= m) = (1 - p)^(m - 1) for the m-th further term.
            reached = (1.0 - stop) ** jnp.maximum(beyond - 1.0, 0.0)
            weight = jnp.where(beyond <= further, jnp.where(k % 2 == 1, 1.0, -1.0) / reached, 0.0)  # [B]
            left = left + weight[:, None] * power
            (power,) = pullback(power)
            return k + 1.0, power, total + weight * (power * v).sum(-1) / k, left

        start = (jnp.ones((), x.dtype), v, jnp.zeros(x.shape[0], x.dtype), jnp.zeros_like(x))
        last = self.num_exact_terms + further.max()
        _, _, total, left = jax.lax.while_loop(lambda carry: carry[0] <= last, body, start)
        # The value is the series; the gradient is the gradient of w^T J v with w held fixed.
        slope = jax.jvp(lambda y: self._residual(params, y, condition), (x,), (v,))[1]
        product = (left * slope).sum(-1)
        return total + product - jax.lax.stop_gradient(product)

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return x + self._residual(params, x, condition), self._log_det(params, x, condition, keys)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        c = self.network.lipschitz
        allowed = self.tolerance * (1.0 + jnp.abs(z).max(-1))  # [B]
        # |x_n - x| <= c^n / (1 - c) |x_1 - x_0|, and |x_n - x| <= c / (1 - c) |x_n - x_{n-1}|.  Twice the number of
        # iterations for a first step of length 1, as the step may be longer.
        most = 2 * math.ceil(math.log(self.tolerance * (1.0 - c)) / math.log(c))

        def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            count, x, done = carry
            new = jnp.where(done[:, None], x, z - self._residual(params, x, condition))
            # Examples stop separately, so that they do not depend on their batch.
            return count + 1, new, done | (jnp.linalg.norm(new - x, axis=-1) * c / (1.0 - c) <= allowed)

        start = (jnp.zeros((), jnp.int32), z, jnp.zeros(z.shape[0], bool))
        _, x, _ = jax.lax.while_loop(lambda carry: (carry[0] < most) & ~carry[2].all(), body, start)
        return x, -self._log_det(params, x, condition, keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualFlow(Flow):
    """Residual blocks, each after an ActNorm; pictures are taken as vectors.

    Attributes:
      num_blocks: number of residual blocks.
      hidden_dims: widths of each block's network.
      lipschitz: largest Lipschitz constant c of a block's network, below 1.
      exact_dim: largest dimension in which training and evaluation compute whole Jacobians.  In more dimensions they
        estimate the determinant, and the metrics' names say so (`log_prob` is exact in any dimension).
    """

    num_blocks: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)
    lipschitz: float = 0.9
    exact_dim: int = 4

    @property
    def estimates_density(self) -> bool:
        return self.dim > self.exact_dim

    def layers(self) -> tuple[Bijection, ...]:
        self.check_float32()
        if not 0.0 < self.lipschitz < 1.0:
            raise UserError(f"lipschitz={self.lipschitz} must lie between 0 and 1, or blocks have no inverse")
        network = ContractiveMLP(hidden_dims=self.hidden_dims, lipschitz=self.lipschitz)
        block = Residual(network=network, exact_dim=self.exact_dim)
        return (Flatten(shape=self.shape), *(ActNorm(), block) * self.num_blocks, ActNorm())
