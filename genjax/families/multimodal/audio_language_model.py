"""A language model that hears: features of sound, mapped to its width, stand before its text.

    h = encoder(x),   c = W_2 gelu(W_1 [h_ki, .., h_ki+k-1]),   p(y_t | y_<t, x) = LM(c_1 .. c_N, y_0 .. y_t-1)

The encoder is Whisper's (audio_encoder.py), the projector of one or two layers is LLaVA's (Liu et al. 2023,
arXiv:2310.03744, section 3.3), and k features in a row become one place of the text, as in SLAM-ASR (Ma et al. 2024,
arXiv:2402.08846, section 3.1).  The parameters of the language model are called as in a GPT, so that training may start
from one: --training.init_from=RUN --training.init_prefix=embedding,stack.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError, filled
from genjax.families.language.gpt import LanguageModel
from genjax.families.language.networks import llama_network
from genjax.families.multimodal.audio_encoder import AudioEncoder, FixedPlaces, audio_network, half_length
from genjax.families.multimodal.describer import Describer
from genjax.nn.dropout import fold_in
from genjax.nn.transformer import Cache, StackOutput, Transformer


class AudioLanguageNetwork(LanguageModel, kw_only=True):
    """A language model with the encoder of sound and the projector."""

    encoder: Transformer
    frames_per_token: int
    projector_layers: int

    def setup(self) -> None:
        super().setup()
        self.audio_encoder = AudioEncoder(self.encoder, self.dtype)
        # Under one name, so that `frozen` can say "projector".
        self.projector = nn.Sequential(
            [
                nn.Dense(self.config.width, dtype=self.dtype),
                *(
                    layer
                    for _ in range(self.projector_layers - 1)
                    for layer in (
                        lambda h: jax.nn.gelu(h, approximate=False),
                        nn.Dense(self.config.width, dtype=self.dtype),
                    )
                ),
            ]
        )

    def encode(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Log-mel features [B, F, M] -> what stands before the text, [B, N, C]."""
        h, k = self.audio_encoder(x, fold_in(dropout_keys, 10)), self.frames_per_token
        h = jnp.pad(h, ((0, 0), (0, -h.shape[1] % k), (0, 0)))
        return self.projector(h.reshape(h.shape[0], h.shape[1] // k, k * h.shape[2]))

    def decode(
        self, tokens: Array, context: Array | None, cache: Cache | None = None, dropout_keys: Array | None = None
    ) -> tuple[Array, StackOutput]:
        """tokens [B, T], behind the context if there is one -> float32 logits [B, T, V] and the stack's output."""
        if context is None:
            before = 0
            x = self.embedding(tokens, start=None if cache is None else cache.length)
        else:
            before = context.shape[1]
            if self.config.positions == "learned":
                context = context + self.embedding.position(jnp.arange(before))[None].astype(context.dtype)
            behind = self.embedding(tokens, positions=before + jnp.arange(tokens.shape[1])[None])
            x = jnp.concatenate([context, behind], axis=1)
        out = self.stack(x, cache=cache, dropout_keys=fold_in(dropout_keys, 11))
        out = out._replace(x=out.x[:, before:])
        return (self.embedding.logits(out.x) if self.tie_embeddings else self.head(out.x)), out

    def __call__(self, x: Array, tokens: Array, dropout_keys: Array | None = None) -> Array:
        """Logits after each of `tokens` [B, T], float32 [B, T, V]."""
        return self.decode(tokens, self.encode(x, dropout_keys), dropout_keys=dropout_keys)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioLanguageModel(FixedPlaces, Describer):
    """A language model that hears.

    Attributes:
      encoder: the sound's stack.
      decoder: the language model's stack.
      frames_per_token: number k of the encoder's features that become one place before the text.
      projector_layers: linear maps of the projector.
      tie_embeddings: whether logits are products with the token embeddings.
    """

    what: ClassVar[str] = "log-mel features of sound"

    encoder: Transformer = audio_network()
    decoder: Transformer = llama_network(8, 512, 8)
    frames_per_token: int = 4
    projector_layers: Literal[1, 2] = 2
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.frames_per_token < 1:
            raise UserError(f"model.frames_per_token={self.frames_per_token} must be at least 1")
        if self.decoder.positions == "sinusoidal":
            raise UserError("model.decoder.positions=sinusoidal has no places for sound; take rotary or learned ones")

    @property
    def decoder_network(self) -> Transformer:
        """The language model's stack, which attends to nothing but its own sequence."""
        return dataclasses.replace(self.decoder, causal=True, cross_attention=False)

    @property
    def num_before(self) -> int:
        """Number of places that the sound takes before the text."""
        return -(-half_length(filled(self, "data_shape")[0]) // self.frames_per_token)

    def module(self, unroll: bool = False) -> AudioLanguageNetwork:
        # Places of the sound are the encoder's own table.
        encoder = dataclasses.replace(self.encoder, causal=False, cross_attention=False, positions="none")
        return AudioLanguageNetwork(
            vocab_size=filled(self, "vocab_size"),
            config=self.unrolled_decoder(unroll),
            tie_embeddings=self.tie_embeddings,
            encoder=encoder,
            frames_per_token=self.frames_per_token,
            projector_layers=self.projector_layers,
            dtype=jnp.dtype(self.compute_dtype),
        )
