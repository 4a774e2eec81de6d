"""Emissions of hidden states: distributions with weighted sufficient statistics and closed-form maxima.

Each is a frozen dataclass with
  init(key, x, K) -> params           from frames x [N, D] (or tokens [N]), with weights [N] of 0 and 1
  check(x)                            refuses frames that it cannot emit
  log_prob(params, x) -> [..., K]     of frames [..., D]
  statistics(params, x, weights)      sums over frames [N] with responsibilities [N, K]
  maximize(statistics, params)        the M-step
  draw(key, statistics, params)       parameters from their posterior under conjugate priors, where there is one
  sample(params, key, state, *before) one frame of state []; `before` is the frame before, for autoregressive ones
  singular(params)                    which covariances [K] are singular but for the ridge, where there are covariances
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, PyTree
from genjax.errors import UserError, filled
from genjax.nn.tokens import check_tokens

LOG_2PI = math.log(2.0 * math.pi)
#: Share of the mean variance that rounding of float32 may take from the smallest one.
_ROUNDING = 1e-5
_SMALLEST_VARIANCE = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emission(abc.ABC):
    """Base of all emissions."""

    @property
    def discrete(self) -> bool:
        """Whether frames are tokens."""
        return False

    @property
    def autoregressive(self) -> bool:
        """Whether frames are pairs (frame, frame before it) [..., 2 D]; `sample` then takes the frame before, too."""
        return False

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the parameters that all states have together."""
        return ()

    def check(self, x: Array) -> None:
        """Raises UserError for frames that cannot be emitted, where their values are known."""
        del x

    @abc.abstractmethod
    def init(self, key: Array, x: Array, weights: Array, num_states: int) -> PyTree: ...

    @abc.abstractmethod
    def log_prob(self, params: PyTree, x: Array) -> Array: ...

    @abc.abstractmethod
    def statistics(self, params: PyTree, x: Array, weights: Array) -> PyTree: ...

    def aligned(self, statistics: PyTree, params: PyTree) -> PyTree:
        """Statistics under earlier parameters, converted to the present parameters, so that both can be averaged."""
        del params
        return statistics

    @abc.abstractmethod
    def maximize(self, statistics: PyTree, params: PyTree) -> PyTree: ...

    @abc.abstractmethod
    def sample(self, params: PyTree, key: Array, state: Array, *before: Array) -> Array: ...

    def singular(self, params: PyTree) -> Array | None:
        return None

    def draw(self, key: Array, statistics: PyTree, params: PyTree) -> PyTree:
        raise UserError(
            f"Gibbs sampling has no conjugate prior for {type(self).__name__}: use categorical or bernoulli"
        )


def singular_warnings(metrics: Mapping[str, float]) -> list[str]:
    """A sentence for the user if the metric `singular_covariances` is not 0."""
    count = metrics.get("singular_covariances", 0.0)
    if count <= 0.0:
        return []
    return [
        f"on average {count:.3g} covariances are singular but for the ridge, "
        "since their examples lie in a plane or are too few: give a larger ridge, fewer components, "
        "or another type of covariance"
    ]


