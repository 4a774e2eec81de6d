"""Tasks of a transformer encoder: masked language modelling, classification, token labels, spans, embeddings.

A task is a frozen dataclass with four pieces, used by the encoder in `bert.py`:

    head      the modules above the encoder, and their outputs
    prepare   changes of the batch before the encoder reads it (masking), from one key an example
    loss      mean over examples
    measures  one value per example

Batches have `tokens` [B, T], `mask` [B, T] (False at padding), `loss_mask` [B, T] (False at tokens that are read
but not counted in losses of tokens), `types` [B, T] (0 and 1 for two sentences), and the task's targets, which
each task's docstring names.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from genjax.batch import Array, Batch, Metrics, PyTree, counted_examples, cross_device_gather, example_keys
from genjax.errors import UserError, filled
from genjax.gradients import BatchLoss
from genjax.metrics import Ratio
from genjax.nn.contrast import equal_rows, partner_scores
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.tokens import logits_product, token_nll
from genjax.nn.transformer import ACTIVATIONS, TokenEmbedding, Transformer

Outputs = dict[str, Array]


def token_mask(batch: Batch) -> Array:
    """True at tokens that are no padding, bool [B, T]."""
    tokens = batch["tokens"]
    return batch["mask"].astype(bool) if "mask" in batch else jnp.ones(tokens.shape, bool)


def counted_tokens(batch: Batch) -> Array:
    """True at tokens that are no padding and that `loss_mask` does not leave out of the loss, bool [B, T]."""
    return token_mask(batch) & batch["loss_mask"].astype(bool) if "loss_mask" in batch else token_mask(batch)


class Vocabulary(NamedTuple):
    """Tokens, as masking needs to know them: their number, the mask token, and tokens that are never masked."""

    size: int
    mask_token: int
    special_tokens: tuple[int, ...]


def dense(features: int, config: Transformer, dtype: Any, name: str | None = None, **options: Any) -> nn.Dense:
    """A linear map of a head, with the encoder's initialisation; `options` are arguments of `nn.Dense`."""
    std = 0.02 if config.init_std is None else config.init_std
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(std), name=name, **options)


