"""Decoders whose memory begins with something that is not text: features that are encoded once, then only remembered.

The first call of `extend` reads the features; what it leaves in the cache (keys and values of the features, or of the
places that they took) serves all later calls.  So the first call must read the whole beginning of the text, as
`prefill` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, PyTree
from genjax.decoding.base import Decoder, Step
from genjax.decoding.beam import beam_search
from genjax.decoding.generate import generate
from genjax.decoding.sampling import Sampling
from genjax.nn.transformer import Transformer


def context_decoder(
    network: Transformer,
    encode: Callable[[], PyTree],
    decode: Callable[[Array, PyTree | None, Any], tuple[Array, Any]],
    *,
    what: str,
    name: str,
    dtype: Any = jnp.float32,
    context_mask: Array | None = None,
    extra_places: int = 0,
    extra_positions: int = 0,
) -> Decoder:
    """The decoder of a transformer that reads features before, or beside, its text.

    Args:
      network: the decoder's stack, with layers that are not scanned.
      encode: makes the features, with a row for each row of text.
      decode: (tokens [B, K], features or None, cache) -> (logits [B, K, V], the stack's output); None after the first
        call.
      what: subject and verb of the message about a text that is too long, as in "the targets take".
      name: of the stack's settings, as in "model.decoder".
      dtype: type of the cache.
      context_mask: True where features that cross-attention reads are no padding, [B, S], or None.
      extra_places: number of places of the cache that features take beside the text's.
      extra_positions: number of these places that are positions too, and stand before the text's positions.
    """

    def init(batch: int, length: int, ragged: bool, back: int = 1) -> PyTree:
        network.check_length(length + extra_positions, what, name)
        cache = network.init_cache(batch, length + extra_places, dtype, ragged, back=back)
        return {"cache": cache.replace(context_mask=context_mask), "context": encode()}

    def extend(memory: PyTree, tokens: Array) -> Step:
        logits, out = decode(tokens, memory.get("context"), memory["cache"])
        return Step(logits, {"cache": out.cache}, out.x)

    def until(memory: PyTree, length: Array) -> PyTree:
        return {**memory, "cache": memory["cache"].replace(limit=length + extra_places)}

    def rewind(memory: PyTree, length: Array) -> PyTree:
        return {"cache": memory["cache"].replace(length=length + extra_places)}

    def grow(memory: PyTree, length: int) -> PyTree:
        return {**memory, "cache": memory["cache"].grow(length + extra_places)}

    longest = None if network.longest is None else network.longest - extra_positions
    return Decoder(init=init, extend=extend, rewind=rewind, until=until, grow=grow, max_length=longest)


def likeliest(
    decoder: Decoder,
    prompts: Array,
    max_new_tokens: int,
    *,
    num_beams: int,
    end_token: int | tuple[int, ...] | None,
    lengths: Array | None = None,
    alpha: float = 0.0,
) -> Array:
    """The likeliest continuation that a search finds of each prompt [B, P], int32 [B, N]; the end token fills rows.

    Args:
      decoder: the model.
      prompts: [B, P], padded on the right if they differ in length.
      max_new_tokens: largest number N of new tokens.
      num_beams: number of hypotheses; with one, each token is the likeliest one.
      end_token: a token, or several, that ends a text; or None.
      lengths: number of tokens of each prompt, [B], or None if all have P.
      alpha: exponent of the length by which scores are divided.
    """
    if num_beams == 1:
        options = {"lengths": lengths, "end_token": end_token, "sampling": Sampling(temperature=0.0)}
        return generate(decoder, jax.random.key(0), prompts, max_new_tokens, **options).tokens
    options = {"num_beams": num_beams, "end_token": end_token, "lengths": lengths, "alpha": alpha}
    return beam_search(decoder, prompts, max_new_tokens, **options).tokens[:, 0]