def random_frames(key: Array, x: Array, weights: Array, count: int) -> Array:
    """`count` frames with weight 1 from x [N, ...], drawn with replacement."""
    total = jnp.cumsum(weights > 0)
    return x[jnp.searchsorted(total, jax.random.randint(key, (count,), 0, total[-1]), side="right")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical(Emission):
    """Tokens.

    Attributes:
      vocab_size: number V of tokens; None takes the data set's.
      pseudo_count: number added to every count in the M-step; prior of the Gibbs sampler (1 if it is 0).
    """

    vocab_size: int | None = None
    pseudo_count: float = 0.01

    @property
    def discrete(self) -> bool:
        return True

    def check(self, x: Array) -> None:
        if self.vocab_size is not None:
            check_tokens(x, self.vocab_size, "the batch")

    def init(self, key: Array, x: Array, weights: Array, num_states: int) -> PyTree:
        vocab_size = filled(self, "vocab_size")
        counts = jnp.zeros(vocab_size).at[x].add(weights) + 1.0
        noise = jax.random.gamma(key, 2.0, (num_states, vocab_size))
        return {"logits": jax.nn.log_softmax(jnp.log(counts)[None] + jnp.log(noise + 1e-3))}

    def log_prob(self, params: PyTree, x: Array) -> Array:
        return jax.nn.log_softmax(params["logits"]).T[x]

    def statistics(self, params: PyTree, x: Array, weights: Array) -> PyTree:
        return {"count": jnp.zeros(params["logits"].shape[::-1]).at[x].add(weights).T}

    def maximize(self, statistics: PyTree, params: PyTree) -> PyTree:
        counts = statistics["count"] + self.pseudo_count
        return {"logits": jnp.log(jnp.maximum(counts / jnp.maximum(counts.sum(-1, keepdims=True), 1e-30), 1e-30))}

    def draw(self, key: Array, statistics: PyTree, params: PyTree) -> PyTree:
        return {"logits": log_dirichlet(key, statistics["count"] + (self.pseudo_count or 1.0))}

    def sample(self, params: PyTree, key: Array, state: Array) -> Array:
        return jax.random.categorical(key, params["logits"][state]).astype(jnp.int32)


def log_dirichlet(key: Array, concentration: Array) -> Array:
    """Logarithms of Dirichlet draws along the last axis; exact also for tiny concentrations."""
    return jax.nn.log_softmax(jax.random.loggamma(key, concentration), -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bernoulli(Emission):
    """Independent bits, such as the notes of a chord.

    Attributes:
      pseudo_count: ones and zeros added to every bit in the M-step; prior of the Gibbs sampler (1 where it is 0).
    """

    pseudo_count: float = 0.01

    def init(self, key: Array, x: Array, weights: Array, num_states: int) -> PyTree:
        mean = jnp.average(x, axis=0, weights=weights)
        p = 0.5 * random_frames(key, x, weights, num_states) + 0.5 * mean[None]
        return {"logits": jax.scipy.special.logit(jnp.clip(p, 1e-3, 1 - 1e-3))}

    def log_prob(self, params: PyTree, x: Array) -> Array:
        logits = params["logits"]
        return x @ logits.T + jax.nn.log_sigmoid(-logits).sum(-1).reshape((1,) * (x.ndim - 1) + (-1,))

    def statistics(self, params: PyTree, x: Array, weights: Array) -> PyTree:
        return {"count": weights.sum(0), "sum": jnp.matmul(weights.T, x, precision="highest")}

    def maximize(self, statistics: PyTree, params: PyTree) -> PyTree:
        p = (statistics["sum"] + self.pseudo_count) / jnp.maximum(statistics["count"] + 2 * self.pseudo_count, 1e-30)[
            :, None
        ]
        return {"logits": jax.scipy.special.logit(jnp.clip(p, 1e-7, 1 - 1e-6))}

    def draw(self, key: Array, statistics: PyTree, params: PyTree) -> PyTree:
        prior = self.pseudo_count or 1.0
        ones = statistics["sum"] + prior
        zeros = jnp.maximum(statistics["count"][:, None] - statistics["sum"], 0.0) + prior
        log_p = log_dirichlet(key, jnp.stack([ones, zeros], -1))
        return {"logits": log_p[..., 0] - log_p[..., 1]}

    def sample(self, params: PyTree, key: Array, state: Array) -> Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(params["logits"][state])).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressiveBernoulli(Emission):
    """Independent bits, each given the same bit of the frame before, for notes that continue and notes that begin.

    Attributes:
      pseudo_count: ones and zeros added to every bit in the M-step.
      pooled_count: number of frames added to every state, with the mean frequencies of all states.
    """

    pseudo_count: float = 0.01
    pooled_count: float = 1.0

    @property
    def autoregressive(self) -> bool:
        return True

    def _features(self, x: Array) -> tuple[Array, Array]:
        """Ones by the bit before, [N, 2 D], and what bit was before, [N, 2 D]."""
        bit, before = jnp.split(x, 2, -1)
        given = jnp.concatenate([1.0 - before, before], -1)
        return given * jnp.concatenate([bit, bit], -1), given

    def init(self, key: Array, x: Array, weights: Array, num_states: int) -> PyTree:
        ones, given = self._features(x)
        mean = jnp.average(ones, axis=0, weights=weights) / jnp.maximum(
            jnp.average(given, axis=0, weights=weights), 1e-6
        )
        bit = jnp.split(random_frames(key, x, weights, num_states), 2, -1)[0]
        p = 0.5 * jnp.concatenate([bit, bit], -1) + 0.5 * mean[None]
        return {"logits": jax.scipy.special.logit(jnp.clip(p, 1e-3, 1 - 1e-3))}

    def log_prob(self, params: PyTree, x: Array) -> Array:
        ones, given = self._features(x)
        logits = params["logits"]
        return ones @ logits.T + given @ jax.nn.log_sigmoid(-logits).T

    def statistics(self, params: PyTree, x: Array, weights: Array) -> PyTree:
        ones, given = self._features(x)
        return {"sum": weights.T @ ones, "count": weights.T @ given}

    def maximize(self, statistics: PyTree, params: PyTree) -> PyTree:
        ones, count = statistics["sum"], statistics["count"]
        pooled = (ones.sum(0) + self.pseudo_count) / (count.sum(0) + 2 * self.pseudo_count + 1e-30)
        ones = ones + self.pooled_count * pooled[None] + self.pseudo_count
        p = ones / (count + self.pooled_count + 2 * self.pseudo_count + 1e-30)
        return {"logits": jax.scipy.special.logit(jnp.clip(p, 1e-7, 1 - 1e-6))}

    def sample(self, params: PyTree, key: Array, state: Array, before: Array) -> Array:
        start, go_on = jnp.split(params["logits"][state], 2)
        return jax.random.bernoulli(key, jax.nn.sigmoid(jnp.where(before > 0, go_on, start))).astype(jnp.float32)


def _square_distances(x: Array, means: Array, factors: Array) -> Array:
    """sum_d (factors_kd (x_nd - means_kd))^2 of x [N, D] and means [K, D], shape [N, K].

    A difference of squares, which a matrix product would give, loses all digits far from a narrow component.
    """

    def add(total: Array, column: tuple[Array, Array, Array]) -> tuple[Array, None]:
        x, mean, factor = column
        return total + ((x[:, None] - mean[None]) * factor[None]) ** 2, None

    # Column by column: XLA on CPU sums along short last axes slowly.
    return jax.lax.scan(add, jnp.zeros((len(x), len(means)), x.dtype), (x.T, means.T, factors.T))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(Emission):
    """Normal vectors.

    Attributes:
      covariance: spherical, diagonal or full of each state, or tied: one full matrix for all.
      ridge: added to the diagonal of every covariance in the M-step, so that none becomes singular.  If it is too
        small against larger variances, 10^-5 of the mean variance is added instead.
    """

    covariance: Literal["spherical", "diagonal", "tied", "full"] = "diagonal"
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        if self.ridge < 0:
            raise UserError(f"ridge={self.ridge} of a covariance must not be negative")

    @property
    def shared(self) -> tuple[str, ...]:
        return ("scale",) if self.covariance == "tied" else ()

    def init(self, key: Array, x: Array, weights: Array, num_states: int) -> PyTree:
        centred = x - jnp.average(x, axis=0, weights=weights)[None]
        covariance = (centred * weights[:, None]).T @ centred / jnp.maximum(weights.sum(), 1.0)
        mean = random_frames(key, x, weights, num_states)
        return {"mean": mean, "scale": self._scale(jnp.broadcast_to(covariance, (num_states, *covariance.shape)), None)}

    def _scale(self, covariance: Array, weights: Array | None) -> Array:
        """Standard deviations or Cholesky factors of covariances [K, D, D], pooled as the type says."""
        if self.covariance in ("spherical", "diagonal"):
            return self._deviation(jnp.diagonal(covariance, axis1=-2, axis2=-1))
        if self.covariance == "tied":
            weights = jnp.ones(len(covariance)) if weights is None else weights
            covariance = (covariance * (weights / jnp.maximum(weights.sum(), 1e-30))[:, None, None]).sum(0)
        return self._factor(covariance)

    def scales(self, covariance: Array) -> Array:
        """Factors of covariances [K, D, D], or deviations of variances [K, D], of each component."""
        return self._factor(covariance) if covariance.ndim == 3 else self._deviation(covariance)

    def _factor(self, covariance: Array) -> Array:
        """Cholesky factors of covariances [..., D, D] with the ridge, or a larger one where that is not enough."""
        dim = covariance.shape[-1]
        eye = jnp.eye(dim).reshape((1,) * (covariance.ndim - 2) + (dim, dim))
        variance = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / dim
        factor = jnp.linalg.cholesky(covariance + self.ridge * eye)
        safe = jnp.linalg.cholesky(covariance + (self.ridge + _ROUNDING * variance + _SMALLEST_VARIANCE) * eye)
        # A matrix that rounding has made indefinite keeps its variances only.
        variances = jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), 0.0) + self.ridge + _SMALLEST_VARIANCE
        sound = lambda a: jnp.isfinite(a).all((-2, -1), keepdims=True)
        safe = jnp.where(sound(safe), safe, jnp.sqrt(variances)[..., None] * eye)
        return jnp.where(sound(factor), factor, safe)

    def _deviation(self, variance: Array) -> Array:
        if self.covariance == "spherical":
            variance = variance.mean(-1, keepdims=True)
        return jnp.sqrt(jnp.maximum(jnp.maximum(variance, 0.0) + self.ridge, _SMALLEST_VARIANCE))

    @staticmethod
    def _centre(params: PyTree) -> Array:
        """The middle of the means [D], which numbers are taken from against cancellation; few far
        ones do not move it.
        """
        return jax.lax.stop_gradient(jnp.median(params["mean"], axis=0))

    def singular(self, params: PyTree) -> Array:
        scale = params["scale"] if self.covariance != "tied" else params["scale"][None]
        # Of two numbers that are the same, twice what was added is left; and there is rounding.
        floor = 3 * (self.ridge + _SMALLEST_VARIANCE)
        if self.covariance in ("tied", "full"):
            floor = floor + 3 * _ROUNDING * (scale**2).sum(-1).mean(-1)
            scale = jnp.diagonal(scale, axis1=-2, axis2=-1)
        return (scale**2).min(-1) <= floor

    def covariances(self, params: PyTree) -> Array:
        """Covariance matrices [K, D, D]."""
        mean, scale = params["mean"], params["scale"]
        if self.covariance in ("spherical", "diagonal"):
            return jnp.broadcast_to(scale**2, mean.shape)[:, :, None] * jnp.eye(mean.shape[1])[None]
        covariance = scale @ scale.swapaxes(-1, -2)
        return jnp.broadcast_to(covariance, (len(mean), *covariance.shape[-2:]))

    def log_prob(self, params: PyTree, x: Array) -> Array:
        scale, dim = params["scale"], x.shape[-1]
        flat, mean = x.reshape(-1, dim) - self._centre(params)[None], params["mean"] - self._centre(params)[None]
        if self.covariance in ("spherical", "diagonal"):
            square = _square_distances(flat, mean, jnp.broadcast_to(1.0 / scale, mean.shape))
            log_det = jnp.broadcast_to(jnp.log(jnp.abs(scale)), mean.shape).sum(-1)
        elif self.covariance == "tied":
            inverse = jax.scipy.linalg.solve_triangular(scale, jnp.eye(dim), lower=True)
            square = _square_distances(flat @ inverse.T, mean @ inverse.T, jnp.ones_like(mean))
            log_det = jnp.broadcast_to(jnp.log(jnp.abs(jnp.diagonal(scale))).sum(), mean.shape[:1])
        else:
            eye = jnp.broadcast_to(jnp.eye(dim), scale.shape)
            inverse = jax.scipy.linalg.solve_triangular(scale, eye, lower=True)  # [K, D, D]
            # One matrix product for all states.
            white = (flat @ inverse.reshape(-1, dim).T).reshape(-1, len(mean), dim)
            white = white - jnp.einsum("kij,kj->ki", inverse, mean)[None]
            square = (white**2).sum(-1)
            log_det = jnp.log(jnp.abs(jnp.diagonal(scale, axis1=-2, axis2=-1))).sum(-1)
        out = -0.5 * (square + dim * LOG_2PI) - log_det[None]
        return out.reshape(*x.shape[:-1], -1)

    def statistics(self, params: PyTree, x: Array, weights: Array) -> PyTree:
        centre = self._centre(params)
        x = x - centre[None]
        count = weights.sum(0)
        out = {"count": count, "sum": weights.T @ x}
        if self.covariance in ("spherical", "diagonal"):
            out["square"] = weights.T @ x**2
        else:
            dim = x.shape[-1]
            squares = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)  # [N, D * D], for all states
            out["outer"] = (weights.T @ squares).reshape(-1, dim, dim)
        out["centre"] = centre * count.sum()
        return out

    def aligned(self, statistics: PyTree, params: PyTree) -> PyTree:
        centre, count, total = self._centre(params), statistics["count"], statistics["sum"]
        move = (self._centre_of(statistics) - centre)[None]
        out = {**statistics, "sum": total + count[:, None] * move, "centre": centre * count.sum()}
        if "square" in statistics:
            out["square"] = statistics["square"] + 2 * move * total + count[:, None] * move**2
        else:
            both = total[:, :, None] * move[:, None, :]
            square = count[:, None, None] * move[:, :, None] * move[:, None, :]
            out["outer"] = statistics["outer"] + both + both.swapaxes(-1, -2) + square
        return out

    @staticmethod
    def _centre_of(statistics: PyTree) -> Array:
        """The point that is subtracted before sums, [D]."""
        return statistics["centre"] / jnp.maximum(statistics["count"].sum(), 1e-10)

    def sums(self, statistics: PyTree) -> Array:
        """Sums of the uncentred frames, [K, D]."""
        return statistics["sum"] + statistics["count"][:, None] * self._centre_of(statistics)[None]

    def maximize(self, statistics: PyTree, params: PyTree) -> PyTree:
        count = jnp.maximum(statistics["count"], 1e-10)
        shifted = statistics["sum"] / count[:, None]
        mean = shifted + self._centre_of(statistics)[None]
        if self.covariance in ("spherical", "diagonal"):
            scale = self._deviation(statistics["square"] / count[:, None] - shifted**2)
        else:
            covariance = statistics["outer"] / count[:, None, None] - shifted[:, :, None] * shifted[:, None, :]
            # An empty state has no covariance.
            empty = statistics["count"] < 1e-6
            eye = jnp.broadcast_to(jnp.eye(mean.shape[1]), covariance.shape)
            scale = self._scale(jnp.where(empty[:, None, None], eye, covariance), statistics["count"])
        return {"mean": mean, "scale": scale}

    def sample(self, params: PyTree, key: Array, state: Array) -> Array:
        mean, scale = params["mean"][state], params["scale"]
        noise = jax.random.normal(key, mean.shape)
        if self.covariance in ("spherical", "diagonal"):
            return mean + scale[state] * noise
        return mean + (scale if self.covariance == "tied" else scale[state]) @ noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Emission):
    """A mixture of M components of another emission in each state.

    Attributes:
      component: distribution of a component: bernoulli (patterns of notes), gaussian or categorical.
      num_components: number M.
      pseudo_count: added to the count of each component.
    """

    component: Emission = Gaussian()
    num_components: int = 2
    pseudo_count: float = 0.01

    @property
    def discrete(self) -> bool:
        return self.component.discrete

    @property
    def autoregressive(self) -> bool:
        return self.component.autoregressive

    @property
    def shared(self) -> tuple[str, ...]:
        return self.component.shared

    def check(self, x: Array) -> None:
        self.component.check(x)

    def init(self, key: Array, x: Array, weights: Array, num_states: int) -> PyTree:
        parts = self.component.init(key, x, weights, num_states * self.num_components)
        return {
            "log_weights": jnp.full((num_states, self.num_components), -math.log(self.num_components)),
            "parts": parts,
        }

    def _joint(self, params: PyTree, x: Array) -> Array:
        log_prob = self.component.log_prob(params["parts"], x)
        weights = jax.nn.log_softmax(params["log_weights"])
        log_prob = log_prob.reshape(*log_prob.shape[:-1], *weights.shape)
        return log_prob + weights.reshape((1,) * (log_prob.ndim - 2) + weights.shape)

    def log_prob(self, params: PyTree, x: Array) -> Array:
        return jax.nn.logsumexp(self._joint(params, x), -1)

    def statistics(self, params: PyTree, x: Array, weights: Array) -> PyTree:
        inner = jax.nn.softmax(self._joint(params, x), -1) * weights[:, :, None]  # [N, K, M]
        return {
            "weights": inner.sum(0),
            "parts": self.component.statistics(params["parts"], x, inner.reshape(len(inner), -1)),
        }

    def aligned(self, statistics: PyTree, params: PyTree) -> PyTree:
        return {**statistics, "parts": self.component.aligned(statistics["parts"], params["parts"])}

    def maximize(self, statistics: PyTree, params: PyTree) -> PyTree:
        counts = statistics["weights"] + self.pseudo_count
        log_weights = jnp.log(jnp.maximum(counts / jnp.maximum(counts.sum(-1, keepdims=True), 1e-30), 1e-30))
        return {"log_weights": log_weights, "parts": self.component.maximize(statistics["parts"], params["parts"])}

    def singular(self, params: PyTree) -> Array | None:
        return self.component.singular(params["parts"])

    def sample(self, params: PyTree, key: Array, state: Array, *before: Array) -> Array:
        keys = jax.random.split(key)
        part = jax.random.categorical(keys[0], params["log_weights"][state])
        return self.component.sample(params["parts"], keys[1], state * self.num_components + part, *before)
