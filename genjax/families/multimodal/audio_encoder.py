"""The encoder of sound of Whisper (Radford et al. 2022, arXiv:2212.04356, section 2.2, figure 1).

h = gelu(conv_2(gelu(conv_1(x)))),   y = norm(blocks(h + sinusoids)),   conv_2 takes every second frame
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError
from genjax.fine_tuning import FineTuned
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import Transformer, TransformerStack


def audio_network(num_layers: int = 4, width: int = 384, num_heads: int = 6, **changes: Any) -> Transformer:
    """A stack of Whisper, by default one of the tiny one: pre-norm, exact GELU, keys without bias."""
    settings = {"activation": "gelu", "key_bias": False, "scale_residual_init": False, "max_length": 448, **changes}
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, **settings)


def half_length(num_frames: int) -> int:
    """Number of features that `num_frames` frames become."""
    return -(-num_frames // 2)


def places(length: int, width: int) -> np.ndarray:
    """Whisper's sinusoids float32 [length, width]: as published first, but the lowest frequency is exactly 1e-4.

    Raises:
      UserError: the width is odd, or below 4.
    """
    if width % 2 or width < 4:
        raise UserError(f"sinusoidal places need an even width of at least 4, and the width is {width}")
    frequencies = np.exp(-np.log(10000.0) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class FixedPlaces(FineTuned):
    """Mixin of a model with an `AudioEncoder` of the name audio_encoder: its places are never trained."""

    @property
    def _partial(self) -> bool:
        return True

    def _trained(self, path: str) -> bool:
        return path != "audio_encoder/places" and super()._trained(path)


class AudioEncoder(nn.Module):
    """Two convolutions over time, fixed places and a stack.

    The places are a parameter, since checkpoints have them, and never change.

    Attributes:
      config: the stack.
      dtype: compute type; parameters stay float32.
    """

    config: Transformer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Log-mel features [B, F, M] -> features [B, F / 2, width]."""
        width = self.config.width
        convolution = lambda name, stride: nn.Conv(width, (3,), stride, [(1, 1)], dtype=self.dtype, name=name)
        x = jax.nn.gelu(convolution("first", 1)(x.astype(self.dtype)), approximate=False)
        x = jax.nn.gelu(convolution("second", 2)(x), approximate=False)
        table = self.param("places", lambda key, shape: jnp.asarray(places(*shape)), x.shape[1:])
        refuse_experts(self.config.experts)
        x = x + jax.lax.stop_gradient(table).astype(self.dtype)[None]
        return TransformerStack(self.config, self.dtype, name="stack")(x, dropout_keys=dropout_keys).x
