"""Residual flows (Behrmann et al. 2019, arXiv:1811.00995; Chen et al. 2019, arXiv:1906.02735).

    z = x + g(x),   Lip(g) <= c < 1,    x by the fixed point x <- z - g(x)
    log det(I + J) = sum_{k>=1} (-1)^{k+1} tr(J^k) / k                                         (2019a, eq. 4)

Estimate without bias (2019b, eqs. 6-7): the first n terms, then N more with N geometric, each divided by the probability
that it is reached, and tr(J^k) = E[v^T J^k v] with v of random signs.  In few dimensions, or without random keys, the
determinant of the whole Jacobian is taken instead.

Every kernel is divided by its largest singular value where that exceeds c^(1 / layers).  It is computed exactly rather
than by power iteration, so that the bound holds at each step and no state is carried along.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.families.flow.bijections import ActNorm, Bijection, Flatten
from genjax.families.flow.bijections.base import Params
from genjax.families.flow.flow import Flow

Array = jax.Array


def limit_spectral_norm(kernel: Array, bound: float) -> Array:
    """Scales a kernel [in, out] so that its largest singular value is at most `bound`."""
    tall = kernel.shape[0] >= kernel.shape[1]
    fixed = jax.lax.stop_gradient(kernel)
    # The derivative of a singular value is that at fixed singular vectors, so eigh needs no gradient.
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
      hidden_dims: widths.
      lipschitz: c.
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
      exact_dim: largest dimension in which the whole Jacobian is taken although keys for an estimate are given.
      num_exact_terms: n, terms of the series that are always computed.
      stop_probability: of the geometric number of further terms.
      max_terms: bound on the number of terms, for a loop of known length.
      num_iterations: of the fixed point; the error falls as c^iterations.
    """

    network: ContractiveMLP
    exact_dim: int = 4
    num_exact_terms: int = 4
    stop_probability: float = 0.5
    max_terms: int = 20
    num_iterations: int = 200

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        return self.network.init(key, x, condition)["params"]

    def _residual(self, params: Params, x: Array, condition: Array | None) -> Array:
        return self.network.apply({"params": params}, x, condition)

    def _log_det(self, params: Params, x: Array, condition: Array | None, keys: Array | None) -> Array:
        if keys is None or x.shape[-1] <= self.exact_dim:
            row = lambda v, c: self._residual(params, v[None], None if c is None else c[None])[0]  # noqa: E731
            jacobian = jax.vmap(jax.jacfwd(row))(x, condition)
            return jnp.linalg.slogdet(jnp.eye(x.shape[-1], dtype=x.dtype)[None] + jacobian)[1]

        def draw(key: Array) -> tuple[Array, Array]:
            count_key, sign_key = jax.random.split(key)
            uniform = jax.random.uniform(count_key, (), x.dtype, minval=1e-7)
            further = jnp.ceil(jnp.log(uniform) / jnp.log1p(-self.stop_probability))
            return further, jax.random.rademacher(sign_key, x.shape[1:], x.dtype)

        further, v = jax.vmap(draw)(keys)
        _, pullback = jax.vjp(lambda y: self._residual(params, y, condition), x)

        def body(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
            w, total = carry
            (w,) = pullback(w)
            trace = (w * v).sum(-1)
            beyond = jnp.maximum(k - self.num_exact_terms, 0)
            # P(N >= m) = (1 - p)^(m - 1) for the m-th further term.
            reached = jnp.where(beyond > 0, (1.0 - self.stop_probability) ** (beyond - 1.0), 1.0)
            sign = jnp.where(k % 2 == 1, 1.0, -1.0)
            term = jnp.where(beyond <= further, sign * trace / (k * reached), 0.0)
            return (w, total + term), None

        start = (v, jnp.zeros(x.shape[0], x.dtype))
        return jax.lax.scan(body, start, jnp.arange(1, self.max_terms + 1))[0][1]

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return x + self._residual(params, x, condition), self._log_det(params, x, condition, keys)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        body = lambda _, x: z - self._residual(params, x, condition)  # noqa: E731
        x = jax.lax.fori_loop(0, self.num_iterations, body, z)
        return x, -self._log_det(params, x, condition, keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualFlow(Flow):
    """Residual blocks, each after an ActNorm; pictures are taken as vectors.

    Attributes:
      num_blocks: number of residual blocks.
      hidden_dims: widths of each block's network.
      lipschitz: largest Lipschitz constant c of a block's network, below 1.
      exact_dim: largest dimension in which training and evaluation take whole Jacobians; above, they estimate.
    """

    num_blocks: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)
    lipschitz: float = 0.9
    exact_dim: int = 4

    def layers(self) -> tuple[Bijection, ...]:
        if not 0.0 < self.lipschitz < 1.0:
            raise ValueError(f"lipschitz={self.lipschitz} must lie between 0 and 1, or blocks have no inverse")
        network = ContractiveMLP(hidden_dims=self.hidden_dims, lipschitz=self.lipschitz)
        block = Residual(network=network, exact_dim=self.exact_dim)
        return (Flatten(shape=self.shape), *(ActNorm(), block) * self.num_blocks, ActNorm())