class MaskedHead(nn.Module):
    """Features to logits over tokens: a dense layer, its norm, and the transposed token embeddings with a bias."""

    config: Transformer
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, embedding: TokenEmbedding) -> Array:
        config = self.config
        x = ACTIVATIONS[config.activation](dense(config.width, config, self.dtype, "transform")(x))
        x = nn.LayerNorm(epsilon=config.norm_epsilon, dtype=self.dtype, use_fast_variance=False, name="norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (embedding.vocab_size,))
        return embedding.logits(x) + bias[None, None]


class Heads(nn.Module):
    """The modules above the encoder for a task: linear maps, by name and number of outputs, and the masked head."""

    linear: tuple[tuple[str, int], ...]
    masked: bool
    config: Transformer
    dtype: Any
    bias: bool = True

    def setup(self) -> None:
        options = {"dot_general": logits_product, "use_bias": self.bias}
        self.maps = {name: dense(size, self.config, self.dtype, name, **options) for name, size in self.linear}
        if self.masked:
            self.masked_tokens = MaskedHead(self.config, self.dtype)

    def __call__(self, name: str, x: Array) -> Array:
        return self.maps[name](x).astype(jnp.float32)

    def tokens(self, x: Array, embedding: TokenEmbedding) -> Array:
        """Float32 logits over tokens."""
        return self.masked_tokens(x, embedding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """Base of tasks of an encoder."""

    @property
    def pooled(self) -> bool:
        """Whether a head reads the pooled first token."""
        return False

    @property
    def masked(self) -> bool:
        """Whether there is a head over tokens."""
        return False

    @property
    def linear(self) -> tuple[tuple[str, int], ...]:
        """Name and number of outputs of each linear head."""
        return ()

    @property
    def head_bias(self) -> bool:
        """Whether linear heads have biases."""
        return True

    def prepare(self, batch: Batch, keys: Array, vocabulary: Vocabulary) -> Batch:
        """The encoder's batch."""
        del keys, vocabulary
        return batch

    @abc.abstractmethod
    def outputs(
        self, heads: Heads, embedding: TokenEmbedding, hidden: Array, pooled: Array | None, batch: Batch, keys: Any
    ) -> Outputs:
        """Outputs of the heads for the encoder's output [B, T, C] and its pooled first token [B, C]."""

    @abc.abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        """Mean over examples, and metrics."""

    def objective(
        self,
        prepared: Callable[[Batch, Array], tuple[Batch, Array]],
        outputs: Callable[[PyTree, Batch, Array], Outputs],
    ) -> Callable[[PyTree, Batch, Array], tuple[Array, Metrics]]:
        """The loss as `gradient_step` takes it.

        Args:
          prepared: maps a batch and a key to the encoder's batch and a dropout key for each of its rows.
          outputs: maps parameters, the encoder's batch and dropout keys to the outputs of the heads.
        """

        def loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            batch, dropout_keys = prepared(batch, key)
            return self.loss(outputs(params, batch, dropout_keys), batch)

        return loss

    @abc.abstractmethod
    def measures(self, outputs: Outputs, batch: Batch) -> Metrics:
        """One value per example under each name, [B], or a `Ratio` of two."""

    def draw(self, key: Array, outputs: Outputs) -> Array:
        """Draws from the predictions of the heads, one draw for each example."""
        (logits,) = outputs.values()
        return jax.vmap(jax.random.categorical)(example_keys(key, outputs), logits)


# ----------------------------------------------------------------------------------------------------------------------
# Masked language modelling


def choose_places(key: Array, eligible: Array, rate: float) -> tuple[Array, Array]:
    """Draws max(1, round(rate n)) of the n eligible places of one example, without replacement.

    Args:
      key: random key.
      eligible: bool [T].
      rate: share of the eligible places.

    Returns:
      Places int32 [K] with K = max(1, round(rate T)), and float32 [K], 1 where the place counts.
    """
    size = max(1, round(rate * eligible.shape[0]))
    score = jnp.where(eligible, jax.random.uniform(key, eligible.shape), -1.0)
    best, places = jax.lax.top_k(score, size)
    count = jnp.maximum(jnp.round(rate * eligible.sum()), 1.0)
    return places.astype(jnp.int32), ((jnp.arange(size) < count) & (best >= 0.0)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLanguageModel(Task):
    """Masked language modelling (Devlin et al. 2019, section 3.1), drawn anew at every step (RoBERTa's dynamic
    masking).

    The share `mask_rate` of each example's tokens is chosen.  Of the chosen tokens the share `replaced` becomes the
    mask token, the share `randomized` any token, and the rest stays.  With `next_sentence` the batch has `label` [B]: 0
    where the second sentence followed the first, 1 where it is another sentence.  The loss is the mean nats of the
    chosen tokens, plus the nats of the label.

    Attributes:
      mask_rate: share of tokens that are predicted.
      replaced: share of predicted tokens that the mask token replaces.
      randomized: share of predicted tokens that a random token replaces.
      next_sentence: whether next-sentence prediction is learned too.
    """

    mask_rate: float = 0.15
    replaced: float = 0.8
    randomized: float = 0.1
    next_sentence: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_rate <= 1.0:
            raise UserError(f"task.mask_rate={self.mask_rate} must lie in (0, 1]")
        if self.replaced < 0 or self.randomized < 0 or self.replaced + self.randomized > 1.0:
            raise UserError("task.replaced and task.randomized must not be negative, and their sum at most 1")

    @property
    def pooled(self) -> bool:
        return self.next_sentence

    @property
    def masked(self) -> bool:
        return True

    @property
    def linear(self) -> tuple[tuple[str, int], ...]:
        return (("next_sentence", 2),) if self.next_sentence else ()

    def prepare(self, batch: Batch, keys: Array, vocabulary: Vocabulary) -> Batch:
        """Corrupts `tokens` and adds `places`, `targets` and `weights`, each [B, K].

        `num_characters` [B], if the batch has it, is scaled to the number of chosen tokens.
        """
        tokens, eligible = batch["tokens"], counted_tokens(batch)
        for special in vocabulary.special_tokens:
            eligible = eligible & (tokens != special)

        def corrupt(key: Array, tokens: Array, eligible: Array) -> tuple[Array, ...]:
            place_key, kind_key, token_key = jax.random.split(key, 3)
            places, weights = choose_places(place_key, eligible, self.mask_rate)
            targets = tokens[places]
            kind = jax.random.uniform(kind_key, places.shape)
            others = jax.random.randint(token_key, places.shape, 0, vocabulary.size, tokens.dtype)
            new = jnp.where(kind < self.replaced + self.randomized, others, targets)
            new = jnp.where(kind < self.replaced, vocabulary.mask_token, new)
            new = jnp.where(weights > 0, new, targets)
            return tokens.at[places].set(new), places, targets, weights

        tokens, places, targets, weights = jax.vmap(corrupt)(keys, tokens, eligible)
        batch = {**batch, "tokens": tokens, "places": places, "targets": targets, "weights": weights}
        if "num_characters" in batch:
            batch["num_characters"] = batch["num_characters"] * weights.sum(1) / jnp.maximum(eligible.sum(1), 1)
        return batch

    def outputs(
        self, heads: Heads, embedding: TokenEmbedding, hidden: Array, pooled: Array | None, batch: Batch, keys: Any
    ) -> Outputs:
        """`logits` [B, K, V] at the chosen places (at all places, [B, T, V], if none are
        chosen), `next_sentence` [B, 2].
        """
        if "places" in batch:
            hidden = jnp.take_along_axis(hidden, batch["places"][:, :, None], axis=1)
        outputs = {"logits": heads.tokens(hidden, embedding)}
        if self.next_sentence:
            outputs["next_sentence"] = heads("next_sentence", pooled)
        return outputs

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        nll, weights = token_nll(outputs["logits"], batch["targets"]), batch["weights"]
        # Divided by a constant, so that gradients of microbatches and devices add up to the whole batch's gradient.
        loss = (nll * weights).sum() / weights.size
        metrics = {"nll_per_token": Ratio((nll * weights).sum(), weights.sum())}
        if self.next_sentence:
            pair = optax.softmax_cross_entropy_with_integer_labels(outputs["next_sentence"], batch["label"]).mean()
            loss, metrics = loss + pair, {**metrics, "next_sentence_nll": pair}
        return loss, metrics

    def measures(self, outputs: Outputs, batch: Batch) -> Metrics:
        """`nll` in nats of the chosen tokens, `num_tokens`, `num_characters`, `next_sentence_accuracy`;
        `masked_accuracy`.
        """
        targets, weights = batch["targets"], batch["weights"]
        hits = (outputs["logits"].argmax(-1) == targets) * weights
        metrics = {
            "nll": (token_nll(outputs["logits"], targets) * weights).sum(1),
            "num_tokens": weights.sum(1),
            "masked_accuracy": Ratio(hits.sum(1), weights.sum(1)),
        }
        if "num_characters" in batch:
            metrics["num_characters"] = batch["num_characters"]
        if self.next_sentence:
            metrics["next_sentence_accuracy"] = _hits(outputs["next_sentence"], batch["label"])
        return metrics


# ----------------------------------------------------------------------------------------------------------------------
# Heads of fine-tuning


def _hits(logits: Array, labels: Array) -> Array:
    return (logits.argmax(-1) == labels).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One label for the text, from the pooled first token; the batch has `label` [B].

    Attributes:
      num_classes: number of labels; None takes the data set's.
      dropout: rate of dropout of the pooled features.
    """

    num_classes: int | None = None
    dropout: float = 0.1

    @property
    def pooled(self) -> bool:
        return True

    @property
    def linear(self) -> tuple[tuple[str, int], ...]:
        return (("classes", filled(self, "num_classes")),)

    def outputs(
        self, heads: Heads, embedding: TokenEmbedding, hidden: Array, pooled: Array | None, batch: Batch, keys: Any
    ) -> Outputs:
        """`classes` [B, num_classes]."""
        return {"classes": heads("classes", dropout(pooled, self.dropout, fold_in(keys, 200)))}

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        nll = optax.softmax_cross_entropy_with_integer_labels(outputs["classes"], batch["label"]).mean()
        return nll, {"accuracy": _hits(outputs["classes"], batch["label"]).mean()}

    def measures(self, outputs: Outputs, batch: Batch) -> Metrics:
        """`nll` in nats, `accuracy`."""
        nll = optax.softmax_cross_entropy_with_integer_labels(outputs["classes"], batch["label"])
        return {"nll": nll, "accuracy": _hits(outputs["classes"], batch["label"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """A label for each token, as for named entities; the batch has `token_labels` [B, T], -1 at tokens without a label.

    Attributes:
      num_classes: number of labels; None takes the data set's.
      dropout: rate of dropout of the features.
    """

    num_classes: int | None = None
    dropout: float = 0.1

    @property
    def linear(self) -> tuple[tuple[str, int], ...]:
        return (("token_classes", filled(self, "num_classes")),)

    def outputs(
        self, heads: Heads, embedding: TokenEmbedding, hidden: Array, pooled: Array | None, batch: Batch, keys: Any
    ) -> Outputs:
        """`token_classes` [B, T, num_classes]."""
        return {"token_classes": heads("token_classes", dropout(hidden, self.dropout, fold_in(keys, 200)))}

    @staticmethod
    def _weighted(outputs: Outputs, batch: Batch) -> tuple[Array, Array, Array]:
        labels = batch["token_labels"]
        weights = ((labels >= 0) & counted_tokens(batch)).astype(jnp.float32)
        nll = token_nll(outputs["token_classes"], jnp.maximum(labels, 0)) * weights
        return nll, _hits(outputs["token_classes"], labels) * weights, weights

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        nll, hits, weights = self._weighted(outputs, batch)
        return nll.mean(), {"accuracy": Ratio(hits.sum(), weights.sum())}

    def measures(self, outputs: Outputs, batch: Batch) -> Metrics:
        """`nll` in nats of the labels, `num_tokens` with labels, `accuracy` of all tokens with labels."""
        nll, hits, weights = self._weighted(outputs, batch)
        return {"nll": nll.sum(1), "num_tokens": weights.sum(1), "accuracy": Ratio(hits.sum(1), weights.sum(1))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanExtraction(Task):
    """The span that answers a question (Devlin et al. 2019, section 4.2); the batch has `span` [B, 2], first and last
    place.

    A question without an answer has the span (0, 0), the first token.

    Attributes:
      max_answer_length: longest answer that is considered, in tokens.
    """

    max_answer_length: int = 30

    @property
    def linear(self) -> tuple[tuple[str, int], ...]:
        return (("span", 2),)

    def outputs(
        self, heads: Heads, embedding: TokenEmbedding, hidden: Array, pooled: Array | None, batch: Batch, keys: Any
    ) -> Outputs:
        """`span` [B, 2, T]: logits of the first and of the last place."""
        return {"span": heads("span", hidden).swapaxes(1, 2)}

    @staticmethod
    def _nll(outputs: Outputs, batch: Batch) -> Array:
        logits = jnp.where(token_mask(batch)[:, None], outputs["span"], -1e30)
        return token_nll(logits, batch["span"]).sum(1)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        return 0.5 * self._nll(outputs, batch).mean(), {}

    def likeliest_answers(self, outputs: Outputs, batch: Batch) -> tuple[Array, Array, Array]:
        """The likeliest answer, its score, and the score of having no answer.

        An answer is a span first <= last of at most `max_answer_length` places, within `context` [B, T] where the batch
        has it.  Scores are sums of the two logits; scores of several windows of one text can be compared.

        Returns:
          Spans int32 [B, 2], their scores float32 [B], and scores of having no answer [B].
        """
        start, end = outputs["span"][:, 0], outputs["span"][:, 1]
        size = start.shape[1]
        length = jnp.arange(size)[None] - jnp.arange(size)[:, None]
        real = batch["context"].astype(bool) if "context" in batch else token_mask(batch)
        possible = ((length >= 0) & (length < self.max_answer_length))[None] & real[:, :, None] & real[:, None]
        score = jnp.where(possible, start[:, :, None] + end[:, None], -1e30).reshape(start.shape[0], -1)
        best = score.argmax(-1)
        spans = jnp.stack([best // size, best % size], axis=1).astype(jnp.int32)
        return spans, score.max(-1), start[:, 0] + end[:, 0]

    def best_spans(self, outputs: Outputs, batch: Batch) -> Array:
        """Likeliest span, int32 [B, 2]; (0, 0) stands for no answer."""
        spans, score, none = self.likeliest_answers(outputs, batch)
        return jnp.where((score >= none)[:, None], spans, 0)

    def measures(self, outputs: Outputs, batch: Batch) -> Metrics:
        """`nll` in nats of both places; in [0, 1], `exact_match` of the likeliest span and `f1` of its places."""
        found, wanted = self.best_spans(outputs, batch), batch["span"]
        common = jnp.minimum(found[:, 1], wanted[:, 1]) - jnp.maximum(found[:, 0], wanted[:, 0]) + 1
        total = (found[:, 1] - found[:, 0] + 1) + (wanted[:, 1] - wanted[:, 0] + 1)
        return {
            "nll": self._nll(outputs, batch),
            "exact_match": (found == wanted).all(1).astype(jnp.float32),
            "f1": 2.0 * jnp.maximum(common, 0) / total,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceEmbedding(Task):
    """Mean-pooled sentence embeddings by contrast (SimCSE, Gao et al. 2021, eq. 1 and 4; pooling as in Reimers &
    Gurevych 2019).

    An example has two texts that belong together: `tokens` with `mask`, and `tokens_pair` with `mask_pair` (in sets of
    pairs, `source` with `source_mask`).  Without a second text, a text is its own partner with other dropout, so
    `network.dropout` must not be 0.  All other examples of the batch, on all devices and in all microbatches, are
    negatives, except examples with an equal text; so the loss depends on the batch.

    Attributes:
      temperature: number by which cosine similarities are divided.
    """

    temperature: float = 0.05

    def prepare(self, batch: Batch, keys: Array, vocabulary: Vocabulary) -> Batch:
        """The batch with the second texts as further rows, [2 B, T]."""
        del keys, vocabulary
        rows, masks = [batch["tokens"]], [token_mask(batch)]
        names = (("tokens_pair", "mask_pair"), ("source", "source_mask"), ("tokens", "mask"))
        tokens, mask = next(pair for pair in names if pair[0] in batch)
        rows.append(batch[tokens])
        masks.append(batch[mask].astype(bool) if mask in batch else jnp.ones(rows[1].shape, bool))
        length = max(row.shape[1] for row in rows)
        wide = lambda arrays: [jnp.pad(a, ((0, 0), (0, length - a.shape[1]))) for a in arrays]
        kept = {"padding": batch["padding"]} if "padding" in batch else {}
        return {"tokens": jnp.concatenate(wide(rows)), "mask": jnp.concatenate(wide(masks)), **kept}

    def outputs(
        self, heads: Heads, embedding: TokenEmbedding, hidden: Array, pooled: Array | None, batch: Batch, keys: Any
    ) -> Outputs:
        """`embedding` [B, C] of length 1."""
        return {"embedding": normalized(mean_pool(hidden, token_mask(batch)))}

    def draw(self, key: Array, outputs: Outputs) -> Array:
        """The embeddings themselves."""
        return outputs["embedding"]

    def _scores(self, outputs: Outputs, batch: Batch) -> tuple[Array, Array, Array]:
        """Nats of the partners, whether they are found, and their similarities, [B] each."""
        tokens = jnp.where(batch["mask"], batch["tokens"], -1)
        pairs = (jnp.split(outputs["embedding"], 2), jnp.split(tokens, 2))
        (first, second), (texts, partners) = cross_device_gather(pairs)
        similarities = first @ second.T
        excluded = equal_rows(texts, texts) | equal_rows(partners, partners) | equal_rows(texts, partners)
        counted = counted_examples(batch)
        if counted is not None:
            excluded |= ~counted[None]
        return *partner_scores(similarities / self.temperature, excluded), jnp.diagonal(similarities)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        nll, found, _ = self._scores(outputs, batch)
        return nll.mean(), {"retrieval_accuracy": found.mean()}

    def objective(
        self,
        prepared: Callable[[Batch, Array], tuple[Batch, Array]],
        outputs: Callable[[PyTree, Batch, Array], Outputs],
    ) -> BatchLoss:
        def pairs(params: PyTree, batch: Batch, key: Array) -> Array:
            """Embeddings of both texts of each example, [B, 2, C]."""
            return jnp.stack(jnp.split(outputs(params, *prepared(batch, key))["embedding"], 2), axis=1)

        def contrast(pairs: Array, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            return self.loss({"embedding": pairs.swapaxes(0, 1).reshape(-1, pairs.shape[-1])}, prepared(batch, key)[0])

        return BatchLoss(pairs, contrast)

    def measures(self, outputs: Outputs, batch: Batch) -> Metrics:
        """`nll` in nats of the partner, `retrieval_accuracy`, both among the batch; `similarity` of the partners."""
        nll, found, similarity = self._scores(outputs, batch)
        return {"nll": nll, "retrieval_accuracy": found, "similarity": similarity}


def mean_pool(hidden: Array, mask: Array) -> Array:
    """Mean over tokens that are no padding, [B, T, C], [B, T] -> float32 [B, C]."""
    weights = mask.astype(jnp.float32)[:, :, None]
    return (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)


def normalized(x: Array) -> Array:
    """Rows of length 1."""
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-24))
