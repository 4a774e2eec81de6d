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
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, PyTree
from genjax.errors import filled
from genjax.families.language.networks import bert_network
from genjax.families.multimodal.describing import DescribesPictures
from genjax.families.multimodal.git_checkpoints import GIT_ARCHITECTURE
from genjax.families.multimodal.networks import clip_network
from genjax.interop.architecture import Architecture
from genjax.interop.huggingface import FromPretrained
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.lora import LoRA
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import Cache, OutputMap, StackOutput, TokenEmbedding, Transformer, TransformerStack, unrolled
from genjax.nn.vision_transformer import VisionTransformer
from genjax.optimizers import AdamW, Cosine, Optimizer


class GITNetwork(nn.Module):
    """The picture encoder, its projection, and the decoder with its token embeddings and output map."""

    vocab_size: int
    vision: Transformer
    network: Transformer
    patch_size: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.vision_encoder = VisionTransformer(self.vision, self.patch_size, input_norm=True, dtype=self.dtype)
        self.feature_map = nn.Dense(self.network.width, dtype=self.dtype)
        epsilon = self.vision.norm_epsilon
        self.feature_norm = nn.LayerNorm(epsilon=epsilon, dtype=self.dtype, use_fast_variance=False)
        self.embedding = TokenEmbedding(self.vocab_size, self.network, norm=True, dtype=self.dtype)
        refuse_experts(self.network.experts)
        self.stack = TransformerStack(self.network, self.dtype)
        self.head = OutputMap(self.vocab_size, self.network.init_std, self.dtype)
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
class GIT(FromPretrained, DescribesPictures):
    """A decoder that writes captions of pictures, or answers to questions about them, after their features.

    Attributes:
      data_shape: shape (H, W, C) of the pictures; None takes the data set's.
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: tokens T of a row with its start and end; None takes the data set's.
      start_token: what every row begins with; None takes the data set's.
      end_token: what ends captions and answers; None takes the data set's.
      vision: the pictures' stack.
      network: the decoder's stack; it is made causal.
      patch_size: height and width of a patch.
      max_new_tokens: tokens of the longest caption or answer that is written, its end included; None for
        sequence_length - 1.
      num_beams: number of hypotheses of `describe`.
      length_penalty: exponent of the length by which `describe` divides scores; larger values favour longer texts.
      label_smoothing: probability that the loss spreads over all tokens; not used in evaluation.
      sampling: how `sample` chooses tokens.
      lora: train low-rank updates of the linear maps and nothing else, or None.
      frozen: beginnings of the paths of parameters that are not trained, such as vision_encoder.
      pretrained: folder of a GIT of the library transformers to start from, which then gives the sizes, or None.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    flag_name: ClassVar[str] = "git"
    architectures: ClassVar[tuple[Architecture, ...]] = (GIT_ARCHITECTURE,)

    data_shape: tuple[int, ...] | None = None
    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | None = None
    vision: Transformer = clip_network(12, 768, 12)
    network: Transformer = bert_network(6, 768, 12, max_length=1024)
    patch_size: int = 16
    max_new_tokens: int | None = None
    num_beams: int = 4
    length_penalty: float = 0.6
    label_smoothing: float = 0.0
    sampling: decoding.Sampling = decoding.Sampling()
    lora: LoRA | None = None
    frozen: tuple[str, ...] = ()
    pretrained: str | None = None
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = AdamW(learning_rate=1e-4, weight_decay=0.05, schedule=Cosine(warmup_steps=500))

    @property
    def features_per_picture(self) -> int:
        """Number of places that a picture takes in the decoder."""
        height, width, _ = filled(self, "data_shape")
        return 1 + (height // self.patch_size) * (width // self.patch_size)

    def module(self, unroll: bool = False) -> GITNetwork:
        """The Linen module; with `unroll`, its decoder's layers are not scanned, as a cache needs."""
        network = dataclasses.replace(self.network, causal=True, cross_attention=False)
        if unroll:
            network = dataclasses.replace(network, scan_layers=False, remat=False)
        # Positions of patches are the vision encoder's own table.
        vision = dataclasses.replace(self.vision, causal=False, cross_attention=False, positions="none")
        dtype = jnp.dtype(self.compute_dtype)
        return GITNetwork(filled(self, "vocab_size"), vision, network, self.patch_size, dtype)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the rows are longer than the decoder's positions serve, or patches do not divide the pictures.
        """
        self.network.check_length(batch["tokens"].shape[1] - 1, "the texts take", "model.network")
        params = self.module().init(key, batch["x"][:1], batch["tokens"][:1, :1])["params"]
        return self.start(jax.random.fold_in(key, 1), params)

    def _logits(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Array:
        # Padding is at the end of rows, where no token that counts sees it.
        inputs = (batch["x"], batch["tokens"][:, :-1], dropout_keys)
        return self.module().apply({"params": self.merged_params(params)}, *inputs)

    def description_decoder(self, state: TrainState, x: Array) -> decoding.Decoder:
        self.check_condition(x)
        params = self.merged_params(state.eval_params)
        params = {**params, "stack": unrolled(params["stack"], self.network)}
        return decoding.of_weights(self._decoder_of, {"params": params, "x": x})

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        module, params, x = self.module(unroll=True), weights["params"], weights["x"]
        count = self.features_per_picture

        def encode() -> Array:
            return module.apply({"params": params}, x, method="encode")

        def decode(tokens: Array, features: Array | None, cache: Cache) -> tuple[Array, StackOutput]:
            known = count if features is None else 0
            return module.apply({"params": params}, tokens, features, cache, None, known, method="read")

        options = {"what": "the texts take", "name": "model.network", "dtype": jnp.dtype(self.compute_dtype)}
        return decoding.context_decoder(self.network, encode, decode, extra_places=count, **options)
