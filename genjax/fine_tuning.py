"""Training of parts of a network: everything, everything but frozen paths, or low-rank updates
and new heads (Hu et al. 2021).

Start from a checkpoint with --training.init_from=RUN, and --training.init_prefix=embedding,stack if the new model has
parameters that the old model lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.errors import UserError
from genjax.gradients import BatchLoss, ema_update, gradient_step, unless_skipped
from genjax.model import TrainState
from genjax.nn import lora as adaptation

Loss = BatchLoss | Callable[[PyTree, Batch, Array], tuple[Array, Metrics]]


class FineTuned:
    """Mixin of a dataclass with the fields lora, frozen and optimizer, and a `loss(params, batch, key)`.

    Attributes:
      heads: beginnings of the paths of parameters that are trained together with low-rank updates.
    """

    heads: tuple[str, ...] = ()

    @property
    def _partial(self) -> bool:
        return self.lora is not None or bool(self.frozen)

    def _trained(self, path: str) -> bool:
        below = lambda names: any(path == name or path.startswith(name + "/") for name in names)
        chosen = self.lora is None or below(("lora", *self.heads))
        return chosen and not below(self.frozen)

    def trained_params(self, params: PyTree) -> PyTree:
        """The parameters that are trained, a part of the tree `params`."""
        return adaptation.split(params, self._trained)[0] if self._partial else params

    def start(self, key: Array, params: PyTree) -> TrainState:
        """The state before the first step of a network's parameters; low-rank updates are drawn from `key`.

        Raises:
          UserError: nothing is left to train, or a frozen path names no parameter.
        """
        if self.lora is not None:
            params = {**params, "lora": self.lora.init(key, self.adapted(params))}
        if not self._partial:
            return TrainState.create(params, self.optimizer)
        for path in self.frozen:
            _check_path(path, params)
        trained, _ = adaptation.split(params, self._trained)
        if not trained:
            raise UserError(f"model.frozen={self.frozen} leaves no parameter to train")
        return TrainState.create(params, self.optimizer, trained=trained)

    def adapted(self, params: PyTree) -> PyTree:
        """The parameters whose linear maps may get low-rank updates."""
        return params

    def merged_params(self, params: PyTree) -> PyTree:
        """The network's own parameters, low-rank updates added."""
        if self.lora is None:
            return params
        base = {name: value for name, value in params.items() if name != "lora"}
        return self.lora.merge(base, params["lora"])

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the trained parameters.  Metrics: loss, and the metrics that `loss` returns."""
        return self.update(self.loss, state, batch, key)

    def update(self, loss: Loss, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """`train_step` for a loss `(params, batch, key) -> (loss, metrics)`, or a `BatchLoss`, of all parameters."""
        return gradient_step(loss, self.optimizer, trained=self._trained if self._partial else None)(state, batch, key)

    def averaged(self, state: TrainState, trained: PyTree, metrics: Metrics) -> PyTree:
        """The moving average after an update of the trained parameters; None without one.

        Args:
          state: the state before the update.
          trained: see `trained_params`.
          metrics: metrics of the update.
        """
        if self.optimizer.ema_decay is None:
            return None
        average = ema_update(state.ema_params, trained, self.optimizer.ema_decay, state.step)
        return unless_skipped(metrics, average, state.ema_params)


def _check_path(path: str, params: PyTree) -> None:
    """Raises UserError unless a path names parameters."""
    node, where = params, "the network"
    for name in path.split("/"):
        parts = sorted(node) if isinstance(node, Mapping) else ["no parts"]
        if name not in parts:
            scanned = "layers" in (where, *parts)
            hint = "; one of scanned layers has a name under --model.network.scan_layers=false" if scanned else ""
            raise UserError(f"model.frozen names {path}, which is no parameter: {where} has {', '.join(parts)}{hint}")
        node, where = node[name], name
