"""Denoising diffusion probabilistic models (Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021,
arXiv:2102.09672).

The chain z_T -> ... -> z_1 -> x with p(z_(k-1) | z_k) = N(a z_k + b x0(z_k), v) has the bound (DDPM, eq. 5)

    -log p(x) <= KL(q(z_T | x) || p(z_T))  +  sum_{k=2}^T E KL(q(z_(k-1) | z_k, x) || p(z_(k-1) | z_k))  -  E log p(x |
    z_1)
                 prior                        diffusion                                                   reconstruction

Of pictures in [-1, 1] with L levels, p(x | z_1) is the probability that a Gaussian gives to the bin of each pixel (eq.
13); of other data, its density.  The loss is L_simple, the unweighted error of epsilon (eq. 14).  With learned
variances it is L_simple + hybrid_weight L_bound, where the bound trains the variance only (improved DDPM, eq. 15 and
16).  With objective=bound it is the bound itself, at a step that is drawn
uniformly or by importance, from the size of each step's last losses (as improved DDPM does for its L_vlb).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, Batch, Metrics, PyTree, batch_size, cross_device_gather, example_keys
from genjax.errors import UserError
from genjax.families.diffusion import targets
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.levels import levels_support
from genjax.families.diffusion.networks import Condition
from genjax.families.diffusion.processes import Discrete, GaussianProcess, expand, posterior
from genjax.families.diffusion.samplers import Ancestral, Estimate, Sampler
from genjax.families.diffusion.step_sampling import StepHistory
from genjax.families.diffusion.times import UniformTime
from genjax.gradients import gradient_step
from genjax.model import TrainState
from genjax.values import Support, only_of_support


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(Diffusion):
    """DDPM, and improved DDPM with variance=learned.

    Attributes:
      variance: variance of the reverse steps in the bound: small (beta-tilde), large
        (beta), or learned between the two.
      objective: simple, the error of the target (with learned variances plus the bound, which trains the
        variances only); or bound, the bound's term at the drawn step times the number of steps, in nats a
        dimension, which trains everything.
      step_sampling: with objective=bound, how the trained steps are drawn: uniform, or importance, in proportion to the
        root mean square of their last ten losses, which gives the same expectation with less noise (improved DDPM, eq.
        18).
      hybrid_weight: weight of the bound beside the simple loss, with learned variances.
      bound_terms: number of steps k whose terms estimate the bound in `evaluate`, without bias; T - 1 or more takes all
        steps.  The bound of pictures is NaN if pixels are not on levels from -1 to 1: use data.preprocessing=signed.
    """

    process: Discrete = Discrete()
    variance: Literal["small", "large", "learned"] = "small"
    objective: Literal["simple", "bound"] = "simple"
    step_sampling: Literal["uniform", "importance"] = "uniform"
    hybrid_weight: float = 0.001
    bound_terms: int = 20
    clip_x0: bool = True
    sampler: Sampler = Ancestral(num_steps=1000)

    def check(self) -> None:
        super().check()
        if self.process.num_timesteps < 2:
            raise UserError(
                f"process.num_timesteps={self.process.num_timesteps}: the chain needs at least 2 steps, "
                "the second of which lends the first its variance"
            )
        if getattr(self.sampler, "variance", None) == "learned" and self.variance != "learned":
            raise UserError("sampler.variance=learned needs a model with variance=learned")
        if self.objective == "bound" and (self.weighting != "simple" or not isinstance(self.times, UniformTime)):
            raise UserError("objective=bound weighs the steps itself; it takes weighting=simple and times=uniform_time")
        if self.step_sampling == "importance" and self.objective != "bound":
            raise UserError(
                "step_sampling=importance weighs the terms of the bound; "
                f"it takes objective=bound and not {self.objective}"
            )
        if self.bound_terms or self.objective == "bound":
            self._check_has_likelihood("bound_terms=0 and objective=simple")
        if self.bound_terms < 0:
            raise UserError(f"bound_terms={self.bound_terms} must be at least 0")

    @property
    def num_outputs(self) -> int:
        return self.data_shape[-1] * (2 if self.variance == "learned" else 1)

    def estimate(
        self, params: PyTree, z: Array, t: Array, condition: Condition, x0_before: Array | None = None
    ) -> Estimate:
        output = self.apply(params, z, t, condition, x0_before)
        return self._estimate_of(output, self.process_of(params), z, t)

    def _estimate_of(self, output: Array, process: GaussianProcess, z: Array, t: Array) -> Estimate:
        channels = self.data_shape[-1]
        x0 = targets.to_x0(self.target, process, t, z, output[..., :channels], self.sigma_data)
        match self.variance:
            case "learned":
                return Estimate(x0, (output[..., channels:] + 1.0) / 2.0)
            case "large":
                return Estimate(x0, jnp.ones_like(x0))
        return Estimate(x0)

    def init(self, key: Array, batch: Batch) -> TrainState:
        state = super().init(key, batch)
        if self.step_sampling == "importance":
            history = StepHistory.empty(self.process.num_timesteps)
            state = state.replace(extra={**state.extra, "step_history": history})
        return state

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: as for `Diffusion`, and with step_sampling=importance also `history_filled`.

        `history_filled` is the share of steps that have ten losses; until it is 1, steps are drawn uniformly.
        """
        if self.step_sampling == "uniform":
            return super().train_step(state, batch, key)
        history, size = state.extra["step_history"], batch_size(batch)
        probabilities = history.probabilities()
        draw = lambda k: jax.random.categorical(k, jnp.log(probabilities))
        index = jax.vmap(draw)(example_keys(jax.random.fold_in(key, 1), batch))
        example_index = batch.get("example_index", jnp.arange(size))
        batch = {
            **batch,
            "example_index": example_index,
            "step": index + 1,
            "step_probability": probabilities[index],
        }

        def loss(params: PyTree, part: Batch, part_key: Array, seen: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
            losses, values = self.example_losses(params, part, part_key, training=True)
            terms = jax.lax.stop_gradient(losses) * part["step_probability"]
            # Examples of a microbatch lie anywhere in the batch of this device.
            place = part["example_index"] - example_index[0]
            seen = {"steps": seen["steps"].at[place].set(part["step"]), "losses": seen["losses"].at[place].set(terms)}
            return losses.mean(), ({name: value.mean() for name, value in values.items()}, seen)

        # In a skipped update the steps stay 0, and losses at step 0 are not kept.
        nothing = {"steps": jnp.zeros((size,), jnp.int32), "losses": jnp.zeros((size,))}
        started = state.replace(extra=nothing)
        new, metrics = gradient_step(loss, self.optimizer, True, self.trained)(started, batch, key)
        history = history.with_losses(**cross_device_gather(new.extra))
        metrics["history_filled"] = history.filled()
        return new.replace(extra={**state.extra, "step_history": history}), metrics

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        super().diagnose(state, batch, key)
        if self.objective == "bound" or self.variance == "learned":
            self.check_levels(batch)

    def support(self) -> Support | None:
        """What the bound scores, where it is trained or evaluated; what has a density, where
        likelihood_steps asks for it.
        """
        if self.likelihood_steps:
            return super().support()
        support = levels_support(self.num_levels)
        if support is None or self.objective == "bound" or self.variance == "learned":
            return support
        if not self.bound_terms:
            return None
        return dataclasses.replace(support, remedy=f"{support.remedy}, or model.bound_terms to 0")

    def draw(self, batch: Batch, key: Array, process: GaussianProcess) -> tuple[Array, Array, Array]:
        t, epsilon, keys = super().draw(batch, key, process)
        if "step" in batch:
            t = batch["step"] / self.process.num_timesteps
        return t, epsilon, keys

    def whole_loss(self, error: Array, batch: Batch, z: Array, t: Array, output: Array) -> Array:
        if self.objective == "bound":
            return self._drawn_term(batch, z, t, output)
        if self.variance != "learned":
            return error
        # The bound trains the variance only.
        channels = z.shape[-1]
        mean, rest = jax.lax.stop_gradient(output[..., :channels]), output[..., channels:]
        return error + self.hybrid_weight * self._drawn_term(batch, z, t, jnp.concatenate([mean, rest], axis=-1))

    def _drawn_term(self, batch: Batch, z: Array, t: Array, output: Array) -> Array:
        """The bound's term at the drawn steps divided by their probability, in nats a dimension, shape [B].

        The prior's term is left out, as it has nothing to learn.
        """
        x = batch["x"]
        estimate = self._estimate_of(output, self.process, z, t)
        divergence = self._step_divergence(estimate, x, t)
        first = -self._reconstruction_log_prob(estimate, x, self.levels_of(batch))
        term = jnp.where(t * self.process.num_timesteps < 1.5, first, divergence)
        # Checked at every step, as the first step is seldom drawn.
        term = only_of_support(levels_support(self.levels_of(batch)), term, x)
        inverse = 1.0 / batch["step_probability"] if "step_probability" in batch else self.process.num_timesteps
        return inverse * term / math.prod(x.shape[1:])

    # ------------------------------------------------------------------------------------------------------------------
    # The bound

    def _log_variance(self, estimate: Estimate, t: Array, like: Array) -> Array:
        """Log-variance of p(z_(k-1) | z_k); the small variance is 0 at k = 1, so its value at k = 2 is used there."""
        step = 1.0 / self.process.num_timesteps
        s = t - step
        _, _, small = posterior(self.process, jnp.maximum(t, 2.0 * step), jnp.maximum(s, step))
        alpha_t, alpha_s = self.process.alpha(t), self.process.alpha(s)
        large = self.process.sigma(t) ** 2 - (alpha_t / alpha_s * self.process.sigma(s)) ** 2
        small, large = (expand(jnp.log(v), like) for v in (small, large))
        if self.variance == "learned":
            return small + estimate.variance_fraction * (large - small)
        return jnp.broadcast_to(small if self.variance == "small" else large, like.shape)

    def _step_divergence(self, estimate: Estimate, x: Array, t: Array) -> Array:
        """KL(q(z_(k-1) | z_k, x) || p(z_(k-1) | z_k)) for k >= 2 at t = k / T, in nats, shape [B]."""
        # The first step has no such term; the second step's constants are used in its place.
        t = jnp.maximum(t, 2.0 / self.process.num_timesteps)
        _, b, variance = posterior(self.process, t, t - 1.0 / self.process.num_timesteps)
        log_p = self._log_variance(estimate, t, x)
        log_q = expand(jnp.log(variance), x)
        squares = jnp.square(expand(b, x) * (x - estimate.x0))
        divergence = 0.5 * (log_p - log_q + jnp.exp(log_q - log_p) + squares * jnp.exp(-log_p) - 1.0)
        return divergence.reshape(x.shape[0], -1).sum(-1)

    def _reconstruction_log_prob(self, estimate: Estimate, x: Array, levels: int | None) -> Array:
        """log p(x | z_1) in nats, of the levels of x or, where there are none, its density, shape [B]."""
        t = jnp.full((x.shape[0],), 1.0 / self.process.num_timesteps)
        log_variance = self._log_variance(estimate, t, x)
        if levels is None:
            squares = jnp.square(x - estimate.x0) * jnp.exp(-log_variance)
            log_prob = -0.5 * (squares + log_variance + math.log(2.0 * math.pi))
        else:
            log_prob = discretized_gaussian_log_prob(x, estimate.x0, log_variance, levels)
        return log_prob.reshape(x.shape[0], -1).sum(-1)

    def bound_terms_of(self, params: PyTree, batch: Batch, key: Array) -> dict[str, Array]:
        """The three terms of the bound on samples by `Ancestral`, also with clip_x0, and
        their `total`, in nats, [B] each.

        NaN for examples that should be on levels in [-1, 1] and are not.
        """
        x, condition, count = batch["x"], self.condition(batch), self.process.num_timesteps
        end = jnp.ones((x.shape[0],))
        alpha, sigma = expand(self.process.alpha(end), x), expand(self.process.sigma(end), x)
        prior = 0.5 * (sigma**2 + (alpha * x) ** 2 - 1.0 - 2.0 * jnp.log(sigma))

        def noised(keys: Array, t: Array) -> Array:
            epsilon = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
            return expand(self.process.alpha(t), x) * x + expand(self.process.sigma(t), x) * epsilon

        def term(total: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
            first, length = row
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(example_keys(key, batch), first)
            keys = jax.vmap(jax.random.split)(keys)
            # One step of each stratum represents the whole stratum.
            step = first + jax.vmap(lambda k: jax.random.randint(k, (), 0, length))(keys[:, 1])
            t = step / count
            estimate = self.clipped(self.estimate(params, noised(keys[:, 0], t), t, condition))
            return total + length * self._step_divergence(estimate, x, t), None

        edges = bound_strata(count, self.bound_terms)
        rows = (jnp.asarray(edges[:-1]), jnp.asarray(np.diff(edges)))
        diffusion, _ = jax.lax.scan(term, jnp.zeros((x.shape[0],)), rows)
        t = jnp.full((x.shape[0],), 1.0 / count)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(example_keys(key, batch), 0)
        estimate = self.clipped(self.estimate(params, noised(keys, t), t, condition))
        log_prob = self._reconstruction_log_prob(estimate, x, self.levels_of(batch))
        reconstruction = -only_of_support(levels_support(self.levels_of(batch)), log_prob, x)
        prior = prior.reshape(x.shape[0], -1).sum(-1)
        total = prior + diffusion + reconstruction
        return {"prior": prior, "diffusion": diffusion, "reconstruction": reconstruction, "total": total}

    def log_prob_bound(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """An estimate of the lower bound on log p(x) in nats, shape [B].

        Raises:
          UserError: the model has self_conditioning, and so no bound.
        """
        self._check_has_likelihood("another model")
        return -self.bound_terms_of(state.eval_params, batch, key)["total"]

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B]: metrics of `Diffusion`, and with bound_terms the bound.

        The bound is `nll_bound` with its terms `prior`, `diffusion` and `reconstruction` in nats, and
        `bits_per_dim_bound`.
        """
        metrics = super().evaluate(state, batch, key)
        if self.bound_terms:
            terms = self.bound_terms_of(state.eval_params, batch, jax.random.fold_in(key, 1))
            nll = terms.pop("total") - batch.get("log_abs_det", 0.0)
            bits = nll / (math.prod(self.data_shape) * math.log(2.0))
            metrics |= {"nll_bound": nll, "bits_per_dim_bound": bits, **terms}
        return metrics


def bound_strata(num_timesteps: int, num_terms: int) -> np.ndarray:
    """Edges of strata of the steps 2, ..., T, [n + 1] with n <= num_terms; finest at small steps, whose terms vary
    most.
    """
    count = num_timesteps - 1
    place = np.arange(min(num_terms, count) + 1)
    quadratic = np.round(count * (place / max(place[-1], 1)) ** 2).astype(np.int32)
    return 2 + np.maximum(place, quadratic).astype(np.int32)


def discretized_gaussian_log_prob(x: Array, mean: Array, log_variance: Array, num_levels: int) -> Array:
    """log of the mass that N(mean, exp(log_variance)) gives to the bin of each of `num_levels` values of x in [-1, 1].

    The first and the last bin reach to infinity (Ho et al. 2020, eq. 13).
    """
    half = 1.0 / (num_levels - 1)
    inverse = jnp.exp(-0.5 * log_variance)
    upper, lower = (x + half - mean) * inverse, (x - half - mean) * inverse
    # Mirrored into the left tail, where differences of the distribution function are precise.
    flip = lower > 0.0
    upper, lower = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    lower_end, upper_end = x < -1.0 + half, x > 1.0 - half
    log_upper = jnp.where(jnp.where(flip, lower_end, upper_end), 0.0, jax.scipy.special.log_ndtr(upper))
    log_lower = jax.scipy.special.log_ndtr(lower)
    open_below = jnp.where(flip, upper_end, lower_end)
    gap = jnp.where(open_below, 1.0, jnp.minimum(log_lower - log_upper, -1e-6))
    return log_upper + jnp.where(open_below, 0.0, jnp.log(-jnp.expm1(jnp.where(open_below, -1.0, gap))))
