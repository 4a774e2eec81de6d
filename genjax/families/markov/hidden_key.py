"""Hidden Markov models of music in a hidden key: the states describe chords of one key, and each piece is shifted into it.

    p(x) = 1/S sum_s p_hmm(x shifted by s semitones)                               (a shift is a rotation of the 88 notes)
    E-step: p(s | x), and for each s what Baum-Welch counts of the shifted piece, weighted by p(s | x)

Several restarts may predict together, frame by frame, which is a distribution over whole pieces again:

    p(x) = prod_t 1/R sum_r p_r(x_t | x_1..t-1)
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from genjax.families.markov import inference
from genjax.families.markov.hidden_markov_model import HiddenMarkovModel
from genjax.model import Array, Batch, Metrics, PyTree, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenKeyModel(HiddenMarkovModel):
    """Hidden Markov model of piano rolls `x` [B, T, 88] that knows no absolute pitch, but num_keys shifts of each piece.

    Attributes:
      num_keys: number S of shifts, as many below as above; 12 are all keys, 1 is the ordinary model.
      average: frames are predicted by the mean over the restarts, not by the best restart alone.
    """

    num_keys: int = 12
    average: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm not in ("em", "stochastic_em"):
            raise ValueError(f"algorithm={self.algorithm} does not learn with hidden keys: use em or stochastic_em")
        if self.num_keys < 1:
            raise ValueError("a model with hidden keys needs num_keys >= 1")

    @property
    def _shifts(self) -> Array:
        return jnp.arange(self.num_keys) - self.num_keys // 2

    def _shifted(self, batch: Batch, shift: Array) -> Batch:
        return {**batch, "x": jnp.roll(batch["x"], shift, -1)}

    def _key_log_prob(self, params: PyTree, batch: Batch) -> Array:
        """log p(x | s), [S, B]."""
        return jax.lax.map(
            lambda shift: HiddenMarkovModel._log_prob(self, params, self._shifted(batch, shift)), self._shifts
        )

    def _log_prob(self, params: PyTree, batch: Batch) -> Array:
        return jax.nn.logsumexp(self._key_log_prob(params, batch), 0) - math.log(self.num_keys)

    def _statistics(self, params: PyTree, batch: Batch) -> tuple[PyTree, Array]:
        log_probs = self._key_log_prob(params, batch)

        def one(shift: Array, weight: Array) -> PyTree:
            shifted = self._shifted(batch, shift)
            posterior = inference.smooth(
                *self._inputs(params, shifted), batch.get("mask"), self.parallel, self.chunk_size, weight
            )
            return self._counts(params, shifted, posterior.marginals * weight[:, None, None], posterior.transitions)

        inputs = (self._shifts, jax.nn.softmax(log_probs, 0))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, *(a[0] for a in inputs)))
        add = lambda total, row: (jax.tree.map(jnp.add, total, one(*row)), None)  # noqa: E731
        counts = jax.lax.scan(add, zeros, inputs)[0]
        return counts, jax.nn.logsumexp(log_probs, 0) - math.log(self.num_keys)

    def frame_log_prob(self, state: TrainState, batch: Batch) -> Array:
        """log p(x_t | x_1..t-1) of each restart in nats, [R, B, T]; hidden frames cost nothing."""

        def one(params: PyTree, shift: Array) -> Array:
            return inference.frame_log_prob(*self._inputs(params, self._shifted(batch, shift)))

        def restart(params: PyTree) -> Array:
            frames = jax.lax.map(lambda shift: one(params, shift), self._shifts)  # [S, B, T]
            total = jax.nn.logsumexp(frames.cumsum(-1), 0) - math.log(self.num_keys)
            return jnp.diff(total, axis=-1, prepend=0.0)

        return jax.lax.map(restart, state.eval_params)

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """log p(x) in nats, exact, [B]."""
        if not self.average:
            return super().log_prob(state, batch)
        frames = self.frame_log_prob(state, batch)
        return (jax.nn.logsumexp(frames, 0) - math.log(self.num_restarts)).sum(-1)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """As the base class; with `average`, `nll` is that of all restarts together."""
        if not self.average:
            return super().evaluate(state, batch, key)
        frames = self.frame_log_prob(state, batch)
        together = jax.nn.logsumexp(frames, 0) - math.log(self.num_restarts)
        mask = batch.get("mask", jnp.ones(batch["x"].shape[:2], bool))
        alone = {f"nll_restart_{i}": -frames[i].sum(-1) for i in range(self.num_restarts)}
        return {"nll": -together.sum(-1), "num_frames": mask.sum(1).astype(jnp.float32), **alone}

    def sample(self, state: TrainState, key: Array, num_samples: int, num_frames: int | None = None) -> Array:
        """Draws rolls [num_samples, T, 88]: of the best restart alone, in any key."""
        keys = jax.random.split(key, 2 * num_samples).reshape(2, num_samples)
        roll = lambda x, k: jnp.roll(x, -jax.random.choice(k, self._shifts), -1)  # noqa: E731
        return jax.vmap(roll)(super().sample(state, keys[0, 0], num_samples, num_frames), keys[1])
