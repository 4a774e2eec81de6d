"""From a loss to a training step: gradients with accumulation, updates, and moving averages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genjax import devices
from genjax.batch import Array, Batch, Metrics, PyTree, batch_size, cross_device_mean, example_places
from genjax.errors import UserError
from genjax.model import TrainState
from genjax.nn import lora, sharding
from genjax.optimizers import tree_norm


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """A loss that is not a mean over examples, such as a loss that contrasts each example with all others.

    With accumulation, the outputs of all microbatches are computed first.  The gradient of the loss by these outputs is
    then carried back through the network, microbatch by microbatch (Gao et al. 2021, arXiv:2101.06983).  This takes a
    second forward pass and gives exactly the value and the gradient of the whole batch.

    Attributes:
      outputs: `(params, batch, key) -> outputs`, floating-point arrays [B, ...] with a row for each example.
      loss: `(outputs, batch, key) -> (loss, metrics)` of the whole batch, or of the device's part of it; with `extra`,
        `(outputs, batch, key, extra) -> (loss, (metrics, extra))`.
    """

    outputs: Callable[[PyTree, Batch, Array], PyTree]
    loss: Callable[..., tuple[Array, Any]]

    def __call__(self, params: PyTree, batch: Batch, key: Array, *extra: PyTree) -> tuple[Array, Any]:
        """The loss of a batch, computed in one piece."""
        return self.loss(self.outputs(params, batch, key), batch, key, *extra)


def microbatches(batch: PyTree, count: int) -> PyTree:
    """Arrays [B, ...] as [count, B / count, ...].

    Example i goes to microbatch i mod count, so that every device keeps a share of each microbatch.
    """
    return jax.tree.map(lambda a: a.reshape(a.shape[0] // count, count, *a.shape[1:]).swapaxes(0, 1), batch)


def value_and_gradient(
    loss: Callable[..., tuple[Array, Metrics]],
    params: PyTree,
    batch: Batch,
    key: Array,
    accumulation_steps: int = 1,
    extra: PyTree = None,
    average_extra: bool = False,
) -> tuple[PyTree, Metrics, PyTree]:
    """Gradient of a mean-over-examples loss, accumulated over microbatches and averaged over devices.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, where the loss is a mean over the examples of its batch and each
        metric is such a mean or a `Ratio` of two means; with `extra`, `(params, batch, key, extra) -> (loss, (metrics,
        extra))`.  Or a `BatchLoss`.
      params: the parameters that the loss is differentiated by.
      batch: global batch; its size must be a multiple of `accumulation_steps`.
      key: random key, the same for every microbatch (see `example_keys`).
      accumulation_steps: number of microbatches, which are computed one after the other to save memory.
      extra: state that the loss carries from one microbatch to the next, or None.
      average_extra: whether each microbatch starts from `extra` instead, and the new `extra` is the mean of what they
        give: running averages then decay once an update.

    Returns:
      Gradients, metrics (with `loss`), and the new `extra`.

    Raises:
      UserError: the batch cannot be divided into the microbatches.
    """

    def call(function: Callable, x: PyTree, b: Batch, e: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        if e is None:
            value, metrics = function(x, b, key)
        else:
            value, (metrics, e) = function(x, b, key, e)
        return value, ({"loss": value, **metrics}, e)

    gradient = jax.grad(functools.partial(call, sharding.of_gathered(loss)), has_aux=True)
    if accumulation_steps == 1:
        gradients, (metrics, extra) = gradient(params, batch, extra)
        return *cross_device_mean((gradients, metrics)), extra
    size = batch_size(batch)
    if size % accumulation_steps:
        raise UserError(
            f"a batch of {size} examples cannot be divided into accumulation_steps={accumulation_steps} equal parts"
        )
    batch = {"example_index": example_places(batch), **batch}
    parts_of_batch = microbatches(batch, accumulation_steps)
    # XLA compiles gradients of convolutions badly inside of loops on CPU; for a few microbatches the loop is unrolled.
    unroll = devices.platform() == "cpu" and accumulation_steps <= 4
    zeros = jax.tree.map(jnp.zeros_like, params)
    if isinstance(loss, BatchLoss):
        outputs = sharding.of_gathered(loss.outputs)
        parts = jax.lax.scan(lambda _, part: (None, outputs(params, part, key)), None, parts_of_batch, unroll=unroll)[1]
        whole = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(size, *a.shape[2:]), parts)
        by_outputs, (metrics, extra) = jax.grad(functools.partial(call, loss.loss), has_aux=True)(whole, batch, extra)

        def add(total: PyTree, inputs: tuple[Batch, PyTree]) -> tuple[PyTree, None]:
            part, by_own = inputs
            pullback = jax.vjp(lambda p: outputs(p, part, key), params)[1]
            return jax.tree.map(jnp.add, total, pullback(by_own)[0]), None

        inputs = (parts_of_batch, microbatches(by_outputs, accumulation_steps))
        gradients, _ = jax.lax.scan(add, zeros, inputs, unroll=unroll)
    else:

        def body(carry, microbatch):
            total, e = carry
            g, (metrics, new) = gradient(params, microbatch, extra if average_extra else e)
            if average_extra:
                # By differences, so that what does not change stays exactly as it was.
                new = jax.tree.map(lambda mean, n, old: mean + (n - old) / accumulation_steps, e, new, extra)
            return (jax.tree.map(jnp.add, total, g), new), metrics

        (gradients, extra), metrics = jax.lax.scan(body, (zeros, extra), parts_of_batch, unroll=unroll)
        gradients = jax.tree.map(lambda g: g / accumulation_steps, gradients)
        metrics = jax.tree.map(lambda m: m.mean(0), metrics)
    return *cross_device_mean((gradients, metrics)), extra


def after_backward_pass(gradients: PyTree, norm: Array) -> PyTree:
    """On CPU, makes every gradient depend on the norm of all gradients; elsewhere returns the gradients unchanged.

    Without this barrier XLA may schedule updates before the last read of a parameter, and copies all parameters.
    Values stay as they are, but a NaN in `norm` makes all gradients NaN.
    """
    if devices.platform() != "cpu":
        return gradients
    return jax.tree.map(lambda g: jnp.where(jnp.isnan(norm), norm.astype(g.dtype), g), gradients)


def gradient_update(
    loss: Callable[..., tuple[Array, Metrics]],
    optimizer: Any,
    params: PyTree,
    opt_state: PyTree,
    batch: Batch,
    key: Array,
    extra: PyTree = None,
    average_extra: bool = False,
) -> tuple[PyTree, PyTree, Metrics, PyTree]:
    """One optimizer update of one network; families with several networks alternate such updates.

    `optimizer` is an `optimizers.Optimizer`; see `value_and_gradient` for the other arguments.

    Returns:
      New params, new optimizer state, metrics (with `loss` and `gradient_norm`), new extra.
    """
    gradients, metrics, new_extra = value_and_gradient(
        loss, params, batch, key, optimizer.accumulation_steps, extra, average_extra
    )
    norm = metrics["gradient_norm"] = tree_norm(gradients)
    gradients = after_backward_pass(gradients, norm)
    updates, new_opt_state = optimizer.build().update(gradients, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    if optimizer.skip_nonfinite:
        watched = jax.tree.leaves((metrics["loss"], metrics["gradient_norm"]))
        finite = jnp.isfinite(jnp.stack(watched)).all()
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        new_params, new_opt_state = keep(new_params, params), keep(new_opt_state, opt_state)
        new_extra = keep(new_extra, extra)
        metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), metrics)
        metrics["skipped"] = 1.0 - finite.astype(jnp.float32)
    return new_params, new_opt_state, metrics, new_extra


def unless_skipped(metrics: Metrics, new: PyTree, old: PyTree, name: str = "skipped") -> PyTree:
    """`new`, or `old` if the update was skipped; for state that a family renews beside the parameters.

    Args:
      metrics: metrics of the update.
      new, old: the state after the step and before it.
      name: the metric that is 1 if the update was skipped (see `Optimizer.skip_nonfinite`).
    """
    if name not in metrics:
        return new
    return jax.tree.map(lambda n, o: jnp.where(metrics[name] == 1.0, o, n), new, old)


def ema_update(ema_params: PyTree, params: PyTree, decay: float, step: Array) -> PyTree:
    """Moving average of parameters.

    `step` counts from 0: the decay grows with it, up to `decay`, so that early averages are not stale.
    """
    step = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: (kept * e + (1.0 - kept) * p).astype(e.dtype), ema_params, params)


def gradient_step(
    loss: Callable[..., tuple[Array, Metrics]],
    optimizer: Any,
    with_extra: bool = False,
    trained: Callable[[str], bool] | None = None,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Turns a loss into a `train_step` with accumulation, clipping, moving average and cross-device means.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, means over the examples of the batch; if `with_extra`, then
        `(params, batch, key, extra) -> (loss, (metrics, extra))`.
      optimizer: an `optimizers.Optimizer`.
      with_extra: whether the loss reads and renews `state.extra`.
      trained: which parameters are trained, by their paths such as stack/layer_0/mlp/up/kernel; None for all.  The
        others stay, and the state has neither moments nor averages of them (see `TrainState.create`).
    """

    def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        own, fixed = (state.params, None) if trained is None else lora.split(state.params, trained)
        whole = lambda part: part if trained is None else lora.join(part, fixed)
        of_whole = lambda function: lambda part, *arguments: function(whole(part), *arguments)
        part = BatchLoss(of_whole(loss.outputs), loss.loss) if isinstance(loss, BatchLoss) else of_whole(loss)
        own, opt_state, metrics, extra = gradient_update(
            part, optimizer, own, state.opt_state, batch, key, state.extra if with_extra else None
        )
        ema = state.ema_params
        if optimizer.ema_decay is not None:
            ema = unless_skipped(metrics, ema_update(ema, own, optimizer.ema_decay, state.step), ema)
        state = state.replace(
            step=state.step + 1,
            params=whole(own),
            opt_state=opt_state,
            ema_params=ema,
            extra=extra if with_extra else state.extra,
        )
        return state, metrics

    return train_step
