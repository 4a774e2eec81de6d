"""Whisper: speech to text (Radford et al. 2022, arXiv:2212.04356).

An encoder of log-mel features (audio_encoder.py) before a decoder of text with learned positions; both are pre-norm.  A
batch has features `x` [B, F, M] of clips, F frames of M mel bands as `genjax.data.log_mel` makes them, and texts as in
describer.py.  What the published models shall do (language, task, time stamps) are tokens before the text: `prompts`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError, filled
from genjax.families.multimodal.audio_encoder import AudioEncoder, FixedPlaces, audio_network
from genjax.families.multimodal.describer import Describer, DescriberNetwork
from genjax.families.multimodal.whisper_checkpoints import WHISPER_ARCHITECTURE
from genjax.interop.huggingface import FromPretrained
from genjax.nn.dropout import fold_in
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW, Linear, Optimizer


class WhisperNetwork(DescriberNetwork, kw_only=True):
    """The encoder of sound, and the decoder with its token embeddings, which give the logits too."""

    encoder: Transformer

    def setup(self) -> None:
        super().setup()
        self.audio_encoder = AudioEncoder(self.encoder, self.dtype)

    def encode(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Log-mel features [B, F, M] -> features [B, F / 2, C]."""
        return self.audio_encoder(x, fold_in(dropout_keys, 10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whisper(FromPretrained, FixedPlaces, Describer):
    """A model that writes down what is said.

    Attributes:
      encoder: the sound's stack.
      decoder: the text's stack, with the encoder's width; it is made causal and attends to the encoder's features.
      pretrained: folder of a checkpoint of the library transformers to start from, which then gives the sizes, or None.
    """

    architectures = (WHISPER_ARCHITECTURE,)
    what: ClassVar[str] = "log-mel features of sound"

    encoder: Transformer = audio_network()
    decoder: Transformer = audio_network()
    pretrained: str | None = None
    optimizer: Optimizer = AdamW(
        learning_rate=1.5e-3, b2=0.98, eps=1e-6, weight_decay=0.1, clip_norm=1.0, schedule=Linear(warmup_steps=2048)
    )

    def module(self, unroll: bool = False) -> WhisperNetwork:
        if self.decoder.width != self.encoder.width:
            raise UserError(
                f"model.decoder.width={self.decoder.width} must equal model.encoder.width={self.encoder.width}"
            )
        # Places of the sound are the encoder's own table.
        encoder = dataclasses.replace(self.encoder, causal=False, cross_attention=False, positions="none")
        return WhisperNetwork(
            vocab_size=filled(self, "vocab_size"),
            decoder=self.unrolled_decoder(unroll),
            encoder=encoder,
            dtype=jnp.dtype(self.compute_dtype),
        )
