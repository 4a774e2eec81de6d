"""Samplers that remember several estimates: linear multistep methods and UniPC.

    PLMS    the ODE in the variable of DDIM; noise extrapolated by Adams-Bashforth     Liu et al. 2022, arXiv:2202.09778
    LMS     d y / d s = (y - x0) / s for y = z / alpha, s = sigma / alpha, by Adams-Bashforth on uneven steps
            (Karras et al. 2022, arXiv:2206.00364, appendix)
    UniPC   DPM-Solver++ of second order, and a corrector that uses the estimate at the new time once more
            (Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8, B_2 unless told otherwise)

The library diffusers extrapolates v instead of noise in its PNDM with prediction_type=v_prediction, which is no method
of the paper.  PLMS evaluates the network twice in its first step, as Stable Diffusion's sampler does; all others once a
step.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.families.diffusion.grids import Node
from genjax.families.diffusion.processes import GaussianProcess, Spacing
from genjax.families.diffusion.samplers import Carry, Denoiser, Sampler, ddim_step

#: Weights of the last four estimates after 0, 1, 2 and more steps (Adams-Bashforth).
_ADAMS = np.array(
    [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
)


class _Estimates(NamedTuple):
    """The last estimates, newest first [M, B, ...], their noise levels s [M], and the number of steps so far."""

    values: Array
    levels: Array
    count: Array


def _no_estimates(z: Array, most: int) -> _Estimates:
    return _Estimates(jnp.zeros((most, *z.shape), z.dtype), jnp.zeros((most,)), jnp.zeros((), jnp.int32))


def _pushed(history: _Estimates, value: Array, level: Array) -> _Estimates:
    values = jnp.concatenate([value[None], history.values[:-1]])
    levels = jnp.concatenate([jnp.asarray(level, jnp.float32)[None], history.levels[:-1]])
    return _Estimates(values, levels, history.count + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PLMS(Sampler):
    """Pseudo linear multistep sampling, with a step of Heun's method at the start."""

    def history(self, z: Array) -> _Estimates:
        return _no_estimates(z, 4)

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        x0 = denoise(carry.z, now.t, carry.x0).x0
        noise = lambda z, x0, node: (z - node.alpha * x0) / node.sigma
        history = _pushed(carry.history, noise(carry.z, x0, now), 0.0)

        def first(_: None) -> Array:
            z = ddim_step(carry.z, x0, now, then)
            again = noise(z, denoise(z, then.t, x0).x0, then)
            return 0.5 * (history.values[0] + again)

        def later(_: None) -> Array:
            weights = jnp.asarray(_ADAMS, jnp.float32)[jnp.minimum(history.count - 1, 3)]
            return jnp.tensordot(weights, history.values, 1)

        at_start = (history.count == 1) & (then.t > 0.0)
        epsilon = jax.lax.cond(at_start, first, later, None)
        x0_there = (carry.z - now.sigma * epsilon) / now.alpha
        return Carry(then.alpha * x0_there + then.sigma * epsilon, x0, now, history)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMS(Sampler):
    """Linear multistep sampling in s = sigma / alpha.

    Attributes:
      order: number of estimates that a step uses, 1 to 4.
    """

    order: int = 4

    needs_signal: ClassVar[bool] = True

    def history(self, z: Array) -> _Estimates:
        return _no_estimates(z, self.order)

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        x0 = denoise(carry.z, now.t, carry.x0).x0
        level, next_level, y = now.sigma / now.alpha, then.sigma / then.alpha, carry.z / now.alpha
        history = _pushed(carry.history, (y - x0) / level, level)
        weights = lagrange_integrals(history.levels, jnp.minimum(history.count, self.order), level, next_level)
        y = y + jnp.tensordot(weights, history.values, 1)
        return Carry(y * then.alpha, x0, now, history)


