"""Models that write texts about something that is no text: an encoder before a decoder.

    h = encoder(x),   p(y_t | y_<t, x) = softmax(E d_t),   d = decoder(y_<t, h),   loss = mean of -log p of what counts

A batch has `x` [B, ...] and `tokens` [B, T] with `mask`: the start token, the text and the end token.  With questions
it has `loss_mask` too, which is True at the answer and its end, and False at the question before them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, PyTree
from genjax.families.multimodal.describing import DescribesPictures
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.lora import LoRA
from genjax.nn.mixture_of_experts import refuse_experts
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
class Describer(DescribesPictures):
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
      label_smoothing: probability that the loss spreads over all tokens; not used in evaluation.
      sampling: how `sample` chooses tokens.
      lora: train low-rank updates of the linear maps and nothing else, or None.
      frozen: beginnings of the paths of parameters that are not trained, such as embedding.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | tuple[int, ...] | None = None
    decoder: Transformer = Transformer(num_layers=12, width=768, num_heads=12, activation="gelu", max_length=512)
    max_new_tokens: int | None = None
    num_beams: int = 4
    length_penalty: float = 0.0
    label_smoothing: float = 0.0
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
        self.decoder.check_length(length + self.num_before, self._takers, "model.decoder")

    @property
    def _takers(self) -> str:
        """Who takes places of the decoder, and the verb, for messages."""
        before = f", and the {self.num_before} features before them," if self.num_before else ""
        return f"the texts{before} take"

    def _logits(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Array:
        # Padding is at the end of rows, where no token that counts sees it.
        inputs = (batch["x"], batch["tokens"][:, :-1], dropout_keys)
        return self.module().apply({"params": self.merged_params(params)}, *inputs)

    def description_decoder(self, state: TrainState, x: Array) -> decoding.Decoder:
        """A decoder for `genjax.decoding` that continues texts about x [B, ...], which is encoded once."""
        self.check_condition(x)
        params = self.merged_params(state.eval_params)
        params = {**params, "stack": unrolled(params["stack"], self.decoder)}
        return decoding.of_weights(self._decoder_of, {"params": params, "x": x})

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        module, before = self.module(unroll=True), self.num_before
        params, x = weights["params"], weights["x"]

        def encode() -> Array:
            return module.apply({"params": params}, x, method="encode")

        def decode(tokens: Array, context: Array | None, cache: Cache) -> tuple[Array, StackOutput]:
            return module.apply({"params": params}, tokens, context, cache, method="decode")

        return decoding.context_decoder(
            self.decoder_network,
            encode,
            decode,
            what=self._takers,
            name="model.decoder",
            dtype=jnp.dtype(self.compute_dtype),
            extra_places=before,
            extra_positions=before,
        )
