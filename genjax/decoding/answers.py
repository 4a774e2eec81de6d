"""Prompts with their answers in one row, as a model reads them when it scores what was generated.

A prompt is padded on the right, so the answer cannot simply be put behind it: the model would see the padding between
the two and count it as positions, which changes log-probabilities by about a nat a token.
"""

from __future__ import annotations

import jax.numpy as jnp

from genjax.batch import Array, Batch
from genjax.decoding.base import check_lengths


def joined(prompts: Array, lengths: Array, answers: Array, answer_lengths: Array) -> Batch:
    """Rows of prompts and their answers, without a hole between them.

    Args:
      prompts: [B, P] int32, padded on the right.
      lengths: number of tokens of each prompt, at least 1, [B].
      answers: [B, N] int32, padded on the right, such as `Generation.tokens`.
      answer_lengths: number of tokens of each answer, its end token included, [B].

    Returns:
      `tokens` [B, P + N], `mask` (False at padding, which holds the token 0) and `loss_mask` (True at the answer), as
      the models of tokens read them.

    Raises:
      UserError: a prompt is empty, or longer than its row.  Values are checked outside `jit` only.
    """
    batch, size = prompts.shape
    check_lengths(lengths, batch, size)
    place = jnp.arange(size + answers.shape[1])[None]  # [1, P + N]
    behind = place - lengths[:, None]  # place in the answer, [B, P + N]
    end = (lengths + answer_lengths)[:, None]
    index = jnp.where(behind < 0, jnp.minimum(place, size - 1), size + jnp.clip(behind, 0, answers.shape[1] - 1))
    tokens = jnp.take_along_axis(jnp.concatenate([prompts, answers], axis=1).astype(jnp.int32), index, axis=1)
    mask = place < end
    return {"tokens": jnp.where(mask, tokens, 0), "mask": mask, "loss_mask": mask & (behind >= 0)}


def of_answers(values: Array, lengths: Array, size: int) -> Array:
    """The part of values of targets that belongs to answers.

    Args:
      values: a value for each target of joined rows, [B, P + N - 1, ...]: of the tokens from the second on.
      lengths: number of tokens of each prompt, [B].
      size: longest answer N.

    Returns:
      [B, N, ...]; places behind the end of an answer hold values of padding.
    """
    index = (lengths[:, None] - 1 + jnp.arange(size)[None]).reshape(*values.shape[:1], size, *(1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)
