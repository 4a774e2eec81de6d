"""Hidden Markov models of music in a hidden key: states describe chords of one key, and each piece is shifted to it.

    p(x) = 1/S sum_s p_hmm(x shifted by s semitones)                             (a shift is a rotation of the 88 notes)
    E-step: p(s | x), and for each s the Baum-Welch counts of the shifted piece, weighted by p(s | x)

Several restarts may predict together, frame by frame, which is a distribution over whole pieces again:

    p(x) = prod_t 1/R sum_r p_r(x_t | x_1..t-1)
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.errors import UserError
from genjax.families.markov import inference
from genjax.families.markov.hidden_markov_model import HiddenMarkovModel
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenKeyModel(HiddenMarkovModel):
    """Hidden Markov model of piano rolls `x` [B, T, 88] without absolute pitch: each piece has num_keys possible
    shifts.

    Attributes:
      num_keys: number S of shifts, half of them downwards; 12 for all keys, 1 for the ordinary model.
      average: predict and draw frames by the mean over all restarts, and not by the best restart only.
    """

    num_keys: int = 12
    average: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm not in ("em", "stochastic_em"):
            raise UserError(f"algorithm={self.algorithm} does not learn with hidden keys: use em or stochastic_em")
        if self.num_keys < 1:
            raise UserError("a model with hidden keys needs num_keys >= 1")

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
        add = lambda total, row: (jax.tree.map(jnp.add, total, one(*row)), None)
        counts = jax.lax.scan(add, zeros, inputs)[0]
        return counts, jax.nn.logsumexp(log_probs, 0) - math.log(self.num_keys)

    def _in_key(self, params: PyTree, batch: Batch) -> Batch:
        """The batch with each piece in its likeliest key."""
        shift = self._shifts[self._key_log_prob(params, batch).argmax(0)]
        return {**batch, "x": jax.vmap(lambda x, s: jnp.roll(x, s, -1))(batch["x"], shift)}

    def posterior(self, state: TrainState, batch: Batch) -> inference.Posterior:
        """As the base class, given the likeliest key of each piece; its log_prob is the term of that key."""
        posterior = super().posterior(state, self._in_key(self.best(state), batch))
        return posterior._replace(log_prob=posterior.log_prob - math.log(self.num_keys))

    def decode_states(self, state: TrainState, batch: Batch) -> tuple[Array, Array]:
        """Viterbi paths [B, T] in the likeliest key of each piece, and their joint log-probabilities with it [B]."""
        paths, log_prob = super().decode_states(state, self._in_key(self.best(state), batch))
        return paths, log_prob - math.log(self.num_keys)

    def frame_log_prob(self, state: TrainState, batch: Batch) -> Array:
        """log p(x_t | x_1..t-1) of each restart in nats, [R, B, T]; hidden frames cost nothing."""

        def one(params: PyTree, shift: Array) -> Array:
            inputs = self._inputs(params, self._shifted(batch, shift))
            return inference.frame_log_prob(*inputs, self.parallel, self.chunk_size)

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
        """As the base class; with `average`, `nll` is the nll of all restarts together."""
        if not self.average:
            return super().evaluate(state, batch, key)
        frames = self.frame_log_prob(state, batch)
        together = jax.nn.logsumexp(frames, 0) - math.log(self.num_restarts)
        mask = batch.get("mask", jnp.ones(batch["x"].shape[:2], bool))
        alone = {f"nll_restart_{i}": -frames[i].sum(-1) for i in range(self.num_restarts)}
        return {"nll": -together.sum(-1), "num_frames": mask.sum(1).astype(jnp.float32), **alone}

    def sample(self, state: TrainState, key: Array, num_samples: int, num_frames: int | None = None) -> Array:
        """Draws rolls [num_samples, T, 88] from the distribution of `log_prob`.

        With `average`, a restart is chosen anew for each frame, given the frames before.  Otherwise all frames come
        from the best restart, in a random key.
        """
        if not self.average:
            keys = jax.random.split(key, 2 * num_samples).reshape(2, num_samples)
            roll = lambda x, k: jnp.roll(x, -jax.random.choice(k, self._shifts), -1)
            return jax.vmap(roll)(super().sample(state, keys[0, 0], num_samples, num_frames), keys[1])
        if self.data_shape is None:
            raise UserError("what samples look like is not known: give data_shape")
        params, silence = state.eval_params, jnp.zeros(self.data_shape[1:])
        transition = jax.nn.log_softmax(params["transition"])  # [R, K, K]
        shifted = jax.vmap(jnp.roll, in_axes=(None, 0))

        def likelihood(emission: PyTree, x: Array, before: Array) -> Array:
            """log p(x | z, s) [S, K] of a frame and the frame before it [88]."""
            frames = shifted(x, self._shifts)
            if self.emission.autoregressive:
                frames = jnp.concatenate([frames, shifted(before, self._shifts)], -1)
            return self.emission.log_prob(emission, frames)

        def step(carry: tuple[Array, Array, Array], key: Array) -> tuple[tuple[Array, Array, Array], Array]:
            log_keys, log_states, before = carry  # log p(s | x_<t) [R, S] and log p(z_t | x_<t, s) [R, S, K]
            restart_key, shift_key, state_key, frame_key = jax.random.split(key, 4)
            r = jax.random.randint(restart_key, (), 0, self.num_restarts)
            s = jax.random.categorical(shift_key, log_keys[r])
            z = jax.random.categorical(state_key, log_states[r, s])
            emission = jax.tree.map(lambda a: a[r], params["emission"])
            given = (jnp.roll(before, self._shifts[s]),) if self.emission.autoregressive else ()
            x = jnp.roll(self.emission.sample(emission, frame_key, z, *given), -self._shifts[s])
            joint = log_states + jax.vmap(likelihood, in_axes=(0, None, None))(params["emission"], x, before)
            log_keys = jax.nn.log_softmax(log_keys + jax.nn.logsumexp(joint, -1))
            log_states = inference.log_matmul(jax.nn.log_softmax(joint), transition)
            return (log_keys, log_states, x), x

        initial = jax.nn.log_softmax(params["initial"])[:, None]
        start = (
            jnp.full((self.num_restarts, self.num_keys), -math.log(self.num_keys)),
            jnp.repeat(initial, self.num_keys, 1),
            silence,
        )
        one = lambda key: jax.lax.scan(step, start, jax.random.split(key, num_frames or self.data_shape[0]))[1]
        return jax.vmap(one)(jax.random.split(key, num_samples))
