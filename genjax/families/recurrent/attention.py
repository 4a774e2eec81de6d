"""Encoder-decoder with attention: Bahdanau et al. 2015 (arXiv:1409.0473) and Luong et al. 2015 (arXiv:1508.04025).

    additive (Bahdanau)         e_tj = v tanh(W s_{t-1} + U m_j)        s_t = gru(s_{t-1}, [y_{t-1}, c_t])
    multiplicative (Luong)      e_tj = s_t W m_j                        s_t = gru(s_{t-1}, [y_{t-1}, a_{t-1}])
    a_tj = softmax_j(e_t),  c_t = sum_j a_tj m_j
    additive: logits of [s_t, c_t, y_{t-1}];  Luong: a_t = tanh(W [c_t, s_t])

m_j are the states of a bidirectional recurrent encoder.  A batch has `source` [B, S] with `source_mask`, and `tokens`
[B, T + 1] with `mask`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import filled
from genjax.gradients import gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.attention import MASKED
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.recurrent import Recurrent, RecurrentStack
from genjax.nn.tokens import logits_product, sequence_metrics, summarize, token_nll, token_weights
from genjax.optimizers import Adam, Optimizer


class AttentionCell(nn.Module):
    """One step of the decoder: ((state, fed), embedding) -> new (state, fed), features and attention weights."""

    hidden_dim: int
    score: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array], y: Array, memory: Array, keys: Array, mask: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        state, fed = carry
        dense = lambda name, size, bias=True: nn.Dense(size, use_bias=bias, dtype=self.dtype, name=name)

        def attend(logits: Array) -> tuple[Array, Array]:
            weights = jax.nn.softmax(jnp.where(mask, logits.astype(jnp.float32), MASKED), axis=-1)
            return jnp.einsum("bs,bsc->bc", weights.astype(memory.dtype), memory), weights

        def gru(inputs: Array) -> Array:
            x, h = dense("input", 3 * self.hidden_dim)(inputs), dense("recurrent", 3 * self.hidden_dim)(state)
            (xr, xz, xn), (hr, hz, hn) = jnp.split(x, 3, -1), jnp.split(h, 3, -1)
            r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
            return (1.0 - z) * jnp.tanh(xn + r * hn) + z * state

        if self.score == "additive":
            query = dense("query", keys.shape[-1])(state)
            context, weights = attend(dense("score", 1, False)(jnp.tanh(query[:, None] + keys))[..., 0])
            new = gru(jnp.concatenate([y, context], -1))
            features = jnp.concatenate([new, context, y], -1)
            return (new, fed), (features, weights)
        new = gru(jnp.concatenate([y, fed], -1))
        context, weights = attend(jnp.einsum("bc,bsc->bs", new, keys))
        fed = jnp.tanh(dense("combine", self.hidden_dim)(jnp.concatenate([context, new], -1)))
        return (new, fed), (fed, weights)


class AttentionNetwork(nn.Module):
    """Encoder and decoder."""

    vocab_size: int
    embedding_dim: int
    encoder_config: Recurrent
    hidden_dim: int
    score: str
    dropout_rate: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.source_embedding = nn.Embed(self.vocab_size, self.embedding_dim, dtype=self.dtype)
        self.target_embedding = nn.Embed(self.vocab_size, self.embedding_dim, dtype=self.dtype)
        self.encoder = RecurrentStack(self.encoder_config, self.dtype)
        self.bridge = nn.Dense(self.hidden_dim, dtype=self.dtype)
        self.keys = nn.Dense(self.hidden_dim, use_bias=False, dtype=self.dtype)
        self.cell = nn.scan(
            AttentionCell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(1, nn.broadcast, nn.broadcast, nn.broadcast),
            out_axes=1,
        )(self.hidden_dim, self.score, self.dtype)
        self.head = nn.Dense(self.vocab_size, dtype=self.dtype, dot_general=logits_product)

    def encode(self, source: Array, mask: Array, dropout_keys: Array | None = None) -> dict[str, Array]:
        """The first carry of the decoder; every array has the batch as first axis."""
        x = dropout(self.source_embedding(source), self.dropout_rate, fold_in(dropout_keys, 100))
        states, _ = self.encoder(x, None, mask, dropout_keys)
        real = mask.astype(self.dtype)[:, :, None]
        mean = (states * real).sum(1) / jnp.maximum(real.sum(1), 1.0)
        return {
            "state": jnp.tanh(self.bridge(mean)),
            "fed": jnp.zeros((source.shape[0], self.hidden_dim), self.dtype),
            "memory": states,
            "keys": self.keys(states),
            "mask": mask.astype(bool),
        }

    def decode(
        self, memory: dict[str, Array], tokens: Array, dropout_keys: Array | None = None
    ) -> tuple[Array, dict[str, Array], Array]:
        """tokens [B, T] -> float32 logits [B, T, V], the carry to continue with, attention weights [B, T, S]."""
        y = dropout(self.target_embedding(tokens), self.dropout_rate, fold_in(dropout_keys, 101))
        carry = (memory["state"], memory["fed"])
        (state, fed), (features, weights) = self.cell(carry, y, memory["memory"], memory["keys"], memory["mask"])
        features = dropout(features, self.dropout_rate, fold_in(dropout_keys, 102))
        return self.head(features), {**memory, "state": state, "fed": fed}, weights

    def __call__(
        self, source: Array, mask: Array, tokens: Array, dropout_keys: Array | None = None
    ) -> tuple[Array, Array]:
        logits, _, weights = self.decode(self.encode(source, mask, dropout_keys), tokens, dropout_keys)
        return logits, weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSequenceModel:
    """Recurrent encoder-decoder with attention.

    Attributes:
      vocab_size: number of tokens, of source and target; None takes the data set's.
      sequence_length: number T of predicted tokens in an example; None takes the data set's.
      start_token: first token of targets; None takes the data set's.
      end_token: token that ends targets, or several; None takes the data set's.
      embedding_dim: features of a token's embedding.
      encoder: the encoder's layers.
      hidden_dim: features of the decoder's state.
      score: additive (Bahdanau) or multiplicative (Luong).
      dropout: rate of dropout of embeddings and of the output map's input.
      compute_dtype: type that the network computes in.
      optimizer: optimizer and learning-rate schedule.
    """

    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | tuple[int, ...] | None = None
    embedding_dim: int = 64
    encoder: Recurrent = Recurrent(cell="gru", hidden_dim=64, bidirectional=True)
    hidden_dim: int = 128
    score: Literal["additive", "multiplicative"] = "additive"
    dropout: float = 0.0
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=2e-3, clip_norm=1.0)

    def module(self) -> AttentionNetwork:
        """The Linen module."""
        return AttentionNetwork(
            filled(self, "vocab_size"),
            self.embedding_dim,
            self.encoder,
            self.hidden_dim,
            self.score,
            self.dropout,
            jnp.dtype(self.compute_dtype),
        )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step."""
        one = (batch["source"][:1], self._mask(batch)[:1], batch["tokens"][:1, :1])
        return TrainState.create(self.module().init(key, *one)["params"], self.optimizer)

    @staticmethod
    def _mask(batch: Batch) -> Array:
        return batch["source_mask"] if "source_mask" in batch else jnp.ones(batch["source"].shape, bool)

    def _forward(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> tuple[Array, Array]:
        inputs = (batch["source"], self._mask(batch), batch["tokens"][:, :-1], dropout_keys)
        return self.module().apply({"params": params}, *inputs)

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the targets' nats over T, and metrics."""
        logits, _ = self._forward(params, batch, example_keys(key, batch))
        nll, weights = token_nll(logits, batch["tokens"][:, 1:]), token_weights(batch)
        metrics = {"nll_per_token": Ratio((nll * weights).sum(), weights.sum())}
        return (nll * weights).mean(), metrics

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, nll_per_token (nats)."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B], given the source: `nll` in nats, `num_tokens`, `exact_match` of the likeliest
        tokens, 0 or 1.
        """
        del key
        logits, _ = self._forward(state.eval_params, batch)
        targets, weights = batch["tokens"][:, 1:], token_weights(batch)
        exact = ((logits.argmax(-1) == targets) | (weights == 0)).all(1)
        return {
            **sequence_metrics(token_nll(logits, targets), weights, batch),
            "exact_match": exact.astype(jnp.float32),
        }

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token (nats), bits_per_token and perplexity to means of `evaluate`."""
        return summarize(means)

    def alignment(self, state: TrainState, batch: Batch) -> Array:
        """Attention of each target to the source, [B, T, S]."""
        return self._forward(state.eval_params, batch)[1]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("source", "source_mask")

    def check_condition(self, source: Array | None = None, source_mask: Array | None = None) -> None:
        """Raises UserError if `source`, a condition of `sample`, has a token outside the vocabulary."""
        del source_mask
        if source is not None:
            decoding.check_tokens(source, self.vocab_size, "the source")

    @property
    def answer_start(self) -> int:
        """The token that every target begins with."""
        return self.start_token or 0

    def answer_decoder(self, state: TrainState, source: Array, source_mask: Array | None = None) -> decoding.Decoder:
        """A decoder for `genjax.decoding` that continues targets of sources [B, S]."""
        self.check_condition(source)
        mask = jnp.ones(source.shape, bool) if source_mask is None else source_mask
        weights = {"params": state.eval_params, "source": source, "mask": mask}
        return decoding.of_weights(self._decoder_of, weights)

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        module, params, source = self.module(), {"params": weights["params"]}, weights["source"]
        # It is kept in the memory, which a program may overwrite.
        mask = jnp.copy(weights["mask"])

        def extend(memory: PyTree, tokens: Array) -> decoding.Step:
            logits, memory, _ = module.apply(params, memory, tokens, method="decode")
            return decoding.Step(logits, memory)

        def init(batch: int, length: int, ragged: bool) -> PyTree:
            del batch, length, ragged
            return module.apply(params, source, mask, method="encode")

        return decoding.Decoder(init=init, extend=extend)

    def translate(
        self, state: TrainState, source: Array, source_mask: Array | None = None, num_beams: int = 4, alpha: float = 0.6
    ) -> Array:
        """Likeliest targets by beam search, [B, T], without the start token."""
        prompts = jnp.full((source.shape[0], 1), self.answer_start, jnp.int32)
        beams = decoding.beam_search(
            self.answer_decoder(state, source, source_mask),
            prompts,
            self.sequence_length,
            num_beams=num_beams,
            end_token=self.end_token,
            alpha=alpha,
        )
        return beams.tokens[:, 0]

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        source: Array | None = None,
        source_mask: Array | None = None,
    ) -> Array:
        """Draws targets [num_samples, T + 1] of sources [num_samples, S]; without them, of random tokens."""
        source_key, key = jax.random.split(key)
        if source is None:
            source = jax.random.randint(source_key, (num_samples, self.sequence_length), 0, self.vocab_size - 1)
        prompts = jnp.full((num_samples, 1), self.answer_start, jnp.int32)
        out = decoding.generate(
            self.answer_decoder(state, source, source_mask),
            key,
            prompts,
            self.sequence_length,
            end_token=self.end_token,
        )
        return jnp.concatenate([prompts, out.tokens], axis=1)
