"""Posteriors to test samplers on: a prior of named unconstrained parameters, and a likelihood of a batch."""

from __future__ import annotations

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target(abc.ABC):
    """Base of all targets."""

    @property
    def has_data(self) -> bool:
        """Whether there is a likelihood."""
        return type(self).log_likelihood is not Target.log_likelihood

    @abc.abstractmethod
    def shapes(self, data_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of the unconstrained parameters by name, for examples `x` of this shape."""

    @abc.abstractmethod
    def log_prior(self, position: dict[str, Array]) -> Array:
        """Log-density of the parameters on the unconstrained space, up to a constant."""

    def log_likelihood(self, position: dict[str, Array], batch: Batch) -> Array:
        """log p(example | parameters) in nats, [B]."""
        del position
        return jnp.zeros(jax.tree.leaves(dict(batch))[0].shape[0])

    def report(self, position: dict[str, Array]) -> dict[str, Array]:
        """The parameters in the form that readers want, by name."""
        return position

    def log_density(self, position: dict[str, Array], batch: Batch) -> Array:
        """Log-posterior given all the data, up to a constant."""
        return self.log_prior(position) + self.log_likelihood(position, batch).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EightSchools(Target):
    """Effects `x` [B, 1] with known errors `scale` [B] of groups `group` [B] (Rubin 1981), non-centred.

        theta_j = mu + tau z_j,  mu ~ N(0, 5),  tau = exp(log_tau) ~ half-Cauchy(5),  z_j ~ N(0, 1),  x_j ~ N(theta_j,
        scale_j)

    Attributes:
      num_groups: number of schools.
    """

    num_groups: int = 8

    def shapes(self, data_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"log_tau": (), "mu": (), "z": (self.num_groups,)}

    def log_prior(self, position: dict[str, Array]) -> Array:
        mu, log_tau, z = position["mu"], position["log_tau"], position["z"]
        # The last term is the Jacobian of the exponential.
        return -0.5 * ((z**2).sum() + (mu / 5.0) ** 2) - jnp.log1p(jnp.exp(2 * log_tau) / 25.0) + log_tau

    def log_likelihood(self, position: dict[str, Array], batch: Batch) -> Array:
        theta = position["mu"] + jnp.exp(position["log_tau"]) * position["z"][batch["group"]]
        residual = (batch["x"][:, 0] - theta) / batch["scale"]
        return -0.5 * (residual**2 + jnp.log(2 * jnp.pi)) - jnp.log(batch["scale"])

    def report(self, position: dict[str, Array]) -> dict[str, Array]:
        tau = jnp.exp(position["log_tau"])
        return {"mu": position["mu"], "tau": tau, "theta": position["mu"] + tau * position["z"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Funnel(Target):
    """v ~ N(0, 3), x_i ~ N(0, exp(v / 2)) (Neal 2003); no data.

    Attributes:
      dim: number of dimensions of x.
      centred: sample x itself; otherwise sample z in x = exp(v / 2) z, which is easy.
    """

    dim: int = 9
    centred: bool = False

    def shapes(self, data_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"v": (), "x": (self.dim,)}

    def log_prior(self, position: dict[str, Array]) -> Array:
        v, x = position["v"], position["x"]
        if not self.centred:
            return -0.5 * ((v / 3.0) ** 2 + (x**2).sum())
        return -0.5 * ((v / 3.0) ** 2 + (x**2).sum() * jnp.exp(-v)) - 0.5 * self.dim * v

    def report(self, position: dict[str, Array]) -> dict[str, Array]:
        scale = 1.0 if self.centred else jnp.exp(0.5 * position["v"])
        return {"v": position["v"], "x": scale * position["x"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrelatedGaussian(Target):
    """N(0, S) with S_ij = correlation^|i - j|; no data.

    Attributes:
      dim: number of coordinates.
      correlation: correlation of neighbouring coordinates.
    """

    dim: int = 2
    correlation: float = 0.9

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """S [dim, dim]."""
        index = np.arange(self.dim)
        return self.correlation ** np.abs(index[:, None] - index[None])

    def shapes(self, data_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"x": (self.dim,)}

    def log_prior(self, position: dict[str, Array]) -> Array:
        x = position["x"]
        return -0.5 * x @ (jnp.asarray(np.linalg.inv(self.covariance), x.dtype) @ x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticRegression(Target):
    """label ~ Bernoulli(sigmoid(weights . x)), weights ~ N(0, prior_scale), for features `x` [B, D] and `label` [B].

    Attributes:
      prior_scale: standard deviation of every weight.
    """

    prior_scale: float = 2.5

    def shapes(self, data_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"weights": data_shape}

    def log_prior(self, position: dict[str, Array]) -> Array:
        return -0.5 * ((position["weights"] / self.prior_scale) ** 2).sum()

    def log_likelihood(self, position: dict[str, Array], batch: Batch) -> Array:
        logits = batch["x"] @ position["weights"]
        return batch["label"] * logits - jax.nn.softplus(logits)
