"""The probability-flow ODE with adaptive steps, and the exact likelihood along it.

    dz / dt = v(z, t) = alpha' x0(z, t) + sigma' epsilon(z, t)              (Song et al. 2021, arXiv:2011.13456, eq. 13)

    log p_0(z_0) = log p_T(z_T) + integral_0^T div v(z_t, t) dt                                              (eq. 39)

The divergence is the trace of the Jacobian, either exactly (one Jacobian-vector product a dimension) or by Hutchinson's
estimate e^T J e with signs e (Hutchinson 1990; Grathwohl et al. 2019, arXiv:1810.01367).  Steps are either Dormand &
Prince's (1980), with the error per step held below atol + rtol |z|, or classical fourth-order steps at fixed times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.diffusion.grids import Node
from genjax.families.diffusion.processes import GaussianProcess
from genjax.families.diffusion.samplers import Carry, Denoiser, Sampler, ddim_step, ode_slope

# Dormand & Prince's tableau.
_NODES = np.array([0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0])
_MATRIX = [
    [],
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
]
_ERROR = np.array([71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])


def solve_adaptive(
    slope: Callable[[Array, Array], Array],
    y: Array,
    t_start: float,
    t_end: float,
    rtol: float,
    atol: float,
    max_steps: int = 1000,
) -> tuple[Array, Array]:
    """Integrates dy / dt = slope(y, t) for all examples of y [B, ...] with common steps.

    Returns:
      y at t_end, which is infinite if `max_steps` were not enough, and the number of evaluations of the slope.
    """
    direction = 1.0 if t_end > t_start else -1.0

    def attempt(t: Array, y: Array, h: Array) -> tuple[Array, Array]:
        slopes: list[Array] = []
        for node, row in zip(_NODES, _MATRIX):
            inner = y + h * sum((w * k for w, k in zip(row, slopes) if w), jnp.zeros_like(y))
            slopes.append(slope(inner, t + node * h))
        error = h * sum(w * k for w, k in zip(_ERROR, slopes) if w)
        scale = atol + rtol * jnp.maximum(jnp.abs(y), jnp.abs(inner))
        return inner, jnp.sqrt(jnp.mean(jnp.square(error / scale)))

    def body(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        t, y, h, count = state
        h = direction * jnp.minimum(h, direction * (t_end - t))
        new, error = attempt(t, y, h)
        accepted = error <= 1.0
        # The last step ends exactly at t_end.
        reached = jnp.where(jnp.abs(t + h - t_end) <= 1e-6 * abs(t_end - t_start), t_end, t + h)
        factor = jnp.clip(0.9 * jnp.maximum(error, 1e-8) ** -0.2, 0.2, 5.0)
        return jnp.where(accepted, reached, t), jnp.where(accepted, new, y), jnp.abs(h) * factor, count + 1

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        return (state[0] != t_end) & (state[3] < max_steps)

    start = (
        jnp.asarray(t_start, y.dtype),
        y,
        jnp.asarray(abs(t_end - t_start) * 0.01, y.dtype),
        jnp.zeros((), jnp.int32),
    )
    t, y, _, count = jax.lax.while_loop(unfinished, body, start)
    return jnp.where(t == t_end, y, jnp.inf), 7 * count


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveODE(Sampler):
    """The probability-flow ODE by Dormand & Prince's steps; their number follows from the tolerance.

    Attributes:
      num_steps: largest number of steps.
      rtol: relative tolerance.
      atol: absolute tolerance.
    """

    num_steps: int = 1000
    rtol: float = 1e-4
    atol: float = 1e-4

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> NoReturn:
        raise NotImplementedError("AdaptiveODE has no steps at given times")

    def run(
        self,
        denoise: Denoiser,
        process: GaussianProcess,
        z: Array,
        key: Array,
        trajectory: bool = False,
        start: Array | None = None,
    ) -> Array:
        """See `Sampler.run`; the trajectory is the start and the end only."""
        self.check(process)
        if start is not None:
            raise UserError("AdaptiveODE starts from noise only; choose another sampler for image-to-image")
        t_end = process.earliest_time
        y, _ = solve_adaptive(_slope(denoise, process), z, process.t_max, t_end, self.rtol, self.atol, self.num_steps)
        if self.denoise_to_zero:
            t = jnp.asarray(t_end, z.dtype)
            node = Node(t, process.alpha(t), process.sigma(t))
            one = jnp.ones((), z.dtype)
            y = ddim_step(y, denoise(y, t, jnp.zeros_like(y)).x0, node, Node(0.0 * t, one, 0.0 * one))
        return jnp.stack([z, y]) if trajectory else y


def _slope(denoise: Denoiser, process: GaussianProcess) -> Callable[[Array, Array], Array]:
    def slope(z: Array, t: Array) -> Array:
        x0 = denoise(z, t, jnp.zeros_like(z)).x0
        return ode_slope(process, z, x0, Node(t, process.alpha(t), process.sigma(t)))

    return slope


def divergence(function: Callable[[Array], Array], z: Array, probes: Array | None) -> tuple[Array, Array]:
    """Value of a function [B, ...] -> [B, ...] that treats examples separately, and trace of its Jacobian, shape [B].

    Args:
      function: the function.
      z: arguments at which the divergence is taken.
      probes: signs [B, ...] for Hutchinson's estimate, or None for the exact trace.
    """
    if probes is not None:
        value, product = jax.jvp(function, (z,), (probes,))
        return value, (product * probes).reshape(z.shape[0], -1).sum(-1)
    value, linear = jax.linearize(function, z)
    size = int(np.prod(z.shape[1:]))

    def add(index: Array, total: Array) -> Array:
        direction = jnp.zeros((size,), z.dtype).at[index].set(1.0).reshape(1, *z.shape[1:])
        product = linear(jnp.broadcast_to(direction, z.shape))
        return total + (product * direction).reshape(z.shape[0], -1).sum(-1)

    return value, jax.lax.fori_loop(0, size, add, jnp.zeros(z.shape[:1], z.dtype))


def log_likelihood(
    denoise: Denoiser,
    process: GaussianProcess,
    x: Array,
    probes: Array | None = None,
    num_steps: int = 100,
    rtol: float | None = None,
) -> Array:
    """log p(x) in nats of the ODE's distribution at the earliest time, shape [B].

    At that time the data carry noise of deviation sigma; x is taken as a value of z / alpha there.

    Args:
      denoise: see `Denoiser`.
      process: the forward process.
      x: data, shape [B, ...].
      probes: random signs in the shape of x for Hutchinson's estimate of the divergence, or None for the exact one.
      num_steps: steps of the fourth-order solver, uniform in log(sigma / alpha), or in time where that is infinite.
      rtol: relative tolerance of adaptive steps, to use instead; the answer is NaN if 1000 steps do not reach the end.

    Raises:
      UserError: probes of another shape.
    """
    if probes is not None and probes.shape != x.shape:
        raise UserError(f"probes have shape {probes.shape}, but x has shape {x.shape}")
    shape, dimension = x.shape, int(np.prod(x.shape[1:]))
    t_start = process.earliest_time
    slope = _slope(denoise, process)

    def joint(y: Array, t: Array) -> Array:
        """Slope of (z, log-density so far) as one array [B, D + 1]."""
        z = y[:, :-1].reshape(shape)
        value, trace_value = divergence(lambda a: slope(a, t), z, probes)
        return jnp.concatenate([value.reshape(shape[0], -1), trace_value[:, None]], axis=1)

    alpha = process.alpha(jnp.asarray(t_start, x.dtype))
    y = jnp.concatenate([(alpha * x).reshape(shape[0], -1), jnp.zeros((shape[0], 1), x.dtype)], axis=1)
    if rtol is not None:
        y, _ = solve_adaptive(joint, y, t_start, process.t_max, rtol, rtol)
    else:
        y = _solve_fixed(joint, y, _rising_times(process, t_start, num_steps, x.dtype))
    z, gained = y[:, :-1], y[:, -1]
    scale = process.prior_scale
    prior = -0.5 * jnp.square(z / scale).sum(-1) - dimension * (0.5 * np.log(2.0 * np.pi) + np.log(scale))
    # p(x) = p(z = alpha x) alpha^D
    return prior + gained + dimension * jnp.log(alpha)


def encode(denoise: Denoiser, process: GaussianProcess, x: Array, num_steps: int = 25) -> Array:
    """The noise at t_max from which the ODE leads to examples, shape of x [B, ...].

    Args:
      denoise: see `Denoiser`.
      process: the forward process.
      x: data; as in `log_likelihood`, taken as values of z / alpha at the earliest time.
      num_steps: steps of the fourth-order solver, spaced as in `log_likelihood`.
    """
    t_start = process.earliest_time
    grid = _rising_times(process, t_start, num_steps, x.dtype)
    return _solve_fixed(_slope(denoise, process), process.alpha(jnp.asarray(t_start, x.dtype)) * x, grid)


def _rising_times(process: GaussianProcess, t_start: float, num_steps: int, dtype: jnp.dtype) -> Array:
    if process.ends_in_pure_noise:
        # Dense near the data, where the slope changes fast.
        return t_start + (process.t_max - t_start) * jnp.linspace(0.0, 1.0, num_steps + 1, dtype=dtype) ** 2
    low, high = jnp.log(process.noise_ratio(jnp.array([t_start, process.t_max], dtype)))
    t = process.time_of_noise_ratio(jnp.exp(jnp.linspace(low, high, num_steps + 1, dtype=dtype)))
    return t.at[0].set(t_start).at[-1].set(process.t_max)


def _solve_fixed(slope: Callable[[Array, Array], Array], y: Array, grid: Array) -> Array:
    """Classical fourth-order Runge-Kutta over consecutive times [N + 1]."""

    def body(y: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        t, h = row
        first = slope(y, t)
        second = slope(y + 0.5 * h * first, t + 0.5 * h)
        third = slope(y + 0.5 * h * second, t + 0.5 * h)
        fourth = slope(y + h * third, t + h)
        return y + h / 6.0 * (first + 2.0 * second + 2.0 * third + fourth), None

    y, _ = jax.lax.scan(body, y, (grid[:-1], jnp.diff(grid)))
    return y
