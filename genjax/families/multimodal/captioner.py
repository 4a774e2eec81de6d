"""Captions of pictures and answers to questions about them, by a picture encoder and a decoder of text.

    h = encoder(x),   p(y_t | y_<t, x) = softmax(E d_t),   d = decoder(y_<t, h),   loss = mean of -log p of what counts

The encoder is a vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), the decoder attends to the features of
all patches, as in BLIP's captions (Li et al. 2022, arXiv:2201.12086, section 3.1).  A question is a prefix of the
decoder's text, which is read and not counted, as the prompts of captions are there and questions are in GIT (Wang et
al. 2022, arXiv:2205.14100, section 3.4); BLIP itself reads questions with an encoder of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, PyTree
from genjax.errors import filled
from genjax.families.multimodal.describing import DescribesPictures
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.lora import LoRA
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import Cache, StackOutput, TokenEmbedding, Transformer, TransformerStack, unrolled
from genjax.nn.vision_transformer import VisionTransformer
from genjax.optimizers import AdamW, Cosine, Optimizer


class CaptionerNetwork(nn.Module):
    """The picture encoder, and the decoder with its token embeddings, which give the logits too."""

    vocab_size: int
    vision: Transformer
    decoder: Transformer
    patch_size: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.vision_encoder = VisionTransformer(self.vision, self.patch_size, dtype=self.dtype)
        self.embedding = TokenEmbedding(self.vocab_size, self.decoder, dtype=self.dtype, config_name="model.decoder")
        refuse_experts(self.decoder.experts)
        self.stack = TransformerStack(self.decoder, self.dtype)

    def encode(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, H, W, C] -> features of the class token and the patches, [B, 1 + N, C']."""
        return self.vision_encoder(x, fold_in(dropout_keys, 10))

    def decode(
        self, tokens: Array, context: Array | None, cache: Cache | None = None, dropout_keys: Array | None = None
    ) -> tuple[Array, StackOutput]:
        """tokens [B, T] and features of pictures -> float32 logits [B, T, V] and the stack's output."""
        x = self.embedding(tokens, start=None if cache is None else cache.length)
        out = self.stack(x, context=context, cache=cache, dropout_keys=fold_in(dropout_keys, 11))
        return self.embedding.logits(out.x), out

    def __call__(self, x: Array, tokens: Array, dropout_keys: Array | None = None) -> Array:
        """Logits after each of `tokens` [B, T], float32 [B, T, V]."""
        return self.decode(tokens, self.encode(x, dropout_keys), dropout_keys=dropout_keys)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioner(DescribesPictures):
    """A model that writes captions of pictures, or answers to questions about them.

    Attributes:
      data_shape: shape (H, W, C) of the pictures; None takes the data set's.
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: tokens T of a row with its start and end; None takes the data set's.
      start_token: what every row begins with; None takes the data set's.
      end_token: what ends captions and answers; None takes the data set's.
      vision: the pictures' stack.
      decoder: the text's stack; it is made causal and attends to the features of the pictures.
      patch_size: height and width of a patch.
      max_new_tokens: tokens of the longest caption or answer that is written, its end included; None for
        sequence_length - 1.
      num_beams: number of hypotheses of `describe`.
      length_penalty: exponent of the length by which `describe` divides scores; larger values favour longer texts.
      label_smoothing: probability that the loss spreads over all tokens; not used in evaluation.
      sampling: how `sample` chooses tokens.
      lora: train low-rank updates of the linear maps and nothing else, or None.
      frozen: beginnings of the paths of parameters that are not trained, such as vision_encoder.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | None = None
    vision: Transformer = Transformer(num_layers=12, width=768, num_heads=12, activation="gelu")
    decoder: Transformer = Transformer(num_layers=12, width=768, num_heads=12, activation="gelu", max_length=512)
    patch_size: int = 16
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

    def module(self, unroll: bool = False) -> CaptionerNetwork:
        """The Linen module; with `unroll`, its decoder's layers are not scanned, as a cache needs."""
        decoder = self.decoder_network
        if unroll:
            decoder = dataclasses.replace(decoder, scan_layers=False, remat=False)
        # Positions of patches are the vision encoder's own table.
        vision = dataclasses.replace(self.vision, causal=False, cross_attention=False, positions="none")
        dtype = jnp.dtype(self.compute_dtype)
        return CaptionerNetwork(filled(self, "vocab_size"), vision, decoder, self.patch_size, dtype)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the rows are longer than the decoder's positions serve, or patches do not divide the pictures.
        """
        self.decoder.check_length(batch["tokens"].shape[1] - 1, "the texts take", "model.decoder")
        params = self.module().init(key, batch["x"][:1], batch["tokens"][:1, :1])["params"]
        return self.start(jax.random.fold_in(key, 1), params)

    def _logits(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Array:
        # Padding is at the end of rows, where no token that counts sees it.
        inputs = (batch["x"], batch["tokens"][:, :-1], dropout_keys)
        return self.module().apply({"params": self.merged_params(params)}, *inputs)

    def description_decoder(self, state: TrainState, x: Array) -> decoding.Decoder:
        """A decoder for `genjax.decoding` that continues texts about pictures [B, H, W, C]; each is encoded once."""
        self.check_condition(x)
        params = self.merged_params(state.eval_params)
        params = {**params, "stack": unrolled(params["stack"], self.decoder)}
        return decoding.of_weights(self._decoder_of, {"params": params, "x": x})

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        module, params, x = self.module(unroll=True), weights["params"], weights["x"]

        def encode() -> Array:
            return module.apply({"params": params}, x, method="encode")

        def decode(tokens: Array, context: Array | None, cache: Cache) -> tuple[Array, StackOutput]:
            return module.apply({"params": params}, tokens, context, cache, method="decode")

        options = {"what": "the texts take", "name": "model.decoder", "dtype": jnp.dtype(self.compute_dtype)}
        return decoding.context_decoder(self.decoder_network, encode, decode, **options)
