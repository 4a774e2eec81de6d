"""Contrastive search (Su et al. 2022, arXiv:2202.06417, eq. 5) chooses tokens that are likely and unlike the past text.

x_t = argmax over the k likeliest v of  (1 - alpha) p(v | x_<t) - alpha max_{j<t} cos(h_v, h_j)
"""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.decoding.base import Decoder, Generation, end_tokens, is_end, prefill, repeat_rows, take_rows
from genjax.decoding.generate import finished
from genjax.errors import UserError


def contrastive_search(
    decoder: Decoder,
    prompts: Array,
    max_new_tokens: int,
    *,
    alpha: float = 0.6,
    top_k: int = 4,
    end_token: int | Collection[int] | None = None,
) -> Generation:
    """Continues prompts [B, P] of one length, deterministically.

    Args:
      decoder: a model whose steps have hidden features.
      prompts: int32 [B, P].
      max_new_tokens: number N of new tokens.
      alpha: weight of the penalty on likeness to the past text; 0 is greedy decoding.
      top_k: number of candidates; at most the number of tokens is used.
      end_token: a token, or several, that ends a row.

    Raises:
      UserError: the model gives no hidden features, or a setting is out of range.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha={alpha} must lie in [0, 1]")
    if top_k < 1 or max_new_tokens < 1:
        raise UserError(f"top_k={top_k} and max_new_tokens={max_new_tokens} must be at least 1")
    batch, size = prompts.shape
    ends = end_tokens(end_token)
    logits, memory, hidden = prefill(decoder, prompts, None, size + max_new_tokens, ragged=True)
    if hidden is None:
        raise UserError("contrastive search needs a decoder that returns hidden features")
    top_k = min(top_k, logits.shape[-1])
    unit = lambda h: h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-9)
    history = jnp.zeros((batch, size + max_new_tokens, hidden.shape[-1]), jnp.float32)
    history = history.at[:, :size].set(unit(hidden.astype(jnp.float32)))
    tokens = jnp.zeros((max_new_tokens, batch), jnp.int32)
    ended = jnp.zeros((batch,), bool)

    def body(step: Array, carry):
        logits, memory, history, tokens, log_probs, ended = carry
        log_p, candidates = jax.lax.top_k(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), top_k)  # [B, k]
        out = decoder.extend(repeat_rows(memory, top_k), candidates.reshape(-1, 1))
        h = unit(out.hidden[:, 0].astype(jnp.float32)).reshape(batch, top_k, -1)
        likeness = jnp.einsum("bkc,bsc->bks", h, history)
        written = (jnp.arange(history.shape[1]) < size + step)[None, None]
        score = (1.0 - alpha) * jnp.exp(log_p) - alpha * jnp.where(written, likeness, -1.0).max(-1)
        best = score.argmax(-1)
        token = jnp.take_along_axis(candidates, best[:, None], axis=1)[:, 0].astype(jnp.int32)
        log_prob = jnp.take_along_axis(log_p, best[:, None], axis=1)[:, 0]
        flat = best + top_k * jnp.arange(batch)
        history = history.at[:, size + step].set(jax.vmap(lambda a, i: a[i])(h, best))
        if ends:
            token, log_prob = jnp.where(ended, ends[0], token), jnp.where(ended, 0.0, log_prob)
            ended = ended | is_end(token, ends)
        logits = jnp.take(out.logits[:, 0], flat, axis=0)
        memory = take_rows(out.memory, flat)
        return logits, memory, history, tokens.at[step].set(token), log_probs.at[step].set(log_prob), ended

    carry = (logits, memory, history, tokens, jnp.zeros((max_new_tokens, batch)), ended)
    *_, tokens, log_probs, _ = jax.lax.fori_loop(0, max_new_tokens, body, carry)
    return finished(tokens.T, log_probs.T, ends)
