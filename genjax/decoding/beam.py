"""Beam search with a length penalty.

    score(y) = sum_t log p(y_t | y_<t) / penalty(|y|),    penalty(n) = ((5 + n) / 6)^alpha     (Wu et al. 2016, eq. 14)

Each row has K open hypotheses.  A step looks at their 2K likeliest continuations (K more for each further end token).
Continuations that end, and are among the K likeliest, become finished hypotheses; the K best continuations that do not
end stay open.  The search stops when no open hypothesis can beat the worst finished hypothesis any more.  With alpha 0
this is the search of the library transformers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.decoding.base import Decoder, end_tokens, is_end, prefill, repeat_rows, take_rows
from genjax.errors import UserError

_WORST = -1e30


class Beams(NamedTuple):
    """The K best hypotheses of each row, best first.

    Attributes:
      tokens: new tokens, [B, K, N], filled up after their ends.
      lengths: number of new tokens, [B, K].
      scores: log-probability divided by the length penalty, [B, K].
    """

    tokens: Array
    lengths: Array
    scores: Array


def length_penalty(length: Array | int, alpha: float) -> Array:
    """Divisor of the summed log-probability; 1 for alpha 0."""
    return ((5.0 + length) / 6.0) ** alpha


def beam_search(
    decoder: Decoder,
    prompts: Array,
    max_new_tokens: int,
    *,
    num_beams: int,
    end_token: int | Collection[int] | None,
    lengths: Array | None = None,
    alpha: float = 0.0,
) -> Beams:
    """Searches for the likeliest continuations of prompts [B, P].

    Args:
      decoder: the model.
      prompts: [B, P], padded on the right if they differ in length.
      max_new_tokens: largest number N of new tokens, the end token included; a hypothesis that has not ended by then
        counts as finished.
      num_beams: number K of hypotheses.
      end_token: a token, or several, that ends a hypothesis; or None.
      lengths: number of tokens of each prompt, [B], or None if all have P tokens.
      alpha: strength of the length penalty; larger values favour longer hypotheses.

    Raises:
      UserError: a setting is below 1, or the prompt does not fit.
    """
    if num_beams < 1 or max_new_tokens < 1:
        raise UserError(f"num_beams={num_beams} and max_new_tokens={max_new_tokens} must be at least 1")
    batch, size = prompts.shape
    logits, memory, _ = prefill(decoder, prompts, lengths, size + max_new_tokens - 1, ragged=True)
    vocab = logits.shape[-1]
    k, ends = num_beams, end_tokens(end_token)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    log_probs = jnp.repeat(log_probs, k, axis=0).reshape(batch, k, vocab)
    memory = repeat_rows(memory, k)
    # Only the first of K equal hypotheses counts at the start.
    totals = jnp.full((batch, k), _WORST).at[:, 0].set(0.0)
    tokens = jnp.full((batch, k, max_new_tokens), ends[0] if ends else 0, jnp.int32)
    done_tokens, done_scores = tokens, jnp.full((batch, k), _WORST)
    done_lengths = jnp.zeros((batch, k), jnp.int32)

    def insert(done, tokens, scores, lengths):
        """The K best of the finished hypotheses and the new hypotheses."""
        pool = [jnp.concatenate(pair, axis=1) for pair in zip(done, (tokens, scores, lengths))]
        scores, index = jax.lax.top_k(pool[1], k)
        pick = lambda a: jax.vmap(lambda rows, i: rows[i])(a, index)
        return pick(pool[0]), scores, pick(pool[2])

    def going_on(carry):
        step, _, _, totals, _, (_, done_scores, _) = carry
        # Totals only fall.  An open hypothesis scores best at the largest length (alpha > 0) or at the next length.
        best_length = max_new_tokens if alpha > 0 else step + 1
        possible = totals.max(1) / length_penalty(best_length, alpha)
        return (step < max_new_tokens) & (possible > done_scores.min(1)).any()

    def body(carry):
        step, memory, log_probs, totals, tokens, done = carry
        scores = totals[:, :, None] + log_probs
        best, index = jax.lax.top_k(scores.reshape(batch, k * vocab), min((1 + max(len(ends), 1)) * k, k * vocab))
        parent, token = index // vocab, (index % vocab).astype(jnp.int32)
        rows = jax.vmap(lambda a, i: a[i])(tokens, parent).at[:, :, step].set(token)  # [B, 2K, N]
        at_end = is_end(token, ends)
        last = step + 1 == max_new_tokens
        # Continuations beyond the K likeliest only make sure that K hypotheses can stay open.
        among_best = (jnp.arange(best.shape[1]) < k)[None]
        finished = jnp.where((at_end | last) & among_best, best / length_penalty(step + 1, alpha), _WORST)
        finished = jnp.maximum(finished, _WORST)
        new_lengths = jnp.broadcast_to(step + 1, token.shape).astype(jnp.int32)
        done = insert(done, rows, finished, new_lengths)
        totals, chosen = jax.lax.top_k(jnp.where(at_end, _WORST, best), min(k, best.shape[1]))
        pick = lambda a: jax.vmap(lambda row, i: row[i])(a, chosen)
        tokens, parent, token = pick(rows), pick(parent), pick(token)
        flat = (parent + k * jnp.arange(batch)[:, None]).reshape(-1)
        out = decoder.extend(take_rows(memory, flat), token.reshape(-1, 1))
        log_probs = jax.nn.log_softmax(out.logits[:, 0].astype(jnp.float32), axis=-1).reshape(batch, k, vocab)
        return step + 1, out.memory, log_probs, totals, tokens, done

    carry = (jnp.asarray(0), memory, log_probs, totals, tokens, (done_tokens, done_scores, done_lengths))
    *_, (tokens, scores, lengths) = jax.lax.while_loop(going_on, body, carry)
    return Beams(tokens, lengths, scores)
