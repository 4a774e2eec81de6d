"""Dense passage retrieval (Karpukhin et al. 2020, arXiv:2004.04906): an encoder of questions and one of documents.

    sim(q, d) = E_Q(q) . E_D(d) / temperature                                                                (eq. 1)
    loss      = -log exp sim(q, d+) / sum over all documents d of the batch of exp sim(q, d)                 (eq. 2)

The documents of a batch are those of all its questions, on all devices and in all microbatches: the other questions'
documents are negatives, and so are the question's own other documents (hard negatives).  A document with the text of
the right one is no negative.  Gradients are exact with accumulation: embeddings of all microbatches are computed first
(`gradients.BatchLoss`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from genjax.batch import (
    Array,
    Batch,
    ComputeDtype,
    Metrics,
    PyTree,
    counted_examples,
    cross_device_gather,
    example_keys,
)
from genjax.errors import UserError
from genjax.families.language.bert import BERT
from genjax.families.language.encoder_tasks import SentenceEmbedding, mean_pool, normalized, token_mask
from genjax.families.language.networks import bert_network
from genjax.gradients import BatchLoss, gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW, Linear, Optimizer

#: Names of the parameters of the encoders.
QUESTION, DOCUMENT = "question", "document"


def present_documents(batch: Batch) -> Array:
    """Which of the documents [B, M, L] of a batch are there: those with a token, bool [B, M]."""
    if "documents_mask" in batch:
        return batch["documents_mask"].astype(bool).any(2)
    return jnp.ones(batch["documents"].shape[:2], bool)


def flat_documents(batch: Batch) -> Batch:
    """The documents of a batch as rows `tokens` [B M, L] with `mask`."""
    documents = batch["documents"]
    mask = batch["documents_mask"] if "documents_mask" in batch else jnp.ones(documents.shape, bool)
    join = lambda a: a.reshape(-1, a.shape[-1])
    return {"tokens": join(documents), "mask": join(mask)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPR:
    """Two encoders, or one for both.

    A batch has questions `source` [B, S] with `source_mask`, `documents` [B, M, L] with `documents_mask`, and
    `relevant` [B], the place of the document that answers; a question with -1 is not learned from.

    Attributes:
      vocab_size: number of tokens; None takes the data set's.
      network: the stack of each encoder.
      num_types: number of token types; 2 in BERT's checkpoints.
      position_offset: unused positions at the beginning of the table; 2 in RoBERTa's checkpoints.
      skip_padding: whether positions count tokens that are no padding (RoBERTa) or all places (BERT).
      shared: use one encoder for questions and documents.
      pooling: the vector of a text: its first token's features, or the mean over its tokens.
      normalize: scale vectors to length 1.
      temperature: number by which similarities are divided.
      pretrained: folder of a BERT or RoBERTa of the library transformers that both encoders start from, or None.
      compute_dtype: type that the network computes in; parameters and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    vocab_size: int | None = None
    network: Transformer = bert_network()
    num_types: int = 0
    position_offset: int = 0
    skip_padding: bool = False
    shared: bool = False
    pooling: Literal["first", "mean"] = "first"
    normalize: bool = False
    temperature: float = 1.0
    compute_dtype: ComputeDtype = "float32"
    pretrained: str | None = None
    optimizer: Optimizer = AdamW(learning_rate=2e-5, clip_norm=2.0, schedule=Linear(warmup_steps=100))

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"model.temperature={self.temperature} must be above 0")

    def encoder(self) -> BERT:
        """An encoder as a model of its own."""
        names = ("vocab_size", "network", "num_types", "position_offset", "skip_padding", "compute_dtype", "pretrained")
        return BERT(**{name: getattr(self, name) for name in names}, task=SentenceEmbedding())

    def with_pretrained_sizes(self) -> DPR:
        """The model with the sizes of the checkpoint."""
        theirs = self.encoder().with_pretrained_sizes()
        names = ("vocab_size", "network", "num_types", "position_offset", "skip_padding")
        return dataclasses.replace(self, **{name: getattr(theirs, name) for name in names})

    def pretrained_params(self, params: PyTree) -> PyTree:
        """The checkpoint's parameters in each encoder."""
        return {name: self.encoder().pretrained_params(part) for name, part in params.items()}

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: texts are longer than the network's table of positions.
        """
        return TrainState.create(self.init_params(key, batch), self.optimizer)

    def init_params(self, key: Array, batch: Batch) -> PyTree:
        """New parameters of the encoders."""
        longest = max(batch["source"].shape[1], batch["documents"].shape[2])
        self.network.check_length(longest, "the texts take", "model.network")
        encoder, row = self.encoder().module(), {"tokens": batch["source"][:1]}
        names = (QUESTION,) if self.shared else (QUESTION, DOCUMENT)
        return {name: encoder.init(k, row)["params"] for name, k in zip(names, jax.random.split(key, len(names)))}

    def vectors(self, params: PyTree, role: str, rows: Batch, dropout_keys: Array | None = None) -> Array:
        """Vectors of rows `tokens` [N, T] with `mask` by the encoder of a role, float32 [N, C]."""
        hidden = self._hidden(params, role, rows, dropout_keys)
        found = mean_pool(hidden, token_mask(rows)) if self.pooling == "mean" else hidden[:, 0].astype(jnp.float32)
        return normalized(found) if self.normalize else found

    def token_vectors(self, params: PyTree, role: str, rows: Batch) -> Array:
        """A vector of length 1 for each token of rows `tokens` [N, T], [N, T, C] (ColBERT, without its map)."""
        return normalized(self._hidden(params, role, rows, None).astype(jnp.float32))

    def _hidden(self, params: PyTree, role: str, rows: Batch, dropout_keys: Array | None) -> Array:
        params = params[QUESTION if self.shared else role]
        return self.encoder().module().apply({"params": params}, rows, dropout_keys, method="encode")[0]

    def embeddings(
        self, params: PyTree, batch: Batch, keys: Array | None = None, indexed: PyTree | None = None
    ) -> Array:
        """Vectors of each question and of its documents, [B, 1 + M, C]; `keys` [B] draw dropout.

        With `indexed`, the parameters that an index was made with, documents have the vectors of the index, which have
        no gradient and no dropout.
        """
        size, count = batch["documents"].shape[:2]
        question_keys = document_keys = None
        if keys is not None:
            question_keys = fold_in(keys, 0)
        if keys is not None and indexed is None:
            document_keys = jnp.stack([fold_in(keys, 1 + place) for place in range(count)], axis=1).reshape(-1)
        questions = {"tokens": batch["source"], **({"mask": batch["source_mask"]} if "source_mask" in batch else {})}
        first = self.vectors(params, QUESTION, questions, question_keys)
        encoder = params if indexed is None else jax.lax.stop_gradient(indexed)
        documents = self.vectors(encoder, DOCUMENT, flat_documents(batch), document_keys)
        return jnp.concatenate([first[:, None], documents.reshape(size, count, -1)], axis=1)

    def similarities(self, embeddings: Array) -> Array:
        """Similarities of each question with its own documents, [B, 1 + M, C] -> [B, M]."""
        return jnp.einsum("bc,bmc->bm", embeddings[:, 0], embeddings[:, 1:]) / self.temperature

    @property
    def loss(self) -> BatchLoss:
        """The contrast of the batch, and the share of questions that find their document."""

        def outputs(params: PyTree, batch: Batch, key: Array) -> Array:
            return self.embeddings(params, batch, example_keys(key, batch))

        def contrast(embeddings: Array, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            del key
            rows = flat_documents(batch)
            texts = jnp.where(rows["mask"], rows["tokens"], -1).reshape(batch["documents"].shape)
            counted = counted_examples(batch)
            counted = jnp.ones(len(embeddings), bool) if counted is None else counted
            given = (embeddings, texts, present_documents(batch), batch["relevant"], counted)
            nll, found, weights = self._contrast(*cross_device_gather(given))
            total = jnp.maximum(weights.sum(), 1.0)
            return (nll * weights).sum() / total, {"retrieval_accuracy": (found * weights).sum() / total}

        return BatchLoss(outputs, contrast)

    def _contrast(
        self, embeddings: Array, texts: Array, present: Array, relevant: Array, counted: Array
    ) -> tuple[Array, Array, Array]:
        """Nats of the right document among all, whether it is the nearest, and each question's weight, [B] each."""
        size, count = present.shape
        documents, texts = embeddings[:, 1:].reshape(size * count, -1), texts.reshape(size * count, -1)
        similarities = embeddings[:, 0] @ documents.T / self.temperature  # [B, B M]
        own = jnp.arange(size) * count + jnp.maximum(relevant, 0)
        equal = jax.vmap(lambda row: (row[None] == texts).all(1))(texts[own])
        is_own = jnp.arange(size * count)[None] == own[:, None]
        missing = ~(present & counted[:, None]).reshape(1, -1)
        similarities = jnp.where((equal | missing) & ~is_own, -1e30, similarities)
        nll = jax.nn.logsumexp(similarities, axis=1) - jnp.take_along_axis(similarities, own[:, None], axis=1)[:, 0]
        return nll, (similarities.argmax(1) == own).astype(jnp.float32), ((relevant >= 0) & counted).astype(jnp.float32)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, retrieval_accuracy."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Among a question's own documents, per question that has a right one: `nll` of it in nats, and `recall@1`."""
        del key
        scores = jnp.where(
            present_documents(batch), self.similarities(self.embeddings(state.eval_params, batch)), -1e30
        )
        own, known = jnp.maximum(batch["relevant"], 0), (batch["relevant"] >= 0).astype(jnp.float32)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), own[:, None], axis=1)[:, 0]
        hits = (scores.argmax(1) == own).astype(jnp.float32)
        return {"nll": Ratio(nll * known, known), "recall@1": Ratio(hits * known, known)}

    def embed(self, state: TrainState, batch: Batch) -> Array:
        """Vectors of documents `tokens` [B, T] with `mask`, [B, C]."""
        return self.vectors(state.eval_params, DOCUMENT, batch)

    def embed_queries(self, state: TrainState, batch: Batch) -> Array:
        """Vectors of questions `tokens` [B, T] with `mask`, [B, C]."""
        return self.vectors(state.eval_params, QUESTION, batch)

    def embed_tokens(self, state: TrainState, batch: Batch, queries: bool = False) -> Array:
        """A vector for each token of documents, or of questions, [B, T, C]."""
        return self.token_vectors(state.eval_params, QUESTION if queries else DOCUMENT, batch)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("source", "documents")

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        source: Array | None = None,
        documents: Array | None = None,
    ) -> Array:
        """Draws one of the documents [N, M, L] of each question [N, S], with the probability of eq. 2, [N, L].

        Without them, the questions and two documents each are random tokens.
        """
        if source is None or documents is None:
            shape = (num_samples, 3, 8)
            drawn = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, self.vocab_size or 1)
            source, documents = drawn[:, 0], drawn[:, 1:]
        batch: dict[str, Any] = {"source": source, "documents": documents}
        scores = self.similarities(self.embeddings(state.eval_params, batch))
        chosen = jax.vmap(jax.random.categorical)(example_keys(key, batch), scores)
        return jnp.take_along_axis(documents, chosen[:, None, None], axis=1)[:, 0]
