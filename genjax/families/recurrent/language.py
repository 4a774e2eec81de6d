"""Recurrent language models (Mikolov et al. 2010; Zaremba et al. 2014; CharRNN of MOSES, Polykovskiy et al. 2020).

    p(x_1 .. x_T | x_0) = prod_t p(x_t | h_t),    h_t = recurrent(h_{t-1}, x_{t-1})

With `carry_state`, a row of a batch begins with the last state of the same row in the batch before, if its window
follows that row's window: truncated back-propagation through time (Williams & Peng 1990).  The TrainState holds the
states.  `segment_ids` [B, T + 1] number packed documents, each of which begins with a state of zeros.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, cross_device_sum, example_keys
from genjax.errors import UserError, filled
from genjax.gradients import gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.recurrent import Recurrent, RecurrentStack
from genjax.nn.tokens import logits_product, token_nll, token_weights
from genjax.optimizers import Adam, Optimizer


class RecurrentNetwork(nn.Module):
    """Embedding, recurrent layers and output map."""

    vocab_size: int
    embedding_dim: int
    config: Recurrent
    tie_embeddings: bool = False
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        carry: PyTree | None = None,
        dropout_keys: Array | None = None,
        segment_ids: Array | None = None,
    ) -> tuple[Array, PyTree, Array]:
        """tokens [B, T] -> float32 logits [B, T, V], states, and hidden features [B, T, H]."""
        axes = (1,) if self.config.variational_dropout else ()
        embedding = nn.Embed(self.vocab_size, self.embedding_dim, dtype=self.dtype, name="embedding")
        x = dropout(embedding(tokens), self.input_dropout, fold_in(dropout_keys, 100), axes)
        stack = RecurrentStack(self.config, self.dtype, name="stack")
        hidden, carry = stack(x, carry, dropout_keys=dropout_keys, segment_ids=segment_ids)
        h = dropout(hidden, self.output_dropout, fold_in(dropout_keys, 101), axes)
        if self.tie_embeddings:
            if h.shape[-1] != self.embedding_dim:
                h = nn.Dense(self.embedding_dim, dtype=self.dtype, name="projection")(h)
            bias = self.param("output_bias", nn.initializers.zeros, (self.vocab_size,))
            table = embedding.embedding.astype(self.dtype)
            logits = jnp.einsum("bth,vh->btv", h, table, preferred_element_type=jnp.float32) + bias.reshape(1, 1, -1)
        else:
            # As one matrix of rows: otherwise XLA would transpose the gradient of the logits.
            rows = h.reshape(-1, h.shape[-1])
            output = nn.Dense(self.vocab_size, dtype=self.dtype, dot_general=logits_product, name="output")
            logits = output(rows).reshape(*h.shape[:-1], -1)
        return logits, carry, hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentLanguageModel(decoding.TokenModel):
    """Language model of recurrent layers.

    Attributes:
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: number T of predicted tokens in an example; None takes the data set's.
      start_token: first token of an unconditional sample; None takes the data set's.
      end_token: token that ends a sample, or several; None takes the token that ends the data's documents.
      embedding_dim: features of a token's embedding.
      network: the recurrent layers.
      tie_embeddings: whether the output map is the transposed embedding (Press & Wolf 2017).
      input_dropout: rate of dropout of embeddings.
      output_dropout: rate of dropout of the output map's input.
      carry_state: whether rows begin with the last state of the batch before; needs
        data.order=contiguous to have an effect.
      sampling: how `sample` and `generate` choose tokens.
      compute_dtype: type that the network computes in.
      optimizer: optimizer and learning-rate schedule.
    """

    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | tuple[int, ...] | None = None
    embedding_dim: int = 128
    network: Recurrent = Recurrent()
    tie_embeddings: bool = False
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    carry_state: bool = False
    sampling: decoding.Sampling = decoding.Sampling()
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=1e-3, clip_norm=1.0)

    def __post_init__(self) -> None:
        if self.network.bidirectional:
            raise UserError("a language model cannot read from the end: set model.network.bidirectional=false")

    def module(self) -> RecurrentNetwork:
        """The Linen module."""
        return RecurrentNetwork(
            filled(self, "vocab_size"),
            self.embedding_dim,
            self.network,
            self.tie_embeddings,
            self.input_dropout,
            self.output_dropout,
            jnp.dtype(self.compute_dtype),
        )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step."""
        tokens = batch["tokens"]
        params = self.module().init(key, tokens[:1, :1])["params"]
        extra = {}
        if self.carry_state:
            if "window" not in batch:
                raise UserError("model.carry_state needs batches that number their windows, as Text gives them")
            extra = {
                "carry": self.network.init_carry(tokens.shape[0]),
                "next_window": jnp.full((tokens.shape[0],), -1, jnp.int32),
            }
            if "segment_ids" in batch:
                extra["segment"] = jnp.zeros((tokens.shape[0],), jnp.int32)
        return TrainState.create(params, self.optimizer, extra)

    def loss(
        self, params: PyTree, batch: Batch, key: Array, extra: PyTree = None
    ) -> tuple[Array, Metrics | tuple[Metrics, PyTree]]:
        """Mean over examples of the targets' nats over T, and metrics (and, with `extra`, the states after)."""
        carry = None
        if extra:
            rows = batch.get("example_index", jnp.arange(batch["tokens"].shape[0]))
            follows = batch["window"] == extra["next_window"][rows]
            if "segment" in extra:
                follows &= batch["segment_ids"][:, 0] == extra["segment"][rows]
            carry = jax.tree.map(lambda a: jnp.where(follows[:, None], a[rows], 0.0), extra["carry"])
        inputs = (batch["tokens"][:, :-1], carry, example_keys(key, batch), _segments(batch))
        logits, after, _ = self.module().apply({"params": params}, *inputs)
        nll, weights = token_nll(logits, batch["tokens"][:, 1:]), token_weights(batch)
        metrics = {"nll_per_token": Ratio((nll * weights).sum(), weights.sum())}
        loss = (nll * weights).mean()
        if not extra:
            return loss, metrics
        new = {"carry": jax.lax.stop_gradient(after), "next_window": batch["window"] + 1}
        if "segment" in extra:
            new["segment"] = batch["segment_ids"][:, -2]
        return loss, (metrics, jax.tree.map(functools.partial(_put_rows, rows), extra, new))

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, nll_per_token (nats)."""
        return gradient_step(self.loss, self.optimizer, with_extra=self.carry_state)(state, batch, key)

    def _target_logits(self, params: PyTree, batch: Batch) -> Array:
        # From a zero state, as each window is evaluated separately.
        return self.module().apply({"params": params}, batch["tokens"][:, :-1], segment_ids=_segments(batch))[0]

    def logits(self, state: TrainState, tokens: Array) -> Array:
        """Next-token logits, [B, T] -> float32 [B, T, V]."""
        decoding.check_tokens(tokens, self.vocab_size, "the text")
        return self.module().apply({"params": state.eval_params}, tokens)[0]

    # Generation.

    def token_decoder(self, state: TrainState) -> decoding.Decoder:
        """The model in the form that the functions of `genjax.decoding` take."""
        return decoding.of_weights(self._decoder_of, state.eval_params)

    def _decoder_of(self, params: PyTree) -> decoding.Decoder:
        module = self.module()

        def extend(memory: PyTree, tokens: Array) -> decoding.Step:
            logits, memory, hidden = module.apply({"params": params}, tokens, memory)
            return decoding.Step(logits, memory, hidden)

        return decoding.Decoder(init=lambda batch, length, ragged: self.network.init_carry(batch), extend=extend)


def _segments(batch: Batch) -> Array | None:
    """Numbers of the documents of the input tokens, [B, T]; None if a row is one document."""
    return batch["segment_ids"][:, :-1] if "segment_ids" in batch else None


def _put_rows(rows: Array, old: Array, new: Array) -> Array:
    """Writes rows of this device's (or microbatch's) examples into the array of all examples."""
    zeros = jnp.zeros_like(old).at[rows].set(new.astype(old.dtype))
    written = jnp.zeros(old.shape[0], jnp.int32).at[rows].set(1)
    zeros, written = cross_device_sum((zeros, written))
    return jnp.where(written.reshape(-1, *[1] * (old.ndim - 1)) > 0, zeros, old)
