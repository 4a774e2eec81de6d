"""Samplers: one loop over a grid of times, and each sampler's step between two times.

All are written with the estimate x0 = E[x | z_t] that a denoiser gives, and with epsilon = (z - alpha x0) / sigma.

    Ancestral       z_s ~ q(z_s | z_t, x0)                         Ho et al. 2020, arXiv:2006.11239, algorithm 2
    DDIM            any eta between 0 and that                     Song et al. 2021, arXiv:2010.02502, eq. 12
    Euler, Heun     the probability-flow ODE, with churn           Karras et al. 2022, arXiv:2206.00364, algorithm 2
    RungeKutta4     the same ODE, four evaluations a step
    DPMSolver       DPM-Solver++ 1, 2M, 2S, and its SDE form       Lu et al. 2022, arXiv:2211.01095, algorithms 1 and 2
    PredictorCorrector  reverse SDE and Langevin steps             Song et al. 2021, arXiv:2011.13456, algorithms 2 to 5

The ODE is dz = (alpha' x0 + sigma' epsilon) dt, or, for z / alpha with s = sigma / alpha, d(z / alpha) = epsilon ds.
Between consecutive times t > s the values of the process are constants, so no step evaluates the process.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.diffusion.grids import Node, times
from genjax.families.diffusion.processes import GaussianProcess, Spacing, posterior_from
from genjax.families.diffusion.published_grids import FlowGrid, GridProcess, PublishedGrid
from genjax.families.diffusion.targets import epsilon_of


class Estimate(NamedTuple):
    """A denoiser's estimate for z_t.

    Attributes:
      x0: E[x | z_t], shape of z.
      variance_fraction: position of the model's log-variance between log-beta-tilde (0) and log-beta
        (1), shape of z; None means 0.
    """

    x0: Array
    variance_fraction: Array | None = None


#: (z [B, ...], time scalar, last estimate of x0 [B, ...]) -> Estimate
Denoiser = Callable[[Array, Array, Array], Estimate]


class Carry(NamedTuple):
    """State between steps: z, the last estimate of x0, the node of that estimate, and what else a sampler remembers."""

    z: Array
    x0: Array
    before: Node
    history: Any = ()


def ddim_step(z: Array, x0: Array, now: Node, then: Node) -> Array:
    """Exact solution of the ODE for an x0 that does not change: sigma_s / sigma_t z + (alpha_s - sigma_s alpha_t /
    sigma_t) x0.
    """
    ratio = then.sigma / now.sigma
    return ratio * z + (then.alpha - ratio * now.alpha) * x0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
    """Base of all samplers.

    Attributes:
      num_steps: number of steps between noise and data.
      spacing: spacing of the times: uniform, quadratic, karras (in sigma / alpha) or log_snr; None takes the process's
        spacing, which is karras for EDM's process and uniform for the others.
      rho: power of the karras spacing.
      denoise_to_zero: whether the last step ends at the data; otherwise it ends at the process's t_min.
      min_log_ratio: log(alpha / sigma) at which the karras and log_snr spacings begin, on
        processes that start from N(0, I).
      shift: the times t / t_max of the spacings uniform and quadratic become s t / (1 + (s - 1) t), with more steps at
        much noise where s is above 1.
      published: the times of a scheduler of the library diffusers in place of spacing, rho, denoise_to_zero,
        min_log_ratio and shift.
    """

    num_steps: int = 50
    spacing: Spacing | None = None
    rho: float = 7.0
    denoise_to_zero: bool = True
    min_log_ratio: float | None = -5.1
    shift: float = 1.0
    published: PublishedGrid | FlowGrid | None = None

    renamed: ClassVar[dict[str, str]] = {"to_data": "denoise_to_zero"}

    #: Whether the first step divides by alpha(t_max), which pure noise does not allow.
    needs_signal: ClassVar[bool] = False
    #: Whether the sampler needs the end of the ODE's path, which only consistency models give, and not E[x | z].
    needs_path_ends: ClassVar[bool] = False

    @property
    def asks_between_nodes(self) -> bool:
        """Whether steps need the process or the network at times between the nodes of the grid."""
        return False

    def history(self, z: Array) -> Any:
        """What the sampler remembers before the first step from z [B, ...]."""
        del z
        return ()

    @abc.abstractmethod
    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        """Goes from `now` to `then`."""

    def check(self, process: GaussianProcess) -> None:
        """Raises UserError if the sampler does not suit the process."""
        if self.num_steps < 1:
            raise UserError(f"num_steps={self.num_steps}; a sampler needs at least one step")
        if self.published is not None and self.asks_between_nodes:
            raise UserError(
                f"{type(self).__name__} with these settings takes times between those of a published grid; give "
                "sampler.published=none, or choose DDIM, Euler, Heun, DPMSolver, PLMS, LMS or UniPC"
            )
        if self.needs_signal and process.ends_in_pure_noise:
            raise UserError(
                f"{type(self).__name__} works with sigma / alpha, which is infinite at the end of "
                f"{type(process).__name__}; choose DDIM, Ancestral, DPMSolver, or Euler, "
                "Heun or RungeKutta4 with variable=time"
            )

    def grid(self, process: GaussianProcess) -> Node:
        """The times that the steps lie between with the process's values there, [num_steps + 1] each."""
        if isinstance(process, GridProcess):
            return process.grid()
        return times(
            process, self.spacing, self.num_steps, self.rho, self.denoise_to_zero, self.min_log_ratio, self.shift
        )

    def on_grid(self, process: GaussianProcess) -> GaussianProcess:
        """The process that the sampler steps through: `process`, or the nodes of a published grid on it."""
        if self.published is None or isinstance(process, GridProcess):
            return process
        return self.published.on(process, self.num_steps)

    def run(
        self,
        denoise: Denoiser,
        process: GaussianProcess,
        z: Array,
        key: Array,
        trajectory: bool = False,
        start: Array | None = None,
        adjust: Callable[[Array, Node], Array] | None = None,
    ) -> Array:
        """The whole loop.

        Args:
          denoise: see `Denoiser`.
          process: the forward process, on the sampler's grid (`on_grid`).
          z: noise to start from, [B, ...], of deviation `process.prior_scale`; or noised data with `start`.
          key: random key of the steps.
          trajectory: return z at all nodes, [num_steps + 1, B, ...].
          start: index of the node to start from (image-to-image); the steps before it leave z as it is.
          adjust: function of z after a step and the node there, whose result the next step goes on from; or None.

        Returns:
          Samples [B, ...], or the trajectory.
        """
        self.check(process)
        grid = self.grid(process)
        now, then = jax.tree.map(lambda a: a[:-1], grid), jax.tree.map(lambda a: a[1:], grid)
        first = Carry(z, jnp.zeros_like(z), jax.tree.map(lambda a: a[0], grid), self.history(z))

        def body(carry: Carry, row: tuple[Node, Node, Array]) -> tuple[Carry, Array | None]:
            now, then, index = row

            def step(c: Carry) -> Carry:
                c = self.step(denoise, process, c, now, then, jax.random.fold_in(key, index))
                return c if adjust is None else c._replace(z=adjust(c.z, then))

            if start is None:
                carry = step(carry)
            else:
                # The first step after `start` must not use a node that was not visited.
                carry = jax.lax.cond(index >= start, step, lambda c: c._replace(before=then), carry)
            return carry, carry.z if trajectory else None

        last, path = jax.lax.scan(body, first, (now, then, jnp.arange(self.num_steps)))
        return jnp.concatenate([z[None], path]) if trajectory else last.z


