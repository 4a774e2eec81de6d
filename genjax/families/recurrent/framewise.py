"""Base of recurrent models of sequences of frames: from nats of frames to a loss, an evaluation and a summary."""

from __future__ import annotations

from genjax.batch import Array, Batch, Metrics, PyTree, example_keys
from genjax.gradients import gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState


class PerFrame:
    """A model whose evaluation gives nats of sequences, under names that begin with nll, and `num_frames`."""

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_frame and the like in nats: all nats over all frames."""
        nats = {name: value for name, value in means.items() if name.startswith("nll")}
        return {**means, **{f"{name}_per_frame": Ratio(v, means["num_frames"]).value() for name, v in nats.items()}}


class FramewiseModel(PerFrame):
    """A model with `optimizer` and `_nll(params, batch, keys=None) -> (nats, mask)`, both [B, T]."""

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples and places of the nats of a sequence, and metrics."""
        nll, mask = self._nll(params, batch, example_keys(key, batch))
        return nll.mean(), {"nll_per_frame": Ratio(nll.sum(), mask.sum())}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, nll_per_frame (nats)."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per sequence: `nll` in nats, all frames from the first on, and `num_frames`; see `summarize`."""
        del key
        nll, mask = self._nll(state.eval_params, batch)
        return {"nll": nll.sum(1), "num_frames": mask.sum(1)}

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Log-density (for discrete frames, log-probability) of each sequence in nats, [B]."""
        return -self._nll(state.eval_params, batch)[0].sum(1)
