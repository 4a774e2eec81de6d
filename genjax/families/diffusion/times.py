"""Distributions of the training time t, which decide how often each noise level is trained."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, example_places
from genjax.errors import UserError
from genjax.families.diffusion.processes import Discrete, GaussianProcess, shifted_time

#: 2^32 (sqrt(5) - 1) / 2, odd.
_GOLDEN = 2654435769


def spread_uniforms(key: Array, batch: Batch) -> Array:
    """A number in [0, 1) for each example, [B], each of them uniform and together evenly spread over the batch.

        u_i = u + i (sqrt(5) - 1) / 2  modulo 1,    with one uniform u of the batch

    A loss at these times varies less than at independent times (Kingma et al. 2021, arXiv:2107.00630, appendix
    I.1).  They space times by 1 / B; here a time does not depend on the size of the batch, so that
    microbatches get the same times.
    """
    start = jax.random.bits(jax.random.fold_in(key, 2**31), (), jnp.uint32)
    # Integer multiples of 2^-32 wrap around as modulo 1 does, and are exact at any place; float32 has only 24 bits.
    spread = start + example_places(batch).astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    return (spread >> 8).astype(jnp.float32) * 2.0**-24


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
        # Not from 0, where sigma is 0 and some weightings are not finite.
        return jnp.maximum(jax.random.uniform(key, (), minval=process.t_min, maxval=process.t_max), 1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormalNoise(TimeDistribution):
    """log(sigma / alpha) ~ N(mean, scale^2), as in EDM (Karras et al. 2022, table 1).

    Attributes:
      mean: mean P_mean of the logarithm.
      scale: standard deviation P_std of the logarithm.
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
    """logit(t) ~ N(mean, scale^2), for flows (Esser et al. 2024, arXiv:2403.03206, section 3.1, eq. 19).

    Attributes:
      mean: mean of the logit.
      scale: standard deviation of the logit.
      shift: the time t becomes s t / (1 + (s - 1) t); 1 leaves it.
    """

    mean: float = 0.0
    scale: float = 1.0
    shift: float = 1.0

    def sample(self, key: Array, process: GaussianProcess) -> Array:
        t = jax.nn.sigmoid(self.mean + self.scale * jax.random.normal(key))
        return process.t_max * shifted_time(t, self.shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModeTime(TimeDistribution):
    """t = 1 - u - s (cos(pi u / 2)^2 - 1 + u) of a uniform u, heavy at both ends (Esser et al. 2024, eq. 20).

    Attributes:
      scale: s, between -1 and 2 / (pi - 2): above 0 the middle is more frequent, below 0 the ends are.
      shift: the time t becomes s t / (1 + (s - 1) t); 1 leaves it.
    """

    scale: float = 1.29
    shift: float = 1.0

    def sample(self, key: Array, process: GaussianProcess) -> Array:
        if not -1.0 <= self.scale <= 2.0 / (math.pi - 2.0):
            raise UserError(
                f"times.scale={self.scale} must lie between -1 and {2.0 / (math.pi - 2.0):.4f}, beyond which times "
                "are not ordered as the uniform numbers that they are made of"
            )
        u = jax.random.uniform(key)
        t = 1.0 - u - self.scale * (jnp.cos(0.5 * jnp.pi * u) ** 2 - 1.0 + u)
        # From rounding, and not from 0, where sigma is 0.
        return process.t_max * shifted_time(jnp.clip(t, 1e-5, 1.0), self.shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosMapTime(TimeDistribution):
    """Density 2 / (pi - 2 pi t + 2 pi t^2): log(alpha / sigma) as in the cosine schedule (Esser et al. 2024, eq. 21).

    Attributes:
      shift: the time t becomes s t / (1 + (s - 1) t); 1 leaves it.
    """

    flag_name: ClassVar[str] = "cosmap_time"

    shift: float = 1.0

    def sample(self, key: Array, process: GaussianProcess) -> Array:
        # 1 - 1 / (tan(pi u / 2) + 1), finite at both ends.
        angle = 0.5 * jnp.pi * jax.random.uniform(key)
        t = jnp.sin(angle) / (jnp.sin(angle) + jnp.cos(angle))
        return process.t_max * shifted_time(jnp.maximum(t, 1e-5), self.shift)
