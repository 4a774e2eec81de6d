"""Updates of several networks one after the other inside one step, each by its own optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, batch_size
from genjax.errors import UserError
from genjax.gradients import ema_update, gradient_update, unless_skipped
from genjax.model import TrainState


def shares_of(batch: Batch, count: int, fresh: bool) -> Batch:
    """The batch of each of `count` updates of one network, stacked.

    Args:
      batch: arrays [B, ...].
      count: number of updates n.
      fresh: whether each update gets its own share of the examples; otherwise each gets all examples.

    Returns:
      Arrays [n, B, ...], or [n, B / n, ...] of fresh examples.

    Raises:
      UserError: the batch cannot be divided.
    """
    size = batch_size(batch)
    if not fresh:
        return jax.tree.map(lambda a: jnp.broadcast_to(a[None], (count, *a.shape)), dict(batch))
    if size % count:
        raise UserError(
            f"a batch of {size} examples cannot be divided among num_discriminator_steps={count}; "
            "choose a multiple as data.batch_size"
        )
    # Example i goes to share i mod n: every device keeps a part of each, where it is the example i // n.
    batch = dict(batch)
    if "example_index" in batch:
        batch["example_index"] = batch["example_index"] // count
    return jax.tree.map(lambda a: a.reshape(size // count, count, *a.shape[1:]).swapaxes(0, 1), batch)


def with_skipped(metrics: Metrics) -> Metrics:
    """The metrics with `skipped`, which is 1 if any network's update was skipped, if there are
    metrics `..._skipped`.
    """
    parts = [value for name, value in metrics.items() if name.endswith("_skipped")]
    return {**metrics, "skipped": (sum(parts) > 0.0).astype(jnp.float32)} if parts else metrics


class Turns:
    """A step of networks that learn in turns; every update sees the results of the updates before.

        turns = Turns(state, {"generator": Adam(), "discriminator": Adam()})
        turns.update("discriminator", discriminator_loss, batch, key)
        turns.update("generator", generator_loss, batch, key)
        return turns.finish(loss="generator")

    Args:
      state: the state before the step; its params are a dict.
      optimizers: the optimizer of each entry of the params that learns.

    Attributes:
      params: parameters by name, as they are now.
      metrics: metrics of all updates so far.
    """

    def __init__(self, state: TrainState, optimizers: Mapping[str, Any]) -> None:
        self.params = dict(state.params)
        self.metrics: Metrics = {}
        self._state, self._optimizers, self._opt_state = state, optimizers, dict(state.opt_state)

    def update(self, name: str, loss: Callable[..., tuple[Array, Metrics]], batch: Batch, key: Array) -> None:
        """One update of `params[name]` by `loss(params[name], batch, key) -> (mean over examples, metrics)`."""
        self.params[name], self._opt_state[name], metrics, _ = gradient_update(
            loss, self._optimizers[name], self.params[name], self._opt_state[name], batch, key
        )
        for own in {"loss", "gradient_norm", "skipped"} & set(metrics):
            metrics[f"{name}_{own}"] = metrics.pop(own)
        self.metrics |= metrics

    def finish(self, loss: str, extra: dict[str, Any] | None = None) -> tuple[TrainState, Metrics]:
        """The state after the step and its metrics, where `loss` is the named network's.

        `extra` replaces the state's, unless an update was skipped.
        """
        state, ema = self._state, self._state.ema_params
        if ema is not None:
            averaged = {
                name: ema_update(ema[name], self.params[name], self._optimizers[name].ema_decay, state.step)
                for name in ema
            }
            ema = {
                name: unless_skipped(self.metrics, averaged[name], ema[name], f"{name}_skipped") for name in averaged
            }
        metrics = with_skipped({**self.metrics, "loss": self.metrics[f"{loss}_loss"]})
        state = state.replace(
            step=state.step + 1,
            params=self.params,
            opt_state=self._opt_state,
            ema_params=ema,
            extra=state.extra if extra is None else unless_skipped(metrics, extra, state.extra),
        )
        return state, metrics
