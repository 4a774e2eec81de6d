"""Autoregressive transformer language models: GPT-2 (Radford et al. 2019), Llama-like (Touvron et al. 2023), Gemma.

    p(x_1 .. x_T | x_0) = prod_t p(x_t | x_<t),    p(. | x_<t) = softmax(W h_t),   h = transformer(x_0 .. x_{T-1})

A batch has `tokens` [B, T + 1]: T inputs and, one to the right, their T targets.  `mask` [B, T + 1] is False at
padding, which stands at the end; `loss_mask` [B, T + 1] is False at tokens that are read but not counted, such as a
prompt.  `segment_ids` [B, T + 1] number packed documents, which do not see and do not predict each other.

The loss of an example is the sum of its targets' nats over T, so that masked targets weigh nothing and microbatches,
devices and whole batches give the same gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import decoding, devices
from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.families.language.checkpoints.gpt import ARCHITECTURES
from genjax.fine_tuning import FineTuned
from genjax.interop.huggingface import FromPretrained
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn import sharding
from genjax.nn.attention import is_large
from genjax.nn.lora import LoRA
from genjax.nn.scores import TokenScores
from genjax.nn.tokens import seen_tokens, token_log_probs, token_weights
from genjax.nn.transformer import Cache, OutputMap, TokenEmbedding, Transformer, TransformerStack, unrolled
from genjax.optimizers import AdamW, Optimizer


class LanguageModel(nn.Module):
    """Embeddings, stack and output map of a GPT."""

    vocab_size: int
    config: Transformer
    tie_embeddings: bool = True
    dtype: Any = jnp.float32
    embedding_scale: float = 1.0

    def setup(self) -> None:
        self.embedding = TokenEmbedding(self.vocab_size, self.config, scale=self.embedding_scale, dtype=self.dtype)
        self.stack = TransformerStack(self.config, self.dtype)
        if not self.tie_embeddings:
            self.head = OutputMap(self.vocab_size, self.config.init_std, self.dtype)

    def __call__(
        self,
        tokens: Array,
        *,
        segment_ids: Array | None = None,
        key_mask: Array | None = None,
        positions: Array | None = None,
        cache: Cache | None = None,
        dropout_keys: Array | None = None,
        return_weights: bool = False,
        features: Array | None = None,
        replaced: Array | None = None,
        prefix_lengths: Array | None = None,
        targets: Array | None = None,
    ) -> tuple[Any, Any]:
        """tokens [B, T] -> float32 logits [B, T, V], or the scores of `targets` [B, T], and the stack's output.

        Where `replaced` [B, T] is True, `features` [B, T, C] are read in place of the tokens' embeddings.  The first
        `prefix_lengths` [B] tokens see each other both ways.
        """
        start = None if cache is None else cache.length
        x = self.embedding(
            tokens, segment_ids=segment_ids, positions=positions, start=start, features=features, replaced=replaced
        )
        out = self.stack(
            x,
            segment_ids=segment_ids,
            key_mask=key_mask,
            prefix_lengths=prefix_lengths,
            positions=positions,
            cache=cache,
            dropout_keys=dropout_keys,
            return_weights=return_weights,
        )
        return self.read(out.x, targets), out

    def read(self, x: Array, targets: Array | None = None) -> Any:
        """Logits [B, T, V], or the scores of `targets` [B, T], of the stack's output x [B, T, C]."""
        if targets is not None:
            return self.embedding.scores(x, targets) if self.tie_embeddings else self.head(x, targets)
        return self.embedding.logits(x) if self.tie_embeddings else self.head(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT(FromPretrained, FineTuned, decoding.TokenModel):
    """Decoder-only transformer language model.

    Attributes:
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: number T of predicted tokens in an example; None takes the data set's.
      start_token: first token of an unconditional sample; None takes the data set's.
      end_token: token that ends a sample, or several; None takes the token that ends the data's documents.
      network: the transformer stack; its `max_length` is the longest context.
      tie_embeddings: whether logits are products with the token embeddings.
      embedding_scale: factor on the token embeddings where they are read (Gemma: the square root of the width).
      z_loss: weight of the squared log-normalizer of the logits (PaLM, Chowdhery et al. 2022).
      label_smoothing: probability that the loss spreads over all tokens; not used in evaluation.
      sampling: how `sample` and `generate` choose tokens.
      lora: train low-rank updates of the linear maps and nothing else, or None.
      frozen: beginnings of the paths of parameters that are not trained, such as embedding, or
        stack/layer_0 if layers are not scanned.
      pretrained: folder of a checkpoint of the library transformers to start from, which then gives the sizes, or None.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    architectures = ARCHITECTURES

    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | tuple[int, ...] | None = None
    network: Transformer = Transformer()
    tie_embeddings: bool = True
    embedding_scale: float = 1.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    sampling: decoding.Sampling = decoding.Sampling()
    lora: LoRA | None = None
    frozen: tuple[str, ...] = ()
    compute_dtype: ComputeDtype = "float32"
    pretrained: str | None = None
    optimizer: Optimizer = AdamW(learning_rate=1e-3, b2=0.99, weight_decay=0.1, clip_norm=1.0)

    def __post_init__(self) -> None:
        if not self.network.causal:
            raise UserError(
                "model.network.causal=false lets a GPT see what it predicts; the model BERT reads both ways"
            )

    @property
    def mesh_axes(self) -> tuple[str, ...]:
        """Axes of a mesh beside data, fsdp and tensor that the model can use."""
        return ("sequence",) if self.network.experts is None else ("sequence", "expert")

    def module(self, network: Transformer | None = None) -> LanguageModel:
        """The Linen module."""
        network = network or self.network
        dtype = jnp.dtype(self.compute_dtype)
        return LanguageModel(filled(self, "vocab_size"), network, self.tie_embeddings, dtype, self.embedding_scale)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples are longer than the network's context.
        """
        length = batch["tokens"].shape[1] - 1
        if length > self.network.max_length:
            raise UserError(
                f"examples have {length} tokens, but network.max_length={self.network.max_length} of the model is the "
                "longest context"
            )
        sharding.check_divides("sequence", sequence_length=length)
        network_key, update_key = jax.random.split(key)
        params = self.module().init(network_key, batch["tokens"][:1, :1])["params"]
        return self.start(update_key, params)

    # Likelihood.

    def _forward(
        self, params: PyTree, batch: Batch, dropout_keys: Array | None = None, targets: Array | None = None
    ) -> tuple[Any, Any]:
        self.network.check_length(batch["tokens"].shape[1] - 1, "the examples take", "model.network")
        segments = batch["segment_ids"][:, :-1] if "segment_ids" in batch else None
        # Padding is at the end, where no token sees it; but it would influence the balance of experts.
        seen = seen_tokens(batch) if self.network.experts is not None else None
        return self.module().apply(
            {"params": self.merged_params(params)},
            batch["tokens"][:, :-1],
            segment_ids=segments,
            key_mask=None if seen is None else seen[:, :-1],
            dropout_keys=dropout_keys,
            targets=targets,
        )

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the targets' nats over T, plus regularisers; and metrics."""
        scores, out = self._forward(params, batch, example_keys(key, batch), batch["tokens"][:, 1:])
        weights, nll = token_weights(batch), scores.nll
        objective = nll
        if self.label_smoothing:
            spread = scores.mean - scores.log_normalizer
            objective = (1.0 - self.label_smoothing) * nll - self.label_smoothing * spread
        if self.z_loss:
            objective = objective + self.z_loss * scores.log_normalizer**2
        loss = ((objective * weights).mean(1) + out.auxiliary).mean()
        metrics = {"nll_per_token": Ratio((nll * weights).sum(), weights.sum())}
        if self.network.experts is not None:
            metrics["auxiliary"] = out.auxiliary.mean()
        return loss, metrics

    def _target_logits(self, params: PyTree, batch: Batch) -> Array:
        return self._forward(params, batch)[0]

    def _target_scores(self, params: PyTree, batch: Batch) -> TokenScores:
        return self._forward(params, batch, targets=batch["tokens"][:, 1:])[0]

    def token_features(self, params: PyTree, batch: Batch) -> Array:
        """Features that each target tokens[:, 1:] is predicted from, without dropout, [B, T, C]."""
        return self._forward(params, batch)[1].x

    def shares_prompts(self, prompt_length: int, answer_length: int) -> bool:
        """Whether `answer_features` serves texts of this size, and costs less than a row for each answer.

        It has no fused kernel, which GPUs have for half precision; experts' load depends on how often a token is read.
        """
        fused = devices.platform() == "gpu" and self.compute_dtype != "float32"
        large = is_large(answer_length, prompt_length + answer_length)
        return not (fused or large or self.network.experts is not None or sharding.is_split("sequence"))

    def answer_features(self, params: PyTree, prompts: Array, lengths: Array, answers: Array) -> Array:
        """Features that each token of answers is predicted from, without dropout; each prompt is read once.

        Args:
          params: the parameters.
          prompts: [Q, P], padded on the right.
          lengths: number of tokens of each prompt, [Q].
          answers: [R, N]; R / Q successive answers follow each prompt.

        Returns:
          [R, N, C].
        """
        network = dataclasses.replace(self.network, scan_layers=False)
        params = self.merged_params(params)
        params = {**params, "stack": unrolled(params["stack"], self.network)}
        read = functools.partial(self.module(network).apply, {"params": params})
        memory = network.init_cache(*prompts.shape, jnp.dtype(self.compute_dtype), whole=True)
        _, out = read(prompts, cache=memory)
        last = jnp.take_along_axis(out.x, lengths[:, None, None] - 1, axis=1)
        lengths, last = decoding.repeat_rows((lengths, last), answers.shape[0] // prompts.shape[0])
        if answers.shape[1] == 1:
            return last
        _, out = read(answers[:, :-1], cache=out.cache.replace(length=lengths))
        return jnp.concatenate([last, out.x], axis=1)

    def answer_log_probs(
        self, params: PyTree, prompts: Array, lengths: Array, answers: Array, temperature: float = 1.0
    ) -> Array:
        """Log-probability of each token of answers in nats, float32 [R, N]; see `answer_features`."""
        features = self.answer_features(params, prompts, lengths, answers)
        read = functools.partial(self.module().apply, {"params": self.merged_params(params)}, features, method="read")
        return -read(answers).nll if temperature == 1.0 else token_log_probs(read(), answers, temperature)

    def logits(
        self, state: TrainState, tokens: Array, segment_ids: Array | None = None, mask: Array | None = None
    ) -> Array:
        """Next-token logits, [B, T] -> float32 [B, T, V]; with `mask` [B, T], padding on any side is
        neither seen nor counted as a position.

        Raises:
          UserError: there are more tokens than the network's context has places, or one lies outside the vocabulary.
        """
        decoding.check_tokens(tokens, self.vocab_size, "the text")
        params, positions = self.merged_params(state.eval_params), None
        if mask is not None:
            positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        out = self.module().apply(
            {"params": params}, tokens, segment_ids=segment_ids, key_mask=mask, positions=positions
        )
        return out[0]

    def attention_weights(self, state: TrainState, batch: Batch) -> list[tuple[Array, None]]:
        """Attention of each layer to all tokens but the last, [B, H, T, T], and None, as there is no source."""
        params = self.merged_params(state.eval_params)
        _, out = self.module().apply({"params": params}, batch["tokens"][:, :-1], return_weights=True)
        return out.weights

    # Generation.

    def token_decoder(self, state: TrainState) -> decoding.Decoder:
        """The model in the form that the functions of `genjax.decoding` take."""
        params = self.merged_params(state.eval_params)
        return decoding.of_weights(self._decoder_of, {**params, "stack": unrolled(params["stack"], self.network)})

    def _decoder_of(self, params: PyTree) -> decoding.Decoder:
        network = dataclasses.replace(self.network, scan_layers=False, remat=False)
        module = self.module(network)

        def init(batch: int, length: int, ragged: bool, back: int = 1) -> Cache:
            self.network.check_length(length, "prompt and new tokens take", "model.network")
            return network.init_cache(batch, length, jnp.dtype(self.compute_dtype), ragged, back=back)

        def extend(cache: Cache, tokens: Array) -> decoding.Step:
            logits, out = module.apply({"params": params}, tokens, cache=cache)
            return decoding.Step(logits, out.cache, out.x)

        return decoding.Decoder(
            init=init,
            extend=extend,
            rewind=lambda cache, length: cache.replace(length=length),
            until=lambda cache, length: cache.replace(limit=length),
            grow=lambda cache, length: cache.grow(length),
            max_length=self.network.longest,
            weight_bytes=decoding.num_bytes(params),
        )


@functools.cache
def num_parameters(model: GPT) -> int:
    """Number of parameters of the network."""
    shapes = jax.eval_shape(lambda: model.module().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
