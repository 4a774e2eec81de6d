"""Reflow: a rectified flow made straighter by its own pairs (Liu et al. 2022, arXiv:2209.03003, algorithm 1).

    epsilon ~ N(0, I),    x = end of the teacher's ODE from epsilon
    loss = E |v(z_t, t) - (epsilon - x)|^2,    z_t = (1 - t) x + t epsilon

The flow that learns these pairs has the teacher's distribution, costs no more transport, and its paths bend less, so
that few steps follow them (theorems 3.3, 3.5 and 3.7).  The bend is measured by

    S = E integral_0^1 |(epsilon - x) - dz_t / dt|^2 dt

which is 0 if one step is exact.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, example_keys
from genjax.errors import UserError
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.networks import as_function
from genjax.families.diffusion.processes import GaussianProcess, LinearInterpolant, expand
from genjax.families.diffusion.samplers import Denoiser, Euler, Heun, RungeKutta4, Sampler
from genjax.gradients import gradient_step
from genjax.model import TrainState, copies_of_start
from genjax.nn import lora


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reflow(FlowMatching):
    """A rectified flow that learns pairs of noise and data made by another rectified flow.

    The teacher is the network that the run starts from, given by `--training.init_from`, a run of `FlowMatching` with
    the same network; the student starts as its copy.  A second reflow starts from a run of this one.

    Attributes:
      teacher_sampler: method of solving the teacher's ODE from noise to data; its steps also measure the straightness.
      untrained_teacher: start without a trained teacher, to try a configuration out; the result is meaningless.
    """

    teacher_sampler: Sampler = Heun(num_steps=20, spacing="uniform", variable="time")
    untrained_teacher: bool = False

    def check(self) -> None:
        super().check()
        if not isinstance(self.process, LinearInterpolant):
            raise UserError("reflow straightens rectified flows; it needs process=linear")
        if self.coupling != "independent":
            raise UserError("reflow has pairs of its own; it needs coupling=independent")
        if not isinstance(self.teacher_sampler, Euler | RungeKutta4) or getattr(self.teacher_sampler, "churn", 0.0):
            raise UserError("teacher_sampler must follow the ODE: euler, heun (both without churn) or runge_kutta4")
        self.teacher_sampler.check(self.process)

    def check_start(self, source: Any) -> None:
        """Refuses to start a run from parameters that are no teacher's.

        Args:
          source: the model of the run `training.init_from`, or None where there is none.

        Raises:
          UserError: `source` is missing, is no rectified flow, or its network would be read as another function than it
            learned.
        """
        super().check_start(source)
        if source is None:
            if self.untrained_teacher:
                return
            raise UserError("reflow needs a teacher: give --training.init_from, the workdir of a run of FlowMatching")
        if not isinstance(source, FlowMatching) or (source.process, source.target) != (self.process, self.target):
            raise UserError(
                f"the teacher in training.init_from is a {type(source).__name__} and not FlowMatching with the same "
                "process and target; straighten a run of FlowMatching"
            )
        if as_function(source.network) != as_function(self.network):
            raise UserError("the network differs from the teacher's in training.init_from; give the same model.network")
        for name in ("scale_input", "sigma_data"):
            theirs, ours = getattr(source, name), getattr(self, name)
            if theirs != ours:
                raise UserError(
                    f"{name}={ours}, but the teacher in training.init_from has {theirs}; give --model.{name}={theirs}"
                )

    def init(self, key: Array, batch: Batch) -> TrainState:
        state = super().init(key, batch)
        # A frozen encoder of captions is the student's own.
        copy = jax.tree.map(jnp.copy, self.trained_params(state.params))
        return state.replace(extra={**state.extra, "teacher": copy})

    def teacher_denoiser(self, teacher: PyTree, batch: Batch) -> Denoiser:
        """The teacher under the conditions of a batch."""
        return self.denoiser(teacher, self.condition(batch), Guidance())

    def paired(self, teacher: PyTree, batch: Batch, key: Array) -> dict[str, Array]:
        """The batch with `noise` [B, ...], and with x replaced by the end of the teacher's ODE from this noise."""
        keys = example_keys(jax.random.fold_in(key, 2), batch)
        noise = jax.vmap(lambda k: jax.random.normal(k, batch["x"].shape[1:]))(keys)
        x = self.teacher_sampler.run(self.teacher_denoiser(teacher, batch), self.process, noise, key)
        return {**batch, "x": jax.lax.stop_gradient(x), "noise": noise}

    def draw(self, batch: Batch, key: Array, process: GaussianProcess) -> tuple[Array, Array, Array]:
        t, epsilon, keys = super().draw(batch, key, process)
        return t, batch.get("noise", epsilon), keys

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss = target_error of the pairs."""
        copy = copies_of_start(state, ["teacher"])["teacher"]
        teacher = lora.join(state.params, copy)

        def loss(params: PyTree, part: Batch, part_key: Array) -> tuple[Array, Metrics]:
            return self.loss(params, self.paired(teacher, part, part_key), part_key, state.step)

        new, metrics = gradient_step(loss, self.optimizer, trained=self.trained)(state, batch, key)
        return new.replace(extra={**new.extra, "teacher": copy}), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B]: metrics of `Diffusion`, with `loss` and `target_error` of a pair, and `straightness`
        S.
        """
        paired = self.paired(lora.join(state.params, state.extra["teacher"]), batch, key)
        losses, values = self.example_losses(state.eval_params, paired, key, training=False)
        denoise = self.denoiser(state.eval_params, self.condition(batch), Guidance())
        bend = straightness(self.teacher_sampler, denoise, self.process, paired["noise"], key)
        return {**super().evaluate(state, batch, key), "loss": losses, **values, "straightness": bend}


def straightness(sampler: Sampler, denoise: Denoiser, process: GaussianProcess, noise: Array, key: Array) -> Array:
    """S of the paths that a sampler follows from noise [B, ...], by the mean speed in each of its steps, shape [B]."""
    path = sampler.run(denoise, process, noise, key, trajectory=True)
    t = sampler.grid(process).t
    duration = jnp.diff(t)
    speed = jnp.diff(path, axis=0) / expand(duration, path)
    whole = (path[-1] - path[0]) / (t[-1] - t[0])
    square = jnp.square(speed - whole[None]).reshape(*path[1:].shape[:2], -1).sum(-1)  # [T, B]
    return (square * jnp.abs(duration)[:, None]).sum(0)
