"""Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192, algorithm 1; Chen et al. 2023).

A draft model q proposes K tokens, which the target model p reads in one pass.  Proposal x is kept with probability
min(1, p(x) / q(x)).  In place of the first proposal that is not kept, a token is drawn from max(0, p - q),
renormalised.  If all proposals are kept, one more token is drawn from p.  The result is distributed exactly as samples
of p; p and q are the distributions after the filters of `Sampling`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.decoding.base import Decoder, Generation, end_tokens, is_end, prefill
from genjax.decoding.generate import finished, row_keys
from genjax.decoding.sampling import PLAIN, Sampling
from genjax.errors import UserError


def _draw(keys: Array, weights: Array) -> Array:
    """Draws one token a row, with probabilities in proportion to weights [B, V], which may be 0."""
    # The smallest normal number: XLA may flush smaller numbers to zero, and their logarithm would be infinite.
    logits = jnp.log(jnp.maximum(weights, jnp.finfo(jnp.float32).tiny))
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def speculative(
    target: Decoder,
    draft: Decoder,
    key: Array,
    prompts: Array,
    max_new_tokens: int,
    *,
    num_proposals: int = 4,
    lengths: Array | None = None,
    sampling: Sampling = PLAIN,
    end_token: int | Collection[int] | None = None,
    example_index: Array | None = None,
) -> tuple[Generation, Array]:
    """Continues prompts [B, P] with the distribution of `generate` with `target`, in fewer passes of `target`.

    Args:
      target: the model whose distribution the result has.
      draft: a faster model of the same vocabulary.
      key: random key.
      prompts: [B, P], padded on the right if they differ in length.
      max_new_tokens: largest number N of new tokens.
      num_proposals: number K of tokens that the draft proposes at a time.
      lengths: number of tokens of each prompt, [B], or None if all have P tokens.
      sampling: filters and temperature of both models (without a repetition penalty).
      end_token: a token, or several, that ends a row.
      example_index: place of each row in the whole batch, [B], if `prompts` are a part of it; see `example_keys`.

    Returns:
      The generation (its `log_probs` are 0, as no single distribution drew the tokens), and the number of passes of the
      target after the prompt.

    Raises:
      UserError: a model has no `rewind`, the vocabularies differ, or a setting is not supported.
    """
    if target.rewind is None or draft.rewind is None:
        raise UserError("speculative decoding needs memories that can go back; recurrent networks have none")
    if sampling.needs_seen:
        raise UserError("speculative decoding does not serve a repetition penalty")
    if num_proposals < 1 or max_new_tokens < 1:
        raise UserError(f"num_proposals={num_proposals} and max_new_tokens={max_new_tokens} must be at least 1")
    batch, size = prompts.shape
    ends = end_tokens(end_token)
    prompts = prompts.astype(jnp.int32)
    # Memories have no place for proposals beyond the last token, and drop them; no earlier token depends on them.
    room = size + max_new_tokens - 1
    place = jnp.full((batch,), size) if lengths is None else lengths
    # Both memories lack the last token of the text: a pass reads it first.
    memories, sizes = [], []
    for decoder in (target, draft):
        going_back = decoder._replace(init=functools.partial(decoder.init, back=num_proposals))
        logits, memory, _ = prefill(going_back, prompts, place, room, ragged=True)
        memories.append(decoder.rewind(memory, place - 1))
        sizes.append(logits.shape[-1])
    if sizes[0] != sizes[1]:
        raise UserError(f"the draft has {sizes[1]} tokens and the target {sizes[0]}; they must have one vocabulary")
    last = jnp.take_along_axis(prompts, place[:, None] - 1, axis=1)[:, 0]
    probabilities = lambda logits: jax.nn.softmax(sampling.filter(logits), axis=-1)
    keys = row_keys(key, prompts, example_index)
    width = num_proposals + 1
    slots = max_new_tokens + width

    def propose(carry, step_keys):
        memory, token = carry
        out = draft.extend(memory, token[:, None])
        probs = probabilities(out.logits[:, 0])
        token = _draw(step_keys, probs)
        return (out.memory, token), (token, probs)

    def going_on(carry: tuple[Any, ...]) -> Array:
        _, _, _, _, count, ended = carry
        return ((count < max_new_tokens) & ~ended).any()

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        passes, memories, last, tokens, count, ended = carry
        step_keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, passes), num_proposals + 2))(keys)
        start = place - 1 + count
        (draft_memory, token), (proposals, q) = jax.lax.scan(
            propose, (memories[1], last), step_keys[:, :num_proposals].swapaxes(0, 1)
        )
        proposals, q = proposals.T, q.swapaxes(0, 1)  # [B, K], [B, K, V]
        # The draft reads its last proposal too, so that its memory is complete if all proposals are kept.
        draft_memory = draft.extend(draft_memory, token[:, None]).memory
        out = target.extend(memories[0], jnp.concatenate([last[:, None], proposals], axis=1))
        p = probabilities(out.logits)  # [B, K + 1, V]

        of = lambda probs: jnp.take_along_axis(probs, proposals[:, :, None], axis=2)[:, :, 0]
        uniform = jax.vmap(lambda k: jax.random.uniform(k, (num_proposals,)))(step_keys[:, -2])
        kept = uniform * of(q) < of(p[:, :-1])
        accepted = jnp.cumprod(kept.astype(jnp.int32), axis=1).sum(1)  # [B], 0 .. K
        q = jnp.concatenate([q, jnp.zeros_like(q[:, :1])], axis=1)
        at = lambda probs: jnp.take_along_axis(probs, accepted[:, None, None], axis=1)[:, 0]
        rest = jnp.maximum(at(p) - at(q), 0.0)
        # If p = q, rounding may leave no mass; p is then the right distribution too.
        rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, at(p))
        extra = _draw(step_keys[:, -1], rest)

        index = jnp.arange(width)[None]
        chunk = jnp.concatenate([proposals, extra[:, None]], axis=1)
        chunk = jnp.where(index == accepted[:, None], extra[:, None], chunk)
        new = accepted + 1
        at_end = is_end(chunk, ends) & (index < new[:, None])
        new = jnp.where(at_end.any(1), at_end.argmax(1) + 1, new)
        active = ~ended & (count < max_new_tokens)
        new = jnp.where(active, new, 0)
        where = jnp.where(index < new[:, None], count[:, None] + index, slots)
        tokens = jax.vmap(lambda row, i, values: row.at[i].set(values, mode="drop"))(tokens, where, chunk)
        ended = ended | (is_end(chunk, ends) & (index < new[:, None])).any(1)
        newest = jnp.take_along_axis(chunk, jnp.maximum(new - 1, 0)[:, None], axis=1)[:, 0]
        last = jnp.where(new > 0, newest, last)
        count = count + new
        memories = (target.rewind(out.memory, start + new), draft.rewind(draft_memory, start + new))
        return passes + 1, memories, last, tokens, count, ended

    tokens = jnp.full((batch, slots), ends[0] if ends else 0, jnp.int32)
    zero = jnp.zeros((batch,), jnp.int32)
    carry = (jnp.asarray(0), tuple(memories), last, tokens, zero, zero > 0)
    passes, _, _, tokens, _, _ = jax.lax.while_loop(going_on, body, carry)
    tokens = tokens[:, :max_new_tokens]
    return finished(tokens, jnp.zeros(tokens.shape), ends), passes
