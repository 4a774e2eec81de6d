"""How often each noise level is trained: distributions of the time t."""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp

from genjax.families.diffusion.processes import Discrete, GaussianProcess

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeDistribution(abc.ABC):
    """A distribution of training times."""

    @abc.abstractmethod
    def sample(self, key: Array, process: GaussianProcess) -> Array:
        """Draws one time, a scalar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformTime(TimeDistribution):
    """Uniform between t_min and t_max; among the steps 1 to T of a discrete process."""

    def sample(self, key: Array, process: GaussianProcess) -> Array:
        if isinstance(process, Discrete):
            return jax.random.randint(key, (), 1, process.num_timesteps + 1) / process.num_timesteps
        # At 0 itself, where sigma is 0, not every weighting is a number.
        return jnp.maximum(jax.random.uniform(key, (), minval=process.t_min, maxval=process.t_max), 1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormalNoise(TimeDistribution):
    """log(sigma / alpha) ~ N(mean, scale^2): that of EDM (Karras et al. 2022, table 1).

    Attributes:
      mean: P_mean.
      scale: P_std.
    """

    mean: float = -1.2
    scale: float = 1.2

    def sample(self, key: Array, process: GaussianProcess) -> Array:
        ratio = jnp.exp(self.mean + self.scale * jax.random.normal(key))
        # Karras' time is the level itself, and training may go beyond the range of sampling.
        if process.t_max > 1.0:
            return ratio
        return jnp.maximum(process.time_of_noise_ratio(ratio), max(process.t_min, 1e-5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormalTime(TimeDistribution):
    """logit(t) ~ N(mean, scale^2), for flows (Esser et al. 2024, arXiv:2403.03206, section 3.1).

    Attributes:
      mean: of the logit.
      scale: standard deviation of the logit.
    """

    mean: float = 0.0
    scale: float = 1.0

    def sample(self, key: Array, process: GaussianProcess) -> Array:
        return process.t_max * jax.nn.sigmoid(self.mean + self.scale * jax.random.normal(key))
