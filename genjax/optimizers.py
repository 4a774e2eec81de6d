"""Optimizers and learning-rate schedules as frozen dataclasses that build optax transformations.

A schedule whose `num_steps` is None takes the run's number of steps, filled in when the experiment is resolved.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from genjax.errors import UserError, filled


def tree_norm(tree: Any) -> jax.Array:
    """Square root of the sum of the squares of all elements, a scalar."""
    # Sums run along the last axis first: if XLA on CPU sums an array as a whole (or merges both
    # sums), it stores all squares.
    rows = [jnp.square(jnp.atleast_1d(leaf)).sum(-1) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(r.sum() for r in rows))


def clip_by_tree_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients down to the norm `max_norm` if their norm is larger."""

    def clip(updates: Any, params: Any = None) -> Any:
        norm = tree_norm(updates)
        return jax.tree.map(lambda g: jnp.where(norm < max_norm, g, g / norm.astype(g.dtype) * max_norm), updates)

    return optax.stateless(clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
    """Factor on the learning rate: linear warm-up from 0 to 1 over `warmup_steps`, then as the
    subclass defines.

    Attributes:
      warmup_steps: steps over which the factor rises from 0 to 1; 0 for no warm-up.
    """

    warmup_steps: int = 0

    @abc.abstractmethod
    def after_warmup(self) -> optax.Schedule:
        """The factor as a function of the number of steps since the warm-up ended."""

    def build(self, learning_rate: float) -> optax.Schedule:
        """Returns the learning rate as a function of the step."""
        factor = self.after_warmup()
        if self.warmup_steps:
            # Shifted by one step: otherwise the first update would have rate 0 and be lost.
            warmup = optax.linear_schedule(1.0 / self.warmup_steps, 1.0, max(self.warmup_steps - 1, 1))
            factor = optax.join_schedules([warmup, factor], [self.warmup_steps])
        return lambda step: learning_rate * factor(step)

    def stretched(self, factor: int) -> Schedule:
        """The schedule over `factor` times as many updates, for a network with `factor` updates at
        each step of a run.
        """
        lengths = {name: getattr(self, name, None) for name in ("warmup_steps", "num_steps")}
        return dataclasses.replace(self, **{name: n * factor for name, n in lengths.items() if n is not None})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Stays at 1."""

    def after_warmup(self) -> optax.Schedule:
        return optax.constant_schedule(1.0)


def _steps_of(share: float, num_steps: int) -> int:
    """Whole steps in a share of `num_steps`; 29 in 0.29 of 100, although the product of the two floats is below 29."""
    return int(round(share * num_steps, 6))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decay(Schedule):
    """A schedule that ends.

    Attributes:
      num_steps: step at which the schedule ends, warm-up included; None takes the run's length.
      final_scale: factor at the end of the schedule and after it.
    """

    num_steps: int | None = None
    final_scale: float = 0.0

    def decay_steps(self) -> int:
        """Number of steps after the warm-up; a run may end before."""
        return max(filled(self, "num_steps") - self.warmup_steps, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(_Decay):
    """Half a cosine from 1 to `final_scale` at `num_steps` (SGDR, Loshchilov & Hutter 2017, eq. 5, one cycle)."""

    def after_warmup(self) -> optax.Schedule:
        return optax.cosine_decay_schedule(1.0, self.decay_steps(), alpha=self.final_scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(_Decay):
    """A line from 1 to `final_scale` at `num_steps`, which begins after the share `constant_share` of the steps.

    Attributes:
      constant_share: share of the steps after the warm-up, in [0, 1), at which the factor stays 1.
    """

    constant_share: float = 0.0

    def after_warmup(self) -> optax.Schedule:
        if not 0.0 <= self.constant_share < 1.0:
            raise UserError(f"schedule.constant_share={self.constant_share} must lie in [0, 1)")
        constant = _steps_of(self.constant_share, self.decay_steps())
        return optax.linear_schedule(1.0, self.final_scale, self.decay_steps() - constant, transition_begin=constant)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Schedule):
    """sqrt(w / step) with w = max(warmup_steps, 1): the schedule of Vaswani et al. 2017, eq. 3, peaking at 1."""

    def after_warmup(self) -> optax.Schedule:
        warmup = max(self.warmup_steps, 1)
        # join_schedules also asks for negative steps, but does not use the answer.
        return lambda step: (warmup / (jnp.maximum(step, 0) + warmup)) ** 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piecewise(Schedule):
    """Multiplies by `scale` at each of `boundaries`, given as fractions of `num_steps`.

    Attributes:
      num_steps: length that the boundaries are fractions of, warm-up included; None takes the run's.
      boundaries: fractions of `num_steps` at which the factor changes.
      scale: number by which the factor is multiplied at each boundary.
    """

    num_steps: int | None = None
    boundaries: tuple[float, ...] = (0.5, 0.75)
    scale: float = 0.1

    def after_warmup(self) -> optax.Schedule:
        scales: dict[int, float] = {}
        for boundary in self.boundaries:
            # In a short run several boundaries may fall on one step.
            step = _steps_of(boundary, filled(self, "num_steps")) - self.warmup_steps
            scales[step] = scales.get(step, 1.0) * self.scale
        return optax.piecewise_constant_schedule(1.0, scales)


#: Ends of the names of parameters without weight decay: biases, scales and shifts (classes may give them a second
#: axis); the peephole weights of an LSTM, which are vectors in one array; and the rates of s4d layers, which decay
#: would pull to frequency 0.
_NOT_DECAYED = ("bias", "scale", "shift", "log_diagonal", "peepholes", "log_real", "imaginary")


def _key_names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(key, "key", key)) for key in path]


def is_stacked(path: tuple[Any, ...]) -> bool:
    """Whether the first axis of a parameter counts layers, as in a scanned transformer or in a flow's `Repeat`."""
    return any(name == "layers" or name.endswith("_repeat") for name in _key_names(path))


def decays_weight(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    """Whether weight decay applies to a parameter: not to biases, scales of norms, rates and other
    vectors of a layer.
    """
    name = _key_names(path)[-1] if path else ""
    return leaf.ndim - is_stacked(path) >= 2 and not name.endswith(_NOT_DECAYED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """Base of all optimizers.

    Attributes:
      learning_rate: peak learning rate.
      schedule: factor on the learning rate over the steps.
      weight_decay: decoupled weight decay, multiplied by the learning rate; not applied to biases and norms.
      clip_norm: largest global norm of the gradient, or None.
      ema_decay: decay of the moving average of the parameters, or None to keep none.
      accumulation_steps: number of microbatches a batch is split into to save memory.
      skip_nonfinite: skip updates with a loss or a gradient that is not finite, and count them in `skipped`.
    """

    learning_rate: float = 1e-3
    schedule: Schedule = Constant()
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema_decay: float | None = None
    accumulation_steps: int = 1
    skip_nonfinite: bool = False

    @abc.abstractmethod
    def scaling(self) -> optax.GradientTransformation:
        """The rule that turns gradients into unscaled updates."""

    def build(self) -> optax.GradientTransformation:
        """Returns the whole transformation: clip, scale, decay weights, multiply by the learning rate."""
        steps = [] if self.clip_norm is None else [clip_by_tree_norm(self.clip_norm)]
        steps.append(self.scaling())
        if self.weight_decay:
            mask = lambda params: jax.tree_util.tree_map_with_path(decays_weight, params)
            steps.append(optax.add_decayed_weights(self.weight_decay, mask))
        steps.append(optax.scale_by_learning_rate(self.schedule.build(self.learning_rate)))
        return optax.chain(*steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015).

    Attributes:
      b1: decay of the average of gradients.
      b2: decay of the average of squared gradients.
      eps: number added to the square root of the average of squared gradients.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def scaling(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    flag_name: ClassVar[str] = "adamw"

    weight_decay: float = 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if it is not 0.

    Attributes:
      momentum: decay of the sum of gradients that updates follow; 0 follows the gradient itself.
      nesterov: look ahead by one step of the momentum (Nesterov 1983).
    """

    momentum: float = 0.0
    nesterov: bool = False

    def scaling(self) -> optax.GradientTransformation:
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMSProp(Optimizer):
    """RMSProp (Tieleman & Hinton 2012), g / (sqrt(E g^2) + eps), with optional momentum.

    Attributes:
      decay: decay of the average of squared gradients.
      eps: number added to the square root of the average.
      momentum: decay of the sum of scaled gradients that updates follow; 0 for none.
    """

    flag_name: ClassVar[str] = "rmsprop"

    decay: float = 0.9
    eps: float = 1e-8
    momentum: float = 0.0

    def scaling(self) -> optax.GradientTransformation:
        rms = optax.scale_by_rms(self.decay, self.eps, eps_in_sqrt=False)
        return optax.chain(rms, optax.trace(self.momentum)) if self.momentum else rms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor with factored second moments and update clipping (Shazeer & Stern 2018), without relative step sizes.

    Layers that are stacked in one array count as separate matrices, as if they were not stacked.

    Attributes:
      min_dim_size_to_factor: second moments are factored where both axes of a matrix have at least this size.
      decay_rate: exponent c of the decay 1 - t^-c of the average of squared gradients at step t.
      clipping_threshold: largest root mean square of the update of a matrix.
    """

    min_dim_size_to_factor: int = 128
    decay_rate: float = 0.8
    clipping_threshold: float = 1.0

    def scaling(self) -> optax.GradientTransformation:
        moments = optax.scale_by_factored_rms(
            min_dim_size_to_factor=self.min_dim_size_to_factor, decay_rate=self.decay_rate
        )
        clip = optax.clip_by_block_rms(self.clipping_threshold)

        def by_layer(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
            """Applies a function to each parameter with its state; in stacked parameters, to each layer separately."""

            def apply(path: tuple[Any, ...], *leaves: jax.Array) -> Any:
                return (jax.vmap(function) if is_stacked(path) else function)(*leaves)

            return jax.tree_util.tree_map_with_path(apply, tree, *rest)

        def of_parts(count: jax.Array, parts: Any, like: Any) -> tuple[Any, optax.FactoredState]:
            whole = jax.tree.transpose(jax.tree.structure(like), jax.tree.structure((0, 0, 0, 0)), parts)
            return whole[0], optax.FactoredState(count, *whole[1:])

        def init(params: Any) -> optax.FactoredState:
            parts = by_layer(lambda p: (p, *moments.init(p)[1:]), params)
            return of_parts(jnp.zeros((), jnp.int32), parts, params)[1]

        def update(updates: Any, state: optax.FactoredState, params: Any) -> tuple[Any, optax.FactoredState]:
            def one(g: jax.Array, row: jax.Array, column: jax.Array, whole: jax.Array, p: jax.Array) -> tuple[Any, ...]:
                new, own = moments.update(g, optax.FactoredState(state.count, row, column, whole), p)
                return new, *own[1:]

            parts = by_layer(one, updates, *state[1:], params)
            return of_parts(optax.safe_increment(state.count), parts, updates)

        clipped = optax.stateless(lambda updates, _: by_layer(lambda u: clip.update(u, clip.init(u))[0], updates))
        return optax.chain(optax.GradientTransformation(init, update), clipped)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion, the sign of an interpolated momentum (Chen et al. 2023).

    Attributes:
      b1: weight of the momentum in the interpolation with the gradient whose sign is followed.
      b2: decay of the momentum.
    """

    b1: float = 0.9
    b2: float = 0.99

    def scaling(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)
