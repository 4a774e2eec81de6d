"""CLIP: pictures and texts in one space, by contrast (Radford et al. 2021, arXiv:2103.00020).

    u = normalize(W_x picture(x)),  v = normalize(W_t text(t)),   logits = exp(s) u v^T
    loss = (cross-entropy of the rows + cross-entropy of the columns) / 2,   the partner being the right answer

A batch has `x` [B, H, W, C] and `tokens` [B, T] (with `mask`); the other examples of the batch are the negatives, on
all devices and in all microbatches, except examples with the same text or the same picture, which are right answers
too.  exp(s) is kept at 100 or below (section 2.5).  The network is used in other models (retrieval, guidance,
captions), and has no samples of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics
from genjax.errors import filled
from genjax.families.multimodal.checkpoints import CLIP_ARCHITECTURE
from genjax.families.multimodal.contrast import PairEncoders, ending_at, normalized
from genjax.families.multimodal.networks import clip_network
from genjax.interop.architecture import Architecture
from genjax.model import TrainState
from genjax.nn.contrast import partner_scores
from genjax.nn.dropout import fold_in
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.tokens import logits_product
from genjax.nn.transformer import TokenEmbedding, Transformer, TransformerStack
from genjax.nn.vision_transformer import VisionTransformer


class CLIPNetwork(nn.Module):
    """Both encoders, their projections, and the logarithm s of the factor on the similarities."""

    vocab_size: int
    text: Transformer
    vision: Transformer
    patch_size: int
    embedding_dim: int
    end_token: int | None
    logit_scale: float
    dtype: Any = jnp.float32

    has_class_token: ClassVar[bool] = True

    def setup(self) -> None:
        def projection(config: Transformer) -> nn.Dense:
            options = {"kernel_init": nn.initializers.normal(config.width**-0.5), "dot_general": logits_product}
            return nn.Dense(self.embedding_dim, use_bias=False, dtype=self.dtype, **options)

        self.text_embedding = TokenEmbedding(self.vocab_size, self.text, dtype=self.dtype, config_name="model.text")
        refuse_experts(self.text.experts)
        self.text_stack = TransformerStack(self.text, self.dtype)
        self.text_projection = projection(self.text)
        self.vision_encoder = VisionTransformer(self.vision, self.patch_size, input_norm=True, dtype=self.dtype)
        self.vision_projection = projection(self.vision)
        self.scale = self.param("logit_scale", nn.initializers.constant(self.logit_scale), ())

    def text_features(self, tokens: Array, mask: Array | None = None, dropout_keys: Array | None = None) -> Array:
        """tokens [B, T] -> features of every place [B, T, C]."""
        return self.text_stack(self.text_embedding(tokens), key_mask=mask, dropout_keys=dropout_keys).x

    def image_features(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, H, W, C] -> features of the class token and the patches [B, 1 + N, C]."""
        return self.vision_encoder(x, dropout_keys)

    def encode_text(self, tokens: Array, mask: Array | None = None, dropout_keys: Array | None = None) -> Array:
        """tokens [B, T] -> [B, D] of length 1, from the features at the end token."""
        hidden = self.text_features(tokens, mask, dropout_keys)
        place = (tokens if self.end_token is None else tokens == self.end_token).argmax(1)
        pooled = jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]
        return normalized(self.text_projection(pooled))

    def encode_image(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, H, W, C] -> [B, D] of length 1."""
        return normalized(self.vision_projection(self.image_features(x, dropout_keys)[:, 0]))

    def __call__(
        self, x: Array, tokens: Array, mask: Array | None = None, dropout_keys: Array | None = None
    ) -> tuple[Array, Array]:
        """Embeddings of the pictures times the factor, and of the texts, float32 [B, D] each."""
        image = self.encode_image(x, fold_in(dropout_keys, 0))
        return jnp.exp(self.scale) * image, self.encode_text(tokens, mask, fold_in(dropout_keys, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIP(PairEncoders):
    """Contrastive encoders of pictures and texts.

    Attributes:
      end_token: a text's features come from its first end token; None for the largest token (in the published
        vocabulary, the last).
      text: the text's stack, made causal.
      vision: the pictures' stack.
      patch_size: height and width of a patch.
      embedding_dim: number of features of the common space.
      logit_scale: initial logarithm s of the factor on similarities.
    """

    architectures: ClassVar[tuple[Architecture, ...]] = (CLIP_ARCHITECTURE,)

    end_token: int | None = None
    text: Transformer = clip_network()
    vision: Transformer = clip_network(width=768, num_heads=12)
    patch_size: int = 32
    embedding_dim: int = 512
    logit_scale: float = 2.6592

    def module(self) -> CLIPNetwork:
        """The Linen module."""
        vocab_size, _ = filled(self, "vocab_size", "data_shape")
        # Positions of patches are the vision encoder's own table.
        return CLIPNetwork(
            vocab_size,
            dataclasses.replace(self.text, causal=True),
            dataclasses.replace(self.vision, causal=False, positions="none"),
            self.patch_size,
            self.embedding_dim,
            self.end_token,
            self.logit_scale,
            jnp.dtype(self.compute_dtype),
        )

    def with_layer(self, layer: int, final_norm: bool) -> CLIP:
        """The model whose encoders end after a block: -1 is the last, -2 the one before."""
        return dataclasses.replace(
            self, text=ending_at(self.text, layer, final_norm), vision=ending_at(self.vision, layer, final_norm)
        )

    def pair_scores(self, embeddings: tuple[Array, Array], excluded: Array) -> tuple[Array, Array]:
        image, text = embeddings
        logits = image @ text.T
        (text_nll, found), (image_nll, _) = partner_scores(logits, excluded), partner_scores(logits.T, excluded)
        return 0.5 * (text_nll + image_nll), found

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, retrieval_accuracy."""
        state, metrics = super().train_step(state, batch, key)
        scale = jnp.minimum(state.params["logit_scale"], math.log(100.0))
        return state.replace(params={**state.params, "logit_scale": scale}), metrics
