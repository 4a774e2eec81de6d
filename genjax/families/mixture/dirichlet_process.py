"""Dirichlet-process mixtures by variational inference with a truncated stick (Blei & Jordan 2006,
doi:10.1214/06-BA104).

    w_k = v_k prod_{j<k} (1 - v_j),   v_k ~ Beta(1, alpha),   v_K = 1;     component k ~ its conjugate prior

The posterior is approximated by q(v) q(components) q(assignments), each the best given the others:

    r_nk ~ exp(E log w_k + E log p(x_n | k)),     q(v_k) = Beta(1 + N_k, alpha + sum_{j>k} N_j)

    Gaussian, full:      q(mu, L) = N(mu | m, (beta L)^-1) Wishart(L | (nu S)^-1, nu)        (Bishop 2006, section 10.2)
        beta = beta_0 + N,  m = (beta_0 m_0 + N x) / beta,  nu = nu_0 + N,
        nu S = S_0 + N cov + beta_0 N / beta (x - m_0)(x - m_0)^T           with N, x, cov of the component's examples
        E log p(x | k) = log N(x | m, S) + (sum_i psi((nu + 1 - i) / 2) + D log(2 / nu) - D / beta) / 2
    Gaussian, diagonal:  the same of every coordinate by itself, D = 1
    Bernoulli:           q(p_d) = Beta(a + ones, a + zeros)

Components that the data do not need lose their examples, since each component has a cost for its parameters.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, digamma, multigammaln

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_sum
from genjax.errors import UserError
from genjax.families.mixture.mixture import MixtureModel, kmeans_plus_plus
from genjax.model import TrainState
from genjax.nn.emissions import Bernoulli, Gaussian, random_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirichletProcessMixture(MixtureModel):
    """Mixture that finds its number of components; it evaluates and samples at the posterior's mean parameters.

    Attributes:
      num_components: truncation K of the stick.
      component: gaussian (full or diagonal) or bernoulli, whose pseudo_count is a of its prior (1 where it is 0).
      concentration: alpha; larger values give more components.
      mean_precision: beta_0, the number of examples for which the prior mean m_0 (the mean of the first batch) counts.
      degrees_of_freedom: nu_0; None is the number of dimensions (1 for diagonal).
      prior_scale: S_0 is nu_0 times the covariance of the first batch times this.
    """

    num_components: int = 32
    concentration: float = 1.0
    mean_precision: float = 1.0
    degrees_of_freedom: float | None = None
    prior_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.concentration, self.mean_precision, self.prior_scale) <= 0:
            raise UserError("a Dirichlet-process mixture needs concentration, mean_precision and prior_scale above 0")
        if isinstance(self.component, Gaussian) and self.component.covariance not in ("full", "diagonal"):
            raise UserError(
                f"covariance={self.component.covariance} of a Dirichlet-process mixture must be full or diagonal"
            )

    def _prior(self, x: Array) -> dict[str, Array]:
        """Parameters of the prior from the first batch [N, D]: mean m_0 [D], and covariance [D, D] or variances [D]."""
        if isinstance(self.component, Bernoulli):
            return {}
        centred = x - x.mean(0)[None]
        full = self.component.covariance == "full"
        covariance = centred.T @ centred / len(x) if full else (centred**2).mean(0)
        ridge = self.component.ridge * (jnp.eye(x.shape[1]) if full else jnp.ones(x.shape[1]))
        return {"mean": x.mean(0), "covariance": covariance + ridge}

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step: each example belongs to the nearest of K centres."""
        x, keys = self._flat(batch), jax.random.split(key)
        if self.start == "kmeans_plus_plus":
            centres = kmeans_plus_plus(keys[0], x, self.num_components)
        else:
            centres = random_frames(keys[0], x, jnp.ones(len(x)), self.num_components)
        nearest = ((centres**2).sum(1)[None] - 2 * x @ centres.T).argmin(1)
        r = jax.nn.one_hot(nearest, self.num_components)
        parts = self.component.init(keys[1], x, jnp.ones(len(x)), self.num_components)
        counts = {"weights": r.sum(0), "parts": self.component.statistics(parts, x, r)}
        prior = self._prior(x)
        params, variational = self._posterior(counts, prior)
        extra = {"prior": prior}
        if self.averaging is not None:
            extra["statistics"] = counts
        return TrainState.create(params, extra=extra, learned={"variational": variational})

    def _posterior(self, counts: PyTree, prior: PyTree) -> tuple[PyTree, PyTree]:
        """Mean parameters of q, parameters for the E-step, and the divergence of q from the prior in nats.

        Parameters for the E-step are `log_weights`, with the terms of E log p(x | k) that do not depend on x, and
        parameters that differ from their means.
        """
        log_mean, log_weights, divergence = stick_posterior(counts["weights"], self.concentration)
        component = self._bits if isinstance(self.component, Bernoulli) else self._normals
        parts, constant, more, own = component(counts["parts"], prior)
        variational = {"log_weights": log_weights + constant, "divergence": divergence + more, **own}
        return {"log_weights": log_mean, "parts": parts}, variational

    def _bits(self, counts: PyTree, prior: PyTree) -> tuple[PyTree, Array, Array, dict[str, PyTree]]:
        a = self.component.pseudo_count or 1.0
        ones = counts["sum"] + a
        zeros = jnp.maximum(counts["count"][:, None] - counts["sum"], 0.0) + a
        both = digamma(ones + zeros)
        logits = digamma(ones) - digamma(zeros)
        constant = (digamma(zeros) - both + jax.nn.softplus(logits)).sum(-1)
        divergence = (
            betaln(a, a) - betaln(ones, zeros)
            + (ones - a) * digamma(ones) + (zeros - a) * digamma(zeros) + (2 * a - ones - zeros) * both
        ).sum()  # fmt: skip
        return {"logits": jnp.log(ones) - jnp.log(zeros)}, constant, divergence, {"parts": {"logits": logits}}

    def _normals(self, counts: PyTree, prior: PyTree) -> tuple[PyTree, Array, Array, dict[str, PyTree]]:
        full, dim = self.component.covariance == "full", counts["sum"].shape[1]
        count = counts["count"]
        safe = jnp.maximum(count, 1e-10)[:, None]
        sums = self.component.sums(counts)
        mean = sums / safe
        beta, size = self.mean_precision + count, dim if full else 1
        nu_0 = float(size) if self.degrees_of_freedom is None else self.degrees_of_freedom
        if nu_0 <= size - 1:
            raise UserError(f"degrees_of_freedom={nu_0} must be above {size - 1}, one less than the dimensions")
        nu = nu_0 + count
        m = (self.mean_precision * prior["mean"][None] + sums) / beta[:, None]
        outer = (lambda a: a[:, :, None] * a[:, None, :]) if full else jnp.square
        wide = (-1, *[1] * (2 if full else 1))
        shrink = (self.mean_precision * count / beta).reshape(wide)
        start = nu_0 * self.prior_scale * prior["covariance"][None]
        within = counts["outer" if full else "square"] - count.reshape(wide) * outer(counts["sum"] / safe)
        away = jnp.where(count[:, None] > 1e-6, mean - prior["mean"][None], 0.0)
        scatter = start + within + shrink * outer(away)
        scatter = jnp.where(count.reshape(wide) > 1e-6, scatter, start)
        scale = self.component.scales(scatter / nu.reshape(wide))
        # E log |L| + log |S|, summed over the coordinates that share a Wishart.
        places = jnp.arange(size)[None]
        log_ratio = digamma(0.5 * (nu[:, None] - places)).sum(-1) + size * jnp.log(2.0 / nu)
        copies = dim // size
        constant = 0.5 * (copies * log_ratio - dim / beta)
        # Divergence of normal and Wishart.
        if full:
            inverse = jax.vmap(lambda f: jax.scipy.linalg.cho_solve((f, True), jnp.eye(dim)))(scale)
            trace = jnp.einsum("kij,ij->k", inverse, start[0])
            log_det = 2 * jnp.log(jnp.diagonal(scale, axis1=-2, axis2=-1)).sum(-1)
            square = jnp.einsum("ki,kij,kj->k", m - prior["mean"][None], inverse, m - prior["mean"][None])
            log_det_start = jnp.linalg.slogdet(start[0])[1]
        else:
            trace, log_det = (start / scale**2).sum(-1), 2 * jnp.log(scale).sum(-1)
            square = ((m - prior["mean"][None]) ** 2 / scale**2).sum(-1)
            log_det_start = jnp.log(start[0]).sum()
        ratio = self.mean_precision / beta
        normal = 0.5 * (dim * (ratio - 1 - jnp.log(ratio)) + self.mean_precision * square)
        log_gamma = lambda n: multigammaln(0.5 * n, size)
        wishart = (
            0.5 * nu_0 * (log_det + dim * jnp.log(nu) - log_det_start)
            + 0.5 * (trace - dim * nu)
            + copies * (log_gamma(jnp.asarray(nu_0)) - log_gamma(nu))
            + 0.5 * copies * count * (log_ratio + size * jnp.log(0.5 * nu))
        )
        return {"mean": m, "scale": scale}, constant, (normal + wishart).sum(), {}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One round of updates of q.  `loss` is minus the bound of log p(data) an example in nats, before it."""
        x, variational = self._flat(batch), state.learned["variational"]
        counts, log_prob = self._statistics({"parts": state.params["parts"], **variational}, x)
        counts = cross_device_sum(counts)
        total = cross_device_sum(jnp.asarray(float(len(x))))
        loss = (variational["divergence"] - cross_device_sum(log_prob.sum())) / total
        counts, extra = self._average(counts, state)
        params, variational = self._posterior(counts, extra["prior"])
        metrics = {"loss": loss, **self._activity(counts, params["parts"])}
        return state.replace(
            step=state.step + 1, params=params, learned={"variational": variational}, extra=extra
        ), metrics


def stick_posterior(counts: Array, concentration: float) -> tuple[Array, Array, Array]:
    """log E w_k [K] and E log w_k [K] under the posterior of the sticks, and its divergence from the prior in nats.

    The components break the stick in the order of their counts (Kurihara et al. 2007), which is the best
    order.
    """
    order = jnp.argsort(-counts)
    n = counts[order][:-1]  # the last component gets the rest of the stick
    a, b = 1.0 + n, concentration + counts[order][::-1].cumsum()[::-1][1:]
    both = digamma(a + b)
    log_v, log_rest = digamma(a) - both, digamma(b) - both
    divergence = (betaln(1.0, concentration) - betaln(a, b) + (a - 1) * log_v + (b - concentration) * log_rest).sum()

    def sticks(log_v: Array, log_rest: Array) -> Array:
        log_w = jnp.append(log_v, 0.0) + jnp.concatenate([jnp.zeros(1), jnp.cumsum(log_rest)])
        return jnp.zeros_like(counts).at[order].set(log_w)

    return sticks(jnp.log(a / (a + b)), jnp.log(b / (a + b))), sticks(log_v, log_rest), divergence
