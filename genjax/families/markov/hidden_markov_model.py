"""Hidden Markov models (Rabiner 1989), learned by Baum-Welch, stochastic EM (Cappé & Moulines 2009), gradient, or
Gibbs.

    p(x, z) = pi(z_1) p(x_1 | z_1) prod_t A(z_{t-1}, z_t) p(x_t | z_t)

M-step: pi, A and the emissions from expected counts; stochastic EM averages the counts of batches,

    s <- (1 - rho_t) s + rho_t s_batch,   rho_t = (t + 2)^-kappa

Several restarts learn side by side in one `vmap`; the restart with the highest log-probability evaluates and samples.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_gather, cross_device_sum, example_keys
from genjax.errors import UserError
from genjax.families.markov import inference
from genjax.gradients import gradient_step, unless_skipped
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.emissions import Bernoulli, Emission, log_dirichlet, singular_warnings
from genjax.optimizers import Adam, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenMarkovModel:
    """Hidden Markov model of sequences `x` [B, T, D] or `tokens` [B, T], ragged by `mask` [B, T].

    Attributes:
      num_states: number K of states.
      emission: distribution of a frame given its state.
      algorithm: em (Baum-Welch on each batch; give all data as one batch), stochastic_em, gradient, or gibbs.
      num_restarts: number of random starts that are trained side by side.
      initial_pseudo_count: number added to each expected count of first states.
      transition_pseudo_count: number added to each expected count of transitions.
      step_exponent: kappa of stochastic EM, in (1/2, 1].
      restart: number of the restart that evaluates and samples; None takes the one with the
        highest training log-probability.
      parallel: use associative scans along time instead of sequential scans.
      chunk_size: number of frames in one associative scan, which bounds its memory, B * chunk_size * K^2 numbers.
      data_shape: (T, D) of the data; None takes the data set's.  T is the length of samples.
      sequence_length: length of samples of tokens; None takes the data set's.
      optimizer: optimizer of algorithm=gradient.
    """

    num_states: int = 32
    emission: Emission = Bernoulli()
    algorithm: Literal["em", "stochastic_em", "gradient", "gibbs"] = "em"
    num_restarts: int = 1
    initial_pseudo_count: float = 0.01
    transition_pseudo_count: float = 0.01
    step_exponent: float = 0.7
    restart: int | None = None
    parallel: bool = False
    chunk_size: int = 64
    data_shape: tuple[int, ...] | None = None
    sequence_length: int | None = None
    optimizer: Optimizer = Adam(learning_rate=1e-2)

    def __post_init__(self) -> None:
        if self.num_states < 1 or self.num_restarts < 1:
            raise UserError("a hidden Markov model needs num_states >= 1 and num_restarts >= 1")
        if self.restart is not None and not 0 <= self.restart < self.num_restarts:
            raise UserError(f"restart={self.restart} must lie from 0 to num_restarts - 1 = {self.num_restarts - 1}")
        if self.chunk_size < 1:
            raise UserError(f"chunk_size={self.chunk_size} must be at least 1 frame")
        if not 0.5 < self.step_exponent <= 1.0:
            raise UserError(f"step_exponent={self.step_exponent} must lie in (0.5, 1], or stochastic EM diverges")

    def _frames(self, batch: Batch) -> Array:
        """Input of the emission: tokens [B, T], frames [B, T, D], or pairs of a frame and the
        frame before it [B, T, 2 D].

        Hidden frames are replaced by zeros.

        Raises:
          UserError: an observed frame cannot be emitted; checked outside `jit` only.
        """
        x = batch["tokens"] if self.emission.discrete else batch["x"]
        if "mask" in batch:
            x = jnp.where(batch["mask"].astype(bool).reshape(*x.shape[:2], *[1] * (x.ndim - 2)), x, 0)
        self.emission.check(x)
        if self.emission.autoregressive:
            return jnp.concatenate([x, jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))], -1)
        return x

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step; emissions start from random frames of the batch."""
        x = self._frames(batch)
        mask = batch.get("mask", jnp.ones(x.shape[:2], bool))
        frames, weights = x.reshape(-1, *x.shape[2:]), mask.reshape(-1).astype(jnp.float32)
        # A batch without observed frames must not give NaN.
        weights = jnp.where(weights.sum() > 0, weights, 1.0)

        def one(key: Array) -> PyTree:
            keys = jax.random.split(key, 3)
            size = self.num_states
            return {
                "initial": log_dirichlet(keys[0], jnp.full((size,), 5.0)),
                "transition": log_dirichlet(keys[1], jnp.full((size, size), 5.0)),
                "emission": self.emission.init(keys[2], frames, weights, size),
            }

        params = jax.vmap(one)(jax.random.split(key, self.num_restarts))
        learned, extra = {"score": jnp.zeros(self.num_restarts)}, {}
        if self.algorithm == "stochastic_em":
            shapes = jax.eval_shape(jax.vmap(lambda p: self._statistics(p, batch)[0]), params)
            extra["statistics"] = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return TrainState.create(params, self.optimizer if self.algorithm == "gradient" else None, extra, learned)

    def _likelihood(self, params: PyTree, batch: Batch) -> Array:
        return inference.masked_likelihood(
            self.emission.log_prob(params["emission"], self._frames(batch)), batch.get("mask")
        )

    def _inputs(self, params: PyTree, batch: Batch) -> tuple[Array, Array, Array]:
        initial = jax.nn.log_softmax(params["initial"])
        return initial, jax.nn.log_softmax(params["transition"]), self._likelihood(params, batch)

    def _log_prob(self, params: PyTree, batch: Batch) -> Array:
        return inference.log_prob(*self._inputs(params, batch), self.parallel, self.chunk_size)

    def _counts(self, params: PyTree, batch: Batch, marginals: Array, transitions: Array) -> PyTree:
        x = self._frames(batch)
        mask = batch.get("mask", jnp.ones(x.shape[:2], bool)).astype(jnp.float32)
        weights = (marginals * mask[..., None]).reshape(-1, self.num_states)
        return {
            "initial": (marginals[:, 0] * mask.max(1)[:, None]).sum(0),
            "transition": transitions,
            "occupancy": weights.sum(0),
            "emission": self.emission.statistics(params["emission"], x.reshape(-1, *x.shape[2:]), weights),
        }

    def _statistics(self, params: PyTree, batch: Batch) -> tuple[PyTree, Array]:
        """Expected counts, summed over the batch, and log-probabilities [B]."""
        posterior = inference.smooth(*self._inputs(params, batch), batch.get("mask"), self.parallel, self.chunk_size)
        return self._counts(params, batch, posterior.marginals, posterior.transitions), posterior.log_prob

    def _maximize(self, counts: PyTree, params: PyTree, batch: Batch, key: Array) -> tuple[PyTree, Array]:
        """New parameters and the number of empty states, which are seeded anew from a random frame."""
        initial = counts["initial"] + self.initial_pseudo_count
        transition = counts["transition"] + self.transition_pseudo_count
        new = {
            "initial": _keep_impossible(_log_normalize(initial), params["initial"]),
            "transition": _keep_impossible(_log_normalize(transition), params["transition"]),
            "emission": self.emission.maximize(counts["emission"], params["emission"]),
        }
        empty = counts["occupancy"] < 1e-8
        x = self._frames(batch)
        mask = batch.get("mask", jnp.ones(x.shape[:2], bool))
        # Every device seeds the same.
        x, weights = cross_device_gather((x.reshape(-1, *x.shape[2:]), mask.reshape(-1).astype(jnp.float32)))
        seeds = self.emission.init(key, x, jnp.where(weights.sum() > 0, weights, 1.0), self.num_states)

        def reseed(new: Array, seed: Array) -> Array:
            own = jnp.repeat(empty, new.shape[0] // self.num_states)
            return jnp.where(own.reshape(-1, *[1] * (new.ndim - 1)), seed, new)

        shared = self.emission.shared
        emission = jax.tree_util.tree_map_with_path(
            lambda path, new, seed: new if path[-1].key in shared else reseed(new, seed), new["emission"], seeds
        )
        return {**new, "emission": emission}, empty.sum().astype(jnp.float32)

    def _gibbs(self, params: PyTree, batch: Batch, key: Array) -> tuple[PyTree, Array]:
        keys = jax.random.split(key, 4)
        initial, transition, likelihood = self._inputs(params, batch)
        states = inference.sample_states(
            example_keys(keys[0], batch), initial, transition, likelihood, self.parallel, self.chunk_size
        )
        one_hot = jax.nn.one_hot(states, self.num_states)
        mask = batch.get("mask", jnp.ones(states.shape, bool)).astype(jnp.float32)
        alive = jax.lax.cummax(mask, axis=1, reverse=True)[:, 1:, None]
        transitions = jnp.einsum("bti,btj->ij", one_hot[:, :-1] * alive, one_hot[:, 1:])
        counts = cross_device_sum(self._counts(params, batch, one_hot, transitions))
        new = {
            "initial": _keep_impossible(
                log_dirichlet(keys[1], counts["initial"] + (self.initial_pseudo_count or 1.0)), params["initial"]
            ),
            "transition": _keep_impossible(
                log_dirichlet(keys[2], counts["transition"] + (self.transition_pseudo_count or 1.0)),
                params["transition"],
            ),
            "emission": self.emission.draw(keys[3], counts["emission"], params["emission"]),
        }
        return new, inference.log_prob(initial, transition, likelihood, self.parallel, self.chunk_size)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One step of the algorithm, for all restarts.

        `loss` is nats a frame of the best restart before the step, `mean_loss` of all restarts.
        """
        x = self._frames(batch)
        mask = batch.get("mask", jnp.ones(x.shape[:2], bool))
        observed = cross_device_sum(mask.sum().astype(jnp.float32))
        num_frames = jnp.maximum(observed, 1.0)
        extra, before_score = dict(state.extra), state.learned["score"]
        empty, skipped = jnp.zeros(self.num_restarts), {}
        keys = jax.random.split(key, self.num_restarts)
        if self.algorithm == "gradient":
            # Divided by the frames of the whole batch, so that microbatches and devices count by their frames.
            frames = num_frames / cross_device_sum(jnp.asarray(float(len(x))))

            def loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
                scores = jax.vmap(self._log_prob, in_axes=(0, None))(params, batch).mean(1) / frames
                return -scores.sum(), {"scores": scores}

            state, update = gradient_step(loss, self.optimizer)(state, batch, key)
            params, score = state.params, unless_skipped(update, update["scores"], before_score)
            skipped = {name: value for name, value in update.items() if name == "skipped"}
        elif self.algorithm == "gibbs":
            params, log_prob = jax.vmap(self._gibbs, in_axes=(0, None, 0))(state.params, batch, keys)
            score = cross_device_sum(log_prob.sum(1)) / num_frames
        else:
            counts, log_prob = jax.vmap(self._statistics, in_axes=(0, None))(state.params, batch)
            counts, score = cross_device_sum(counts), cross_device_sum(log_prob.sum(1)) / num_frames
            statistics = extra.get("statistics")
            if self.algorithm == "stochastic_em":
                rate = (state.step.astype(jnp.float32) + 2.0) ** -self.step_exponent
                rate = jnp.where(state.step == 0, 1.0, rate)
                aligned = jax.vmap(self.emission.aligned)(statistics["emission"], state.params["emission"])
                before = {**statistics, "emission": aligned}
                counts = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, before, counts)
                statistics = counts
            params, empty = jax.vmap(self._maximize, in_axes=(0, 0, None, 0))(counts, state.params, batch, keys)
            # A batch without observed frames changes nothing.
            keep = lambda new, old: jnp.where(observed > 0, new, old)
            params, empty = jax.tree.map(keep, params, state.params), keep(empty, 0.0)
            if statistics is not None:
                extra["statistics"] = jax.tree.map(keep, statistics, extra["statistics"])
        # Batches differ, so restarts are compared by a moving average.
        rate = 1.0 if self.algorithm == "em" else jnp.maximum(0.1, 1.0 / (state.step + 1.0))
        new_score = before_score + jnp.where(observed > 0, rate, 0.0) * (score - before_score)
        metrics = {
            "loss": Ratio(-score.max() * num_frames, observed),
            "mean_loss": Ratio(-score.mean() * num_frames, observed),
            "empty_states": empty.sum(),
            "frames": observed,
        }
        if (singular := jax.vmap(self.emission.singular)(params["emission"])) is not None:
            metrics["singular_covariances"] = singular.sum().astype(jnp.float32)
        if self.algorithm != "gradient":
            state = state.replace(step=state.step + 1)
        return state.replace(params=params, learned={"score": new_score}, extra=extra), {**metrics, **skipped}

    def best(self, state: TrainState) -> PyTree:
        """Parameters of the restart with the highest log-probability."""
        index = state.learned["score"].argmax() if self.restart is None else self.restart
        return jax.tree.map(lambda a: a[index], state.eval_params)

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """log p(x) in nats, exact, [B]."""
        return self._log_prob(self.best(state), batch)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """`nll` in nats of the whole sequence and `num_frames`; `summarize` makes nats a frame of them.

        With several restarts and `restart` None also `nll_restart_i` of each, to choose a
        restart by the validation split.
        """
        mask = batch.get("mask", jnp.ones(self._frames(batch).shape[:2], bool))
        num_frames = mask.sum(1).astype(jnp.float32)
        if self.num_restarts == 1 or self.restart is not None:
            return {"nll": -self.log_prob(state, batch), "num_frames": num_frames}
        nll = -jax.lax.map(lambda params: self._log_prob(params, batch), state.eval_params)
        every = {f"nll_restart_{i}": nll[i] for i in range(self.num_restarts)}
        return {"nll": nll[state.learned["score"].argmax()], "num_frames": num_frames, **every}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_frame over all frames of the split (also for each restart)."""
        nats = {name: value for name, value in means.items() if "nll" in name}
        frames = means["num_frames"]
        per_frame = {name.replace("nll", "nll_per_frame"): Ratio(v, frames).value() for name, v in nats.items()}
        return {**{name: v for name, v in means.items() if "_restart_" not in name}, **per_frame}

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        """Sentences for the user about means of metrics that look wrong."""
        out = inference.mask_warnings(metrics)
        if metrics.get("empty_states", 0.0) > 0.0:
            out.append(
                f"on average {metrics['empty_states']:.3g} of the states of all restarts were visited by no frame and "
                "began again at random frames; if that goes on, give fewer states (--model.num_states)"
            )
        return out + singular_warnings(metrics)

    def with_start(self, state: TrainState, initial: Array, transition: Array) -> TrainState:
        """The state with given probabilities of the first states [K] and of transitions [K, K] in every restart.

        States and transitions that are given as impossible stay impossible under every algorithm.

        Raises:
          UserError: the probabilities have another shape, are negative or not finite, or a row is all 0.
        """
        params = dict(state.params)
        for name, p, shape in (
            ("initial", initial, (self.num_states,)),
            ("transition", transition, (self.num_states,) * 2),
        ):
            p = np.asarray(p, np.float64)
            if p.shape != shape or not np.isfinite(p).all() or (p < 0).any() or (p.sum(-1) <= 0).any():
                raise UserError(
                    f"the {name} probabilities cannot be normalised: they must be finite numbers of shape {shape}, "
                    "none negative, with a positive sum in each row"
                )
            log_p = jnp.where(p > 0, _log_normalize(jnp.asarray(p, jnp.float32)), -jnp.inf)
            params[name] = jnp.broadcast_to(log_p, params[name].shape)
        return state.replace(params=params)

    def posterior(self, state: TrainState, batch: Batch) -> inference.Posterior:
        """Marginals of the states given the whole sequence, and expected transitions."""
        return inference.smooth(
            *self._inputs(self.best(state), batch), batch.get("mask"), self.parallel, self.chunk_size
        )

    def decode_states(self, state: TrainState, batch: Batch) -> tuple[Array, Array]:
        """Viterbi paths [B, T], constant after the last frame, and their joint log-probabilities [B]."""
        return inference.viterbi(*self._inputs(self.best(state), batch), self.parallel, mask=batch.get("mask"))

    def sample(self, state: TrainState, key: Array, num_samples: int, num_frames: int | None = None) -> Array:
        """Draws sequences of `num_frames` frames: [num_samples, T, D], or tokens [num_samples, T]."""
        params = self.best(state)
        if num_frames is None:
            num_frames = self.data_shape[0] if self.data_shape else self.sequence_length
        if num_frames is None:
            raise UserError("how long samples are is not known: give num_frames, data_shape or sequence_length")
        initial, transition = jax.nn.log_softmax(params["initial"]), jax.nn.log_softmax(params["transition"])

        def step(carry: tuple[Array, tuple[Array, ...]], key: Array) -> tuple[tuple[Array, tuple[Array, ...]], Array]:
            logits, before = carry
            keys = jax.random.split(key)
            z = jax.random.categorical(keys[0], logits)
            frame = self.emission.sample(params["emission"], keys[1], z, *before)
            return (transition[z], (frame,) if before else ()), frame

        # Silence comes before the first frame.
        before = (jnp.zeros(self.data_shape[1:]),) if self.emission.autoregressive else ()
        one = lambda key: jax.lax.scan(step, (initial, before), jax.random.split(key, num_frames))[1]
        return jax.vmap(one)(jax.random.split(key, num_samples))


def _log_normalize(counts: Array) -> Array:
    p = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1e-30)
    return jnp.log(jnp.maximum(p, 1e-30))


def _keep_impossible(log_p: Array, before: Array) -> Array:
    """log_p, set to -inf where it was -inf before, and normalised."""
    return jax.nn.log_softmax(jnp.where(jnp.isneginf(before), -jnp.inf, log_p))
