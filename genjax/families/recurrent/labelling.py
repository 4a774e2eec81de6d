"""Sequence labelling: a bidirectional recurrent network, and labels that are independent or a chain.

    independent   p(y | x) = prod_t softmax(f_t)[y_t],   f = W recurrent(x) + b
    chain         p(y | x) = exp(sum_t f_t[y_t] + sum_t A[y_{t-1}, y_t]) / Z(x)

The second is the linear-chain conditional random field on a network (Lafferty et al. 2001; Huang et al. 2015,
arXiv:1508.01991).  Z is a sum by the forward algorithm, the likeliest labels are found by Viterbi's, and draws are
exact: forward sums, then labels from the last to the first.

A batch has `tokens` [B, T], `token_labels` [B, T] (-1 where there is none), and `mask` [B, T], False at padding, which
is at the end.  Labels that are missing within a chain, or that `loss_mask` [B, T] leaves out, are summed over.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import filled
from genjax.gradients import gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.recurrent import Recurrent, RecurrentStack
from genjax.nn.tokens import token_nll
from genjax.optimizers import Adam, Optimizer

#: Score of a label other than the known label; finite, so that gradients are finite.
_EXCLUDED = -1e30


def chain_log_normalizer(scores: Array, transitions: Array, mask: Array) -> tuple[Array, Array]:
    """log Z of chains with scores [B, T, K], transitions [K, K] and mask [B, T]; [B], and the
    forward sums [T, B, K].
    """

    def step(alpha: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        score, real = inputs
        new = score + jax.nn.logsumexp(alpha[:, :, None] + transitions[None], axis=1)
        alpha = jnp.where(real[:, None], new, alpha)
        return alpha, alpha

    rest = (scores[:, 1:].swapaxes(0, 1), mask[:, 1:].T)
    last, alphas = jax.lax.scan(step, scores[:, 0], rest)
    return jax.nn.logsumexp(last, axis=-1), jnp.concatenate([scores[None, :, 0], alphas])


def chain_log_prob(scores: Array, transitions: Array, labels: Array, mask: Array) -> Array:
    """Log-probability of labels [B, T], summed over all values of labels that are -1, [B]."""
    known = (labels[:, :, None] < 0) | (labels[:, :, None] == jnp.arange(scores.shape[-1])[None, None])
    consistent, _ = chain_log_normalizer(jnp.where(known, scores, _EXCLUDED), transitions, mask)
    return consistent - chain_log_normalizer(scores, transitions, mask)[0]


def chain_backward(alphas: Array, transitions: Array, mask: Array, choose: Any) -> Array:
    """Labels from the last to the first, [B, T]; `choose(logits [B, K], place) -> [B]` chooses a label in each row."""
    length = alphas.shape[0]
    last = choose(alphas[-1], length - 1)

    def step(following: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        alpha, real, place = inputs
        label = choose(alpha + transitions[:, following].T, place)
        # At padding the sums still belong to the last real place, whose label must not be chosen again.
        label = jnp.where(real, label, following)
        return label, label

    _, labels = jax.lax.scan(step, last, (alphas[:-1], mask[:, 1:].T, jnp.arange(length - 1)), reverse=True)
    return jnp.concatenate([labels, last[None]]).T


def viterbi(scores: Array, transitions: Array, mask: Array) -> Array:
    """Likeliest labels of chains, [B, T]."""

    def step(best: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        score, real = inputs
        best = jnp.where(real[:, None], score + (best[:, :, None] + transitions[None]).max(1), best)
        return best, best

    _, rest = jax.lax.scan(step, scores[:, 0], (scores[:, 1:].swapaxes(0, 1), mask[:, 1:].T))
    return chain_backward(jnp.concatenate([scores[None, :, 0], rest]), transitions, mask, lambda x, _: x.argmax(-1))


class LabellingNetwork(nn.Module):
    """Tokens [B, T] to scores of labels, float32 [B, T, K], and transitions [K, K] (zeros if independent)."""

    vocab_size: int
    num_classes: int
    embedding_dim: int
    config: Recurrent
    dropout_rate: float
    chain: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array, dropout_keys: Array | None = None) -> tuple[Array, Array]:
        x = nn.Embed(self.vocab_size, self.embedding_dim, dtype=self.dtype, name="embedding")(tokens)
        x = dropout(x, self.dropout_rate, fold_in(dropout_keys, 100))
        h, _ = RecurrentStack(self.config, self.dtype, name="stack")(x, None, mask, dropout_keys)
        h = dropout(h, self.dropout_rate, fold_in(dropout_keys, 101))
        scores = nn.Dense(self.num_classes, dtype=self.dtype, name="output")(h).astype(jnp.float32)
        shape = (self.num_classes, self.num_classes)
        transitions = self.param("transitions", nn.initializers.zeros, shape) if self.chain else jnp.zeros(shape)
        return scores, transitions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceLabeller:
    """A label for each token.

    Attributes:
      vocab_size: number of tokens; None takes the data set's.
      num_classes: number K of labels; None takes the data set's.
      sequence_length: length T of the random texts that `sample` labels if none are given; None takes the data set's.
      embedding_dim: features of a token's embedding.
      network: the recurrent layers.
      output: whether labels are independent given the text, or a chain.
      dropout: rate of dropout of embeddings and of the output map's input.
      compute_dtype: type that the network computes in.
      optimizer: optimizer and learning-rate schedule.
    """

    vocab_size: int | None = None
    num_classes: int | None = None
    sequence_length: int | None = None
    embedding_dim: int = 64
    network: Recurrent = Recurrent(cell="lstm", hidden_dim=64, bidirectional=True)
    output: Literal["independent", "chain"] = "chain"
    dropout: float = 0.1
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=3e-3, clip_norm=1.0)

    def module(self) -> LabellingNetwork:
        """The Linen module."""
        return LabellingNetwork(
            *filled(self, "vocab_size", "num_classes"),
            self.embedding_dim,
            self.network,
            self.dropout,
            self.output == "chain",
            jnp.dtype(self.compute_dtype),
        )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step."""
        tokens = batch["tokens"][:1]
        return TrainState.create(self.module().init(key, tokens, _mask(batch)[:1])["params"], self.optimizer)

    def _nll(self, params: PyTree, batch: Batch, keys: Array | None = None) -> tuple[Array, Array, Array, Array]:
        """Nats of the labels of each text [B], which labels count [B, T], scores and transitions."""
        mask = _mask(batch)
        scores, transitions = self.module().apply({"params": params}, batch["tokens"], mask, keys)
        labels = batch["token_labels"]
        if "loss_mask" in batch:
            labels = jnp.where(batch["loss_mask"], labels, -1)
        counted = mask & (labels >= 0)
        if self.output == "chain":
            return -chain_log_prob(scores, transitions, labels, mask), counted, scores, transitions
        return (token_nll(scores, jnp.maximum(labels, 0)) * counted).sum(1), counted, scores, transitions

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the labels' nats over T, and metrics."""
        nll, counted, *_ = self._nll(params, batch, example_keys(key, batch))
        return nll.mean() / counted.shape[1], {"nll_per_token": Ratio(nll.sum(), counted.sum().astype(jnp.float32))}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, nll_per_token (nats)."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per text: `nll` in nats of its labels, `num_tokens`; `accuracy` of the likeliest labels; see `summarize`."""
        del key
        nll, counted, scores, transitions = self._nll(state.eval_params, batch)
        correct = (self._likeliest(scores, transitions, _mask(batch)) == batch["token_labels"]) & counted
        num_tokens = counted.sum(1).astype(jnp.float32)
        return {"nll": nll, "num_tokens": num_tokens, "accuracy": Ratio(correct.sum(1).astype(jnp.float32), num_tokens)}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token: all nats over all tokens."""
        return {**means, "nll_per_token": Ratio(means["nll"], means["num_tokens"]).value()}

    def _likeliest(self, scores: Array, transitions: Array, mask: Array) -> Array:
        return viterbi(scores, transitions, mask) if self.output == "chain" else scores.argmax(-1)

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Log-probability of the labels given the text, in nats, [B]."""
        return -self._nll(state.eval_params, batch)[0]

    def predict(self, state: TrainState, batch: Batch) -> Array:
        """Likeliest labels, [B, T]."""
        mask = _mask(batch)
        return self._likeliest(*self.module().apply({"params": state.eval_params}, batch["tokens"], mask), mask)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("tokens",)

    def sample(self, state: TrainState, key: Array, num_samples: int, tokens: Array | None = None) -> Array:
        """Draws labels of texts [num_samples, T], [num_samples, T]; without them, of random tokens."""
        token_key, key = jax.random.split(key)
        if tokens is None:
            shape = (num_samples, filled(self, "sequence_length"))
            tokens = jax.random.randint(token_key, shape, 0, self.vocab_size)
        mask = jnp.ones(tokens.shape, bool)
        scores, transitions = self.module().apply({"params": state.eval_params}, tokens, mask)
        if self.output == "independent":
            return jax.random.categorical(key, scores)
        _, alphas = chain_log_normalizer(scores, transitions, mask)
        choose = lambda logits, place: jax.random.categorical(jax.random.fold_in(key, place), logits)
        return chain_backward(alphas, transitions, mask, choose)


def _mask(batch: Batch) -> Array:
    return batch["mask"].astype(bool) if "mask" in batch else jnp.ones(batch["tokens"].shape, bool)
