"""Distributions of observed values given a network's outputs, and the diagonal Gaussian of latent codes.

An `OutputDistribution` is a frozen dataclass, so that a configuration can choose it.  Its methods are pure functions of
`parameters` [..., P], the P raw network outputs of each observed value, and of values x [...]; they compute in float32.
Values are independent given the parameters, hence log p(x) is the sum of `log_prob` over the axes of one example.

Images on a lattice of `num_levels` values between `low` and `high` have bins of width delta =
(high - low) / (num_levels - 1):

    p(x) = F((x + delta/2 - m) / s) - F((x - delta/2 - m) / s),    F = sigmoid,

where the lowest bin reaches to -inf and the highest to +inf (Salimans et al. 2017,
arXiv:1701.05517, eq. 2, one component).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError, filled
from genjax.values import Lattice, Support

#: What gives an output distribution other values to score.
OUTPUT_REMEDY = "data.preprocessing, or model.output with its low, high and num_levels"
LOG_2PI = math.log(2.0 * math.pi)


def gaussian_log_prob(x: Array, mean: Array, log_scale: Array) -> Array:
    """Elementwise log N(x; mean, exp(log_scale)^2) in nats."""
    return -0.5 * jnp.square((x - mean) * jnp.exp(-log_scale)) - log_scale - 0.5 * LOG_2PI


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp(log_scale))^2), shapes [..., D]."""

    mean: Array
    log_scale: Array

    def with_sample_axis(self) -> DiagonalGaussian:
        """The same with shapes [1, ..., D], to broadcast against samples [S, ..., D]."""
        return DiagonalGaussian(self.mean[None], self.log_scale[None])

    def sample(self, noise: Array) -> Array:
        """Reparameterised draw from standard normal noise [..., D]."""
        return self.mean + jnp.exp(self.log_scale) * noise

    def log_prob(self, z: Array) -> Array:
        """log q(z) in nats, summed over the last axis."""
        return gaussian_log_prob(z, self.mean, self.log_scale).sum(-1)

    def kl_to_standard_normal(self) -> Array:
        """KL(q || N(0, I)) of each dimension in nats, shape [..., D] (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(2.0 * self.log_scale) - 1.0) - self.log_scale


def standard_normal_log_prob(z: Array) -> Array:
    """log N(z; 0, I) in nats, summed over the last axis."""
    return -0.5 * (jnp.square(z) + LOG_2PI).sum(-1)


@dataclasses.dataclass(frozen=True)
class OutputDistribution(abc.ABC):
    """Base of output distributions; see the module's docstring."""

    @property
    def num_parameters(self) -> int:
        """Number of network outputs for each observed value."""
        return 1

    @property
    def num_shared_parameters(self) -> int:
        """Number of learned parameters that all values share; they follow the network's outputs in `parameters`."""
        return 0

    @abc.abstractmethod
    def support(self) -> Support:
        """The values that `log_prob` means something at."""

    @abc.abstractmethod
    def log_prob(self, parameters: Array, x: Array) -> Array:
        """Log-density or log-probability of each value in nats, the shape of x."""

    @abc.abstractmethod
    def mean(self, parameters: Array) -> Array:
        """Mean of each value, shape [...]."""

    @abc.abstractmethod
    def sample(self, parameters: Array, key: Array) -> Array:
        """One draw of each value, shape [...]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bernoulli(OutputDistribution):
    """Values 0 and 1.

    Values between 0 and 1 count as expectations: `log_prob` is then the negative
    cross-entropy, which is no log-density.
    """

    def support(self) -> Support:
        # Beyond, the cross-entropy has no lower bound.
        return Support(name="Bernoulli", remedy=OUTPUT_REMEDY, low=0.0, high=1.0, density=False)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        logits = parameters[..., 0].astype(jnp.float32)
        return x * logits - jax.nn.softplus(logits)

    def mean(self, parameters: Array) -> Array:
        return jax.nn.sigmoid(parameters[..., 0].astype(jnp.float32))

    def sample(self, parameters: Array, key: Array) -> Array:
        return jax.random.bernoulli(key, self.mean(parameters)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LocationScale(OutputDistribution):
    """Location and scale families.

    Attributes:
      scale: the scale if it is fixed; its initial value if it is learned.
      learned_scale: "fixed"; "shared", one learned number for all values; or "per_value", a network output of each
        value.
      min_scale: learned scales are larger than this, because densities of values on a lattice have no upper bound.
    """

    scale: float = 1.0
    learned_scale: Literal["fixed", "shared", "per_value"] = "fixed"
    min_scale: float = 1e-3

    @property
    def num_parameters(self) -> int:
        return 2 if self.learned_scale == "per_value" else 1

    @property
    def num_shared_parameters(self) -> int:
        return 1 if self.learned_scale == "shared" else 0

    def location_and_log_scale(self, parameters: Array) -> tuple[Array, Array]:
        """Both of each value, shapes [...]."""
        parameters = parameters.astype(jnp.float32)
        location = parameters[..., 0]
        if self.learned_scale == "fixed":
            return location, jnp.full_like(location, math.log(self.scale))
        # Nearly the shifted raw output, if it lies well above the floor.
        floor = math.log(self.min_scale)
        return location, floor + jax.nn.softplus(parameters[..., 1] + math.log(self.scale) - floor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(_LocationScale):
    """Normal distribution of each value; see `_LocationScale` for its fields.

    Attributes:
      scale: standard deviation where it is fixed; its initial value where it is learned.
      learned_scale: "fixed"; "shared", one learned number for all values; or "per_value", a network output of each
        value.
      min_scale: learned scales are larger than this.
    """

    def support(self) -> Support:
        return Support(name="Gaussian", remedy=OUTPUT_REMEDY)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        return gaussian_log_prob(x, *self.location_and_log_scale(parameters))

    def mean(self, parameters: Array) -> Array:
        return parameters[..., 0].astype(jnp.float32)

    def sample(self, parameters: Array, key: Array) -> Array:
        mean, log_scale = self.location_and_log_scale(parameters)
        return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitLaplace(_LocationScale):
    """Laplace distribution of the logit of each value (Ramesh et al. 2021, arXiv:2102.12092, appendix A.3).

        y = epsilon + (1 - 2 epsilon) (x - low) / (high - low),    logit y ~ Laplace(location, scale)

    Its density lies on 0 < y < 1, whereas that of a normal or a Laplace distribution also lies on brightness that no
    picture has.  `epsilon` keeps the values of pictures away from both ends, where the logit is infinite.

    Attributes:
      scale: scale where it is fixed; its initial value where it is learned.
      learned_scale: "fixed"; "shared", one learned number for all values; or "per_value", a network output of each
        value.
      min_scale: learned scales are larger than this.
      epsilon: distance of the smallest and the largest value of x from the ends of (0, 1).
      low: smallest value of x; None takes the data set's.
      high: largest value of x; None takes the data set's.
    """

    scale: float = 0.3
    learned_scale: Literal["fixed", "shared", "per_value"] = "per_value"
    min_scale: float = 0.02
    epsilon: float = 0.1
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon < 0.5:
            raise UserError(f"LogitLaplace.epsilon={self.epsilon} must lie between 0 and 0.5")

    def support(self) -> Support:
        low, high = filled(self, "low", "high")
        return Support(name="LogitLaplace", remedy=OUTPUT_REMEDY, low=low, high=high)

    def inside(self, x: Array) -> Array:
        """y, the shape of x."""
        low, high = filled(self, "low", "high")
        return self.epsilon + (1.0 - 2.0 * self.epsilon) * (x - low) / (high - low)

    def outside(self, y: Array) -> Array:
        """The value x of each y; values of y beyond those of pictures give `low` and `high`."""
        low, high = filled(self, "low", "high")
        return low + (high - low) * jnp.clip((y - self.epsilon) / (1.0 - 2.0 * self.epsilon), 0.0, 1.0)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        low, high = filled(self, "low", "high")
        location, log_scale = self.location_and_log_scale(parameters)
        y = self.inside(x.astype(jnp.float32))
        log_y, log_rest = jnp.log(y), jnp.log1p(-y)
        log_density = -jnp.abs(log_y - log_rest - location) * jnp.exp(-log_scale) - log_scale - log_y - log_rest
        return log_density + math.log((1.0 - 2.0 * self.epsilon) / (2.0 * (high - low)))

    def mean(self, parameters: Array) -> Array:
        """The median, which the paper shows as the reconstruction."""
        return self.outside(jax.nn.sigmoid(parameters[..., 0].astype(jnp.float32)))

    def sample(self, parameters: Array, key: Array) -> Array:
        location, log_scale = self.location_and_log_scale(parameters)
        draw = location + jnp.exp(log_scale) * jax.random.laplace(key, location.shape)
        return self.outside(jax.nn.sigmoid(draw))


def discretized_logistic_log_prob(
    x: Array, location: Array, log_scale: Array, low: float, high: float, num_levels: int
) -> Array:
    """Elementwise log-probability in nats of lattice values under a logistic, shapes that broadcast.

    Args:
      x: values on the lattice of `num_levels` points from `low` to `high`.
      location, log_scale: of the logistic, in the units of x.
      low, high, num_levels: the lattice.
    """
    half = 0.5 * (high - low) / (num_levels - 1)
    inverse_scale = jnp.exp(-log_scale)
    upper = (x + half - location) * inverse_scale
    lower = (x - half - location) * inverse_scale
    # log(F(u) - F(l)) = log F(u) + log(1 - F(l)) + log(1 - exp(l - u)): no cancellation in either tail.
    inside = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + jnp.log(-jnp.expm1(-2.0 * half * inverse_scale))
    at_low, at_high = x < low + half, x > high - half
    return jnp.where(at_low, jax.nn.log_sigmoid(upper), jnp.where(at_high, jax.nn.log_sigmoid(-lower), inside))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscretizedLogistic(Lattice, _LocationScale):
    """Logistic distribution of each value, integrated over the bins of a lattice.

    Attributes:
      scale: scale where it is fixed; its initial value where it is learned.
      learned_scale: "fixed"; "shared", one learned number for all values; or "per_value", a network output of each
        value.
      min_scale: learned scales are larger than this.
      low: smallest value of the lattice.
      high: largest value of the lattice.
      num_levels: number of its values, 256 for images of a byte; None takes the data set's.
    """

    scale: float = 0.1
    learned_scale: Literal["fixed", "shared", "per_value"] = "per_value"

    def support(self) -> Support:
        return self.as_support("DiscretizedLogistic", OUTPUT_REMEDY)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        location, log_scale = self.location_and_log_scale(parameters)
        return discretized_logistic_log_prob(x, location, log_scale, self.low, self.high, self.levels)

    def mean(self, parameters: Array) -> Array:
        """The location on the lattice's range, which is the mean but for the cut at both ends."""
        return jnp.clip(parameters[..., 0].astype(jnp.float32), self.low, self.high)

    def sample(self, parameters: Array, key: Array) -> Array:
        location, log_scale = self.location_and_log_scale(parameters)
        draw = location + jnp.exp(log_scale) * jax.random.logistic(key, location.shape)
        delta = (self.high - self.low) / (self.levels - 1)
        return self.low + delta * jnp.clip(jnp.round((draw - self.low) / delta), 0, self.levels - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical(Lattice, OutputDistribution):
    """A free probability for each of the lattice's values.

    Attributes:
      low: smallest value of the lattice.
      high: largest value of the lattice.
      num_levels: number of its values; None takes the data set's.
    """

    @property
    def num_parameters(self) -> int:
        return self.levels

    def support(self) -> Support:
        return self.as_support("Categorical", OUTPUT_REMEDY)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        log_probabilities = jax.nn.log_softmax(parameters.astype(jnp.float32))
        level = jnp.broadcast_to(self.level(x), parameters.shape[:-1])
        return jnp.take_along_axis(log_probabilities, level[..., None], axis=-1)[..., 0]

    def mean(self, parameters: Array) -> Array:
        return jax.nn.softmax(parameters.astype(jnp.float32)) @ self.value(jnp.arange(self.levels, dtype=jnp.float32))

    def sample(self, parameters: Array, key: Array) -> Array:
        return self.value(jax.random.categorical(key, parameters.astype(jnp.float32)).astype(jnp.float32))
