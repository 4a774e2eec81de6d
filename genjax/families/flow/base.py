"""Base distributions p_Z of flows, on vectors of D numbers.

StandardNormal     log p(z) = -1/2 sum (z^2 + log 2 pi)
StandardLogistic   log p(z) = -sum (softplus(z) + softplus(-z))         (NICE, Dinh et al. 2014, section 3.4)
GaussianMixture    log p(z) = log sum_k pi_k N(z; mu_k, diag sigma_k^2), learned
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base(abc.ABC):
    """Base distribution of a flow.

    Attributes:
      dim: number D of dimensions; None takes the data's.
    """

    dim: int | None = None

    def check(self, dim: int) -> None:
        """Raises UserError if the data do not have `dim` dimensions."""
        if self.dim is not None and self.dim != dim:
            raise UserError(
                f"the base distribution has {self.dim} dimensions but the data have {dim}; a flow keeps the number, "
                "so leave base.dim at none"
            )

    def init(self, key: Array, dim: int) -> Params:
        """Returns the parameters, if there are any."""
        return {}

    @abc.abstractmethod
    def log_prob(self, params: Params, z: Array) -> Array:
        """Log-density in nats of z [B, D], shape [B]."""

    @abc.abstractmethod
    def sample(self, params: Params, key: Array, num_samples: int, dim: int, temperature: float | Array) -> Array:
        """Draws [num_samples, dim]; `temperature` multiplies the standard deviation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandardNormal(Base):
    """Independent normal numbers."""

    def log_prob(self, params: Params, z: Array) -> Array:
        return -0.5 * (z**2 + math.log(2.0 * math.pi)).sum(-1)

    def sample(self, params: Params, key: Array, num_samples: int, dim: int, temperature: float | Array) -> Array:
        return temperature * jax.random.normal(key, (num_samples, dim))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandardLogistic(Base):
    """Independent logistic numbers, with heavier tails than normal numbers."""

    def log_prob(self, params: Params, z: Array) -> Array:
        return -(jax.nn.softplus(z) + jax.nn.softplus(-z)).sum(-1)

    def sample(self, params: Params, key: Array, num_samples: int, dim: int, temperature: float | Array) -> Array:
        return temperature * jax.random.logistic(key, (num_samples, dim))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianMixture(Base):
    """A learned mixture of normals with diagonal covariance.

    Attributes:
      num_components: number of normals.
    """

    num_components: int = 10

    def init(self, key: Array, dim: int) -> Params:
        return {
            "logits": jnp.zeros(self.num_components),
            "mean": jax.random.normal(key, (self.num_components, dim)),
            "log_scale": jnp.zeros((self.num_components, dim)),
        }

    def log_prob(self, params: Params, z: Array) -> Array:
        scaled = (z[:, None, :] - params["mean"][None]) * jnp.exp(-params["log_scale"])[None]  # [B, K, D]
        each = -0.5 * (scaled**2 + math.log(2.0 * math.pi)).sum(-1) - params["log_scale"].sum(-1)[None]
        return jax.nn.logsumexp(each + jax.nn.log_softmax(params["logits"])[None], axis=-1)

    def sample(self, params: Params, key: Array, num_samples: int, dim: int, temperature: float | Array) -> Array:
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(component_key, params["logits"], shape=(num_samples,))
        noise = temperature * jax.random.normal(noise_key, (num_samples, dim))
        return params["mean"][component] + jnp.exp(params["log_scale"])[component] * noise