def lagrange_integrals(nodes: Array, count: Array, low: Array, high: Array) -> Array:
    """Integrals from `low` to `high` of the Lagrange polynomials of the first `count` of at most four nodes [M]; [M].

    Two points of Gauss are exact for polynomials of degree three.
    """
    used = jnp.arange(len(nodes)) < count
    points = 0.5 * (low + high) + 0.5 * (high - low) * jnp.array([-1.0, 1.0]) / jnp.sqrt(3.0)
    pairs = used[:, None] & used[None] & ~jnp.eye(len(nodes), dtype=bool)  # [M of polynomials, M of factors]
    gaps = jnp.where(pairs, nodes[:, None] - nodes[None], 1.0)
    factors = jnp.where(pairs[None], (points[:, None, None] - nodes[None, None]) / gaps[None], 1.0)
    return jnp.where(used, 0.5 * (high - low) * factors.prod(-1).sum(0), 0.0)


class _Corrected(NamedTuple):
    """What UniPC remembers: the last two estimates of x0 [2, B, ...] with log(alpha / sigma) of their nodes [2], the
    corrected z of the last node, the order of the last step, and the number of steps so far.
    """

    x0: Array
    log_ratios: Array
    z: Array
    order: Array
    count: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC(Sampler):
    """Predictor and corrector of second order for x0.

    Attributes:
      variant: the function B(h) of the paper: bh2, e^h - 1; bh1, h.
      first_order_end: the last step is of first order.
    """

    num_steps: int = 20
    spacing: Spacing | None = "log_snr"
    variant: Literal["bh1", "bh2"] = "bh2"
    first_order_end: bool = True

    needs_signal: ClassVar[bool] = True

    def history(self, z: Array) -> _Corrected:
        pair = jnp.zeros((2, *z.shape), z.dtype)
        zero = jnp.zeros((), jnp.int32)
        return _Corrected(pair, jnp.zeros((2,)), jnp.zeros_like(z), zero, zero)

    def _scale(self, minus_h: Array) -> Array:
        return jnp.expm1(minus_h) if self.variant == "bh2" else minus_h

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        old, before = carry.history, carry.before
        x0 = denoise(carry.z, now.t, carry.x0).x0
        log_ratio = jnp.log(now.alpha / now.sigma)
        z = jnp.where(old.count > 0, self._corrected(old, before, now, x0, log_ratio), carry.z)
        order = jnp.minimum(old.count + 1, 2)
        ends = then.t <= 0.0
        order = jnp.where((ends & self.first_order_end) | (then.sigma == 0.0), 1, order)
        # The ODE for an x0 that does not change, then half of its change over the step before.
        h = jnp.log(jnp.where(then.sigma > 0.0, then.alpha / jnp.maximum(then.sigma, 1e-30), 1.0)) - log_ratio
        h_before = log_ratio - old.log_ratios[0]
        second = order == 2
        slope = (x0 - old.x0[0]) * jnp.where(second, h / jnp.where(second, h_before, 1.0), 0.0)
        z_next = ddim_step(z, x0, now, then) - then.alpha * self._scale(-h) * 0.5 * slope
        history = _Corrected(
            jnp.stack([x0, old.x0[0]]), jnp.stack([log_ratio, old.log_ratios[0]]), z, order, old.count + 1
        )
        return Carry(z_next, x0, now, history)

    def _corrected(self, old: _Corrected, before: Node, now: Node, x0: Array, log_ratio: Array) -> Array:
        """z at `now` by the step from `before`, taken again with the estimate x0 at `now`."""
        started, second = old.count > 0, (old.order == 2) & (old.count > 1)
        h = jnp.where(started, log_ratio - old.log_ratios[0], 1.0)
        scale = self._scale(-h)
        phi_1 = jnp.expm1(-h)
        phi_2 = phi_1 / -h - 1.0
        phi_3 = phi_2 / -h - 0.5
        b_1, b_2 = phi_2 / scale, 2.0 * phi_3 / scale
        r = jnp.where(second, (old.log_ratios[1] - old.log_ratios[0]) / h, -1.0)
        # [[1, 1], [r, 1]] rho = b.
        rho_old = jnp.where(second, (b_1 - b_2) / (1.0 - r), 0.0)
        rho_new = jnp.where(second, b_1 - rho_old, 0.5)
        change_before = (old.x0[1] - old.x0[0]) / r
        change = x0 - old.x0[0]
        base = ddim_step(old.z, old.x0[0], jax.tree.map(lambda a: jnp.where(started, a, 1.0), before), now)
        return base - now.alpha * scale * (rho_old * change_before + rho_new * change)
