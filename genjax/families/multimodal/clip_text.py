"""The text encoder of CLIP alone, as diffusion models use it (Radford et al. 2021, arXiv:2103.00020, section 2.4).

    h_0 = embedding(t),  h_i = block_i(h_(i-1)),  causal;   context = h_(n - skipped), with or without the final norm
    pooled = W norm(h_n) at the end token

Stable Diffusion 1 takes norm(h_n) of 77 places without a mask: the places after the text are end tokens, which the
model was trained to see.  Stable Diffusion 2 stores its encoder without the last block; SDXL takes h_(n-1) of two
encoders without the norm, and the pooled vector of the second.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, PyTree
from genjax.errors import UserError, filled
from genjax.families.multimodal.checkpoints import CLIP_TEXT
from genjax.families.multimodal.networks import clip_network
from genjax.interop.architecture import Architecture
from genjax.model import TrainState
from genjax.nn.transformer import TokenEmbedding, Transformer, TransformerStack
from genjax.optimizers import Adam, Optimizer


class _TextNetwork(nn.Module):
    """Tokens [B, T] to normalised features [B, T, C], and their projection at the end token [B, D] if there is one."""

    vocab_size: int
    network: Transformer
    end_token: int | None
    projection_dim: int | None
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array | None]:
        embedding = TokenEmbedding(
            self.vocab_size, self.network, dtype=self.dtype, config_name="text", name="text_embedding"
        )
        hidden = TransformerStack(self.network, self.dtype, name="text_stack")(embedding(tokens)).x
        if self.projection_dim is None:
            return hidden, None
        place = (tokens if self.end_token is None else tokens == self.end_token).argmax(1)
        pooled = jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]
        return hidden, nn.Dense(self.projection_dim, use_bias=False, dtype=self.dtype, name="text_projection")(pooled)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """Encoder of texts of `network.max_length` tokens.

    Attributes:
      vocab_size: number of tokens; None takes the data set's.
      end_token: the pooled vector is of the first end token; None for the largest token.
      network: the stack, made causal.
      skipped: number of last blocks whose work the context does not see.
      final_norm: whether the context is normalised.
      projection_dim: length of the pooled vector, or None for none.
      optimizer: not used: the encoder is part of other models.
    """

    architectures: ClassVar[tuple[Architecture, ...]] = (CLIP_TEXT,)

    vocab_size: int | None = 49408
    end_token: int | None = None
    network: Transformer = clip_network(width=768, num_heads=12)
    skipped: int = 0
    final_norm: bool = True
    projection_dim: int | None = None
    optimizer: Optimizer = Adam()

    def module(self) -> _TextNetwork:
        """The Linen module."""
        network = dataclasses.replace(self.network, causal=True)
        return _TextNetwork(filled(self, "vocab_size"), network, self.end_token, self.projection_dim, jnp.float32)

    def init(self, key: Array, batch: dict[str, Array]) -> TrainState:
        """A state with new parameters; `batch` has tokens [B, T]."""
        return TrainState.create(self.module().init(key, batch["tokens"][:1])["params"])

    def encode(self, params: PyTree, tokens: Array) -> tuple[Array, Array | None]:
        """Context [B, T, C] and pooled vector [B, D] (or None) of tokens [B, T], float32.

        Raises:
          UserError: more blocks are to be skipped than there are.
        """
        last = self.network.num_layers - 1 - self.skipped
        if last < 0:
            raise UserError(
                f"skipped={self.skipped} leaves none of the {self.network.num_layers} blocks of a text encoder"
            )
        captured = lambda module, _: module.name == f"layer_{last}"
        (hidden, pooled), kept = self.module().apply(
            {"params": params}, tokens, capture_intermediates=captured, mutable=["intermediates"]
        )
        if self.skipped or not self.final_norm:
            hidden = kept["intermediates"]["text_stack"][f"layer_{last}"]["__call__"][0][0]
            if self.final_norm:
                norm = nn.LayerNorm(epsilon=self.network.norm_epsilon, use_fast_variance=False)
                hidden = norm.apply({"params": params["text_stack"]["final_norm"]}, hidden)
        return hidden, pooled
