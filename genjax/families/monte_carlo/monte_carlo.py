"""Markov chain Monte Carlo on the contract: a training step is a transition of every chain, and the state holds the
draws.

The first `num_warmup` steps tune step size and metric; the state keeps the last `num_draws` positions of each chain, so
a run of num_warmup + num_draws steps ends with all that came after the warm-up.  A shorter run is refused.  Before the
end of a run, samples and evaluations use the draws that exist.  The batch is the whole data set at every step.

Stochastic-gradient Langevin dynamics (Welling & Teh 2011) needs only a part of the data at each step:

    q <- q + eps_t / 2 (grad log p(q) + N / B sum_i grad log p(x_i | q)) + N(0, eps_t),   eps_t = a (1 + t / b)^-gamma
"""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, batch_size, cross_device_gather
from genjax.errors import UserError
from genjax.families.monte_carlo import diagnostics
from genjax.families.monte_carlo.adaptation import adapt, start_adaptation, window_begin, window_ends
from genjax.families.monte_carlo.kernels import Info, Kernel, Nuts
from genjax.families.monte_carlo.sampler import Draws, move
from genjax.families.monte_carlo.targets import CorrelatedGaussian, Target
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chains(abc.ABC):
    """Chains over the parameters of a posterior.

    Attributes:
      target: the posterior.
      num_chains: number C of chains.
      num_draws: number W of last positions of each chain that the state keeps.
      num_warmup: number of transitions before the draws.
      start_scale: standard deviation of the first positions, on the unconstrained space.
      data_shape: shape of an example; None takes the data set's.
    """

    target: Target = CorrelatedGaussian()
    num_chains: int = 4
    num_draws: int = 1000
    num_warmup: int = 500
    start_scale: float = 1.0
    data_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_chains < 1 or self.num_draws < 4 or self.num_warmup < 0:
            raise UserError("chains need num_chains >= 1, num_draws >= 4 and num_warmup >= 0")

    def check_steps(self, num_steps: int) -> None:
        """Called before the first step of a run.

        Raises:
          UserError: the run has too few steps for the draws.
        """
        if num_steps < self.num_warmup + self.num_draws:
            raise UserError(
                f"training.num_steps={num_steps} is less than the model.num_warmup={self.num_warmup} steps of warm-up "
                f"and the model.num_draws={self.num_draws} draws; take {self.num_warmup + self.num_draws} steps, "
                "or fewer draws"
            )

    @abc.abstractmethod
    def _start(self, dim: int) -> tuple[int, dict[str, PyTree]]:
        """Number of copies of the parameters in a position, and additional entries of the state."""

    @abc.abstractmethod
    def _transition(
        self, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Info, dict[str, PyTree], Metrics]:
        """New positions [C, R * D], reports of the transitions [C], and new entries of the state."""

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.target.shapes(self.data_shape or ())

    def parameters(self, q: Array) -> dict[str, Array]:
        """Named parameters of vectors [..., D]."""
        out, at = {}, 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            out[name] = q[..., at : at + size].reshape(*q.shape[:-1], *shape)
            at += size
        return out

    def _density(self, q: Array, batch: Batch) -> Array:
        return self.target.log_density(self.parameters(q), batch)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step; chains start from normal positions."""
        dim = sum(math.prod(shape) for shape in self._shapes.values())
        replicas, extra = self._start(dim)
        q = self.start_scale * jax.random.normal(key, (self.num_chains, dim))
        extra["draws"] = jnp.repeat(q[None], self.num_draws, 0)
        extra["acceptance"] = jnp.ones((self.num_draws, self.num_chains))
        extra["diverging"] = jnp.zeros((self.num_draws, self.num_chains), bool)
        extra["num_gradients"] = jnp.zeros((self.num_draws, self.num_chains), jnp.int32)
        return TrainState.create({"position": jnp.tile(q, (1, replicas))}, extra=extra)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """A transition of every chain.  `loss` is the mean negative log-density after it, up to a constant, in nats."""
        batch = cross_device_gather(dict(batch))
        q, info, extra, metrics = self._transition(state, batch, key)
        current = q[:, : state.extra["draws"].shape[-1]]
        place = state.step % self.num_draws
        rows = {"draws": current, **info._asdict()}
        extra = {**state.extra, **extra, **{name: state.extra[name].at[place].set(row) for name, row in rows.items()}}
        metrics = {
            "loss": -jax.vmap(lambda q: self._density(q, batch))(current).mean(),
            "acceptance": info.acceptance.mean(),
            "divergences": info.diverging.mean(dtype=jnp.float32),
            "gradients": info.num_gradients.mean(dtype=jnp.float32),
            **metrics,
        }
        return state.replace(step=state.step + 1, params={"position": q}, extra=extra), metrics

    def _ordered(self, state: TrainState, name: str) -> Array:
        """The state's record of transitions, oldest first, [C, W, ...]."""
        return jnp.roll(state.extra[name], -(state.step % self.num_draws), 0).swapaxes(0, 1)

    def _count(self, state: TrainState) -> Array:
        """Number of kept positions that are draws, from transitions after the warm-up."""
        return jnp.clip(state.step - self.num_warmup, 0, self.num_draws)

    def draws(self, state: TrainState) -> Draws:
        """The draws of all chains so far, by the names of the target's report, with leading
        axes [C, W], W <= num_draws.

        Raises:
          UserError: there are no draws yet.
        """
        count = int(self._count(state))
        if not count:
            raise UserError(
                f"there are no draws at step {int(state.step)}: the first num_warmup={self.num_warmup} steps are "
                "warm-up"
            )
        return self._draws(state, count)

    def _draws(self, state: TrainState, count: int) -> Draws:
        """The last `count` positions of all chains as draws."""
        adaptation = state.extra.get("adaptation")
        last = lambda name: self._ordered(state, name)[:, self.num_draws - count :]
        return Draws(
            jax.vmap(jax.vmap(self.target.report))(self.parameters(last("draws"))),
            *map(last, Info._fields),
            jnp.exp(adaptation.log_average) if adaptation is not None else jnp.zeros(()),
            adaptation.inverse_mass if adaptation is not None else jnp.ones(()),
        )

    def _chosen(self, state: TrainState, share: Array) -> Array:
        """Draws [N, D] at relative places in [0, 1) among all draws; positions of the
        warm-up if there are no draws yet.
        """
        flat = state.extra["draws"].reshape(-1, state.extra["draws"].shape[-1])
        count, chains = self._count(state), self.num_chains
        # Oldest first; each row has all chains.
        number = jnp.where(count > 0, count, 1) * chains
        place = jnp.minimum((share * number).astype(jnp.int32), number - 1)
        row = (state.step - number // chains + place // chains) % self.num_draws
        return flat[row * chains + place % chains]

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """`nll` of each example given the data in nats (by the mean of its density over the draws); and for the
        chains, the largest R-hat and the smallest bulk and tail ESS over the target's report, and the share of
        divergences, which are NaN until all draws exist.
        """
        draws, count = self._draws(state, self.num_draws), self._count(state)
        parts = [a.reshape(*a.shape[:2], -1) for a in draws.positions.values()]
        summary = diagnostics.summarize(jnp.concatenate(parts, -1))
        numbers = {
            "max_r_hat": summary["r_hat"].max(),
            "min_bulk_ess": summary["bulk_ess"].min(),
            "min_tail_ess": summary["tail_ess"].min(),
            "divergences": draws.diverging.mean(dtype=jnp.float32),
        }
        whole = count == self.num_draws
        out = {
            name: jnp.full((batch_size(batch),), jnp.where(whole, value, jnp.nan)) for name, value in numbers.items()
        }
        if self.target.has_data:
            # A thousand draws are enough for a mean of densities.
            number = min(state.extra["draws"][..., 0].size, 1000)
            flat = self._chosen(state, jnp.arange(number) / number)
            log_prob = jax.lax.map(lambda q: self.target.log_likelihood(self.parameters(q), batch), flat)
            out["nll"] = math.log(number) - jax.nn.logsumexp(log_prob, 0)
        return out

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Random draws, as vectors [num_samples, D] of the target's report in the order of its names."""
        chosen = self._chosen(state, jax.random.uniform(key, (num_samples,)))
        report = jax.vmap(self.target.report)(self.parameters(chosen))
        return jnp.concatenate([a.reshape(num_samples, -1) for a in report.values()], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonteCarlo(Chains):
    """Chains that leave the posterior invariant.

    Attributes:
      kernel: kernel that moves a chain.
      dense_mass: whether the warm-up estimates a full metric.
      step_size: step size at the start of the warm-up.
    """

    kernel: Kernel = Nuts()
    dense_mass: bool = False
    step_size: float = 0.1

    def _start(self, dim: int) -> tuple[int, dict[str, PyTree]]:
        replicas = self.kernel.num_replicas
        return replicas, {"adaptation": start_adaptation(replicas * dim, self.step_size, self.dense_mass)}

    def _transition(
        self, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Info, dict[str, PyTree], Metrics]:
        before, target = state.extra["adaptation"], self.kernel.target_acceptance
        warm = state.step < self.num_warmup
        step = jnp.exp(jnp.where(warm, before.log_step, before.log_average))
        density = lambda q: self._density(q, batch)
        q, info = move(self.kernel, density, key, state.params["position"], step, before.inverse_mass)
        after = before
        if self.num_warmup and target is not None:
            end = jnp.asarray(window_ends(self.num_warmup))[jnp.minimum(state.step, self.num_warmup - 1)]
            after = adapt(before, q, info.acceptance, target, state.step >= window_begin(self.num_warmup), end)
            after = jax.tree.map(lambda new, old: jnp.where(warm, new, old), after, before)
        return q, info, {"adaptation": after}, {"step_size": step}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticGradientLangevin(Chains):
    """Stochastic-gradient Langevin dynamics; its bias vanishes with the step size.

    Attributes:
      num_examples: number N of examples of the training set; None takes each batch for all of it.
      step_size: step size a at the start.
      decay_steps: number b of steps after which the step size is 2^-gamma times a.
      decay_exponent: gamma, in (1/2, 1] for convergence; 0 keeps the step size.
    """

    num_examples: int | None = None
    step_size: float = 1e-2
    decay_steps: float = 1000.0
    decay_exponent: float = 0.55

    def _start(self, dim: int) -> tuple[int, dict[str, PyTree]]:
        return 1, {}

    def _transition(
        self, state: TrainState, batch: Batch, key: Array
    ) -> tuple[Array, Info, dict[str, PyTree], Metrics]:
        q, factor = state.params["position"], (self.num_examples or batch_size(batch)) / batch_size(batch)

        def density(q: Array) -> Array:
            position = self.parameters(q)
            return self.target.log_prior(position) + factor * self.target.log_likelihood(position, batch).sum()

        step = self.step_size * (1.0 + state.step / self.decay_steps) ** -self.decay_exponent
        q = q + 0.5 * step * jax.vmap(jax.grad(density))(q) + jnp.sqrt(step) * jax.random.normal(key, q.shape)
        chains = len(q)
        info = Info(jnp.ones(chains), ~jnp.isfinite(q).all(-1), jnp.ones(chains, jnp.int32))
        return q, info, {}, {"step_size": step}
