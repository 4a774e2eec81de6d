"""Retrieval-augmented generation (Lewis et al. 2020, arXiv:2005.11401): a retriever and a generator, trained together.

With p(z | x) proportional to exp(E_Q(x) . E_D(z)) over the K best documents z of a question x:

    sequence        p(y | x) = sum_z p(z | x) prod_t p(y_t | x, z, y_<t)                                (section 2.1)
    token           p(y | x) = prod_t sum_z p(z | x) p(y_t | x, z, y_<t)
    concatenation   p(y | x) = prod_t p(y_t | x, z_1, ..., z_K, y_<t), the K documents one after the other, best first
    fusion          p(y | x) = prod_t p(y_t | h_1, ..., h_K, y_<t),  h_k = encoder(x, z_k)
                                                               (Izacard & Grave 2020, arXiv:2007.01282, section 3)
    closed_book     p(y | x) = prod_t p(y_t | x, y_<t)

Fusion in the decoder has T5 for a generator: it encodes each document with the question apart from the others, and the
decoder attends to the features of all.

The first two give the question's encoder (and here the documents' too) a gradient through p(z | x).  With
`reindex_every` the documents' vectors are those of an index that is made anew every so many steps, as the paper's index
is never: at step t, by the encoder as it was at the last multiple of `reindex_every`.  The index is thus a function of
the step, and the state keeps the encoder that makes it.  Concatenation and
fusion do not: their retriever stays as it starts.  All sums are in log space.

Decoding (section 2.5).  `token` mixes the next-token distributions of the documents at each step, so every search of
genjax.decoding works on it.  `sequence` writes an answer for each document, scores each of them under every document,
and takes the one with the largest p(y | x) ("thorough decoding").
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.decoding import joined, of_answers
from genjax.errors import UserError
from genjax.families.language.encoder_decoder import EncoderDecoderNetwork
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import bert_network
from genjax.families.language.t5 import T5
from genjax.families.retrieval.dpr import DOCUMENT, DPR, QUESTION, present_documents
from genjax.gradients import gradient_step
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.tokens import summarize, token_log_probs
from genjax.nn.transformer import Cache, StackOutput, Transformer, unrolled
from genjax.optimizers import AdamW, Linear, Optimizer

#: Names of the parameters of both parts.
RETRIEVER, GENERATOR = "retriever", "generator"
#: Name in `TrainState.extra` of the retriever's parameters that documents are indexed by.
INDEXED = "indexed"


class Retrieved(NamedTuple):
    """The documents that a model reads.

    Attributes:
      log_prior: log p(z | x) of each, best first, [B, K].
      places: their places among the question's documents, [B, K].
      prompts: what the generator reads before the answer, [B K, P], padded on the right.
      lengths: tokens of each prompt, [B K]; 0 where fusion has no document to read.
    """

    log_prior: Array
    places: Array
    prompts: Array
    lengths: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class RAG:
    """A retriever among the documents of a question, and a generator that reads them: a decoder, or T5 for fusion.

    A batch has questions `source` [B, S], `documents` [B, M, L] and answers `tokens` [B, T + 1] (start, answer, end),
    each with its mask, and `relevant` [B], which is used in evaluation alone.

    Attributes:
      kind: how documents are used.
      num_documents: number K of documents that are read.
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: longest answer T; None takes the data set's.
      start_token: first token of an answer; None takes the data set's.
      end_token: token that ends an answer; None takes the data set's.
      network: the generator's stack; both stacks of T5, for fusion.
      retriever: the stack of the retriever's encoders.
      shared: use one encoder for questions and documents.
      pooling: the vector of a text: its first token's features, or the mean over its tokens.
      normalize: scale vectors to length 1.
      temperature: number by which similarities are divided.
      reindex_every: number of steps after which documents are encoded anew, while the encoder of questions alone
        learns; more than there are steps leaves the first index, None lets both encoders learn at every step.  What
        is evaluated is indexed anew.
      compute_dtype: type that the networks compute in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    kind: Literal["sequence", "token", "concatenation", "fusion", "closed_book"] = "sequence"
    num_documents: int = 3
    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | None = None
    network: Transformer = Transformer()
    retriever: Transformer = bert_network()
    shared: bool = True
    pooling: Literal["first", "mean"] = "mean"
    normalize: bool = True
    temperature: float = 0.05
    reindex_every: int | None = None
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = AdamW(learning_rate=1e-3, clip_norm=1.0, schedule=Linear(warmup_steps=100))

    def __post_init__(self) -> None:
        if self.num_documents < 1:
            raise UserError(f"model.num_documents={self.num_documents} must be at least 1")
        if self.reindex_every is not None and self.reindex_every < 1:
            raise UserError(f"model.reindex_every={self.reindex_every} must be at least 1")

    def dense_retriever(self) -> DPR:
        """The retriever as a model of its own."""
        names = ("vocab_size", "shared", "pooling", "normalize", "temperature", "compute_dtype", "optimizer")
        return DPR(network=self.retriever, **{name: getattr(self, name) for name in names})

    def language_model(self) -> GPT:
        """The generator as a model of its own."""
        names = ("vocab_size", "sequence_length", "start_token", "end_token", "network", "compute_dtype", "optimizer")
        return GPT(**{name: getattr(self, name) for name in names})

    def encoder_decoder(self) -> T5:
        """The generator of fusion as a model of its own."""
        names = ("vocab_size", "sequence_length", "start_token", "end_token", "compute_dtype", "optimizer")
        own = {name: getattr(self, name) for name in names}
        return T5(encoder=self.network, decoder=self.network, extra_tokens=0, **own)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: a question with its documents and answer is longer than the generator's context, or has fewer
            documents than the model reads.
        """
        retriever_key, generator_key = jax.random.split(key)
        self._check_number(batch)
        length = batch["documents"].shape[2]
        read = {"closed_book": 0, "concatenation": self.num_documents}.get(self.kind, 1) * length
        longest = read + batch["source"].shape[1] + batch["tokens"].shape[1]
        self.network.check_length(longest, "documents, question and answer take", "model.network")
        one = batch["tokens"][:1, :1]
        if self.kind == "fusion":
            generator = self.encoder_decoder().module().init(generator_key, one, None, one)["params"]
        else:
            generator = self.language_model().module().init(generator_key, one)["params"]
        params = {RETRIEVER: self.dense_retriever().init_params(retriever_key, batch), GENERATOR: generator}
        # A copy, because the step donates its state and one buffer cannot be donated twice.
        extra = {} if self.reindex_every is None else {INDEXED: jax.tree.map(jnp.copy, params[RETRIEVER])}
        return TrainState.create(params, self.optimizer, extra=extra)

    def _check_number(self, batch: Batch) -> None:
        count = batch["documents"].shape[1]
        if self.num_documents > count:
            raise UserError(
                f"model.num_documents={self.num_documents} documents shall be read, and a question has {count}"
            )

    # Retrieval.

    def scores(self, params: PyTree, batch: Batch, keys: Array | None = None, indexed: PyTree | None = None) -> Array:
        """Similarity of each question with its documents, [B, M]; -1e30 where there is no document."""
        retriever = self.dense_retriever()
        found = retriever.similarities(retriever.embeddings(params[RETRIEVER], batch, keys, indexed))
        return jnp.where(present_documents(batch), found, -1e30)

    def retrieve(
        self, params: PyTree, batch: Batch, keys: Array | None = None, indexed: PyTree | None = None
    ) -> Retrieved:
        """The documents to read, and the prompts made of them.

        `keys` [B] draw dropout of the encoders; `indexed` are the parameters that documents were indexed by.
        """
        size = batch["source"].shape[0]
        questions, question_lengths = batch["source"], _lengths(batch, "source")
        if self.kind == "closed_book":
            prior = jnp.zeros((size, 1))
            return Retrieved(prior, jnp.full((size, 1), -1), questions, question_lengths)
        self._check_number(batch)
        scores, places = jax.lax.top_k(self.scores(params, batch, keys, indexed), self.num_documents)
        log_prior = jax.nn.log_softmax(scores)
        take = lambda a: jnp.take_along_axis(a, places.reshape(*places.shape, *(1,) * (a.ndim - 2)), axis=1)
        documents, lengths = take(batch["documents"]), take(_lengths(batch, "documents"))
        if self.kind == "concatenation":
            prompts, total = documents[:, 0], lengths[:, 0]
            for i in range(1, self.num_documents):
                prompts, total = _joined(prompts, total, documents[:, i], lengths[:, i])
            return Retrieved(jnp.zeros((size, 1)), places, *_joined(prompts, total, questions, question_lengths))
        flat = lambda a: a.reshape(-1, *a.shape[2:])
        repeat = lambda a: jnp.repeat(a, self.num_documents, axis=0)
        rows = _joined(flat(documents), flat(lengths), repeat(questions), repeat(question_lengths))
        if self.kind == "fusion":
            # Missing documents come last.  Without any, the question is read alone.
            read = take(present_documents(batch)).at[:, 0].set(True)
            return Retrieved(jnp.zeros((size, 1)), places, rows[0], jnp.where(flat(read), rows[1], 0))
        return Retrieved(log_prior, places, *rows)

    # Likelihood.

    def _answer_log_probs(self, params: PyTree, found: Retrieved, answers: Array, lengths: Array) -> Array:
        """Log-probabilities of the tokens of answers [B, T + 1] after their first, given each document, [B, K, T].

        They are 0 behind the end of an answer, whose tokens `lengths` [B] counts.
        """
        if self.kind == "fusion":
            module, own = self.encoder_decoder().module(), params[GENERATOR]
            inputs = (answers[:, :-1], *self._fused(module, own, found))
            logits, _ = module.apply({"params": own}, *inputs, method="decode")
            values = token_log_probs(logits, answers[:, 1:])
            return jnp.where(jnp.arange(1, answers.shape[1])[None] < lengths[:, None], values, 0.0)[:, None]
        count = found.log_prior.shape[1]
        repeat = lambda a: jnp.repeat(a, count, axis=0)
        rows = joined(found.prompts, found.lengths, repeat(answers), repeat(lengths))
        values = self.language_model().token_log_probs(params[GENERATOR], rows)
        values = of_answers(values, found.lengths, answers.shape[1])[:, 1:]
        values = values.reshape(len(answers), count, -1)
        return jnp.where(jnp.arange(1, answers.shape[1])[None, None] < lengths[:, None, None], values, 0.0)

    def _fused(self, module: EncoderDecoderNetwork, params: PyTree, found: Retrieved) -> tuple[Array, Array]:
        """Features of all documents that are read, each encoded alone, [B, K P, C], and their mask [B, K P]."""
        mask = jnp.arange(found.prompts.shape[1])[None] < found.lengths[:, None]
        features = module.apply({"params": params}, found.prompts, mask, method="encode")
        size = len(found.places)
        return features.reshape(size, -1, features.shape[-1]), mask.reshape(size, -1)

    def _marginal(self, log_prior: Array, values: Array) -> Array:
        """log p(y | x) from log p(z | x) [B, K] and log-probabilities of tokens [B, K, T], [B]."""
        if self.kind == "token":
            # Behind the end all documents give 0, and the sum of p(z | x) is 1.
            return jax.nn.logsumexp(log_prior[:, :, None] + values, axis=1).sum(1)
        return jax.nn.logsumexp(log_prior + values.sum(2), axis=1)

    def loss(self, params: PyTree, batch: Batch, key: Array, indexed: PyTree | None = None) -> tuple[Array, Metrics]:
        """Mean over examples of -log p(y | x) in nats."""
        found = self.retrieve(params, batch, example_keys(key, batch), indexed)
        lengths = _lengths(batch, "tokens")
        values = self._answer_log_probs(params, found, batch["tokens"], lengths)
        nll = -self._marginal(found.log_prior, values)
        return nll.mean(), {"nll_per_token": Ratio(nll.sum(), (lengths - 1).sum().astype(jnp.float32))}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, nll_per_token."""
        if self.reindex_every is None:
            return gradient_step(self.loss, self.optimizer)(state, batch, key)
        anew = state.step % self.reindex_every == 0
        renew = lambda kept, now: jnp.where(anew, now, kept)
        indexed = jax.tree.map(renew, state.extra[INDEXED], state.params[RETRIEVER])
        loss = lambda params, batch, key: self.loss(params, batch, key, indexed)
        state = state.replace(extra={**state.extra, INDEXED: indexed})
        return gradient_step(loss, self.optimizer)(state, batch, key)

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """log p(y | x) of the answers in nats, [B]."""
        found = self.retrieve(state.eval_params, batch)
        values = self._answer_log_probs(state.eval_params, found, batch["tokens"], _lengths(batch, "tokens"))
        return self._marginal(found.log_prior, values)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: `nll` of the answer in nats and its `num_tokens`, `exact_match` of the answer that the model
        writes, and `recall`, whether the relevant document is among those that are read (if there is one).
        """
        del key
        answers = batch["tokens"]
        lengths = _lengths(batch, "tokens")
        written = self.answer(state, batch)
        place = jnp.arange(answers.shape[1] - 1)[None]
        same = (written == answers[:, 1:]) | (place >= lengths[:, None] - 1)
        metrics: Metrics = {
            "nll": -self.log_prob(state, batch),
            "num_tokens": (lengths - 1).astype(jnp.float32),
            "exact_match": same.all(1).astype(jnp.float32),
        }
        if self.kind != "closed_book" and "relevant" in batch:
            relevant = batch["relevant"][:, None]
            hits = (self.retrieve(state.eval_params, batch).places == relevant).any(1)
            known = (batch["relevant"] >= 0).astype(jnp.float32)
            metrics["recall"] = Ratio(hits * known, known)
        return metrics

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token (nats), bits_per_token and perplexity."""
        return summarize(means)

    def attribution(self, state: TrainState, batch: Batch) -> tuple[Array | None, Array]:
        """The document that each token of the answers [B, T + 1] came from.

        Returns:
          Probabilities [B, T, K] over the documents read: p(z | x, y_<=t) for `sequence`, p(z | x, y_t) for `token`,
          and None for the other kinds, which do not tell documents apart; and the places [B, K] of these documents
          among the question's.
        """
        if self.kind not in ("sequence", "token"):
            return None, self.retrieve(state.eval_params, batch).places
        found = self.retrieve(state.eval_params, batch)
        values = self._answer_log_probs(state.eval_params, found, batch["tokens"], _lengths(batch, "tokens"))
        seen = jnp.cumsum(values, axis=2) if self.kind == "sequence" else values
        return jax.nn.softmax(found.log_prior[:, :, None] + seen, axis=1).swapaxes(1, 2), found.places

    def embed(self, state: TrainState, batch: Batch) -> Array:
        """Vectors of documents `tokens` [B, T] with `mask` by the retriever, [B, C]."""
        return self.dense_retriever().vectors(state.eval_params[RETRIEVER], DOCUMENT, batch)

    def embed_queries(self, state: TrainState, batch: Batch) -> Array:
        """Vectors of questions `tokens` [B, T] with `mask` by the retriever, [B, C]."""
        return self.dense_retriever().vectors(state.eval_params[RETRIEVER], QUESTION, batch)

    def embed_tokens(self, state: TrainState, batch: Batch, queries: bool = False) -> Array:
        """A vector for each token of documents, or of questions, by the retriever, [B, T, C]."""
        role = QUESTION if queries else DOCUMENT
        return self.dense_retriever().token_vectors(state.eval_params[RETRIEVER], role, batch)

    # Generation.

    def mixed_decoder(self, state: TrainState, found: Retrieved) -> decoding.Decoder:
        """The mixture over documents as a decoder of B rows, whose logits are log-probabilities.

        Its memory begins with the prompts; the first token to read is the start token of an answer.
        """
        count = found.log_prior.shape[1]
        generator = self.language_model().token_decoder(
            TrainState(step=state.step, params=state.eval_params[GENERATOR])
        )
        split = lambda tree: jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]), tree)
        join = lambda tree: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)

        def init(batch: int, length: int, ragged: bool) -> PyTree:
            del batch, ragged
            capacity = found.prompts.shape[1] + length
            _, memory, _ = decoding.prefill(generator, found.prompts, found.lengths, capacity)
            return {"memory": split(memory), "log_prior": found.log_prior}

        def extend(memory: PyTree, tokens: Array) -> decoding.Step:
            step = generator.extend(join(memory["memory"]), jnp.repeat(tokens, count, axis=0))
            logits = jax.nn.log_softmax(step.logits.astype(jnp.float32)).reshape(-1, count, *step.logits.shape[1:])
            mixed = jax.nn.logsumexp(memory["log_prior"][:, :, None, None] + logits, axis=1)
            return decoding.Step(mixed, {"memory": split(step.memory), "log_prior": memory["log_prior"]})

        return decoding.Decoder(init=init, extend=extend)

    def fused_decoder(self, state: TrainState, found: Retrieved) -> decoding.Decoder:
        """The decoder of fusion, of B rows, which attends to all documents; it begins with an answer's start token."""
        model, params = self.encoder_decoder(), state.eval_params[GENERATOR]
        module = model.module(unroll=True)
        params = {**params, "decoder": unrolled(params["decoder"], self.network)}
        context, mask = self._fused(module, params, found)

        def decode(tokens: Array, context: Array | None, cache: Cache) -> tuple[Array, StackOutput]:
            return module.apply({"params": params}, tokens, context, None, cache, method="decode")

        options = {"what": "the answers take", "name": "model.network", "dtype": jnp.dtype(self.compute_dtype)}
        network = model.decoder_network
        return decoding.context_decoder(network, lambda: context, decode, context_mask=mask, **options)

    def answer(
        self, state: TrainState, batch: Batch, key: Array | None = None, sampling: decoding.Sampling | None = None
    ) -> Array:
        """Answers [B, T] to questions `source` with `documents`; filled with the end token behind their end.

        Args:
          state: the state.
          batch: questions and documents.
          key: random key, for a `sampling` that draws.
          sampling: how tokens are chosen; None takes the likeliest.
        """
        if self.sequence_length is None or self.start_token is None:
            raise UserError("RAG.sequence_length and RAG.start_token are None; give them, or resolve the experiment")
        params, size = state.eval_params, batch["source"].shape[0]
        key = jax.random.key(0) if key is None else key
        options = {"sampling": sampling or decoding.Sampling(temperature=0.0), "end_token": self.end_token}
        found = self.retrieve(params, batch)
        start = jnp.full((size, 1), self.start_token, jnp.int32)
        count = found.log_prior.shape[1]
        if self.kind != "sequence" or count == 1:
            decoder = (self.fused_decoder if self.kind == "fusion" else self.mixed_decoder)(state, found)
            return decoding.generate(decoder, key, start, self.sequence_length, **options).tokens
        alone = Retrieved(jnp.zeros((size * count, 1)), found.places, found.prompts, found.lengths)
        starts = jnp.repeat(start, count, axis=0)
        written = decoding.generate(self.mixed_decoder(state, alone), key, starts, self.sequence_length, **options)
        candidates = jnp.concatenate([starts, written.tokens], axis=1).reshape(size, count, -1)
        lengths = 1 + written.lengths.reshape(size, count)

        def score(candidate: tuple[Array, Array]) -> Array:
            return self._marginal(found.log_prior, self._answer_log_probs(params, found, *candidate))

        scores = jax.lax.map(score, (candidates.swapaxes(0, 1), lengths.T))  # [K, B]
        return jnp.take_along_axis(candidates, scores.argmax(0)[:, None, None], axis=1)[:, 0, 1:]

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
        """Draws answers [N, T + 1] to questions [N, S] with documents [N, M, L]; without them, of random tokens."""
        if source is None or documents is None:
            shape = (num_samples, self.num_documents + 1, 8)
            drawn = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, self.vocab_size or 1)
            source, documents = drawn[:, 0], drawn[:, 1:]
        batch: dict[str, Any] = {"source": source, "documents": documents}
        answers = self.answer(state, batch, key, decoding.Sampling())
        start = jnp.full((num_samples, 1), self.start_token, jnp.int32)
        return jnp.concatenate([start, answers], axis=1)


def _lengths(batch: Batch, name: str) -> Array:
    """Number of tokens of each row of an array with its mask, at least 1, so that a missing document is a row too."""
    tokens, mask = batch[name], batch.get("mask" if name == "tokens" else f"{name}_mask")
    if mask is None:
        return jnp.full(tokens.shape[:-1], tokens.shape[-1], jnp.int32)
    return jnp.maximum(mask.astype(jnp.int32).sum(-1), 1)


def _joined(first: Array, lengths: Array, second: Array, second_lengths: Array) -> tuple[Array, Array]:
    """Rows of `first` with `second` behind them, without a hole, and their lengths."""
    return joined(first, lengths, second, second_lengths)["tokens"], lengths + second_lengths