def _noise(key: Array, z: Array) -> Array:
    return jax.random.normal(key, z.shape, z.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
    """z_s ~ N(a z_t + b x0, v I) with the posterior's a and b.

    Attributes:
      variance: small, the posterior variance v (beta-tilde); large, the variance of q(z_t | z_s) (beta); learned,
        between the two, by the network (Nichol & Dhariwal 2021, eq. 15); model, the variance in the model's bound, or
        small if the model has no bound.
    """

    num_steps: int = 1000
    variance: Literal["model", "small", "large", "learned"] = "model"

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        estimate = denoise(carry.z, now.t, carry.x0)
        a, b, small = posterior_from(now.alpha, now.sigma, then.alpha, then.sigma)
        large = jnp.maximum(now.sigma**2 - (now.alpha / then.alpha) ** 2 * then.sigma**2, 0.0)
        variance = self.variance
        if variance == "model":
            variance = "small" if estimate.variance_fraction is None else "learned"
        match variance:
            case "small":
                scale = jnp.sqrt(small)
            case "large":
                scale = jnp.where(then.sigma > 0.0, jnp.sqrt(large), 0.0)
            case "learned":
                if estimate.variance_fraction is None:
                    raise UserError("variance=learned needs a model that learns variances; choose small or large")
                log_small, log_large = jnp.log(jnp.maximum(small, 1e-20)), jnp.log(jnp.maximum(large, 1e-20))
                log_variance = log_small + estimate.variance_fraction * (log_large - log_small)
                scale = jnp.where(then.sigma > 0.0, jnp.exp(0.5 * log_variance), 0.0)
        z = a * carry.z + b * estimate.x0 + scale * _noise(key, carry.z)
        return Carry(z, estimate.x0, now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """Deterministic at eta 0, ancestral sampling at eta 1.

    Attributes:
      eta: noise as a fraction of the posterior's standard deviation.
    """

    eta: float = 0.0

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        x0 = denoise(carry.z, now.t, carry.x0).x0
        if self.eta == 0.0:
            return Carry(ddim_step(carry.z, x0, now, then), x0, now)
        _, _, variance = posterior_from(now.alpha, now.sigma, then.alpha, then.sigma)
        epsilon = (carry.z - now.alpha * x0) / now.sigma
        direction = jnp.sqrt(jnp.maximum(then.sigma**2 - self.eta**2 * variance, 0.0))
        z = then.alpha * x0 + direction * epsilon + self.eta * jnp.sqrt(variance) * _noise(key, carry.z)
        return Carry(z, x0, now)


def ode_slope(process: GaussianProcess, z: Array, x0: Array, node: Node) -> Array:
    """dz / dt of the probability-flow ODE."""
    d_alpha, d_sigma = process.derivatives(node.t)
    return d_alpha * x0 + d_sigma * (z - node.alpha * x0) / node.sigma


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    """First-order steps of the ODE; in the variable sigma / alpha they equal the steps of DDIM.

    Attributes:
      variable: integrate z over time, or z / alpha over sigma / alpha as EDM does.
      churn: S_churn of EDM: amount of noise that is added before steps, summed over the whole run; 0 for the plain ODE.
      churn_min: smallest sigma / alpha at which noise is added.
      churn_max: largest sigma / alpha at which noise is added.
      churn_noise: S_noise of EDM, standard deviation of the added noise.
    """

    variable: Literal["time", "sigma"] = "sigma"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = float("inf")
    churn_noise: float = 1.0

    second_order: ClassVar[bool] = False

    @property
    def asks_between_nodes(self) -> bool:
        return self.variable == "time" or self.churn > 0.0

    def check(self, process: GaussianProcess) -> None:
        super().check(process)
        if process.ends_in_pure_noise and (self.variable == "sigma" or self.churn):
            raise UserError(
                f"{type(self).__name__} with variable=sigma works with sigma / alpha, which is infinite at the end of "
                f"{type(process).__name__}; give variable=time and churn=0, or choose DDIM or DPMSolver"
            )

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        if self.churn:
            carry, now = self._add_noise(process, carry, now, key)
        if self.variable == "sigma":
            return self._step_in_sigma(denoise, carry, now, then)
        return self._step_in_time(denoise, process, carry, now, then)

    def _add_noise(self, process: GaussianProcess, carry: Carry, now: Node, key: Array) -> tuple[Carry, Node]:
        level = now.sigma / now.alpha
        gamma = min(self.churn / self.num_steps, 2.0**0.5 - 1.0)
        gamma = jnp.where((level >= self.churn_min) & (level <= self.churn_max), gamma, 0.0)
        higher = level * (1.0 + gamma)
        added = jnp.sqrt(jnp.maximum(higher**2 - level**2, 0.0)) * self.churn_noise * _noise(key, carry.z)
        if process.t_max > 1.0:
            # Karras: the time is the level, and may exceed t_max.
            t = higher
        else:
            t = jnp.where(gamma > 0.0, process.time_of_noise_ratio(higher), now.t)
        alpha = jnp.where(gamma > 0.0, process.alpha(t), now.alpha)
        return carry._replace(z=(carry.z / now.alpha + added) * alpha), Node(t, alpha, higher * alpha)

    def _step_in_sigma(self, denoise: Denoiser, carry: Carry, now: Node, then: Node) -> Carry:
        level, next_level = now.sigma / now.alpha, then.sigma / then.alpha
        y = carry.z / now.alpha
        x0 = denoise(carry.z, now.t, carry.x0).x0
        slope = (y - x0) / level
        y_next = y + (next_level - level) * slope
        if self.second_order:

            def correct(_: None) -> tuple[Array, Array]:
                x0_next = denoise(y_next * then.alpha, then.t, x0).x0
                return y + (next_level - level) * 0.5 * (slope + (y_next - x0_next) / next_level), x0_next

            y_next, x0 = jax.lax.cond(then.sigma > 0.0, correct, lambda _: (y_next, x0), None)
        return Carry(y_next * then.alpha, x0, now)

    def _step_in_time(self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node) -> Carry:
        x0 = denoise(carry.z, now.t, carry.x0).x0
        slope = ode_slope(process, carry.z, x0, now)
        if not self.second_order:
            z = carry.z + (then.t - now.t) * slope
            return Carry(jnp.where(then.sigma > 0.0, z, ddim_step(carry.z, x0, now, then)), x0, now)

        def correct(_: None) -> tuple[Array, Array]:
            z_next = carry.z + (then.t - now.t) * slope
            x0_next = denoise(z_next, then.t, x0).x0
            slope_next = ode_slope(process, z_next, x0_next, then)
            return carry.z + (then.t - now.t) * 0.5 * (slope + slope_next), x0_next

        z, x0 = jax.lax.cond(then.sigma > 0.0, correct, lambda _: (ddim_step(carry.z, x0, now, then), x0), None)
        return Carry(z, x0, now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(Euler):
    """Second-order steps of the ODE (EDM, algorithm 2 with churn, 1 without); two evaluations a
    step, one in the last.
    """

    num_steps: int = 18
    spacing: Spacing | None = "karras"

    second_order: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class RungeKutta4(Sampler):
    """Classical fourth-order steps of the ODE in time; the last step to the data is DDIM's."""

    num_steps: int = 16

    @property
    def asks_between_nodes(self) -> bool:
        return True

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        h = then.t - now.t

        def slope(z: Array, t: Array) -> tuple[Array, Array]:
            x0 = denoise(z, t, carry.x0).x0
            return ode_slope(process, z, x0, Node(t, process.alpha(t), process.sigma(t))), x0

        first, x0 = slope(carry.z, now.t)

        def whole(_: None) -> Array:
            second, _ = slope(carry.z + 0.5 * h * first, now.t + 0.5 * h)
            third, _ = slope(carry.z + 0.5 * h * second, now.t + 0.5 * h)
            fourth, _ = slope(carry.z + h * third, then.t)
            return carry.z + h / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)

        z = jax.lax.cond(then.sigma > 0.0, whole, lambda _: ddim_step(carry.z, x0, now, then), None)
        return Carry(z, x0, now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(Sampler):
    """DPM-Solver++: the ODE solved in lambda = log(alpha / sigma), where only x0 has to be extrapolated.

    Attributes:
      method: first (DDIM); multistep (2M), which reuses the last estimate; singlestep (2S), two evaluations a step.
      stochastic: the SDE form of first and multistep.
      first_order_end: a last step that does not end at the data is of first order if there are fewer steps than this.
    """

    num_steps: int = 20
    spacing: Spacing | None = "log_snr"
    method: Literal["first", "multistep", "singlestep"] = "multistep"
    stochastic: bool = False
    first_order_end: int = 15

    @property
    def asks_between_nodes(self) -> bool:
        return self.method == "singlestep"

    def check(self, process: GaussianProcess) -> None:
        super().check(process)
        if self.stochastic and self.method == "singlestep":
            raise UserError("DPMSolver has no stochastic singlestep form here; choose method=multistep")
        if self.method == "singlestep" and process.ends_in_pure_noise:
            raise UserError(
                f"DPMSolver with method=singlestep halves steps in log(alpha / sigma), which has no start in "
                f"{type(process).__name__}; choose method=multistep"
            )

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        x0 = denoise(carry.z, now.t, carry.x0).x0
        if self.method == "singlestep":
            return self._singlestep(denoise, process, carry, x0, now, then)
        estimate = x0 if self.method == "first" else self._extrapolate(carry, x0, now, then)
        if not self.stochastic:
            return Carry(ddim_step(carry.z, estimate, now, then), x0, now)
        shrink = _shrink(now, then)  # e^-h
        left = 1.0 - shrink**2
        z = then.sigma / now.sigma * shrink * carry.z + then.alpha * left * estimate
        return Carry(z + then.sigma * jnp.sqrt(left) * _noise(key, carry.z), x0, now)

    def _extrapolate(self, carry: Carry, x0: Array, now: Node, then: Node) -> Array:
        """x0 at the middle of the step, extrapolated linearly from the last two estimates; not in the last step."""
        h, h_before = -jnp.log(_shrink(now, then)), -jnp.log(_shrink(carry.before, now))
        usable = (then.sigma > 0.0) & (h_before > 0.0)
        if self.num_steps < self.first_order_end:
            usable &= then.t > 0.0
        weight = jnp.where(usable, 0.5 * h / jnp.where(usable, h_before, 1.0), 0.0)
        return x0 + weight * (x0 - carry.x0)

    @staticmethod
    def _singlestep(
        denoise: Denoiser, process: GaussianProcess, carry: Carry, x0: Array, now: Node, then: Node
    ) -> Carry:
        def halfway(_: None) -> Array:
            level = jnp.sqrt(now.sigma / now.alpha * then.sigma / then.alpha)
            t = process.time_of_noise_ratio(level)
            middle = Node(t, process.alpha(t), process.sigma(t))
            return denoise(ddim_step(carry.z, x0, now, middle), t, x0).x0

        estimate = jax.lax.cond(then.sigma > 0.0, halfway, lambda _: x0, None)
        return Carry(ddim_step(carry.z, estimate, now, then), x0, now)


def _shrink(now: Node, then: Node) -> Array:
    """e^-h with h the growth of log(alpha / sigma); kept above 0, where its logarithm is still finite."""
    return jnp.maximum(then.sigma * now.alpha / (now.sigma * then.alpha), 1e-20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """Euler-Maruyama steps of the reverse SDE dz = (f z - g^2 score) dt + g dw, each followed by Langevin steps.

    Attributes:
      num_corrections: Langevin steps after each predictor step.
      signal_to_noise: r in their step size 2 (r |noise| / |score|)^2 (Song et al. 2021, algorithm 4), which on
        processes with falling alpha is multiplied by 1 - beta of the step, (alpha_t / alpha_s)^2 (algorithm 5).
    """

    num_steps: int = 500
    num_corrections: int = 1
    signal_to_noise: float = 0.16

    needs_signal: ClassVar[bool] = True

    @property
    def asks_between_nodes(self) -> bool:
        return True

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        predictor_key, corrector_key = jax.random.split(key)
        x0 = denoise(carry.z, now.t, carry.x0).x0
        score = -epsilon_of(process, now.t, carry.z, x0) / now.sigma
        f, g_squared = process.drift_and_diffusion(now.t)
        h = now.t - then.t
        z = carry.z - h * (f * carry.z - g_squared * score)
        z = z + jnp.sqrt(g_squared * h) * _noise(predictor_key, z)

        def correct(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            z, x0 = state
            x0 = denoise(z, then.t, x0).x0
            score = -(z - then.alpha * x0) / then.sigma**2
            noise = _noise(jax.random.fold_in(corrector_key, index), z)
            norm = lambda a: jnp.sqrt(jnp.square(a.reshape(a.shape[0], -1)).sum(-1)).mean()
            size = 2.0 * (now.alpha / then.alpha * self.signal_to_noise * norm(noise) / norm(score)) ** 2
            return z + size * score + jnp.sqrt(2.0 * size) * noise, x0

        def finish(_: None) -> tuple[Array, Array]:
            return jax.lax.fori_loop(0, self.num_corrections, correct, (z, x0))

        z, x0 = jax.lax.cond(then.sigma > 0.0, finish, lambda _: (ddim_step(carry.z, x0, now, then), x0), None)
        return Carry(z, x0, now)
