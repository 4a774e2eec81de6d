"""Consistency models, trained from data or from a teacher (Song et al. 2023, arXiv:2303.01469; Song & Dhariwal 2023,
arXiv:2310.14189).

    f(z, sigma) = c_skip z + c_out F(c_in z, sigma),    f(z, sigma_min) = z                          (2303.01469, eq. 5)
    c_skip = s_d^2 / ((sigma - sigma_min)^2 + s_d^2),    c_out = s_d (sigma - sigma_min) / sqrt(sigma^2 + s_d^2)

    loss = E 1 / (sigma_(n+1) - sigma_n) d(f(x + sigma_(n+1) e, sigma_(n+1)), stop_gradient f(x + sigma_n e, sigma_n))

with the pseudo-Huber distance d(a, b) = sqrt(|a - b|^2 + c^2) - c, c = 0.00054 sqrt(D), a log-normal choice of n, and a
number of levels that doubles from `min_levels` to `max_levels` over the training (2310.14189, table 1).  One evaluation
maps noise to data; further evaluations alternate with fresh noise (2303.01469, algorithm 1).

Distillation (2303.01469, algorithm 2) has a fixed number of levels and replaces x + sigma_n e by one Heun step of the
teacher D from z = x + sigma_(n+1) e to sigma_n along dz = (z - D(z, sigma)) / sigma dsigma; a target network answers
there.  Its parameters theta^- follow the student's by theta^- <- mu theta^- + (1 - mu) theta.  With mu = 0 it is the
student itself.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.families.diffusion import targets
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.grids import Node, times
from genjax.families.diffusion.networks import Condition, as_function
from genjax.families.diffusion.processes import GaussianProcess, Karras, expand
from genjax.families.diffusion.samplers import Carry, Denoiser, Estimate, Sampler
from genjax.families.diffusion.times import UniformTime
from genjax.gradients import gradient_step, unless_skipped
from genjax.model import TrainState, copies_of_start
from genjax.nn import lora


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencySampler(Sampler):
    """Maps noise to data in one evaluation a step, and noises the data again in between (2303.01469, algorithm 1).

    The noise levels lie on a grid that ends at sigma_min, where the map is the identity; so `denoise_to_zero` has no
    effect.
    """

    num_steps: int = 1

    needs_path_ends: ClassVar[bool] = True

    def grid(self, process: GaussianProcess) -> Node:
        return times(process, self.spacing, self.num_steps, self.rho, denoise_to_zero=False)

    def step(
        self, denoise: Denoiser, process: GaussianProcess, carry: Carry, now: Node, then: Node, key: Array
    ) -> Carry:
        x0 = denoise(carry.z, now.t, carry.x0).x0
        noise = jax.random.normal(key, x0.shape, x0.dtype)
        # Data carry the noise sigma_min already (algorithm 1).
        extra = jnp.sqrt(jnp.maximum(then.sigma**2 - process.t_min**2, 0.0))
        return Carry(x0 + extra * noise, x0, now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyModel(Diffusion):
    """Improved consistency training.

    Attributes:
      min_levels: s_0, number of noise levels at the start.
      max_levels: s_1, number of noise levels at the end.
      num_steps: length of the run, over which the number of levels grows; None takes the run's.
      level_mean: mean of log sigma in the choice of levels.
      level_scale: standard deviation of log sigma in the choice of levels.
    """

    process: Karras = Karras()
    sigma_data: float = 0.5
    scale_input: bool = True
    min_levels: int = 10
    max_levels: int = 1280
    num_steps: int | None = None
    level_mean: float = -1.1
    level_scale: float = 2.0
    sampler: Sampler = ConsistencySampler()

    gives_path_ends: ClassVar[bool] = True

    def check(self) -> None:
        super().check()
        if self.self_conditioning or self.likelihood_steps:
            raise UserError("a consistency model has neither self_conditioning nor a likelihood (likelihood_steps)")
        if not isinstance(self.process, Karras):
            raise UserError("a consistency model needs process=karras")
        ignored = {"target": "epsilon", "times": UniformTime(), "weighting": "simple"}
        given = [name for name, value in ignored.items() if getattr(self, name) != value]
        if given:
            raise UserError(
                f"a consistency model has a target, levels and a weighting of its own; leave out {', '.join(given)}"
            )
        if not isinstance(self.sampler, ConsistencySampler):
            raise UserError(
                f"a consistency model maps noise to data in one step, which {type(self.sampler).__name__} cannot use; "
                "choose sampler=consistency_sampler"
            )
        if not 1 <= self.min_levels <= self.max_levels:
            raise UserError(f"levels must satisfy 1 <= min_levels={self.min_levels} <= max_levels={self.max_levels}")
        filled(self, "num_steps")

    def estimate(
        self,
        params: PyTree,
        z: Array,
        t: Array,
        condition: Condition,
        x0_before: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Estimate:
        """f(z, t), the end of the ODE's path through z."""
        output = self.apply(params, z, t, condition, x0_before, dropout_keys)
        low, data = self.process.t_min, self.sigma_data
        c_skip = data**2 / ((t - low) ** 2 + data**2)
        c_out = data * (t - low) / jnp.sqrt(t**2 + data**2)
        return Estimate(expand(c_skip, z) * z + expand(c_out, z) * output)

    def num_levels_at(self, step: Array) -> Array:
        """N(k): the number of levels at a step."""
        doublings = math.log2(self.max_levels / self.min_levels) + 1.0
        length = max(self.num_steps / math.floor(doublings), 1.0)
        return jnp.minimum(self.min_levels * 2.0 ** jnp.floor(step / length), self.max_levels) + 1.0

    def _level(self, index: Array, count: Array) -> Array:
        """sigma of level number `index` of `count` levels, counted from 0 upwards."""
        rho = 7.0
        low, high = self.process.t_min ** (1 / rho), self.process.t_max ** (1 / rho)
        return (low + index / (count - 1.0) * (high - low)) ** rho

    def pairs(self, keys: Array, count: Array) -> tuple[Array, Array]:
        """Neighbouring levels sigma_n < sigma_(n+1), [B] each, drawn so that log sigma is nearly normal."""
        index = jnp.arange(self.max_levels + 1, dtype=jnp.float32)
        levels = self._level(jnp.minimum(index, count - 1.0), count)
        ends = jax.scipy.special.erf((jnp.log(levels) - self.level_mean) / (math.sqrt(2.0) * self.level_scale))
        mass = jnp.where(index[:-1] < count - 1.0, jnp.diff(ends), 0.0)
        n = jax.vmap(lambda k: jax.random.categorical(k, jnp.log(jnp.maximum(mass, 1e-30))))(keys)
        return self._level(n.astype(jnp.float32), count), self._level(n + 1.0, count)

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        losses = self._pair_losses(params, batch, key, step, training=True)
        return losses.mean(), {"num_levels": self.num_levels_at(step) - 1.0}

    def pair_weight(self, low: Array, high: Array) -> Array:
        """Weight of a pair of levels, [B]."""
        return 1.0 / (high - low)

    def _pair_losses(
        self,
        params: PyTree,
        batch: Batch,
        key: Array,
        step: Array,
        training: bool,
        teacher: PyTree | None = None,
        target_params: PyTree | None = None,
    ) -> Array:
        x = batch["x"]
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(example_keys(key, batch))
        low, high = self.pairs(keys[:, 0], self.num_levels_at(step))
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys[:, 1])
        condition, dropout_keys = self.condition(batch), None
        if training:
            dropout_keys = keys[:, 2]
            condition = self.drop_conditions(condition, keys[:, 3])
        # Both sides have the same dropout.
        z = x + expand(high, x) * noise
        if teacher is None:
            lower = x + expand(low, x) * noise
        else:
            lower = jax.lax.stop_gradient(self.teacher_step(teacher, z, high, low, condition))
        ours = self.estimate(params, z, high, condition, None, dropout_keys).x0
        behind = params if target_params is None else target_params
        target = self.estimate(behind, lower, low, condition, None, dropout_keys).x0
        c = 0.00054 * math.sqrt(math.prod(x.shape[1:]))
        square = jnp.square(ours - jax.lax.stop_gradient(target)).reshape(x.shape[0], -1).sum(-1)
        return (jnp.sqrt(square + c**2) - c) * self.pair_weight(low, high)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B]: `loss` between neighbours among all max_levels."""
        losses = self._pair_losses(state.eval_params, batch, key, jnp.asarray(float(self.num_steps)), training=False)
        return {"loss": losses}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(ConsistencyModel):
    """A consistency model of a diffusion model that was trained before.

    The teacher is the network that the run starts from, given by `--training.init_from`, a run of `EDM` with the same
    network and sigma_data; the student starts as its copy.

    Attributes:
      num_distillation_levels: number N of noise levels; `min_levels`, `max_levels`, `level_mean`
        and `level_scale` are not used.
      target_decay: mu of the target network; 0 takes the student itself (the paper: 0 for CIFAR-10, 0.95 for ImageNet).
      untrained_teacher: start without a trained teacher, to try a configuration out; the result is meaningless.
    """

    num_distillation_levels: int = 18
    target_decay: float = 0.0
    untrained_teacher: bool = False

    def check(self) -> None:
        super().check()
        if self.num_distillation_levels < 2:
            raise UserError(f"num_distillation_levels={self.num_distillation_levels} must be at least 2")
        if not 0.0 <= self.target_decay < 1.0:
            raise UserError(f"target_decay={self.target_decay} must be at least 0 and below 1")

    def check_start(self, source: Any) -> None:
        """Refuses to start a run from parameters that are no teacher's.

        Args:
          source: the model of the run that the parameters are taken from, or None where there is none.

        Raises:
          UserError: `source` is missing, or its network would be read as another function than it learned.
        """
        super().check_start(source)
        if source is None:
            if self.untrained_teacher:
                return
            raise UserError("distillation needs a teacher: give --training.init_from, the workdir of a run of EDM")
        is_edm = isinstance(source, Diffusion) and source.target == "edm" and isinstance(source.process, Karras)
        if not is_edm or not source.scale_input:
            raise UserError(
                f"the teacher in training.init_from is a {type(source).__name__} and not EDM (target=edm, "
                "process=karras, scale_input=true); distil a run of EDM"
            )
        if source.sigma_data != self.sigma_data:
            raise UserError(
                f"sigma_data={self.sigma_data}, but the teacher in training.init_from has {source.sigma_data}; give "
                f"--model.sigma_data={source.sigma_data}"
            )
        if as_function(source.network) != as_function(self.network):
            raise UserError("the network differs from the teacher's in training.init_from; give the same model.network")

    def init(self, key: Array, batch: Batch) -> TrainState:
        state = super().init(key, batch)
        own = self.trained_params(state.params)
        copies = {name: jax.tree.map(jnp.copy, own) for name in ("teacher", "target")}
        if not self.target_decay:
            del copies["target"]
        return state.replace(extra={**state.extra, **copies})

    def num_levels_at(self, step: Array) -> Array:
        return jnp.full_like(jnp.asarray(step, jnp.float32), self.num_distillation_levels)

    def pairs(self, keys: Array, count: Array) -> tuple[Array, Array]:
        """Neighbouring levels; all pairs are equally likely."""
        n = jax.vmap(lambda k: jax.random.randint(k, (), 0, self.num_distillation_levels - 1))(keys)
        return self._level(n.astype(jnp.float32), count), self._level(n + 1.0, count)

    def pair_weight(self, low: Array, high: Array) -> Array:
        return jnp.ones_like(high)

    def teacher_denoise(self, teacher: PyTree, z: Array, sigma: Array, condition: Condition) -> Array:
        """D(z, sigma) of the teacher, in EDM's preconditioning."""
        output = self.apply(teacher, z, sigma, condition)
        return targets.to_x0("edm", self.process, sigma, z, output, self.sigma_data)

    def teacher_step(self, teacher: PyTree, z: Array, high: Array, low: Array, condition: Condition) -> Array:
        """One Heun step of the teacher's ODE from level `high` to `low` [B]."""
        width = expand(low - high, z)
        slope = (z - self.teacher_denoise(teacher, z, high, condition)) / expand(high, z)
        there = z + width * slope
        second = (there - self.teacher_denoise(teacher, there, low, condition)) / expand(low, z)
        return z + 0.5 * width * (slope + second)

    def _networks(self, state: TrainState) -> tuple[dict[str, PyTree], PyTree, PyTree | None]:
        """The copies in `extra`, and all parameters of the teacher and of the target network, None without one.

        The copies hold the trained parameters alone: all networks have one frozen encoder of captions.
        """
        copies = copies_of_start(state, [name for name in ("teacher", "target") if name in state.extra])
        whole = {name: lora.join(state.params, copy) for name, copy in copies.items()}
        return copies, whole["teacher"], whole.get("target")

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss."""
        copies, teacher, behind = self._networks(state)

        def loss(params: PyTree, part: Batch, part_key: Array) -> tuple[Array, Metrics]:
            losses = self._pair_losses(params, part, part_key, state.step, True, teacher, behind)
            return losses.mean(), {}

        new, metrics = gradient_step(loss, self.optimizer, trained=self.trained)(state, batch, key)
        if behind is not None:
            mu = self.target_decay
            old, own = copies["target"], self.trained_params(new.params)
            target = jax.tree.map(lambda c, p: mu * c + (1.0 - mu) * p, old, own)
            copies["target"] = unless_skipped(metrics, target, old)
        return new.replace(extra={**new.extra, **copies}), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B]: `loss` of a random pair of levels: the distance between the evaluated student
        (with averaged parameters if they are kept) and the target network; with target_decay 0 the target
        network is that student itself.
        """
        _, teacher, behind = self._networks(state)
        losses = self._pair_losses(state.eval_params, batch, key, state.step, False, teacher, behind)
        return {"loss": losses}
