"""Encoder-decoder transformers (Vaswani et al. 2017, arXiv:1706.03762), and the base of T5 and BART.

    h = encoder(x),   p(y_t | y_<t, x) = softmax(W d_t),   d = decoder(y_<t, h)

With label smoothing e (Szegedy et al. 2016) the loss of a target is (1 - e) (-log p(y)) - e mean_v log p(v).  The
published schedule is width^-0.5 min(step^-0.5, step warmup^-1.5), which is `optimizers.InverseSquareRoot` with the peak
(width warmup)^-0.5 as learning rate.

A batch has `source` [B, S] with `source_mask`, and `tokens` [B, T + 1] with `mask`: the start token, the targets, and
the end token; `loss_mask` is False at tokens that are read but not counted.  Or it has only a text
`tokens` [B, T], from which `objective` makes source and targets (see corruption.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.families.language.checkpoints.encoder_decoder import BART_ARCHITECTURE, T5_ARCHITECTURE
from genjax.families.language.corruption import Objective, Pairs, SpecialTokens
from genjax.families.language.networks import translation_network
from genjax.fine_tuning import FineTuned
from genjax.interop.huggingface import FromPretrained
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn import sharding
from genjax.nn.dropout import fold_in
from genjax.nn.lora import LoRA
from genjax.nn.scores import scores_of_logits
from genjax.nn.tokens import (
    seen_tokens,
    sequence_metrics,
    summarize,
    token_log_probs,
    token_weights,
)
from genjax.nn.transformer import Cache, OutputMap, StackOutput, TokenEmbedding, Transformer, TransformerStack, unrolled
from genjax.optimizers import Adam, InverseSquareRoot, Optimizer


class EncoderDecoderNetwork(nn.Module):
    """Shared token embeddings, both stacks, and the output map."""

    vocab_size: int
    encoder_config: Transformer
    decoder_config: Transformer
    position_offset: int = 0
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    tie_embeddings: bool = True
    logit_scale: float = 1.0
    logit_bias: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        width = self.encoder_config.width
        std = self.encoder_config.init_std
        std = width**-0.5 if std is None else std
        self.token = nn.Embed(self.vocab_size, width, embedding_init=nn.initializers.normal(std))
        options = {
            "position_offset": self.position_offset,
            "scale": self.embedding_scale,
            "norm": self.embedding_norm,
            "dtype": self.dtype,
            "shared": self.token,
        }
        self.encoder_embedding = TokenEmbedding(
            self.vocab_size, self.encoder_config, config_name="model.encoder", **options
        )
        self.decoder_embedding = TokenEmbedding(
            self.vocab_size, self.decoder_config, config_name="model.decoder", **options
        )
        self.encoder = TransformerStack(self.encoder_config, self.dtype)
        self.decoder = TransformerStack(self.decoder_config, self.dtype)
        if not self.tie_embeddings:
            self.head = OutputMap(self.vocab_size, std, self.dtype)
        if self.logit_bias:
            self.bias = self.param("logit_bias", nn.initializers.zeros, (self.vocab_size,))

    def encode(self, source: Array, mask: Array | None = None, dropout_keys: Array | None = None) -> Array:
        """source [B, S] -> features [B, S, C]."""
        return self._encode(source, mask, dropout_keys).x

    def _encode(self, source: Array, mask: Array | None, dropout_keys: Array | None) -> StackOutput:
        x = self.encoder_embedding(source)
        return self.encoder(x, key_mask=mask, dropout_keys=fold_in(dropout_keys, 10))

    def decode(
        self,
        tokens: Array,
        context: Array | None,
        context_mask: Array | None = None,
        cache: Cache | None = None,
        dropout_keys: Array | None = None,
        return_weights: bool = False,
        mask: Array | None = None,
        targets: Array | None = None,
    ) -> tuple[Any, StackOutput]:
        """tokens [B, T] and the encoder's features [B, S, C] -> float32 logits [B, T, V], or the scores of `targets`
        [B, T], and the stack's output.
        """
        x = self.decoder_embedding(tokens, start=None if cache is None else cache.length)
        out = self.decoder(
            x,
            key_mask=mask,
            context=context,
            context_mask=context_mask,
            cache=cache,
            dropout_keys=fold_in(dropout_keys, 11),
            return_weights=return_weights,
        )
        features = out.x if self.logit_scale == 1.0 else out.x * self.logit_scale
        if targets is not None and not self.logit_bias:
            tied = self.tie_embeddings
            return self.decoder_embedding.scores(features, targets) if tied else self.head(features, targets), out
        logits = self.decoder_embedding.logits(features) if self.tie_embeddings else self.head(features)
        logits = logits + self.bias[None, None] if self.logit_bias else logits
        return logits if targets is None else scores_of_logits(logits, targets), out

    def __call__(
        self,
        source: Array,
        mask: Array | None,
        tokens: Array,
        dropout_keys: Array | None = None,
        return_weights: bool = False,
        target_mask: Array | None = None,
        targets: Array | None = None,
    ) -> tuple[Any, StackOutput]:
        """Logits, or scores of `targets`, and the decoder's output with the auxiliary loss of both stacks.

        Of Q sources and R tokens, R / Q successive rows of tokens are written of each source.
        """
        encoded = self._encode(source, mask, dropout_keys)
        count = tokens.shape[0] // source.shape[0]
        if count > 1:
            encoded, mask = jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), (encoded, mask))
        logits, out = self.decode(tokens, encoded.x, mask, None, dropout_keys, return_weights, target_mask, targets)
        return logits, out._replace(auxiliary=encoded.auxiliary + out.auxiliary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoder(FromPretrained, FineTuned):
    """Transformer that reads a source and writes a target; by default the original one.

    Attributes:
      vocab_size: number of tokens, of source and target; None takes the data set's.
      sequence_length: tokens T that are predicted of each example, and longest output; None takes the data set's.
      start_token: what targets begin with; None takes the data set's.
      end_token: what ends targets, or any of several; None takes the data set's.
      padding_token: token that fills rows; None takes the data set's.
      mask_token: token that stands for a hidden span; None takes the data set's.
      extra_tokens: number of tokens above the data's tokens; they are sentinels.
      first_sentinel: id of the first sentinel; the next sentinels have the ids below it; None for the last token.
      encoder: the encoder's stack.
      decoder: the decoder's stack, with the encoder's width; it is made causal and attends to the encoder.
      objective: how training pairs are made from a batch.
      embedding_scale: factor on token embeddings; None for sqrt(width).
      embedding_norm: a norm after the embeddings (BART).
      position_offset: unused positions at the beginning of the tables (2 in BART).
      tie_embeddings: whether logits are products with the token embeddings.
      scale_logits: divide the features by sqrt(width) before the logits (T5 with tied embeddings).
      logit_bias: whether logits have a bias (BART).
      label_smoothing: probability that the loss spreads over all tokens; not used in evaluation.
      num_beams: number of hypotheses of `translate`.
      length_penalty: exponent of the length by which `translate` divides scores; larger values favour longer answers.
      sampling: how `sample` and `generate` choose tokens.
      lora: train low-rank updates of the linear maps and nothing else, or None.
      frozen: beginnings of the paths of parameters that are not trained, such as encoder or token.
      pretrained: folder of a checkpoint of the library transformers to start from, which then gives the sizes, or None.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    architectures = (T5_ARCHITECTURE, BART_ARCHITECTURE)

    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | tuple[int, ...] | None = None
    padding_token: int | None = None
    mask_token: int | None = None
    extra_tokens: int = 0
    first_sentinel: int | None = None
    encoder: Transformer = translation_network()
    decoder: Transformer = translation_network()
    objective: Objective = Pairs()
    embedding_scale: float | None = None
    embedding_norm: bool = False
    position_offset: int = 0
    tie_embeddings: bool = True
    scale_logits: bool = False
    logit_bias: bool = False
    label_smoothing: float = 0.1
    num_beams: int = 4
    length_penalty: float = 0.6
    sampling: decoding.Sampling = decoding.Sampling()
    lora: LoRA | None = None
    frozen: tuple[str, ...] = ()
    compute_dtype: ComputeDtype = "float32"
    pretrained: str | None = None
    optimizer: Optimizer = Adam(learning_rate=7e-4, b2=0.98, eps=1e-9, schedule=InverseSquareRoot(warmup_steps=4000))

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the network."""
        return filled(self, "vocab_size") + self.extra_tokens

    @property
    def decoder_network(self) -> Transformer:
        """The decoder's stack, causal and with cross-attention."""
        return dataclasses.replace(self.decoder, causal=True, cross_attention=True)

    def module(self, unroll: bool = False) -> EncoderDecoderNetwork:
        """The Linen module; with `unroll`, its decoder's layers are not scanned, as a cache needs."""
        width, decoder = self.encoder.width, self.decoder_network
        if self.decoder.width != width:
            raise UserError(f"model.decoder.width={self.decoder.width} must equal model.encoder.width={width}")
        if unroll:
            decoder = dataclasses.replace(decoder, scan_layers=False, remat=False)
        return EncoderDecoderNetwork(
            self.num_tokens,
            dataclasses.replace(self.encoder, causal=False, cross_attention=False),
            decoder,
            self.position_offset,
            width**0.5 if self.embedding_scale is None else self.embedding_scale,
            self.embedding_norm,
            self.tie_embeddings,
            width**-0.5 if self.scale_logits else 1.0,
            self.logit_bias,
            jnp.dtype(self.compute_dtype),
        )

    @property
    def mesh_axes(self) -> tuple[str, ...]:
        """Axes of a mesh beside data, fsdp and tensor that the model can use."""
        experts = self.encoder.experts or self.decoder.experts
        return ("sequence",) if experts is None else ("sequence", "expert")

    @property
    def _ends(self) -> tuple[int, ...]:
        return decoding.end_tokens(self.end_token) or (1,)

    def special_tokens(self) -> SpecialTokens:
        """The tokens that corruption needs."""
        start, end = self.start_token or 0, self._ends[0]
        padding = end if self.padding_token is None else self.padding_token
        sentinel = self.num_tokens - 1 if self.first_sentinel is None else self.first_sentinel
        # A checkpoint's vocabulary may already have sentinels.
        known = self.first_sentinel is None and self.pretrained is None
        return SpecialTokens(start, end, padding, self.mask_token, sentinel, self.extra_tokens if known else None)

    def _prepared(self, batch: Batch, key: Array) -> tuple[Batch, Array]:
        keys = example_keys(key, batch)
        return self.objective.prepare(batch, fold_in(keys, 0), self.special_tokens()), fold_in(keys, 1)

    def with_source(self, batch: Batch, key: Array) -> Batch:
        """The batch with `source`, `source_mask` and `tokens` for the loss: its own pairs, or pairs
        of corrupted text.
        """
        return self._prepared(batch, key)[0]

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: sources or targets are longer than the tables of positions.
        """
        prepared, _ = jax.eval_shape(self._prepared, dict(batch), key)
        self.encoder.check_length(prepared["source"].shape[1], "the sources take", "model.encoder")
        self.decoder.check_length(prepared["tokens"].shape[1] - 1, "the targets take", "model.decoder")
        lengths = {"source_length": prepared["source"].shape[1], "target_length": prepared["tokens"].shape[1] - 1}
        sharding.check_divides("sequence", **lengths)
        one = jnp.zeros((1, 1), jnp.int32)
        params = self.module().init(key, one, None, one)["params"]
        return self.start(jax.random.fold_in(key, 1), params)

    # Likelihood.

    def _scores(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> tuple[Any, StackOutput]:
        """Scores of the targets tokens[:, 1:], and the decoder's output."""
        return self._forward(params, batch, dropout_keys, targets=batch["tokens"][:, 1:])

    def _forward(
        self,
        params: PyTree,
        batch: Batch,
        dropout_keys: Array | None = None,
        return_weights: bool = False,
        targets: Array | None = None,
    ) -> tuple[Any, StackOutput]:
        inputs = (batch["source"], batch.get("source_mask"), batch["tokens"][:, :-1], dropout_keys, return_weights)
        # Padding is at the end, where no token sees it; but it would influence the balance of experts.
        seen = seen_tokens(batch) if self.decoder.experts is not None else None
        return self.module().apply(
            {"params": self.merged_params(params)}, *inputs, None if seen is None else seen[:, :-1], targets
        )

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the targets' smoothed nats over T, and metrics."""
        batch, dropout_keys = self._prepared(batch, key)
        scores, out = self._scores(params, batch, dropout_keys)
        weights, nll = token_weights(batch), scores.nll
        objective = nll
        if self.label_smoothing:
            spread = scores.mean - scores.log_normalizer
            objective = (1.0 - self.label_smoothing) * nll - self.label_smoothing * spread
        loss = ((objective * weights).mean(1) + out.auxiliary).mean()
        return loss, {"nll_per_token": Ratio((nll * weights).sum(), weights.sum())}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B], given the source: `nll` in nats, `num_tokens`, `accuracy`, `exact_match`.

        A token is right if it is the likeliest one after the true tokens before it.  `accuracy` is the share of right
        tokens over all targets; `exact_match` is 1 if all tokens of a target are right.
        """
        batch, _ = self._prepared(batch, key)
        scores, _ = self._scores(state.eval_params, batch)
        weights, hits = token_weights(batch), scores.best == batch["tokens"][:, 1:]
        return {
            **sequence_metrics(scores.nll, weights, batch),
            "accuracy": Ratio((hits * weights).sum(1), weights.sum(1)),
            "exact_match": (hits | (weights == 0)).all(1).astype(jnp.float32),
        }

    def token_log_probs(self, params: PyTree, batch: Batch, temperature: float = 1.0) -> Array:
        """Log-probability of each target tokens[:, 1:] given its source and the targets before it in nats, float32 [B,
        T].

        Targets that do not count are scored too; multiply by `nn.tokens.token_weights(batch)`.  The first token is the
        model's own start token, whatever the batch has there, as in `corruption.Pairs`.
        """
        logits, _ = self._forward(params, Pairs().prepare(batch, None, self.special_tokens()))
        return token_log_probs(logits, batch["tokens"][:, 1:], temperature)

    def token_features(self, params: PyTree, batch: Batch) -> Array:
        """Features that each target tokens[:, 1:] is predicted from, without dropout, [B, T, C]; see
        `token_log_probs`.
        """
        return self._forward(params, Pairs().prepare(batch, None, self.special_tokens()))[1].x

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token (nats), bits_per_token and perplexity to means of `evaluate`."""
        return summarize(means)

    def logits(self, state: TrainState, tokens: Array, source: Array, source_mask: Array | None = None) -> Array:
        """Next-token logits after each of `tokens` [B, T] given sources [B, S], float32 [B, T, V]."""
        decoding.check_tokens(tokens, self.num_tokens, "the target")
        self.check_condition(source)
        params = self.merged_params(state.eval_params)
        return self.module().apply({"params": params}, source, source_mask, tokens)[0]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("source", "source_mask")

    def check_condition(self, source: Array | None = None, source_mask: Array | None = None) -> None:
        """Raises UserError if `source`, a condition of `sample`, has a token outside the vocabulary."""
        del source_mask
        if source is not None:
            decoding.check_tokens(source, self.num_tokens, "the source")

    def encode_source(self, state: TrainState, source: Array, source_mask: Array | None = None) -> Array:
        """The encoder's features, [B, S] -> [B, S, C]."""
        params = self.merged_params(state.eval_params)
        return self.module().apply({"params": params}, source, source_mask, method="encode")

    def attention_weights(self, state: TrainState, batch: Batch) -> list[tuple[Array, Array]]:
        """Attention of each decoder layer to targets [B, H, T, T] and to sources [B, H, T, S]."""
        return self._forward(state.eval_params, batch, return_weights=True)[1].weights

    # Generation.

    @property
    def answer_start(self) -> int:
        """The token that every target begins with."""
        return self.special_tokens().start

    def answer_decoder(self, state: TrainState, source: Array, source_mask: Array | None = None) -> decoding.Decoder:
        """A decoder for `genjax.decoding` that continues targets of sources [B, S]."""
        self.check_condition(source)
        self.encoder.check_length(source.shape[1], "the sources take", "model.encoder")
        params = self.merged_params(state.eval_params)
        params = {**params, "decoder": unrolled(params["decoder"], self.decoder)}
        weights = {"params": params, "source": source, "source_mask": source_mask}
        return decoding.of_weights(self._decoder_of, weights)

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        module, params = self.module(unroll=True), weights["params"]
        source, source_mask = weights["source"], weights["source_mask"]
        if source_mask is not None:
            # It is kept in the memory, which a program may overwrite.
            source_mask = jnp.copy(source_mask)

        def encode() -> Array:
            return module.apply({"params": params}, source, source_mask, method="encode")

        def decode(tokens: Array, context: Array | None, cache: Cache) -> tuple[Array, StackOutput]:
            return module.apply({"params": params}, tokens, context, None, cache, method="decode")

        options = {"what": "the targets take", "name": "model.decoder", "dtype": jnp.dtype(self.compute_dtype)}
        return decoding.context_decoder(self.decoder_network, encode, decode, context_mask=source_mask, **options)

    def _starts(self, count: int) -> Array:
        filled(self, "sequence_length")
        return jnp.full((count, 1), self.answer_start, jnp.int32)

    def translate(
        self,
        state: TrainState,
        source: Array,
        source_mask: Array | None = None,
        num_beams: int | None = None,
        alpha: float | None = None,
    ) -> Array:
        """Likeliest targets by beam search, [B, sequence_length] without the start token; the end token fills rows.

        With one beam, each token is the likeliest one.
        """
        return decoding.likeliest(
            self.answer_decoder(state, source, source_mask),
            self._starts(source.shape[0]),
            self.sequence_length,
            num_beams=num_beams or self.num_beams,
            end_token=self._ends,
            alpha=self.length_penalty if alpha is None else alpha,
        )

    def generate(
        self,
        state: TrainState,
        key: Array,
        source: Array,
        source_mask: Array | None = None,
        **options: Any,
    ) -> decoding.Generation:
        """Draws targets of sources [B, S]; `options` are keyword arguments of `decoding.generate`."""
        options = {"sampling": self.sampling, "end_token": self._ends, **options}
        generator, starts = self.answer_decoder(state, source, source_mask), self._starts(source.shape[0])
        return decoding.generate(generator, key, starts, self.sequence_length, **options)

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        source: Array | None = None,
        source_mask: Array | None = None,
    ) -> Array:
        """Draws targets [num_samples, T + 1] of sources [num_samples, S]; without them, of random tokens."""
        starts = self._starts(num_samples)
        if source is None:
            shape = (num_samples, self.sequence_length)
            source = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, self.vocab_size)
        out = self.generate(state, key, source, source_mask)
        return jnp.concatenate([starts, out.tokens], axis=1)
