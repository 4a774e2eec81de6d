"""Transition kernels over vectors: random walk, MALA, HMC, multinomial NUTS, slice sampling, parallel tempering.

A kernel is `kernel(key, position, log_density, step_size, inverse_mass) -> (position, Info)`; it leaves the density
invariant.  `inverse_mass` is M^-1, [D] for a diagonal or [D, D] for a dense metric.

    H(q, p) = -log pi(q) + p^T M^-1 p / 2
    leapfrog: p <- p + eps/2 grad log pi(q);  q <- q + eps M^-1 p;  p <- p + eps/2 grad log pi(q)

NUTS (Hoffman & Gelman 2014) doubles the trajectory until it turns back, by the criterion of generalised momenta, and
draws from it by multinomial weights exp(-H) (Betancourt 2017, arXiv:1701.02434, appendix A).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError

#: Error of the energy beyond which a trajectory counts as divergent, as in Stan.
DIVERGENCE = 1000.0


class Info(NamedTuple):
    """Report of a transition: mean acceptance probability, whether it diverged, number of gradient evaluations."""

    acceptance: Array
    diverging: Array
    num_gradients: Array


def apply_metric(inverse_mass: Array, p: Array) -> Array:
    """M^-1 p."""
    return inverse_mass * p if inverse_mass.ndim == 1 else inverse_mass @ p


def draw_momentum(key: Array, inverse_mass: Array) -> Array:
    """p ~ N(0, M)."""
    noise = jax.random.normal(key, inverse_mass.shape[:1])
    if inverse_mass.ndim == 1:
        return noise / jnp.sqrt(inverse_mass)
    return jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(inverse_mass), noise, lower=True, trans=1)


def random_walk(
    key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array
) -> tuple[Array, Info]:
    """Metropolis with normal proposals of covariance step_size^2 M^-1."""
    keys = jax.random.split(key)
    direction = apply_metric(inverse_mass, draw_momentum(keys[0], inverse_mass))
    return _metropolis(keys[1], q, q + step_size * direction, log_density(q), log_density, 0.0, 0)


def mala(key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array) -> tuple[Array, Info]:
    """Metropolis-adjusted Langevin (Roberts & Tweedie 1996): one leapfrog step of HMC."""
    return hmc(key, q, log_density, step_size, inverse_mass, 1)


def _metropolis(key, q, proposal, before, log_density, log_ratio, num_gradients):
    change = log_density(proposal) - before + log_ratio
    change = jnp.where(jnp.isfinite(change), change, -jnp.inf)
    accept = -jax.random.exponential(key) < change
    info = Info(jnp.exp(jnp.minimum(change, 0.0)), change < -DIVERGENCE, jnp.asarray(num_gradients))
    return jnp.where(accept, proposal, q), info


def leapfrog(
    gradient: Callable, q: Array, p: Array, g: Array, step_size: Array, inverse_mass: Array
) -> tuple[Array, Array, Array, Array]:
    """One step; returns q, p, log-density, gradient."""
    p = p + 0.5 * step_size * g
    q = q + step_size * apply_metric(inverse_mass, p)
    value, g = gradient(q)
    return q, p + 0.5 * step_size * g, value, g


def hmc(
    key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array, num_leapfrog: int = 16
) -> tuple[Array, Info]:
    """Hamiltonian Monte Carlo (Neal 2011) with a fixed number of leapfrog steps."""
    keys = jax.random.split(key)
    gradient = jax.value_and_grad(log_density)
    p = draw_momentum(keys[0], inverse_mass)
    before, g = gradient(q)

    def body(_, carry):
        q, p, _, g = carry
        return leapfrog(gradient, q, p, g, step_size, inverse_mass)

    new, p_new, after, _ = jax.lax.fori_loop(0, num_leapfrog, body, (q, p, before, g))
    change = after - _kinetic(p_new, inverse_mass) - before + _kinetic(p, inverse_mass)
    change = jnp.where(jnp.isfinite(change), change, -jnp.inf)
    accept = -jax.random.exponential(keys[1]) < change
    info = Info(jnp.exp(jnp.minimum(change, 0.0)), change < -DIVERGENCE, jnp.asarray(num_leapfrog))
    return jnp.where(accept, new, q), info


def _kinetic(p: Array, inverse_mass: Array) -> Array:
    return 0.5 * p @ apply_metric(inverse_mass, p)


def _turning(inverse_mass: Array, left: Array, right: Array, total: Array) -> Array:
    """Whether a trajectory with these end momenta and sum of momenta turns back (Betancourt 2017, A.4.2)."""
    velocity = apply_metric(inverse_mass, total - 0.5 * (left + right))
    return (velocity @ left <= 0) | (velocity @ right <= 0)


def uniform_at(seed: Array, counter: Array, stream: int) -> Array:
    """A uniform number in (0, 1) at a place of a random sequence: threefry-2x32 (Salmon et al. 2011), unrolled.

    On a CPU jax.random runs the rounds in a loop, which costs more than a step of a small trajectory.

    Args:
      seed: two words, uint32 [2].
      counter: place, int32 [].
      stream: number of the sequence.
    """
    keys = (seed[0], seed[1], seed[0] ^ seed[1] ^ np.uint32(0x1BD11BDA))
    x, y = counter.astype(jnp.uint32) + keys[0], np.uint32(stream) + keys[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))
        x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return ((x >> np.uint32(8)).astype(jnp.float32) + 0.5) * 2.0**-24


def nuts(
    key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array, max_depth: int = 10
) -> tuple[Array, Info]:
    """No-U-turn sampler.  Subtrees are built leaf by leaf, with checkpoints of their left ends (Phan et al. 2019)."""
    gradient = jax.value_and_grad(log_density)
    momentum_key, key = jax.random.split(key)
    seed = jax.random.key_data(key)[:2]
    p = draw_momentum(momentum_key, inverse_mass)
    value, g = gradient(q)
    energy = _kinetic(p, inverse_mass) - value
    dim = q.shape[0]

    def subtree(end, direction, depth):
        """2^depth leaves from `end` on; stops early if it turns or diverges."""

        def more(carry):
            leaf, *_, turning, diverging, _ = carry
            return (leaf < 2**depth) & ~turning & ~diverging

        def leaf_step(carry):
            leaf, state, proposal, log_weight, total, momenta, sums, _, _, acceptance = carry
            q, p, g = state
            q, p, value, g = leapfrog(gradient, q, p, g, direction * step_size, inverse_mass)
            error = _kinetic(p, inverse_mass) - value - energy
            error = jnp.where(jnp.isfinite(error), error, jnp.inf)
            diverging = error > DIVERGENCE
            new_weight = jnp.logaddexp(log_weight, -error)
            take = jnp.log(uniform_at(seed, 2**depth + leaf, 0)) < -error - new_weight
            proposal = jnp.where(take, q, proposal)
            total = total + p
            # An even leaf opens the subtrees whose left end it is; an odd leaf closes the
            # subtrees whose right end it is.
            opened = jax.lax.population_count(leaf >> 1)
            even = leaf % 2 == 0
            momenta = momenta.at[opened].set(jnp.where(even, p, momenta[opened]))
            sums = sums.at[opened].set(jnp.where(even, total, sums[opened]))
            closed = jax.lax.population_count((~leaf & (leaf + 1)) - 1)
            levels = jnp.arange(max_depth + 1)
            closing = (levels <= opened) & (levels > opened - closed) & ~even

            def turns(left, before):
                return _turning(inverse_mass, left, p, total - before + left)

            turning = (jax.vmap(turns)(momenta, sums) & closing).any()
            acceptance = acceptance + jnp.exp(jnp.minimum(-error, 0.0))
            return leaf + 1, (q, p, g), proposal, new_weight, total, momenta, sums, turning, diverging, acceptance

        zeros = jnp.zeros((max_depth + 1, dim), q.dtype)
        false = jnp.zeros((), bool)
        start = (
            jnp.zeros((), jnp.int32), end, end[0], jnp.asarray(-jnp.inf, q.dtype), jnp.zeros_like(p),
            zeros, zeros, false, false, jnp.zeros((), q.dtype),
        )  # fmt: skip
        return jax.lax.while_loop(more, leaf_step, start)

    def unfinished(carry):
        return (carry[0] < max_depth) & ~carry[6]

    def double(carry):
        depth, left, right, proposal, log_weight, total, _, diverging, acceptance, count = carry
        forward = uniform_at(seed, depth, 1) < 0.5
        end = jax.tree.map(lambda a, b: jnp.where(forward, b, a), left, right)
        out = subtree(end, jnp.where(forward, 1.0, -1.0), depth)
        leaves, far, new, new_weight, new_total, _, _, turning, diverged, accepted = out
        good = ~turning & ~diverged
        # Biased progressive sampling favours the new half.
        take = good & (jnp.log(uniform_at(seed, depth, 2)) < new_weight - log_weight)
        proposal = jnp.where(take, new, proposal)
        total = total + new_total
        left = jax.tree.map(lambda a, b: jnp.where(forward, a, b), left, far)
        right = jax.tree.map(lambda a, b: jnp.where(forward, b, a), right, far)
        stop = ~good | _turning(inverse_mass, left[1], right[1], total)
        return (
            depth + 1, left, right, proposal, jnp.logaddexp(log_weight, new_weight), total, stop,
            diverging | diverged, acceptance + accepted, count + leaves,
        )  # fmt: skip

    end = (q, p, g)
    false, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    start = (zero, end, end, q, jnp.zeros((), q.dtype), p, false, false, jnp.zeros((), q.dtype), zero)
    out = jax.lax.while_loop(unfinished, double, start)
    count = out[9]
    return out[3], Info(out[8] / jnp.maximum(count, 1), out[7], count)


def slice_sampling(
    key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array, max_steps: int = 20
) -> tuple[Array, Info]:
    """Slice sampling along a random direction, by stepping out and shrinking (Neal 2003)."""
    keys = jax.random.split(key, 4)
    direction = step_size * apply_metric(inverse_mass, draw_momentum(keys[0], inverse_mass))
    line = lambda t: log_density(q + t * direction)
    level = line(0.0) - jax.random.exponential(keys[1])
    low = -jax.random.uniform(keys[2])
    # The steps are divided between both sides at random, which keeps detailed balance.
    split_key, shrink_key = jax.random.split(keys[3])
    left_steps = jax.random.randint(split_key, (), 0, max_steps)

    def out(sign, edge, budget):
        more = lambda c: (c[1] > 0) & (line(c[0]) > level)
        return jax.lax.while_loop(more, lambda c: (c[0] + sign, c[1] - 1), (edge, budget))[0]

    left, right = out(-1.0, low, left_steps), out(1.0, low + 1.0, max_steps - 1 - left_steps)

    def shrink(carry):
        left, right, _, key, _, count = carry
        key, draw = jax.random.split(key)
        t = left + (right - left) * jax.random.uniform(draw)
        inside = line(t) > level
        return jnp.where(t < 0, t, left), jnp.where(t < 0, right, t), t, key, inside, count + 1

    start = (left, right, jnp.zeros(()), shrink_key, jnp.zeros((), bool), 0)
    *_, t, _, inside, _ = jax.lax.while_loop(lambda c: ~c[4] & (c[5] < 100), shrink, start)
    t = jnp.where(inside, t, 0.0)
    return q + t * direction, Info(jnp.ones(()), jnp.zeros((), bool), jnp.asarray(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel(abc.ABC):
    """A kernel with its settings."""

    @property
    def target_acceptance(self) -> float | None:
        """Acceptance probability to which the warm-up tunes the step size; None for kernels without tuning."""
        return 0.8

    @property
    def num_replicas(self) -> int:
        """Number of copies of the parameters in a position [num_replicas * D]; the first copy is the draw."""
        return 1

    @abc.abstractmethod
    def step(
        self, key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array
    ) -> tuple[Array, Info]:
        """One transition of a position."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomWalk(Kernel):
    """Random-walk Metropolis."""

    @property
    def target_acceptance(self) -> float:
        return 0.3

    def step(
        self, key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array
    ) -> tuple[Array, Info]:
        return random_walk(key, q, log_density, step_size, inverse_mass)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mala(Kernel):
    """Metropolis-adjusted Langevin."""

    @property
    def target_acceptance(self) -> float:
        return 0.6

    def step(
        self, key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array
    ) -> tuple[Array, Info]:
        return mala(key, q, log_density, step_size, inverse_mass)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hmc(Kernel):
    """Hamiltonian Monte Carlo.

    Attributes:
      num_leapfrog: number of steps of a trajectory.
    """

    num_leapfrog: int = 16

    def step(
        self, key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array
    ) -> tuple[Array, Info]:
        return hmc(key, q, log_density, step_size, inverse_mass, self.num_leapfrog)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nuts(Kernel):
    """The no-U-turn sampler.

    Attributes:
      max_depth: a trajectory has at most 2^max_depth steps.
      target_acceptance: acceptance probability to which the warm-up tunes the step size.  With many chains the average
        is precise and the target is met; with single chains the usual .8 ends near .9.
    """

    max_depth: int = 10
    target_acceptance: float = 0.9

    def step(
        self, key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array
    ) -> tuple[Array, Info]:
        return nuts(key, q, log_density, step_size, inverse_mass, self.max_depth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice(Kernel):
    """Slice sampling along random directions; its step size is the first width of the slice.

    Attributes:
      max_steps: largest number of times that a slice is stepped out.
    """

    max_steps: int = 20

    @property
    def target_acceptance(self) -> None:
        return None

    def step(
        self, key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array
    ) -> tuple[Array, Info]:
        return slice_sampling(key, q, log_density, step_size, inverse_mass, self.max_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tempering(Kernel):
    """Parallel tempering (Geyer 1991; Earl & Deem 2005): replicas of pi^(1 / T) move, then neighbours try to swap.

    Neighbours i, i + 1 swap with probability min(1, exp((1 / T_i - 1 / T_i+1) (log pi(q_i+1) - log pi(q_i)))).  Each
    replica has its own diagonal metric from the warm-up.

    Attributes:
      kernel: kernel that moves a replica.
      temperatures: rising temperatures, from 1.
    """

    kernel: Kernel = Nuts(max_depth=6)
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)

    def __post_init__(self) -> None:
        if len(self.temperatures) < 2 or self.temperatures[0] != 1.0 or min(np.diff(self.temperatures)) <= 0:
            raise UserError(f"temperatures={self.temperatures} must rise from 1, and be at least two")

    @property
    def target_acceptance(self) -> float | None:
        return self.kernel.target_acceptance

    @property
    def num_replicas(self) -> int:
        return len(self.temperatures)

    def step(
        self, key: Array, q: Array, log_density: Callable, step_size: Array, inverse_mass: Array
    ) -> tuple[Array, Info]:
        if inverse_mass.ndim == 2:
            raise UserError("parallel tempering keeps a diagonal metric of each replica: set dense_mass=false")
        count = self.num_replicas
        beta = 1.0 / jnp.asarray(self.temperatures, q.dtype)
        move_key, parity_key, swap_key = jax.random.split(key, 3)

        def move(key: Array, q: Array, beta: Array, inverse_mass: Array) -> tuple[Array, Info]:
            return self.kernel.step(key, q, lambda y: beta * log_density(y), step_size, inverse_mass)

        replicas = q.reshape(count, -1)
        keys = jax.random.split(move_key, count)
        replicas, info = jax.vmap(move)(keys, replicas, beta, inverse_mass.reshape(count, -1))
        values = jax.vmap(log_density)(replicas)
        log_ratio = (beta[:-1] - beta[1:]) * (values[1:] - values[:-1])
        accept = -jax.random.exponential(swap_key, (count - 1,)) < log_ratio
        # Pairs that begin at even places, or pairs that begin at odd places, so that no replica is in two pairs.
        accept &= jnp.arange(count - 1) % 2 == jax.random.bernoulli(parity_key).astype(jnp.int32)
        up, down = jnp.append(accept, False), jnp.append(False, accept)
        source = jnp.arange(count) + up - down
        return replicas[source].reshape(-1), Info(info.acceptance.mean(), info.diverging[0], info.num_gradients.sum())
