"""Models that write texts about something that is no text: an encoder before a decoder.

    h = encoder(x),   p(y_t | y_<t, x) = softmax(E d_t),   d = decoder(y_<t, h),   loss = mean of -log p of what counts

A batch has `x` [B, ...] and `tokens` [B, T] with `mask`: the start token, the text and the end token.  With questions
it has `loss_mask` too, which is True at the answer and its end, and False at the question before them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.fine_tuning import FineTuned
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.lora import LoRA
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.tokens import sequence_metrics, summarize, token_nll, token_weights
from genjax.nn.transformer import Cache, StackOutput, TokenEmbedding, Transformer, TransformerStack, unrolled
from genjax.optimizers import AdamW, Cosine, Optimizer


class DescriberNetwork(nn.Module):
    """A decoder with cross-attention and its token embeddings, which give the logits too; `setup` of a subclass adds
    the encoder and `encode` runs it.
    """

    vocab_size: int
    decoder: Transformer
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.embedding = TokenEmbedding(self.vocab_size, self.decoder, dtype=self.dtype, config_name="model.decoder")
        refuse_experts(self.decoder.experts)
        self.stack = TransformerStack(self.decoder, self.dtype)

    def encode(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """x [B, ...] -> features [B, N, C']."""
        raise NotImplementedError

    def decode(
        self, tokens: Array, context: Array | None, cache: Cache | None = None, dropout_keys: Array | None = None
    ) -> tuple[Array, StackOutput]:
        """tokens [B, T] and features -> float32 logits [B, T, V] and the stack's output."""
        x = self.embedding(tokens, start=None if cache is None else cache.length)
        out = self.stack(x, context=context, cache=cache, dropout_keys=fold_in(dropout_keys, 11))
        return self.embedding.logits(out.x), out

    def __call__(self, x: Array, tokens: Array, dropout_keys: Array | None = None) -> Array:
        """Logits after each of `tokens` [B, T], float32 [B, T, V]."""
        return self.decode(tokens, self.encode(x, dropout_keys), dropout_keys=dropout_keys)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Describer(FineTuned):
    """A model that writes texts about what an encoder has seen or heard.

    Attributes:
      data_shape: shape of x; None takes the data set's.
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: tokens T of a row with its start and end; None takes the data set's.
      start_token: what every row begins with; None takes the data set's.
      end_token: what ends texts, or any of several; None takes the data set's.
      decoder: the text's stack; it is made causal and attends to the encoder's features.
      max_new_tokens: tokens of the longest text that is written, its end included; None for
        sequence_length - 1.
      num_beams: number of hypotheses of `describe`.
      length_penalty: exponent of the length by which `describe` divides scores; larger values favour longer texts.
      sampling: how `sample` chooses tokens.
      lora: train low-rank updates of the linear maps and nothing else, or None.
      frozen: beginnings of the paths of parameters that are not trained, such as embedding.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    #: What x is, for messages.
    what: ClassVar[str] = "pictures"
    #: Whether there is no text without x.
    needs_pictures: ClassVar[bool] = True

    data_shape: tuple[int, ...] | None = None
    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | tuple[int, ...] | None = None
    decoder: Transformer = Transformer(num_layers=12, width=768, num_heads=12, activation="gelu", max_length=512)
    max_new_tokens: int | None = None
    num_beams: int = 4
    length_penalty: float = 0.0
    sampling: decoding.Sampling = decoding.Sampling()
    lora: LoRA | None = None
    frozen: tuple[str, ...] = ()
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = AdamW(learning_rate=3e-4, weight_decay=0.05, schedule=Cosine(warmup_steps=2000))

    @property
    def decoder_network(self) -> Transformer:
        """The decoder's stack, causal and with cross-attention."""
        return dataclasses.replace(self.decoder, causal=True, cross_attention=True)

    def module(self, unroll: bool = False) -> Any:
        """The Linen module; with `unroll`, its decoder's layers are not scanned, as a cache needs.

        It has the methods of `DescriberNetwork` and the attribute `stack`.
        """
        raise NotImplementedError

    def unrolled_decoder(self, unroll: bool = True) -> Transformer:
        """`decoder_network`, with layers that a cache can serve if `unroll`."""
        decoder = self.decoder_network
        return dataclasses.replace(decoder, scan_layers=False, remat=False) if unroll else decoder

    @property
    def num_before(self) -> int:
        """Number of places that the encoder's features take in the decoder's own sequence, before the text."""
        return 0

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the rows are longer than the decoder's positions serve, or the encoder cannot read x.
        """
        self._check_length(batch["tokens"].shape[1] - 1)
        params = self.module().init(key, batch["x"][:1], batch["tokens"][:1, :1])["params"]
        return self.start(jax.random.fold_in(key, 1), params)

    def _check_length(self, length: int) -> None:
        before = f", and the {self.num_before} features before them," if self.num_before else ""
        self.decoder.check_length(length + self.num_before, f"the texts{before} take", "model.decoder")

    # Likelihood.

    def _logits(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Array:
        # Padding is at the end of rows, where no token that counts sees it.
        inputs = (batch["x"], batch["tokens"][:, :-1], dropout_keys)
        return self.module().apply({"params": self.merged_params(params)}, *inputs)

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the nats of all tokens that count, divided by T - 1; and metrics."""
        logits = self._logits(params, batch, example_keys(key, batch))
        nll, weights = token_nll(logits, batch["tokens"][:, 1:]), token_weights(batch)
        return (nll * weights).mean(), {"nll_per_token": Ratio((nll * weights).sum(), weights.sum())}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B], given x and the question: `nll` in nats, `num_tokens`, `accuracy`, `exact_match`.

        A token is right if it is the likeliest one after the true tokens before it.  `exact_match` is 1 if all tokens
        that count are right; then the likeliest token at each place writes this text.
        """
        del key
        logits = self._logits(state.eval_params, batch)
        targets, weights = batch["tokens"][:, 1:], token_weights(batch)
        hits = logits.argmax(-1) == targets
        return {
            **sequence_metrics(token_nll(logits, targets), weights, batch),
            "accuracy": Ratio((hits * weights).sum(1), weights.sum(1)),
            "exact_match": (hits | (weights == 0)).all(1).astype(jnp.float32),
        }

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token (nats), bits_per_token and perplexity to means of `evaluate`."""
        return summarize(means)

    # Generation.

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("source", "prompts", "prompt_lengths")

    def check_condition(
        self, source: Array | None = None, prompts: Array | None = None, prompt_lengths: Array | None = None
    ) -> None:
        """Raises UserError if `source` has not the shape of x, or `prompts` a token outside the vocabulary."""
        del prompt_lengths
        shape = tuple(filled(self, "data_shape"))
        if source is not None and tuple(source.shape[1:]) != shape:
            raise UserError(f"the model sees {self.what} of the shape {shape}, and not {tuple(source.shape[1:])}")
        if prompts is not None:
            decoding.check_tokens(prompts, filled(self, "vocab_size"), "the question")

    def with_source(self, batch: Batch, key: Array) -> Batch:
        """The batch with its x as `source`, and the beginnings of its texts as conditions of `sample`."""
        del key
        prompts, lengths = self.prompts_of(batch)
        return {**batch, "source": batch["x"], "prompts": prompts, "prompt_lengths": lengths}

    def prompts_of(self, batch: Batch) -> tuple[Array, Array]:
        """What comes before the text that counts: the start token, and the question if there is one.

        Returns:
          `prompts` int32 [B, P], padded on the right, and their lengths [B].
        """
        tokens = batch["tokens"]
        if "loss_mask" not in batch:
            return tokens[:, :1], jnp.ones(len(tokens), jnp.int32)
        # A row without an answer has its whole text as prompt.
        seen = batch["mask"] if "mask" in batch else jnp.ones_like(tokens, bool)
        counted = batch["loss_mask"].astype(bool) & seen
        lengths = jnp.where(counted.any(1), counted.argmax(1), seen.sum(1))
        return tokens[:, :-1], jnp.clip(lengths, 1, tokens.shape[1] - 1).astype(jnp.int32)

    def description_decoder(self, state: TrainState, x: Array) -> decoding.Decoder:
        """A decoder for `genjax.decoding` that continues texts about x [B, ...], which is encoded once."""
        self.check_condition(x)
        module, network, before = self.module(unroll=True), self.decoder_network, self.num_before
        params = self.merged_params(state.eval_params)
        params = {**params, "stack": unrolled(params["stack"], self.decoder)}

        def init(batch: int, length: int, ragged: bool) -> PyTree:
            self._check_length(length)
            cache = network.init_cache(batch, before + length, jnp.dtype(self.compute_dtype), ragged)
            return {"cache": cache, "context": module.apply({"params": params}, x, method="encode")}

        def extend(memory: PyTree, tokens: Array) -> decoding.Step:
            # The first call stores what it reads of the features in the cache.
            inputs = (tokens, memory.get("context"), memory["cache"])
            logits, out = module.apply({"params": params}, *inputs, method="decode")
            return decoding.Step(logits, {"cache": out.cache}, out.x)

        def rewind(memory: PyTree, length: Array) -> PyTree:
            return {"cache": memory["cache"].replace(length=length + before)}

        def grow(memory: PyTree, length: int) -> PyTree:
            return {**memory, "cache": memory["cache"].grow(before + length)}

        longest = None if network.longest is None else network.longest - before
        return decoding.Decoder(init=init, extend=extend, rewind=rewind, grow=grow, max_length=longest)

    def reader(
        self, state: TrainState, x: Array, prompts: Array, lengths: Array | None
    ) -> tuple[decoding.Decoder, Array, Array | None]:
        """The decoder of x and prompts [B, P], and what it continues: the prompts themselves."""
        return self.description_decoder(state, x), prompts, lengths

    @property
    def _num_new(self) -> int:
        return filled(self, "sequence_length") - 1 if self.max_new_tokens is None else self.max_new_tokens

    def _starts(self, count: int) -> Array:
        return jnp.full((count, 1), filled(self, "start_token"), jnp.int32)

    def describe(
        self,
        state: TrainState,
        x: Array,
        prompts: Array | None = None,
        prompt_lengths: Array | None = None,
        num_beams: int | None = None,
    ) -> Array:
        """Likeliest texts about x, or answers to the questions in `prompts`, by beam search.

        Args:
          state: the state.
          x: what is described, [B, ...].
          prompts: start token and question, int32 [B, P] padded on the right; None for the start token alone.
          prompt_lengths: number of tokens of each prompt, [B]; None if all have P.
          num_beams: number of hypotheses; with one, each token is the likeliest one.

        Returns:
          New tokens, int32 [B, N]; the end token fills rows.
        """
        self.check_condition(x, prompts)
        prompts = self._starts(len(x)) if prompts is None else prompts
        if num_beams == 1:
            greedy = decoding.Sampling(temperature=0.0)
            return self.generate(state, jax.random.key(0), x, prompts, prompt_lengths, sampling=greedy).tokens
        beams = decoding.beam_search(
            self.description_decoder(state, x),
            prompts,
            self._num_new,
            num_beams=num_beams or self.num_beams,
            end_token=filled(self, "end_token"),
            lengths=prompt_lengths,
            alpha=self.length_penalty,
        )
        return beams.tokens[:, 0]

    def generate(
        self,
        state: TrainState,
        key: Array,
        x: Array,
        prompts: Array | None = None,
        prompt_lengths: Array | None = None,
        **options: Any,
    ) -> decoding.Generation:
        """Draws texts about x [B, ...]; `options` are keyword arguments of `decoding.generate`."""
        options = {"sampling": self.sampling, "end_token": filled(self, "end_token"), **options}
        prompts = self._starts(len(x)) if prompts is None else prompts
        decoder = self.description_decoder(state, x)
        return decoding.generate(decoder, key, prompts, self._num_new, lengths=prompt_lengths, **options)

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        source: Array | None = None,
        prompts: Array | None = None,
        prompt_lengths: Array | None = None,
    ) -> Array:
        """Draws texts [num_samples, 1 + N], the start token first, about the x `source` [num_samples, ...].

        Without it, texts are about uniform noise.
        """
        if source is None:
            source = jax.random.uniform(jax.random.fold_in(key, 1), (num_samples, *filled(self, "data_shape")))
        out = self.generate(state, key, source, prompts, prompt_lengths)
        return jnp.concatenate([self._starts(num_samples), out.tokens], axis=1)
