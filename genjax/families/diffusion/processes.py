"""Forward processes: how data become noise.

Every process here is Gaussian given the data, and is defined by two functions of the time t:

    z_t = alpha(t) x + sigma(t) epsilon,    epsilon ~ N(0, I)

    log_snr(t) = log alpha(t)^2 / sigma(t)^2,    falling in t

It is the solution of dz = f(t) z dt + g(t) dw (Song et al. 2021, arXiv:2011.13456; Kingma et al.
2021, arXiv:2107.00630) with

    f = d log alpha / dt,    g^2 = d sigma^2 / dt - 2 f sigma^2

Time runs from 0 (data) to `t_max` (noise).  If alpha and sigma are not exact at 0, `t_min` > 0 is the earliest time for
a network, and samplers jump from t_min to the data.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError

BetaSchedule = Literal["linear", "scaled_linear", "cosine", "sigmoid"]
Spacing = Literal["uniform", "quadratic", "karras", "log_snr"]


class GaussianProcess(abc.ABC):
    """Interface of processes for samplers and losses; times `t` have any shape, and results have the same shape."""

    t_min: float = 0.0
    t_max: float = 1.0
    #: Spacing of times for samplers with spacing=None.
    spacing: ClassVar[Spacing] = "uniform"

    @abc.abstractmethod
    def alpha(self, t: Array) -> Array:
        """Factor of the data."""

    @abc.abstractmethod
    def sigma(self, t: Array) -> Array:
        """Standard deviation of the noise."""

    @property
    def prior_scale(self) -> float:
        """Standard deviation of the distribution N(0, scale^2 I) that sampling starts from."""
        return 1.0

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether alpha(t_max) is exactly 0, so that z at t_max says nothing about the data."""
        return False

    @property
    def earliest_time(self) -> float:
        """The earliest time for a network: t_min, or if t_min is 0, a small time at which
        divisions by sigma are possible.
        """
        return self.t_min if self.t_min > 0.0 else 1e-3 * self.t_max

    def network_time(self, t: Array) -> Array:
        """The network's input for the noise level, at most of the order of 1000."""
        return 1000.0 * t

    def log_snr(self, t: Array) -> Array:
        """log alpha^2 / sigma^2."""
        return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def noise_ratio(self, t: Array) -> Array:
        """sigma / alpha, the noise level of z_t / alpha, which EDM calls sigma."""
        return self.sigma(t) / self.alpha(t)

    def derivatives(self, t: Array) -> tuple[Array, Array]:
        """d alpha / dt and d sigma / dt."""
        t = jnp.asarray(t)
        _, slopes = jax.jvp(lambda s: (self.alpha(s), self.sigma(s)), (t,), (jnp.ones_like(t),))
        return slopes

    def drift_and_diffusion(self, t: Array) -> tuple[Array, Array]:
        """f and g^2 of the stochastic differential equation dz = f z dt + g dw."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        d_alpha, d_sigma = self.derivatives(t)
        f = d_alpha / alpha
        return f, 2.0 * sigma * (d_sigma - f * sigma)

    def time_of_noise_ratio(self, ratio: Array) -> Array:
        """The time at which sigma / alpha has a value, by bisection (the ratio rises in t)."""
        ratio = jnp.asarray(ratio)
        low = jnp.zeros_like(ratio)
        high = jnp.full_like(ratio, self.t_max)

        def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = 0.5 * (low + high)
            # Without division, as alpha may be 0.
            below = self.sigma(middle) < ratio * self.alpha(middle)
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
        return 0.5 * (low + high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process(GaussianProcess):
    """A process without learned parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discrete(Process):
    """The chain of DDPM (Ho et al. 2020, arXiv:2006.11239), q(z_k | z_(k-1)) = N(sqrt(1 - beta_k) z_(k-1), beta_k I).

    Step k lies at time k / num_timesteps.  Between steps log alpha is interpolated linearly; before a last step of
    pure noise, alpha itself is.

    Attributes:
      schedule: linear in beta (DDPM); scaled_linear, linear in sqrt(beta) (latent diffusion); cosine in alpha^2
        (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17); sigmoid in alpha^2 (Jabri et al. 2022,
        arXiv:2212.11972, algorithm 1, from -3 to 3).
      num_timesteps: length T of the chain.
      beta_min: first beta of the linear schedules.
      beta_max: last beta of the linear schedules.
      zero_terminal_snr: shift and scale alpha so that the last step is pure noise (Lin et al. 2023,
        arXiv:2305.08891, algorithm 1).
      counts_steps: the network's time is the number of the step, counted from 0, as in the library diffusers; otherwise
        it is 1000 t.
    """

    schedule: BetaSchedule = "linear"
    num_timesteps: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02
    zero_terminal_snr: bool = False
    counts_steps: bool = False

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """beta_1 to beta_T, shape [T], float64.

        Raises:
          UserError: no steps, or betas outside of (0, 1).
        """
        if self.num_timesteps < 1:
            raise UserError(f"num_timesteps={self.num_timesteps} must be at least 1")
        if not 0.0 < self.beta_min <= self.beta_max < 1.0:
            raise UserError(f"betas must satisfy 0 < beta_min={self.beta_min} <= beta_max={self.beta_max} < 1")
        count = self.num_timesteps
        match self.schedule:
            case "linear":
                betas = np.linspace(self.beta_min, self.beta_max, count)
            case "scaled_linear":
                betas = np.linspace(self.beta_min**0.5, self.beta_max**0.5, count) ** 2
            case "cosine":
                s = 0.008
                level = np.cos((np.arange(count + 1) / count + s) / (1 + s) * np.pi / 2) ** 2
                betas = np.minimum(1.0 - level[1:] / level[:-1], 0.999)
            case "sigmoid":
                start, end = -3.0, 3.0
                level = 1.0 / (1.0 + np.exp(start + (end - start) * np.arange(count + 1) / count))
                level = np.clip((level - level[-1]) / (level[0] - level[-1]), 1e-9, 1.0)
                betas = np.minimum(1.0 - level[1:] / level[:-1], 0.999)
            case _:
                raise UserError(f"unknown schedule {self.schedule!r}; choose one of {', '.join(BetaSchedule.__args__)}")
        if self.zero_terminal_snr:
            alphas = np.sqrt(np.cumprod(1.0 - betas))
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
            squares = np.concatenate([[1.0], alphas**2])
            betas = 1.0 - squares[1:] / squares[:-1]
        return betas

    @functools.cached_property
    def _log_alphas(self) -> np.ndarray:
        """log alpha at the steps 0 to T; the last is -inf with zero_terminal_snr."""
        with np.errstate(divide="ignore"):
            return np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-self.betas))])

    def _log_alpha(self, t: Array) -> Array:
        # Interpolation from -inf would be nan between the last two steps.
        table = jnp.asarray(np.maximum(self._log_alphas, -40.0))
        # The index is clipped, not the time: clipping would halve the derivative at both ends.
        position = t * self.num_timesteps
        low = jnp.clip(jnp.floor(position), 0, self.num_timesteps - 1).astype(jnp.int32)
        return table[low] + (position - low) * (table[low + 1] - table[low])

    def network_time(self, t: Array) -> Array:
        return self.num_timesteps * t - 1.0 if self.counts_steps else super().network_time(t)

    def alpha(self, t: Array) -> Array:
        alpha = jnp.exp(self._log_alpha(t))
        if not self.zero_terminal_snr:
            return alpha
        left = self.num_timesteps * (1.0 - t)
        return jnp.where(left < 1.0, np.exp(self._log_alphas[-2]) * left, alpha)

    def sigma(self, t: Array) -> Array:
        square = -jnp.expm1(2.0 * self._log_alpha(t))
        if self.zero_terminal_snr:
            square = jnp.where(self.num_timesteps * (1.0 - t) < 1.0, 1.0 - self.alpha(t) ** 2, square)
        positive = square > 0.0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)

    @property
    def earliest_time(self) -> float:
        """The first step, before which no network was trained."""
        return 1.0 / self.num_timesteps

    @property
    def ends_in_pure_noise(self) -> bool:
        return self.zero_terminal_snr


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariancePreserving(Process):
    """The VP SDE (Song et al. 2021, eq. 11), with beta linear in t.

    Attributes:
      beta_min: beta at 0.
      beta_max: beta at 1.
      t_min: earliest time.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def _log_alpha(self, t: Array) -> Array:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2.0 * self._log_alpha(t)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVariancePreserving(VariancePreserving):
    """The sub-VP SDE (Song et al. 2021, eq. 12): sigma is the square of the VP SDE's."""

    def sigma(self, t: Array) -> Array:
        return -jnp.expm1(2.0 * self._log_alpha(t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceExploding(Process):
    """The VE SDE (Song et al. 2021, eq. 9): alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    Attributes:
      sigma_min: noise at 0.
      sigma_max: noise at 1; it should be about the largest distance between two examples.
      t_min: earliest time.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    @property
    def prior_scale(self) -> float:
        return self.sigma_max


@dataclasses.dataclass(frozen=True, kw_only=True)
class Karras(Process):
    """EDM's process (Karras et al. 2022, arXiv:2206.00364): alpha = 1, and the time is sigma itself.

    Samplers place their times by EDM's spacing: even steps in sigma from t_max would be wider than the data.

    Attributes:
      t_min: smallest noise level of sampling.
      t_max: largest noise level of sampling.
    """

    t_min: float = 0.002
    t_max: float = 80.0
    spacing: ClassVar[Spacing] = "karras"

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return t * 1.0

    def network_time(self, t: Array) -> Array:
        # c_noise = log(sigma) / 4, stretched to the range that other processes have.
        return 250.0 * jnp.log(t)

    @property
    def prior_scale(self) -> float:
        return self.t_max


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearInterpolant(Process):
    """Rectified flow and conditional flow matching: alpha = 1 - t, sigma = t.

    Lipman et al. 2023, arXiv:2210.02747 (sigma_min = 0), and Liu et al. 2023, arXiv:2209.03003; time runs from data to
    noise here, as in all of this family, so their velocity has the other sign.
    """

    flag_name: ClassVar[str] = "linear"
    former_names: ClassVar[tuple[str, ...]] = ("Straight",)

    def alpha(self, t: Array) -> Array:
        return 1.0 - t

    def sigma(self, t: Array) -> Array:
        return t * 1.0

    @property
    def ends_in_pure_noise(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trigonometric(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the variance-preserving interpolant (Albergo et al. 2023,
    arXiv:2303.08797), which is also the continuous cosine schedule.
    """

    def alpha(self, t: Array) -> Array:
        # cos(pi / 2) is not 0 in floating point, the sine of the rest is.
        return jnp.sin(0.5 * jnp.pi * (1.0 - t))

    def sigma(self, t: Array) -> Array:
        return jnp.sin(0.5 * jnp.pi * t)

    @property
    def ends_in_pure_noise(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentNoise(Process):
    """The linear interpolant with a latent variable, z_t = (1 - t) x + t epsilon + gamma(t)
    w, gamma^2 = scale t (1 - t).

    Albergo et al. 2023, arXiv:2303.08797, definition 2.1, with normal noise at one end, so that the two noises add up
    to noise of deviation sqrt(t^2 + gamma^2); with scale 2 the variance of unit data is preserved.

    Attributes:
      scale: amount of latent noise; 0 gives `LinearInterpolant`.
      t_min: earliest time; sigma rises like the square root of t.
    """

    scale: float = 1.0
    t_min: float = 1e-3

    def alpha(self, t: Array) -> Array:
        return 1.0 - t

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(t**2 + self.scale * t * (1.0 - t))

    @property
    def ends_in_pure_noise(self) -> bool:
        return True


def expand(values: Array, like: Array) -> Array:
    """Appends axes of length 1 to values [B] (or a scalar) so that they multiply an array [B, ...]."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values


def shifted_time(t: Array, shift: float) -> Array:
    """s t / (1 + (s - 1) t) of times in [0, 1], which leads to more noise where the shift s is above 1.

    The noise ratio t / (1 - t) of the linear interpolant is multiplied by s, as pictures of s^2 times as many pixels
    need it (Esser et al. 2024, arXiv:2403.03206, eq. 23).

    Raises:
      UserError: the shift is not positive.
    """
    if shift <= 0.0:
        raise UserError(f"shift={shift} of times must be above 0; 1 leaves them as they are")
    return t if shift == 1.0 else shift * t / (1.0 + (shift - 1.0) * t)


def posterior(process: GaussianProcess, t: Array, s: Array) -> tuple[Array, Array, Array]:
    """q(z_s | z_t, x) for s < t, the product of two Gaussians (Ho et al. 2020, eq. 7; Kingma et al. 2021, eq. 25).

    Returns:
      Factors a, b and the variance v of N(a z_t + b x, v I), in the shape of the times.
    """
    return posterior_from(process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s))


def posterior_from(alpha_t: Array, sigma_t: Array, alpha_s: Array, sigma_s: Array) -> tuple[Array, Array, Array]:
    """`posterior` from the process's values at the two times."""
    ratio = alpha_t / alpha_s
    between = jnp.maximum(sigma_t**2 - ratio**2 * sigma_s**2, 0.0)  # variance of q(z_t | z_s)
    return ratio * sigma_s**2 / sigma_t**2, alpha_s * between / sigma_t**2, between * sigma_s**2 / sigma_t**2
