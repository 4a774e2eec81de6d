"""The part of a diffusion model that reads prompts: a transformer, trained with the model or taken from a CLIP.

    context = stack(embedding(tokens)) [B, T, C],    which the network attends to

A caption that is dropped in training, and what guidance leads away from, is the empty prompt, encoded like any other
(Rombach et al. 2022, arXiv:2112.10752; Ho & Salimans 2022).  Stable Diffusion 1 reads all places of the text encoder of
CLIP, padding included; PixArt and Imagen (Saharia et al. 2022, arXiv:2205.11487) hide padding.

The parameters are called as in `genjax.families.multimodal.clip.CLIP`, so that a model takes the encoder of a CLIP run
by --training.init_from=RUN --training.init_prefix=text_embedding,text_stack.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, PyTree
from genjax.errors import UserError
from genjax.nn.transformer import TokenEmbedding, Transformer, TransformerStack

#: Names of the encoder's parameters beside the network's.
TEXT_PARTS = ("text_embedding", "text_stack")


class CaptionNetwork(nn.Module):
    """Token embeddings and a stack: tokens [B, T] -> features [B, T, C]."""

    vocab_size: int
    stack: Transformer
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.text_embedding = TokenEmbedding(
            self.vocab_size, self.stack, dtype=self.dtype, config_name="model.text.stack"
        )
        self.text_stack = TransformerStack(self.stack, self.dtype)

    def __call__(self, tokens: Array, mask: Array | None = None, dropout_keys: Array | None = None) -> Array:
        return self.text_stack(self.text_embedding(tokens), key_mask=mask, dropout_keys=dropout_keys).x


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionEncoder:
    """How a diffusion model reads prompts.

    Attributes:
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: tokens of a prompt with its start and end; None takes the data set's.
      start_token: token before a prompt; None takes the data set's.
      end_token: token behind a prompt; None takes the data set's.
      padding_token: token that fills the rest; None takes the data set's.
      stack: the transformer.
      hide_padding: whether neither the encoder nor the network sees padding; Stable Diffusion's do.
      pooled: whether the network also gets the features at the end token, as its condition `vector`.
      skip_layers: number of last blocks that are left out (1 gives the features before the last block).
      frozen: whether the encoder stays as it starts.
    """

    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | None = None
    padding_token: int | None = None
    stack: Transformer = Transformer(num_layers=2, width=128, num_heads=4, causal=False, max_length=77)
    hide_padding: bool = True
    pooled: bool = False
    skip_layers: int = 0
    frozen: bool = False

    def module(self, dtype: Any = jnp.float32) -> CaptionNetwork:
        """The Linen module.

        Raises:
          UserError: sizes are missing, or no block is left.
        """
        if self.vocab_size is None or self.sequence_length is None or self.end_token is None:
            raise UserError(
                "a model that reads text needs data with captions, which give vocab_size, sequence_length and "
                "end_token of model.text: choose --data=pairs"
            )
        if not 0 <= self.skip_layers < self.stack.num_layers:
            raise UserError(
                f"model.text.skip_layers={self.skip_layers} leaves none of the {self.stack.num_layers} blocks of the "
                "stack"
            )
        stack = dataclasses.replace(self.stack, num_layers=self.stack.num_layers - self.skip_layers)
        return CaptionNetwork(self.vocab_size, stack, dtype)

    def init(self, key: Array) -> PyTree:
        """New parameters."""
        return self.module().init(key, jnp.zeros((1, self.sequence_length), jnp.int32))["params"]

    def empty_prompt(self) -> tuple[Array, Array]:
        """The tokens of a prompt without words, int32 [T], and their mask, bool [T]."""
        start = [] if self.start_token is None else [self.start_token]
        given = [*start, self.end_token]
        padding = self.end_token if self.padding_token is None else self.padding_token
        tokens = given + [padding] * (self.sequence_length - len(given))
        return jnp.asarray(tokens, jnp.int32), jnp.arange(self.sequence_length) < len(given)

    def encode(self, params: PyTree, tokens: Array, mask: Array, dtype: Any = jnp.float32) -> dict[str, Array]:
        """The conditions of a network that prompts make.

        Args:
          params: parameters with TEXT_PARTS among them.
          tokens, mask: prompts [B, T].
          dtype: type to compute in.

        Returns:
          `context` [B, T, C]; with hide_padding `context_mask` [B, T]; with pooled `vector` [B, C].
        """
        own = {name: params[name] for name in TEXT_PARTS}
        own = jax.lax.stop_gradient(own) if self.frozen else own
        context = self.module(dtype).apply({"params": own}, tokens, mask if self.hide_padding else None)
        found = {"context": context.astype(jnp.float32)}
        if self.hide_padding:
            found["context_mask"] = mask
        if self.pooled:
            # The first end token, as padding may be more of them.
            end = (tokens == self.end_token).argmax(1)
            found["vector"] = jnp.take_along_axis(found["context"], end[:, None, None], axis=1)[:, 0]
        return found
