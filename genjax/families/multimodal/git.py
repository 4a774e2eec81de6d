"""GIT: one decoder that reads the features of a picture before its text (Wang et al. 2022, arXiv:2205.14100).

    h = norm(W encoder(x)),   [.., d_1 .. d_T] = decoder([h; y_1 .. y_T]),   p(y_t+1 | y_<=t, x) = softmax(V d_t + b)

The features see each other both ways and no text; a token sees all features and the tokens before it (section 3.2).
Features have no positions in the decoder, and the text's positions begin at 0.  A question is a prefix of the text
(section 3.4).  A batch is that of describing.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, PyTree
from genjax.errors import filled
from genjax.families.language.networks import bert_network
from genjax.families.multimodal.describer import Describer
from genjax.families.multimodal.git_checkpoints import GIT_ARCHITECTURE
from genjax.families.multimodal.networks import clip_network
from genjax.interop.architecture import Architecture
from genjax.interop.huggingface import FromPretrained
from genjax.nn.dropout import fold_in
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import Cache, OutputMap, StackOutput, TokenEmbedding, Transformer, TransformerStack
from genjax.nn.vision_transformer import VisionTransformer
from genjax.optimizers import AdamW, Cosine, Optimizer


class GITNetwork(nn.Module):
    """The picture encoder, its projection, and the decoder with its token embeddings and output map."""

    vocab_size: int
    vision: Transformer
    decoder: Transformer
    patch_size: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.vision_encoder = VisionTransformer(self.vision, self.patch_size, input_norm=True, dtype=self.dtype)
        self.feature_map = nn.Dense(self.decoder.width, dtype=self.dtype)
        epsilon = self.vision.norm_epsilon
        self.feature_norm = nn.LayerNorm(epsilon=epsilon, dtype=self.dtype, use_fast_variance=False)
        options = {"norm": True, "dtype": self.dtype, "config_name": "model.decoder"}
        self.embedding = TokenEmbedding(self.vocab_size, self.decoder, **options)
        refuse_experts(self.decoder.experts)
        self.stack = TransformerStack(self.decoder, self.dtype)
        self.head = OutputMap(self.vocab_size, self.decoder.init_std, self.dtype)
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (self.vocab_size,))

    def encode(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, H, W, C] -> features of the class token and the patches, [B, 1 + N, C']."""
        return self.feature_norm(self.feature_map(self.vision_encoder(x, fold_in(dropout_keys, 10))))

    def read(
        self,
        tokens: Array,
        features: Array | None,
        cache: Cache | None = None,
        dropout_keys: Array | None = None,
        num_features: int = 0,
    ) -> tuple[Array, StackOutput]:
        """tokens [B, T] -> float32 logits [B, T, V] and the stack's output.

        Args:
          tokens: the text, or what follows the text in the cache.
          features: of the picture [B, N, C], or None where they are in the cache.
          cache: the features and tokens so far.
          dropout_keys: one key an example, or None in evaluation.
          num_features: number of features in the cache.
        """
        start = None if cache is None else cache.length - num_features
        x, prefix, first = self.embedding(tokens, start=start), None, 0
        if features is not None:
            first = features.shape[1]
            x, prefix = jnp.concatenate([features, x], axis=1), jnp.full((len(tokens),), first)
        out = self.stack(x, prefix_lengths=prefix, cache=cache, dropout_keys=fold_in(dropout_keys, 11))
        return self.head(out.x[:, first:]) + self.head_bias[None, None], out

    def __call__(self, x: Array, tokens: Array, dropout_keys: Array | None = None) -> Array:
        """Logits after each of `tokens` [B, T], float32 [B, T, V]."""
        return self.read(tokens, self.encode(x, dropout_keys), None, dropout_keys)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GIT(FromPretrained, Describer):
    """A decoder that writes captions of pictures, or answers to questions about them, after their features.

    Attributes:
      vision: the pictures' stack.
      decoder: the text's stack, which reads the features too; it is made causal.
      patch_size: height and width of a patch.
      pretrained: folder of a GIT of the library transformers to start from, which then gives the sizes, or None.
    """

    flag_name: ClassVar[str] = "git"
    architectures: ClassVar[tuple[Architecture, ...]] = (GIT_ARCHITECTURE,)

    renamed: ClassVar[dict[str, str]] = {"network": "decoder"}

    vision: Transformer = clip_network(12, 768, 12)
    decoder: Transformer = bert_network(6, 768, 12, max_length=1024)
    patch_size: int = 16
    length_penalty: float = 0.6
    pretrained: str | None = None
    optimizer: Optimizer = AdamW(learning_rate=1e-4, weight_decay=0.05, schedule=Cosine(warmup_steps=500))

    @property
    def decoder_network(self) -> Transformer:
        return dataclasses.replace(self.decoder, causal=True, cross_attention=False)

    @property
    def features_per_picture(self) -> int:
        """Number of places that a picture takes in the decoder."""
        height, width, _ = filled(self, "data_shape")
        return 1 + (height // self.patch_size) * (width // self.patch_size)

    def module(self, unroll: bool = False) -> GITNetwork:
        """The Linen module; with `unroll`, its decoder's layers are not scanned, as a cache needs."""
        # Positions of patches are the vision encoder's own table.
        vision = dataclasses.replace(self.vision, causal=False, cross_attention=False, positions="none")
        dtype = jnp.dtype(self.compute_dtype)
        return GITNetwork(filled(self, "vocab_size"), vision, self.unrolled_decoder(unroll), self.patch_size, dtype)

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        module, params, x = self.module(unroll=True), weights["params"], weights["x"]
        count = self.features_per_picture

        def encode() -> Array:
            return module.apply({"params": params}, x, method="encode")

        def decode(tokens: Array, features: Array | None, cache: Cache) -> tuple[Array, StackOutput]:
            known = count if features is None else 0
            return module.apply({"params": params}, tokens, features, cache, None, known, method="read")

        options = {"what": self._takers, "name": "model.decoder", "dtype": jnp.dtype(self.compute_dtype)}
        return decoding.context_decoder(self.decoder_network, encode, decode, extra_places=count, **options)
