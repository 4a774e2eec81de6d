"""Finite mixtures by EM (Dempster et al. 1977).

p(x) = sum_k w_k p(x | k)        E-step: r_nk = p(k | x_n);    M-step: weighted maximum likelihood
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_gather, cross_device_sum
from genjax.errors import UserError
from genjax.model import TrainState
from genjax.nn.emissions import Emission, Gaussian, Mixture, singular_warnings


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureModel:
    """Mixture over `x` [B, ...]; a step is an EM step on the batch, so give all data as one batch, or use `averaging`.

    Attributes:
      num_components: number K.
      component: gaussian (of four covariance types) or bernoulli.
      start: kmeans_plus_plus spreads the first means, random takes random examples.
      averaging: kappa in (1/2, 1] of stochastic EM with rate (t + 2)^-kappa; None replaces the counts at each step.
      data_shape: shape of an example; None takes the data set's.
    """

    num_components: int = 8
    component: Emission = Gaussian(covariance="full")
    start: Literal["kmeans_plus_plus", "random"] = "kmeans_plus_plus"
    averaging: float | None = None
    data_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_components < 1:
            raise UserError("a mixture needs num_components >= 1")
        if self.averaging is not None and not 0.5 < self.averaging <= 1.0:
            raise UserError(f"averaging={self.averaging} must lie in (0.5, 1], or be none")
        if self.component.discrete or isinstance(self.component, Mixture):
            raise UserError("components of a mixture are gaussian or bernoulli")

    def _flat(self, batch: Batch) -> Array:
        return batch["x"].reshape(batch["x"].shape[0], -1)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step, with components around examples of the batch."""
        x, keys = self._flat(batch), jax.random.split(key)
        parts = self.component.init(keys[0], x, jnp.ones(len(x)), self.num_components)
        if self.start == "kmeans_plus_plus":
            parts = _move(parts, kmeans_plus_plus(keys[1], x, self.num_components), x)
        params = {"log_weights": jnp.full(self.num_components, -math.log(self.num_components)), "parts": parts}
        extra = {}
        if self.averaging is not None:
            shapes = jax.eval_shape(lambda p: self._statistics(p, x)[0], params)
            extra = {"statistics": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)}
        return TrainState.create(params, extra=extra)

    def _joint(self, params: PyTree, x: Array) -> Array:
        return self.component.log_prob(params["parts"], x) + params["log_weights"][None]

    def _statistics(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        joint = self._joint(params, x)
        shift = joint.max(-1, keepdims=True)
        r = jnp.exp(joint - shift)
        total = r.sum(-1, keepdims=True)
        r = r / total
        counts = {"weights": r.sum(0), "parts": self.component.statistics(params["parts"], x, r)}
        return counts, (jnp.log(total) + shift)[:, 0]

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One EM step.  `loss` is the mean negative log-likelihood in nats before it."""
        x = self._flat(batch)
        counts, log_prob = self._statistics(state.params, x)
        counts = cross_device_sum(counts)
        total = cross_device_sum(jnp.asarray(float(len(x))))
        loss = -cross_device_sum(log_prob.sum()) / total
        counts, extra = self._average(counts, state)
        parts = self.component.maximize(counts["parts"], state.params["parts"])
        # A component without examples restarts at an example, with the width of all data and a small weight.
        empty = counts["weights"] < 1e-6
        every = cross_device_gather(x)
        fresh = self.component.init(key, every, jnp.ones(len(every)), self.num_components)
        again = lambda new, old: jnp.where(empty.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        parts = {k: a if k in self.component.shared else again(fresh[k], a) for k, a in parts.items()}
        weights = jnp.maximum(counts["weights"], 1.0 * empty)
        params = {"log_weights": jnp.log(jnp.maximum(weights / weights.sum(), 1e-30)), "parts": parts}
        metrics = {"loss": loss, "empty_components": empty.sum().astype(jnp.float32), **self._activity(counts, parts)}
        return state.replace(step=state.step + 1, params=params, extra=extra), metrics

    def _average(self, counts: PyTree, state: TrainState) -> tuple[PyTree, dict[str, PyTree]]:
        """Counts of stochastic EM, and new entries of the state."""
        if self.averaging is None:
            return counts, dict(state.extra)
        rate = (state.step.astype(jnp.float32) + 2.0) ** -self.averaging
        rate = jnp.where(state.step == 0, 1.0, rate)
        before = state.extra["statistics"]
        before = {**before, "parts": self.component.aligned(before["parts"], state.params["parts"])}
        counts = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, before, counts)
        return counts, {**state.extra, "statistics": counts}

    def _activity(self, counts: PyTree, parts: PyTree) -> Metrics:
        """Number of components with more than a thousandth of the examples, and number of singular covariances."""
        active = counts["weights"] > 1e-3 * counts["weights"].sum()
        metrics = {"active_components": active.sum().astype(jnp.float32)}
        if (singular := self.component.singular(parts)) is not None:
            metrics["singular_covariances"] = singular.sum().astype(jnp.float32)
        return metrics

    def _normalized(self, state: TrainState) -> PyTree:
        return {**state.params, "log_weights": jax.nn.log_softmax(state.params["log_weights"])}

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """log p(x) in nats, exact for a finite mixture, at the components' estimates, [B]."""
        return jax.nn.logsumexp(self._joint(self._normalized(state), self._flat(batch)), -1)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """`nll` in nats."""
        return {"nll": -self.log_prob(state, batch)}

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        """Sentences for the user about means of metrics that look wrong."""
        out = singular_warnings(metrics)
        if metrics.get("empty_components", 0.0) > 0.0:
            out.append(
                f"on average {metrics['empty_components']:.3g} components had no example left and began again at "
                "random ones; if that goes on, give fewer components (--model.num_components)"
            )
        return out

    def responsibilities(self, state: TrainState, batch: Batch) -> Array:
        """p(k | x), [B, K]."""
        return jax.nn.softmax(self._joint(self._normalized(state), self._flat(batch)), -1)

    def num_parameters(self, dim: int) -> int:
        """Number of free parameters for examples of `dim` numbers."""
        k = self.num_components
        kinds = {"spherical": k, "diagonal": k * dim, "tied": dim * (dim + 1) // 2, "full": k * dim * (dim + 1) // 2}
        return k - 1 + k * dim + (kinds[self.component.covariance] if isinstance(self.component, Gaussian) else 0)

    def bic(self, state: TrainState, batch: Batch) -> Array:
        """Bayesian information criterion, -2 log p + parameters * log B; lower is better."""
        x = self._flat(batch)
        return -2 * self.log_prob(state, batch).sum() + self.num_parameters(x.shape[1]) * math.log(len(x))

    def aic(self, state: TrainState, batch: Batch) -> Array:
        """Akaike's information criterion, -2 log p + 2 * parameters; lower is better."""
        return -2 * self.log_prob(state, batch).sum() + 2 * self.num_parameters(self._flat(batch).shape[1])

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws examples [num_samples, *data_shape]."""
        params = self._normalized(state)

        def one(key: Array) -> Array:
            keys = jax.random.split(key)
            part = jax.random.categorical(keys[0], params["log_weights"])
            return self.component.sample(params["parts"], keys[1], part)

        samples = jax.vmap(one)(jax.random.split(key, num_samples))
        return samples.reshape(num_samples, *self.data_shape) if self.data_shape else samples

    def impute(self, state: TrainState, batch: Batch, key: Array | None = None) -> Array:
        """Fills the entries where `observed` [B, ...] is False from p(missing | observed).

        Args:
          state: trained state.
          batch: `x`, and `observed` of the same shape; hidden entries of x may hold anything.
          key: draws from the conditional; None takes its mean.

        Returns:
          x with hidden entries filled, its shape.
        """
        x, observed = self._flat(batch), batch["observed"].reshape(batch["x"].shape[0], -1)
        params = self._normalized(state)
        keys = jax.random.split(jax.random.key(0) if key is None else key, len(x))

        def bernoulli(x: Array, seen: Array, key: Array) -> Array:
            logits = params["parts"]["logits"]
            x = jnp.where(seen, x, 0.0)
            terms = x[None] * logits + jax.nn.log_sigmoid(-logits)
            joint = params["log_weights"] + jnp.where(seen[None], terms, 0.0).sum(1)
            if key_given:
                keys = jax.random.split(key)
                p = jax.nn.sigmoid(logits[jax.random.categorical(keys[0], joint)])
                return jnp.where(seen, x, jax.random.bernoulli(keys[1], p).astype(x.dtype))
            return jnp.where(seen, x, jax.nn.softmax(joint) @ jax.nn.sigmoid(logits))

        def gaussian(x: Array, seen: Array, key: Array) -> Array:
            mean, covariance = params["parts"]["mean"], self.component.covariances(params["parts"])
            x = jnp.where(seen, x, 0.0)
            difference = jnp.where(seen[None], x[None] - mean, 0.0)  # [K, D]
            both = (seen[:, None] & seen[None, :])[None]
            # Hidden rows and columns become rows and columns of the identity: they add nothing to square and
            # determinant.
            eye = jnp.eye(len(x))[None]
            factor = jnp.linalg.cholesky(jnp.where(both, covariance, eye))
            solve = lambda f, d: jax.scipy.linalg.cho_solve((f, True), d)
            weighted = jax.vmap(solve)(factor, difference)
            log_det = jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(1)
            joint = params["log_weights"] - 0.5 * (difference * weighted).sum(1) - log_det
            cross = jnp.where(seen[None, None, :], covariance, 0.0)  # observed columns
            conditional = mean + jnp.einsum("kij,kj->ki", cross, weighted)
            if not key_given:
                return jnp.where(seen, x, jax.nn.softmax(joint) @ conditional)
            keys = jax.random.split(key)
            k = jax.random.categorical(keys[0], joint)
            # A joint draw, corrected by its error at the observed entries (Matheron's rule).
            draw = mean[k] + jnp.linalg.cholesky(covariance[k]) @ jax.random.normal(keys[1], x.shape)
            residual = jnp.where(seen, x - draw, 0.0)
            return jnp.where(seen, x, draw + cross[k] @ solve(factor[k], residual))

        key_given = key is not None
        fill = gaussian if isinstance(self.component, Gaussian) else bernoulli
        return jax.vmap(fill)(x, observed, keys).reshape(batch["x"].shape)


def _move(parts: PyTree, centres: Array, x: Array) -> PyTree:
    """Components moved to centres [K, D]; for bits, to points between the centres and the mean of x [N, D]."""
    if "mean" in parts:
        return {**parts, "mean": centres}
    p = jnp.clip(0.5 * centres + 0.5 * x.mean(0)[None], 1e-3, 1 - 1e-3)
    return {**parts, "logits": jax.scipy.special.logit(p)}


def kmeans_plus_plus(key: Array, x: Array, count: int) -> Array:
    """Centres [count, D] spread by squared distance (Arthur & Vassilvitskii 2007)."""
    first = x[jax.random.randint(key, (), 0, len(x))]

    def step(distance: Array, key: Array) -> tuple[Array, Array]:
        centre = x[jax.random.categorical(key, jnp.log(distance + 1e-20))]
        return jnp.minimum(distance, ((x - centre[None]) ** 2).sum(1)), centre

    distance = ((x - first[None]) ** 2).sum(1)
    rest = jax.lax.scan(step, distance, jax.random.split(jax.random.fold_in(key, 1), count - 1))[1]
    return jnp.concatenate([first[None], rest])
