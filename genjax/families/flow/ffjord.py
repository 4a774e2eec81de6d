"""FFJORD: continuous flow with free-form dynamics (Grathwohl et al. 2019, arXiv:1810.01367).

    dh/dt = f(h, t),  h(0) = x,  h(1) = z,       log |det dz/dx| = integral of tr(df/dh) dt from 0 to 1      (eqs. 2-3)

The trace is v^T (df/dh) v with v of random signs, one v for a whole solve (eq. 8); in few dimensions, or without
random keys, it is exact.  `diffrax` solves each example with separate steps, so that examples do not depend on their
batch, and differentiates the solver's steps.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.flow.bijections import ActNorm, Bijection, Flatten
from genjax.families.flow.bijections.base import Params
from genjax.families.flow.flow import Flow


class Dynamics(nn.Module):
    """f(h, t): dense layers whose outputs are gated and shifted by the time ("concatsquash").

    Attributes:
      hidden_dims: widths of the hidden layers.
    """

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Array, t: Array, condition: Array | None = None) -> Array:
        dim, time = h.shape[-1], jnp.reshape(t, (1,)).astype(h.dtype)
        outer = time if condition is None else jnp.concatenate([time, condition])
        for index, width in enumerate((*self.hidden_dims, dim)):
            last = index == len(self.hidden_dims)
            init = nn.initializers.zeros_init() if last else nn.initializers.lecun_normal()
            h = nn.Dense(width, kernel_init=init)(h) * nn.sigmoid(nn.Dense(width)(outer))
            h = h + nn.Dense(width, use_bias=False, kernel_init=init)(outer)
            h = h if last else nn.tanh(h)
        return h


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuous(Bijection):
    """The map from h(0) to h(1) on vectors.

    Attributes:
      network: f.
      tolerance: relative and absolute error of the solver for a step.
      exact_dim: largest dimension in which the trace is exact even if keys for an estimate are given.
      max_steps: largest number of steps of the solver; a stiffer flow is an error.
    """

    network: Dynamics
    tolerance: float = 1e-5
    exact_dim: int = 4
    max_steps: int = 256

    def init(self, key: Array, x: Array, condition: Array | None = None) -> Params:
        row = None if condition is None else condition[0]
        return self.network.init(key, x[0], jnp.zeros((), x.dtype), row)["params"]

    def _solve(
        self, params: Params, x: Array, condition: Array | None, keys: Array | None, backward: bool
    ) -> tuple[Array, Array]:
        diffrax = _import_diffrax()
        exact = keys is None or x.shape[-1] <= self.exact_dim

        def one(x: Array, condition: Array | None, key: Array | None) -> tuple[Array, Array]:
            noise = None if exact else jax.random.rademacher(key, x.shape, x.dtype)

            def field(t: Array, state: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
                f = lambda h: self.network.apply({"params": params}, h, t, condition)
                if exact:
                    value, trace = f(state[0]), jnp.trace(jax.jacfwd(f)(state[0]))
                else:
                    value, product = jax.jvp(f, (state[0],), (noise,))
                    trace = (product * noise).sum()
                return value, trace

            start, end = (1.0, 0.0) if backward else (0.0, 1.0)
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Tsit5(),
                t0=start,
                t1=end,
                dt0=0.05 * (end - start),
                y0=(x, jnp.zeros((), x.dtype)),
                stepsize_controller=diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance),
                max_steps=self.max_steps,
                # A flow that is too stiff for max_steps gives infinities, which stop the run.
                throw=False,
            )
            return solution.ys[0][0], solution.ys[1][0]

        # Under pmap, equinox would treat arrays inside and outside of a loop as arrays of different meshes.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return jax.vmap(one)(x, condition, keys)

    def forward(
        self, params: Params, x: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return self._solve(params, x, condition, keys, backward=False)

    def inverse(
        self, params: Params, z: Array, condition: Array | None = None, keys: Array | None = None
    ) -> tuple[Array, Array]:
        return self._solve(params, z, condition, keys, backward=True)


def _import_diffrax() -> Any:
    try:
        import diffrax
    except ImportError:
        raise UserError("FFJORD solves its equation with diffrax; install it with: pip install 'genjax[ode]'") from None
    return diffrax


@dataclasses.dataclass(frozen=True, kw_only=True)
class FFJORD(Flow):
    """One continuous flow after an ActNorm; pictures are taken as vectors.

    Attributes:
      hidden_dims: widths of the dynamics' network.
      tolerance: error of the solver for a step.
      exact_dim: largest dimension in which traces are exact.  In more dimensions training and evaluation estimate them,
        and the metrics' names say so (`log_prob` is exact in any dimension).
      max_steps: largest number of steps of the solver.
    """

    hidden_dims: tuple[int, ...] = (64, 64, 64)
    tolerance: float = 1e-5
    exact_dim: int = 4
    max_steps: int = 256

    @property
    def estimates_density(self) -> bool:
        return self.dim > self.exact_dim

    def layers(self) -> tuple[Bijection, ...]:
        self.check_float32()
        if not (math.isfinite(self.tolerance) and self.tolerance > 0.0):
            raise UserError(f"tolerance={self.tolerance} must be positive, e.g. 1e-5")
        flow = Continuous(
            network=Dynamics(hidden_dims=self.hidden_dims),
            tolerance=self.tolerance,
            exact_dim=self.exact_dim,
            max_steps=self.max_steps,
        )
        return (Flatten(shape=self.shape), ActNorm(), flow)
