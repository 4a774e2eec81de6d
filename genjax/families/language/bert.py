"""Bidirectional encoders: BERT (Devlin et al. 2019, arXiv:1810.04805) and RoBERTa (Liu et al. 2019, arXiv:1907.11692).

    h = transformer(embedding(x) + position + type),   p(x_i | corrupted x) = softmax(E g(h_i) + b)   for the chosen i

with E the token embeddings and g a dense layer, GELU and a norm.  RoBERTa has the same network; it draws the corruption
anew for each epoch (as is done here for both), drops the prediction of the next sentence and the token types, and
counts positions over tokens that are no padding, from 2.

The field `task` chooses what is learned (see encoder_tasks.py, which also describes batches).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.families.language.checkpoints.bert import BERT_ARCHITECTURE, ROBERTA_ARCHITECTURE
from genjax.families.language.encoder_tasks import (
    Heads,
    MaskedLanguageModel,
    Outputs,
    Task,
    Vocabulary,
    counted_tokens,
    dense,
    mean_pool,
    normalized,
    token_mask,
)
from genjax.families.language.networks import bert_network
from genjax.gradients import gradient_step
from genjax.interop.huggingface import FromPretrained
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.tokens import summarize
from genjax.nn.transformer import TokenEmbedding, Transformer, TransformerStack
from genjax.optimizers import AdamW, Linear, Optimizer


class EncoderNetwork(nn.Module):
    """Embeddings, stack, pooler and heads of a bidirectional encoder."""

    vocab_size: int
    config: Transformer
    task: Task
    num_types: int = 2
    position_offset: int = 0
    skip_padding: bool = False
    has_pooler: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.embedding = TokenEmbedding(
            self.vocab_size,
            config,
            num_types=self.num_types,
            position_offset=self.position_offset,
            norm=True,
            dtype=self.dtype,
        )
        refuse_experts(config.experts)
        self.stack = TransformerStack(config, self.dtype)
        if self.has_pooler:
            self.pooler = dense(config.width, config, self.dtype)
        self.heads = Heads(self.task.linear, self.task.masked, config, self.dtype, self.task.head_bias)

    def embed(self, batch: Batch) -> Array:
        """tokens [B, T] -> input of the stack, [B, T, C]."""
        mask, positions = token_mask(batch), None
        if self.skip_padding:
            positions = jnp.cumsum(mask, axis=1) * mask - 1
        return self.embedding(batch["tokens"], positions=positions, types=batch.get("types"))

    def encode(
        self, batch: Batch, dropout_keys: Array | None = None, return_weights: bool = False
    ) -> tuple[Array, list[Any] | None]:
        """tokens [B, T] -> features [B, T, C] and attention weights on request."""
        key_mask = token_mask(batch) if "mask" in batch else None
        out = self.stack(self.embed(batch), key_mask=key_mask, dropout_keys=dropout_keys, return_weights=return_weights)
        return out.x, out.weights

    def pool(self, hidden: Array) -> Array | None:
        """Features of the first token, [B, T, C] -> [B, C], or None without a pooler."""
        return nn.tanh(self.pooler(hidden[:, 0])) if self.has_pooler else None

    def __call__(self, batch: Batch, dropout_keys: Array | None = None) -> Outputs:
        """The task's outputs."""
        hidden, _ = self.encode(batch, dropout_keys)
        return self.task.outputs(self.heads, self.embedding, hidden, self.pool(hidden), batch, dropout_keys)

    def token_logits(self, batch: Batch) -> Array:
        """Float32 logits [B, T, V] of the masked head."""
        return self.heads.tokens(self.encode(batch)[0], self.embedding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BERT(FromPretrained):
    """Bidirectional transformer encoder with the head of a task.

    Attributes:
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: tokens T of a sample; None takes the data set's.
      mask_token: token that stands for a hidden one; None takes the data set's.
      special_tokens: tokens that are never masked (start, separator, padding); None takes the data set's.
      network: the transformer stack; its `max_length` is the longest text.
      task: what is learned.
      num_types: number of token types (BERT: first and second sentence); 0 for none.
      position_offset: unused positions at the beginning of the table (2 in RoBERTa).
      skip_padding: whether positions count tokens that are no padding (RoBERTa) or all places (BERT).
      pooler: keep the dense layer over the first token even if no head reads it (checkpoints have one).
      num_sampling_rounds: number of rounds in which `sample` fills its masks.
      pretrained: folder of a checkpoint of the library transformers to start from, which then gives the sizes, or None.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    architectures = (BERT_ARCHITECTURE, ROBERTA_ARCHITECTURE)

    vocab_size: int | None = None
    sequence_length: int | None = None
    mask_token: int | None = None
    special_tokens: tuple[int, ...] | None = None
    network: Transformer = bert_network()
    task: Task = MaskedLanguageModel(next_sentence=True)
    num_types: int = 2
    position_offset: int = 0
    skip_padding: bool = False
    pooler: bool = False
    num_sampling_rounds: int = 8
    compute_dtype: ComputeDtype = "float32"
    pretrained: str | None = None
    optimizer: Optimizer = AdamW(
        learning_rate=1e-4, weight_decay=0.01, clip_norm=1.0, schedule=Linear(warmup_steps=100)
    )

    def __post_init__(self) -> None:
        if self.network.causal:
            raise UserError(
                "model.network.causal=true hides what follows from an encoder; GPT and GPTForTask read one way"
            )

    def module(self) -> EncoderNetwork:
        """The Linen module."""
        return self._network(EncoderNetwork)

    def _network(self, kind: type[EncoderNetwork], **settings: Any) -> EncoderNetwork:
        """A network of the given class with the model's settings, and `others` for that class."""
        return kind(
            vocab_size=filled(self, "vocab_size"),
            config=self.network,
            task=self.task,
            num_types=self.num_types,
            position_offset=self.position_offset,
            skip_padding=self.skip_padding,
            has_pooler=self.pooler or self.task.pooled,
            dtype=jnp.dtype(self.compute_dtype),
            **settings,
        )

    def _vocabulary(self) -> Vocabulary:
        if self.mask_token is None and self.task.masked:
            raise UserError(
                f"{type(self).__name__}.mask_token is None; give the token that stands for a hidden one, "
                "or resolve the experiment with data that has one"
            )
        return Vocabulary(self.vocab_size, self.mask_token or 0, self.special_tokens or ())

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples are longer than the network's table of positions.
        """
        self.network.check_length(batch["tokens"].shape[1], "the examples take", "model.network")
        one = jax.tree.map(lambda a: a[:1], {name: batch[name] for name in ("tokens", "types") if name in batch})
        return TrainState.create(self.module().init(key, one)["params"], self.optimizer)

    def prepared(self, batch: Batch, key: Array) -> tuple[Batch, Array]:
        """The encoder's batch in training and evaluation, and a dropout key for each of its rows."""
        keys = example_keys(key, batch)
        prepared = self.task.prepare(batch, fold_in(keys, 0), self._vocabulary())
        copies = prepared["tokens"].shape[0] // keys.shape[0]
        return prepared, jnp.concatenate([fold_in(keys, 1 + copy) for copy in range(copies)])

    @property
    def loss(self) -> Callable[[PyTree, Batch, Array], tuple[Array, Metrics]]:
        """The task's loss, mean over examples, and metrics, of (params, batch, key)."""

        def outputs(params: PyTree, prepared: Batch, dropout_keys: Array) -> Outputs:
            return self.module().apply({"params": params}, prepared, dropout_keys)

        return self.task.objective(self.prepared, outputs)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, and the task's metrics."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """The task's measures per example, [B] each; masks are drawn from `key`."""
        prepared, _ = self.prepared(batch, key)
        return self.task.measures(self.module().apply({"params": state.eval_params}, prepared), prepared)

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token (nats), bits_per_token and perplexity where tokens were predicted."""
        return summarize(means) if "num_tokens" in means else means

    # Uses of a trained encoder.

    def predict(self, state: TrainState, batch: Batch) -> Outputs:
        """The task's outputs for a batch that is not corrupted: logits of the head."""
        return self.module().apply({"params": state.eval_params}, batch)

    def hidden(self, state: TrainState, batch: Batch) -> Array:
        """The encoder's output, [B, T, C]."""
        return self.module().apply({"params": state.eval_params}, batch, method="encode")[0]

    def embed(self, state: TrainState, batch: Batch) -> Array:
        """Sentence embeddings: features averaged over tokens that are no padding, of length 1, [B, C]."""
        return normalized(mean_pool(self.hidden(state, batch), token_mask(batch)))

    def embed_tokens(self, state: TrainState, batch: Batch, queries: bool = False) -> Array:
        """Features of each token, of length 1, [B, T, C]; queries have the same as documents."""
        del queries
        return normalized(self.hidden(state, batch).astype(jnp.float32))

    def attention_weights(self, state: TrainState, batch: Batch) -> list[tuple[Array, None]]:
        """Attention of each layer [B, H, T, T], and None, as there is no source."""
        _, weights = self.module().apply({"params": state.eval_params}, batch, return_weights=True, method="encode")
        return weights

    def token_logits(self, state: TrainState, batch: Batch) -> Array:
        """Logits over tokens at every place, float32 [B, T, V]."""
        if not self.task.masked:
            raise UserError(f"the task {type(self.task).__name__} has no head over tokens; take one that has")
        return self.module().apply({"params": state.eval_params}, batch, method="token_logits")

    def likeliest(self, state: TrainState, batch: Batch, top_k: int = 5) -> tuple[Array, Array]:
        """The likeliest tokens at every place and their log-probabilities, [B, T, top_k] each; read
        them at the masks.
        """
        log_probs, tokens = jax.lax.top_k(jax.nn.log_softmax(self.token_logits(state, batch)), top_k)
        return tokens, log_probs

    def pseudo_log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Sum over places of log p(x_i | the others), each masked in its turn (Salazar et al. 2020, eq. 1), nats [B].

        Special tokens, padding and tokens where `loss_mask` is False are not counted.
        """
        tokens, counted = batch["tokens"], counted_tokens(batch)
        vocabulary = self._vocabulary()
        for special in vocabulary.special_tokens:
            counted = counted & (tokens != special)

        def place(total: Array, i: Array) -> tuple[Array, None]:
            masked = tokens.at[:, i].set(vocabulary.mask_token)
            log_probs = jax.nn.log_softmax(self.token_logits(state, {**batch, "tokens": masked})[:, i])
            own = jnp.take_along_axis(log_probs, tokens[:, i][:, None], axis=1)[:, 0]
            return total + own * counted[:, i], None

        return jax.lax.scan(place, jnp.zeros(tokens.shape[0]), jnp.arange(tokens.shape[1]))[0]

    def fill(self, state: TrainState, key: Array, batch: Batch, temperature: float = 1.0) -> Array:
        """Draws the masked tokens in `num_sampling_rounds` rounds, the surest of each round first; [B, T].

        The order follows Mask-Predict (Ghazvininejad et al. 2019); the tokens are drawn, or the likeliest if the
        temperature is 0.
        """
        vocabulary, rounds = self._vocabulary(), self.num_sampling_rounds
        total = (batch["tokens"] == vocabulary.mask_token).sum(1)
        forbidden = (
            jnp.zeros(vocabulary.size, bool)
            .at[jnp.array((vocabulary.mask_token, *vocabulary.special_tokens))]
            .set(True)
        )

        def fill_some(tokens: Array, step: Array) -> tuple[Array, None]:
            logits = jnp.where(forbidden[None, None], -1e30, self.token_logits(state, {**batch, "tokens": tokens}))
            keys = example_keys(jax.random.fold_in(key, step), batch)
            if temperature == 0.0:
                drawn = logits.argmax(-1)
            else:
                drawn = jax.vmap(jax.random.categorical)(keys, logits / temperature)
            sure = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[:, :, None], axis=2)[:, :, 0]
            masked = tokens == vocabulary.mask_token
            rank = jnp.argsort(jnp.argsort(jnp.where(masked, -sure, jnp.inf), axis=1), axis=1)
            stay = (total * (rounds - 1 - step)) // rounds
            take = masked & (rank < (masked.sum(1) - stay)[:, None])
            return jnp.where(take, drawn.astype(tokens.dtype), tokens), None

        return jax.lax.scan(fill_some, batch["tokens"], jnp.arange(rounds))[0]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("tokens",)

    def sample(self, state: TrainState, key: Array, num_samples: int, tokens: Array | None = None) -> Array:
        """Fills the masks of `tokens` [num_samples, T]; without them, draws texts [num_samples, T] from masks alone.

        An encoder without a head over tokens draws from its task's predictions for `tokens`, or for random tokens.
        """
        if tokens is None:
            shape = (num_samples, filled(self, "sequence_length"))
            if self.task.masked:
                tokens = jnp.full(shape, self._vocabulary().mask_token, jnp.int32)
            else:
                tokens = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, self.vocab_size)
        batch = {"tokens": tokens}
        return self.fill(state, key, batch) if self.task.masked else self.task.draw(key, self.predict(state, batch))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoBERTa(BERT):
    """BERT without token types and next-sentence prediction, with positions that skip padding.

    Attributes: see `BERT`.
    """

    network: Transformer = bert_network(norm_epsilon=1e-5)
    task: Task = MaskedLanguageModel()
    num_types: int = 1
    position_offset: int = 2
    skip_padding: bool = True
    optimizer: Optimizer = AdamW(
        learning_rate=6e-4, b2=0.98, eps=1e-6, weight_decay=0.01, schedule=Linear(warmup_steps=100)
    )
