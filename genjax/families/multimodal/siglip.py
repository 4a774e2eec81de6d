"""SigLIP: each pair of a picture and a text of a batch is a yes or a no (Zhai et al. 2023, arXiv:2303.15343, alg. 1).

    z_ij = e^t u_i v_j + b,   loss = -1/B sum_ij log sigmoid(y_ij z_ij),   y_ij = 1 for the partner, else -1

with t = log 10 and b = -10 at the start, as nearly all pairs are no.  Pictures are pooled by attention of one probe,
texts by their last place, both without a causal mask.  A pair of equal texts or pictures is neither yes nor no.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import filled
from genjax.families.multimodal.contrast import PairEncoders, ending_at, normalized
from genjax.families.multimodal.networks import siglip_network
from genjax.families.multimodal.siglip_checkpoints import SIGLIP_ARCHITECTURE
from genjax.interop.architecture import Architecture
from genjax.nn.dropout import fold_in
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.tokens import logits_product
from genjax.nn.transformer import TokenEmbedding, Transformer, TransformerStack
from genjax.nn.vision_transformer import AttentionPooling, VisionTransformer


class SigLIPNetwork(nn.Module):
    """Both encoders, the text's projection, and the factor and the summand of the logits."""

    vocab_size: int
    text: Transformer
    vision: Transformer
    patch_size: int
    logit_scale: float
    logit_bias: float
    dtype: Any = jnp.float32

    has_class_token: ClassVar[bool] = False

    def setup(self) -> None:
        self.text_embedding = TokenEmbedding(self.vocab_size, self.text, dtype=self.dtype, config_name="model.text")
        refuse_experts(self.text.experts)
        self.text_stack = TransformerStack(self.text, self.dtype)
        options = {"kernel_init": nn.initializers.normal(self.text.width**-0.5), "dot_general": logits_product}
        self.text_projection = nn.Dense(self.vision.width, dtype=self.dtype, **options)
        self.vision_encoder = VisionTransformer(
            self.vision, self.patch_size, class_token=False, patch_bias=True, dtype=self.dtype
        )
        self.vision_pooling = AttentionPooling(self.vision, self.dtype)
        self.scale = self.param("logit_scale", nn.initializers.constant(self.logit_scale), ())
        self.bias = self.param("logit_bias", nn.initializers.constant(self.logit_bias), ())

    def text_features(self, tokens: Array, mask: Array | None = None, dropout_keys: Array | None = None) -> Array:
        """tokens [B, T] -> features of every place [B, T, C]; padding is read, as SigLIP was trained."""
        del mask
        return self.text_stack(self.text_embedding(tokens), dropout_keys=dropout_keys).x

    def image_features(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, H, W, C] -> features of every patch [B, N, C]."""
        return self.vision_encoder(x, dropout_keys)

    def encode_text(self, tokens: Array, mask: Array | None = None, dropout_keys: Array | None = None) -> Array:
        """tokens [B, T] -> [B, D] of length 1, from the features at the last place."""
        return normalized(self.text_projection(self.text_features(tokens, mask, dropout_keys)[:, -1]))

    def encode_image(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, H, W, C] -> [B, D] of length 1."""
        return normalized(self.vision_pooling(self.image_features(x, dropout_keys)))

    def __call__(
        self, x: Array, tokens: Array, mask: Array | None = None, dropout_keys: Array | None = None
    ) -> tuple[Array, Array]:
        """Embeddings of pictures and texts, float32 [B, D + 1] each, whose products are the logits."""
        image = jnp.exp(self.scale) * self.encode_image(x, fold_in(dropout_keys, 0))
        text = self.encode_text(tokens, mask, fold_in(dropout_keys, 1))
        # One feature more adds the summand to every product.
        bias = jnp.broadcast_to(self.bias, (image.shape[0], 1))
        return jnp.concatenate([image, bias], 1), jnp.concatenate([text, jnp.ones_like(text[:, :1])], 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIP(PairEncoders):
    """Encoders of pictures and texts, trained by a sigmoid of each pair.

    Attributes:
      text: the text's stack.
      vision: the pictures' stack, whose width is that of the common space.
      patch_size: height and width of a patch.
      logit_scale: initial logarithm t of the factor on similarities.
      logit_bias: initial summand b of the logits.
    """

    architectures: ClassVar[tuple[Architecture, ...]] = (SIGLIP_ARCHITECTURE,)

    text: Transformer = siglip_network()
    vision: Transformer = siglip_network()
    patch_size: int = 16
    logit_scale: float = math.log(10.0)
    logit_bias: float = -10.0

    def module(self) -> SigLIPNetwork:
        """The Linen module."""
        vocab_size, _ = filled(self, "vocab_size", "data_shape")
        return SigLIPNetwork(
            vocab_size,
            dataclasses.replace(self.text, causal=False),
            dataclasses.replace(self.vision, causal=False, positions="none"),
            self.patch_size,
            self.logit_scale,
            self.logit_bias,
            jnp.dtype(self.compute_dtype),
        )

    def with_layer(self, layer: int, final_norm: bool) -> SigLIP:
        """The model whose encoders end after a block: -1 is the last, -2 the one before."""
        return dataclasses.replace(
            self, text=ending_at(self.text, layer, final_norm), vision=ending_at(self.vision, layer, final_norm)
        )

    def pair_scores(self, embeddings: tuple[Array, Array], excluded: Array) -> tuple[Array, Array]:
        image, text = embeddings
        logits = image @ text.T
        own = jnp.eye(len(logits), dtype=bool)
        counts = own | ~excluded
        losses = -jax.nn.log_sigmoid(jnp.where(own, logits, -logits))
        best = jnp.where(counts, logits, -jnp.inf).argmax(1)
        found = (best == jnp.arange(len(logits))).astype(jnp.float32)
        return jnp.where(counts, losses, 0.0).sum(1), found
