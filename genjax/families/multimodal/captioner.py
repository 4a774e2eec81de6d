"""Captions of pictures and answers to questions about them, by a picture encoder and a decoder of text.

    h = encoder(x),   p(y_t | y_<t, x) = softmax(E d_t),   d = decoder(y_<t, h),   loss = mean of -log p of what counts

The encoder is a vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), the decoder attends to the features of
all patches, as in BLIP's captions (Li et al. 2022, arXiv:2201.12086, section 3.1).  A question is a prefix of the
decoder's text, which is read and not counted, as the prompts of captions are there and questions are in GIT (Wang et
al. 2022, arXiv:2205.14100, section 3.4); BLIP itself reads questions with an encoder of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, PyTree
from genjax.errors import filled
from genjax.families.language.encoder_tasks import MaskedHead
from genjax.families.multimodal.captioner_checkpoints import BLIP_ARCHITECTURE, VISION_ENCODER_DECODER_ARCHITECTURE
from genjax.families.multimodal.describer import Describer
from genjax.interop.architecture import Architecture
from genjax.interop.huggingface import FromPretrained
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import Cache, StackOutput, TokenEmbedding, Transformer, TransformerStack, unrolled
from genjax.nn.vision_transformer import VisionTransformer


class CaptionerNetwork(nn.Module):
    """The picture encoder, the question's encoder where there is one, and the decoder with its token embeddings, which
    give the logits too.
    """

    vocab_size: int
    vision: Transformer
    decoder: Transformer
    patch_size: int
    patch_bias: bool = False
    embedding_norm: bool = False
    head_transform: bool = False
    project_features: bool = False
    questions: Transformer | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.vision_encoder = VisionTransformer(
            self.vision, self.patch_size, patch_bias=self.patch_bias, dtype=self.dtype
        )
        options = {"norm": self.embedding_norm, "dtype": self.dtype}
        self.embedding = TokenEmbedding(self.vocab_size, self.decoder, config_name="model.decoder", **options)
        refuse_experts(self.decoder.experts)
        self.stack = TransformerStack(self.decoder, self.dtype)
        if self.head_transform:
            self.head = MaskedHead(self.decoder, self.dtype)
        if self.project_features:
            self.feature_map = nn.Dense(self.decoder.width, dtype=self.dtype)
        if self.questions is not None:
            self.question_embedding = TokenEmbedding(
                self.vocab_size, self.questions, config_name="model.questions", **options
            )
            refuse_experts(self.questions.experts)
            self.question_stack = TransformerStack(self.questions, self.dtype)

    def encode(
        self,
        x: Array,
        dropout_keys: Array | None = None,
        question: Array | None = None,
        question_mask: Array | None = None,
    ) -> Array:
        """Pictures [B, H, W, C] -> features of the class token and the patches, [B, 1 + N, C'].

        With an encoder of questions, features of the question's tokens [B, Q], which have seen the picture.
        """
        found = self.vision_encoder(x, fold_in(dropout_keys, 10))
        if self.project_features:
            found = self.feature_map(found)
        if self.questions is None:
            return found
        keys = fold_in(dropout_keys, 12)
        embedded = self.question_embedding(question)
        return self.question_stack(embedded, key_mask=question_mask, context=found, dropout_keys=keys).x

    def decode(
        self,
        tokens: Array,
        context: Array | None,
        cache: Cache | None = None,
        dropout_keys: Array | None = None,
        context_mask: Array | None = None,
    ) -> tuple[Array, StackOutput]:
        """tokens [B, T] and features of pictures -> float32 logits [B, T, V] and the stack's output."""
        x = self.embedding(tokens, start=None if cache is None else cache.length)
        keys = fold_in(dropout_keys, 11)
        out = self.stack(x, context=context, context_mask=context_mask, cache=cache, dropout_keys=keys)
        logits = self.head(out.x, self.embedding) if self.head_transform else self.embedding.logits(out.x)
        return logits, out

    def __call__(
        self,
        x: Array,
        tokens: Array,
        dropout_keys: Array | None = None,
        question: Array | None = None,
        question_mask: Array | None = None,
    ) -> Array:
        """Logits after each of `tokens` [B, T], float32 [B, T, V]."""
        context = self.encode(x, dropout_keys, question, question_mask)
        return self.decode(tokens, context, None, dropout_keys, question_mask)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioner(FromPretrained, Describer):
    """A model that writes captions of pictures, or answers to questions about them.

    Attributes:
      vision: the pictures' stack.
      patch_size: height and width of a patch.
      patch_bias: whether the map of patches has a bias.
      embedding_norm: whether a norm follows the token embeddings (BLIP).
      head_transform: whether a hidden layer, a norm and a bias come before the logits (BLIP).
      project_features: whether a linear map makes the features of pictures as wide as the decoder.
      questions: the stack of an encoder that reads the question with the picture; then the decoder attends to the
        question's features and writes the answer alone (BLIP).  None reads the question as the decoder's prefix.
      pretrained: folder of a BLIP or a VisionEncoderDecoderModel of the library transformers to start from, which then
        gives the sizes, or None.
    """

    architectures: ClassVar[tuple[Architecture, ...]] = (BLIP_ARCHITECTURE, VISION_ENCODER_DECODER_ARCHITECTURE)

    vision: Transformer = Transformer(num_layers=12, width=768, num_heads=12, activation="gelu")
    patch_size: int = 16
    patch_bias: bool = False
    embedding_norm: bool = False
    head_transform: bool = False
    project_features: bool = False
    questions: Transformer | None = None
    pretrained: str | None = None

    def module(self, unroll: bool = False) -> CaptionerNetwork:
        """The Linen module; with `unroll`, its decoder's layers are not scanned, as a cache needs."""
        # Positions of patches are the vision encoder's own table.
        vision = dataclasses.replace(self.vision, causal=False, cross_attention=False, positions="none")
        questions = self.questions
        if questions is not None:
            questions = dataclasses.replace(questions, causal=False, cross_attention=True)
        return CaptionerNetwork(
            filled(self, "vocab_size"),
            vision,
            self.unrolled_decoder(unroll),
            self.patch_size,
            self.patch_bias,
            self.embedding_norm,
            self.head_transform,
            self.project_features,
            questions,
            jnp.dtype(self.compute_dtype),
        )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the rows are longer than the decoder's positions serve, or patches do not divide the pictures.
        """
        length = batch["tokens"].shape[1] - 1
        self._check_length(length)
        if self.questions is not None:
            self.questions.check_length(length, "the questions take", "model.questions")
        one = batch["tokens"][:1, :1]
        inputs = (batch["x"][:1], one, None, *(() if self.questions is None else (one, jnp.ones((1, 1), bool))))
        params = self.module().init(key, *inputs)["params"]
        return self.start(jax.random.fold_in(key, 1), params)

    def _logits(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Array:
        # Padding is at the end of rows, where no token that counts sees it.
        apply = functools.partial(self.module().apply, {"params": self.merged_params(params)}, batch["x"])
        tokens = batch["tokens"]
        if self.questions is None:
            return apply(tokens[:, :-1], dropout_keys)
        questions, lengths = self.prompts_of(batch)
        places, first = jnp.arange(questions.shape[1])[None], lengths[:, None] - 1
        # The answer begins where the question ends, with the start token.
        answers = jnp.take_along_axis(tokens, jnp.minimum(first + places, places.shape[1]), axis=1)
        answers = jnp.where(places == 0, filled(self, "start_token"), answers)
        logits = apply(answers, dropout_keys, questions, places <= first)
        return jnp.take_along_axis(logits, jnp.maximum(places - first, 0)[..., None], axis=1)

    def description_decoder(self, state: TrainState, x: Array) -> decoding.Decoder:
        return self._decoder(state, x)

    def reader(
        self, state: TrainState, x: Array | None, prompts: Array, lengths: Array | None
    ) -> tuple[decoding.Decoder, Array, Array | None]:
        if self.questions is None:
            return self._decoder(state, x), prompts, lengths
        lengths = jnp.full((len(prompts),), prompts.shape[1]) if lengths is None else lengths
        mask = jnp.arange(prompts.shape[1])[None] < lengths[:, None]
        return self._decoder(state, x, prompts, mask), self._starts(len(prompts)), None

    def _decoder(
        self, state: TrainState, x: Array, question: Array | None = None, mask: Array | None = None
    ) -> decoding.Decoder:
        self.check_condition(x)
        params = self.merged_params(state.eval_params)
        params = {**params, "stack": unrolled(params["stack"], self.decoder)}
        weights = {"params": params, "x": x, "question": question, "mask": mask}
        return decoding.of_weights(self._decoder_of, weights)

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        module, params, x = self.module(unroll=True), weights["params"], weights["x"]
        question, mask = weights["question"], weights["mask"]

        def encode() -> Array:
            return module.apply({"params": params}, x, None, question, mask, method="encode")

        def decode(tokens: Array, context: Array | None, cache: Cache) -> tuple[Array, StackOutput]:
            return module.apply({"params": params}, tokens, context, cache, method="decode")

        options = {"what": self._takers, "name": "model.decoder", "dtype": jnp.dtype(self.compute_dtype)}
        return decoding.context_decoder(self.decoder_network, encode, decode, context_mask=mask, **options)
