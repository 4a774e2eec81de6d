"""Variational diffusion models (Kingma et al. 2021, arXiv:2107.00630).

    q(z_t | x) = N(alpha_t x, sigma_t^2 I),    sigma_t^2 = sigmoid(gamma(t)),    alpha_t^2 = sigmoid(-gamma(t))

with gamma = -log snr a learned rising function.  In continuous time the bound is                           (eq. 11, 17)

    -log p(x) <= KL(q(z_1 | x) || N(0, I))  +  1/2 E gamma'(t) |epsilon - epsilon(z_t, t)|^2  -  E log p(x | z_0)

and depends on gamma through its ends only; gamma between its ends changes only the variance of the estimate.  So the
ends follow the gradient of the bound.  The inside follows the gradient of the squared diffusion term, whose mean is the
variance up to a constant (appendix I.2).  Times are spread evenly over a batch (appendix I.1).  p(x | z_0) gives each
level the mass that N(z_0 / alpha_0, sigma_0^2 / alpha_0^2) has at it, normalised over all levels (eq. 8 and appendix
E); for data without levels it is that Gaussian's density.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, Batch, Metrics, PyTree, example_keys
from genjax.errors import UserError
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.levels import levels_support
from genjax.families.diffusion.networks import Condition
from genjax.families.diffusion.processes import Discrete, GaussianProcess, expand
from genjax.families.diffusion.samplers import Ancestral, Sampler
from genjax.families.diffusion.times import UniformTime, spread_uniforms
from genjax.model import TrainState
from genjax.values import Support, only_of_support


class LearnedProcess(GaussianProcess):
    """The process of a given gamma(t)."""

    def __init__(self, gamma: nn.Module, params: PyTree) -> None:
        self._gamma, self._params = gamma, params

    def gamma(self, t: Array) -> Array:
        """-log snr, in the shape of t."""
        return self._gamma.apply({"params": self._params}, jnp.asarray(t))

    def alpha(self, t: Array) -> Array:
        return jnp.sqrt(jax.nn.sigmoid(-self.gamma(t)))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(jax.nn.sigmoid(self.gamma(t)))

    def network_time(self, t: Array) -> Array:
        return 50.0 * self.gamma(t)


class DrawnProcess(LearnedProcess):
    """A process at drawn times only: `values` of gamma, in their shape."""

    def __init__(self, values: Array) -> None:
        self._values = values

    def gamma(self, t: Array) -> Array:
        return self._values


@jax.custom_vjp
def scaled_gradient(values: Array, marks: Array) -> tuple[Array, Array]:
    """The identity of values [N, B] and marks [2, B] whose gradient by the values is scaled.

    The gradient by the values is multiplied by (gradient by marks[0]) / (gradient by marks[1]).  The marks are zeros.
    A loss that adds `factor * marks[0] + marks[1]` to each example thus scales the gradient by the values by `factor`,
    in one backward pass, although `factor` is known only after the values were used.
    """
    return values, marks


def _scaled_gradient_backward(_: None, cotangents: tuple[Array, Array]) -> tuple[Array, Array]:
    of_values, (numerator, denominator) = cotangents
    used = denominator != 0.0
    factor = jnp.where(used, numerator / jnp.where(used, denominator, 1.0), 0.0)
    return of_values * factor[None], jnp.zeros_like(cotangents[1])


scaled_gradient.defvjp(lambda values, marks: ((values, marks), None), _scaled_gradient_backward)


class MonotoneSchedule(nn.Module):
    """gamma(t) from learned ends, and between them a line or a learned rising function (VDM, appendix H).

    Attributes:
      start: initial gamma(0).
      end: initial gamma(1).
      hidden_dim: width of the monotone network; 0 for a line.
    """

    start: float
    end: float
    hidden_dim: int

    @nn.compact
    def __call__(self, t: Array) -> Array:
        low = self.param("low", nn.initializers.constant(self.start), ())
        # Softplus keeps the ends in order.
        width = jax.nn.softplus(self.param("width", nn.initializers.constant(self.end - self.start), ()))
        if not self.hidden_dim:
            return low + width * t
        slope = self.param("slope", nn.initializers.constant(1.0), ())
        inward = self.param("inward", nn.initializers.normal(1.0), (self.hidden_dim,))
        shift = self.param("shift", nn.initializers.normal(1.0), (self.hidden_dim,))
        outward = self.param("outward", nn.initializers.constant(0.01 / self.hidden_dim), (self.hidden_dim,))

        def rising(s: Array) -> Array:
            s = jnp.asarray(s)[..., None]
            weights = (a.reshape((1,) * (s.ndim - 1) + a.shape) for a in (jnp.abs(inward), shift, jnp.abs(outward)))
            into, at, out = weights
            return jnp.abs(slope) * s[..., 0] + (jax.nn.sigmoid(into * s + at) * out).sum(-1)

        first, last = rising(jnp.zeros(())), rising(jnp.ones(()))
        return low + width * (rising(t) - first) / (last - first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDM(Diffusion):
    """Variational diffusion model; the loss is the bound in bits a dimension.

    Attributes:
      gamma_min: initial gamma(0), which sets the noise that is left in the data.
      gamma_max: initial gamma(1).
      schedule_dim: width of the monotone network between the ends; 0 for a line.
      fourier_exponents: numbers n for which the network also sees sin and cos of 2^n pi z, which help to tell the
        levels of 8-bit pixels apart (appendix C; 7 and 8 there).
      num_bound_samples: number of times and noises for the bound of one example in `evaluate`.
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    schedule_dim: int = 0
    fourier_exponents: tuple[int, ...] = ()
    num_bound_samples: int = 8
    sampler: Sampler = Ancestral(num_steps=250)

    def check(self) -> None:
        super().check()
        if self.target != "epsilon":
            raise UserError(f"target={self.target}: a VDM predicts epsilon")
        if self.self_conditioning or self.likelihood_steps:
            raise UserError("a VDM has no self_conditioning, and its likelihood is the bound (likelihood_steps=0)")
        if self.clip_x0:
            raise UserError("clip_x0 would change a VDM's samples and not its bound; leave it out")
        ignored = {"process": Discrete(), "times": UniformTime(), "weighting": "simple"}
        given = [name for name, value in ignored.items() if getattr(self, name) != value]
        if given:
            raise UserError(
                "a VDM learns its process, draws times uniformly and has the bound for its loss; "
                f"leave out {', '.join(given)}"
            )
        if self.reads_text:
            raise UserError("a VDM has no place for an encoder of captions; choose another diffusion model for text")
        if not self.gamma_min < self.gamma_max:
            raise UserError(f"gamma_min={self.gamma_min} must be less than gamma_max={self.gamma_max}")

    def _schedule(self) -> MonotoneSchedule:
        return MonotoneSchedule(self.gamma_min, self.gamma_max, self.schedule_dim)

    def init_params(self, key: Array, batch: Batch) -> PyTree:
        network_key, schedule_key = jax.random.split(key)
        schedule = self._schedule().init(schedule_key, jnp.zeros((1,)))["params"]
        return {"network": super().init_params(network_key, batch), "schedule": schedule}

    def network_input(self, z: Array, x0_before: Array | None) -> Array:
        seen = [super().network_input(z, x0_before)]
        for exponent in self.fourier_exponents:
            angle = 2.0**exponent * math.pi * z
            seen += [jnp.sin(angle), jnp.cos(angle)]
        return jnp.concatenate(seen, axis=-1)

    def network_params(self, params: PyTree) -> PyTree:
        return params["network"]

    def process_of(self, params: PyTree) -> LearnedProcess:
        return LearnedProcess(self._schedule(), params["schedule"])

    def _gamma_and_slope(self, schedule: PyTree, t: Array) -> Array:
        """gamma and gamma' at times [B], [2, B]."""
        gamma = LearnedProcess(self._schedule(), schedule).gamma
        return jnp.stack(jax.jvp(gamma, (t,), (jnp.ones_like(t),)))

    def bound_terms_of(
        self, params: PyTree, batch: Batch, key: Array, condition: Condition, dropout_keys: Array | None = None
    ) -> dict[str, Array]:
        """One-sample estimates of the bound's terms prior, diffusion and reconstruction, and their total, nats, [B]
        each.

        By the inside of the schedule, the gradient of the mean of `diffusion` / (D log 2) is replaced by the gradient
        of the mean of its square.
        """
        x, process = batch["x"], self.process_of(params)
        axes = tuple(range(1, x.ndim))
        keys = jax.vmap(jax.random.split)(example_keys(key, batch))
        t = spread_uniforms(key, batch)
        normal = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))

        ends = {name: params["schedule"][name] for name in ("low", "width")}
        inside = {name: value for name, value in params["schedule"].items() if name not in ends}
        stop = jax.lax.stop_gradient
        by_ends = self._gamma_and_slope({**ends, **stop(inside)}, t)
        by_inside, marks = scaled_gradient(
            self._gamma_and_slope({**stop(ends), **inside}, t), jnp.zeros((2, x.shape[0]))
        )
        gamma, slope = by_ends + by_inside - stop(by_inside)
        drawn = DrawnProcess(gamma)
        epsilon = normal(keys[:, 0])
        z = expand(drawn.alpha(t), x) * x + expand(drawn.sigma(t), x) * epsilon
        output = self.apply(params, z, t, condition, None, dropout_keys, process=drawn)
        diffusion = 0.5 * slope * jnp.square(epsilon - output).sum(axes)
        factor = 2.0 * stop(diffusion) / (math.prod(x.shape[1:]) * math.log(2.0))
        diffusion = diffusion + factor * marks[0] + marks[1]

        variance, signal = jax.nn.sigmoid(process.gamma(1.0)), jax.nn.sigmoid(-process.gamma(1.0))
        prior = 0.5 * (variance + signal * jnp.square(x) - 1.0 - jnp.log(variance)).sum(axes)

        # z_0 / alpha_0 = x + sigma_0 / alpha_0 epsilon
        log_scale = 0.5 * process.gamma(0.0)
        noise = normal(keys[:, 1])
        if self.levels_of(batch) is None:
            log_prob = -0.5 * (jnp.square(noise) + math.log(2.0 * math.pi)) - log_scale
        else:
            seen = x + jnp.exp(log_scale) * noise
            levels = jnp.linspace(-1.0, 1.0, self.num_levels).reshape(*(1,) * x.ndim, -1)
            logits = -0.5 * jnp.square((seen[..., None] - levels) * jnp.exp(-log_scale))
            own = -0.5 * jnp.square(noise)
            log_prob = own - jax.nn.logsumexp(logits, axis=-1)
        reconstruction = -only_of_support(levels_support(self.levels_of(batch)), log_prob.sum(axes), x)
        total = prior + diffusion + reconstruction
        return {"prior": prior, "diffusion": diffusion, "reconstruction": reconstruction, "total": total}

    def example_losses(
        self, params: PyTree, batch: Batch, key: Array, training: bool
    ) -> tuple[Array, dict[str, Array]]:
        condition, dropout_keys = self.condition(batch), None
        if training:
            keys = jax.vmap(jax.random.split)(example_keys(jax.random.fold_in(key, 1), batch))
            condition, dropout_keys = self.drop_conditions(condition, keys[:, 0]), keys[:, 1]
        terms = self.bound_terms_of(params, batch, key, condition, dropout_keys)
        total = terms.pop("total")
        bits = total / (math.prod(batch["x"].shape[1:]) * math.log(2.0))
        return bits, {"nll_bound": total, **terms}

    def support(self) -> Support | None:
        """What the bound scores."""
        return levels_support(self.num_levels)

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        super().diagnose(state, batch, key)
        self.check_levels(batch)

    def log_prob_bound(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """An estimate of the lower bound on log p(x) in nats, from num_bound_samples samples, shape [B]."""
        return -self._mean_terms(state, batch, key)["total"]

    def _mean_terms(self, state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        condition = self.condition(batch)

        def add(total: dict[str, Array], index: Array) -> tuple[dict[str, Array], None]:
            terms = self.bound_terms_of(state.eval_params, batch, jax.random.fold_in(key, index), condition)
            return jax.tree.map(lambda a, b: a + b / self.num_bound_samples, total, terms), None

        zero = jnp.zeros((batch["x"].shape[0],))
        names = ("prior", "diffusion", "reconstruction", "total")
        return jax.lax.scan(add, dict.fromkeys(names, zero), jnp.arange(self.num_bound_samples))[0]

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B]: the bound `nll_bound` and its terms in nats, `bits_per_dim_bound`, which is also
        `loss`.
        """
        terms = self._mean_terms(state, batch, key)
        nll = terms.pop("total") - batch.get("log_abs_det", 0.0)
        bits = nll / (math.prod(self.data_shape) * math.log(2.0))
        return {"loss": bits, "nll_bound": nll, "bits_per_dim_bound": bits, **terms}
