"""What decoding asks of a model: a memory of fixed shape, and a way to read more tokens into it.

The memory of a transformer is its keys and values, that of a recurrent network its state.  Every array of it has the
batch as first axis when `ragged`, so that rows can be chosen, repeated and stand at different places.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, PyTree
from genjax.errors import UserError


class Step(NamedTuple):
    """Logits [B, K, V] after each token that was read, the renewed memory, and hidden features [B, K, C] or None."""

    logits: Array
    memory: PyTree
    hidden: Array | None = None


class Decoder(NamedTuple):
    """A model as decoding sees it.

    Attributes:
      init: (batch, length, ragged) -> an empty memory for so many tokens.
      extend: (memory, tokens [B, K]) -> Step.  A ragged memory drops what it has no place for.
      rewind: (memory, length [B]) -> the memory as it was after so many tokens; None where it cannot go back.
      grow: (memory, length) -> the same memory with place for so many tokens; None where its size does not depend on them.
      max_length: the most tokens that a memory can have place for, or None.
      weight_bytes: size of the parameters that every step reads; None where rows cannot be continued in parts, one after the
        other, because the decoder knows of all of them.
    """

    init: Callable[[int, int, bool], PyTree]
    extend: Callable[[PyTree, Array], Step]
    rewind: Callable[[PyTree, Array], PyTree] | None = None
    grow: Callable[[PyTree, int], PyTree] | None = None
    max_length: int | None = None
    weight_bytes: int | None = None


class Generation(NamedTuple):
    """What was generated.

    Attributes:
      tokens: new tokens, [B, N]; what follows the end is filled with the first end token, or 0 where there is none.
      lengths: number of new tokens with the end token, [B].
      log_probs: log-probability of each in the distribution it was drawn from, [B, N], 0 after the end.
    """

    tokens: Array
    lengths: Array
    log_probs: Array


def prefill(
    decoder: Decoder, prompts: Array, lengths: Array | None, capacity: int, ragged: bool = False
) -> tuple[Array, PyTree, Array | None]:
    """Reads prompts.

    Args:
      decoder: the model.
      prompts: [B, P], filled up on the right where they differ in length.
      lengths: number of tokens of each prompt, [B], or None where all have P.
      capacity: number of tokens that the memory has place for.
      ragged: whether rows may stand at different places later, which differing lengths imply.

    Returns:
      Logits of the next token [B, V], the memory, and hidden features of the prompt [B, P, C] or None.

    Raises:
      UserError: a prompt is empty or longer than the memory; of `lengths`, where they are known.
    """
    batch, size = prompts.shape
    if size < 1:
        raise UserError("a prompt needs at least one token, for instance the start token")
    if size > capacity:
        raise UserError(f"the prompt has {size} tokens, and the context only {capacity}")
    if lengths is not None:
        check_lengths(lengths, batch, size)
    memory = decoder.init(batch, capacity, ragged or lengths is not None)
    if lengths is None:
        step = decoder.extend(memory, prompts)
        return step.logits[:, -1], step.memory, step.hidden
    if decoder.rewind is None:
        return _prefill_by_token(decoder, prompts, lengths, memory)
    step = decoder.extend(memory, prompts)
    memory = decoder.rewind(step.memory, lengths)
    last = jnp.clip(lengths - 1, 0, size - 1)
    return jnp.take_along_axis(step.logits, last[:, None, None], axis=1)[:, 0], memory, step.hidden


def check_lengths(lengths: Array, batch: int, size: int) -> None:
    """Raises UserError if these are no lengths of prompts [B, P], where values are known."""
    if lengths.shape != (batch,):
        raise UserError(f"lengths of {batch} prompts have the shape ({batch},), and not {lengths.shape}")
    if not isinstance(lengths, jax.core.Tracer):
        bad = [int(length) for length in np.asarray(lengths) if not 1 <= length <= size]
        if bad:
            raise UserError(f"a prompt with the length {bad[0]} must have between 1 and {size} tokens")


def _prefill_by_token(decoder: Decoder, prompts: Array, lengths: Array, memory: PyTree) -> tuple[Array, PyTree, None]:
    """For memories that cannot go back: rows keep their memory once their prompt is over."""

    def read(carry: tuple[Array, PyTree], inputs: tuple[Array, Array]) -> tuple[tuple[Array, PyTree], None]:
        logits, memory = carry
        place, token = inputs
        step = decoder.extend(memory, token[:, None])
        more = place < lengths
        return (where_rows(more, step.logits[:, 0], logits), where_rows(more, step.memory, memory)), None

    shape = jax.eval_shape(lambda: decoder.extend(memory, prompts[:, :1]).logits[:, 0])
    start = (jnp.zeros(shape.shape, shape.dtype), memory)
    (logits, memory), _ = jax.lax.scan(read, start, (jnp.arange(prompts.shape[1]), prompts.T))
    return logits, memory, None


def end_tokens(end_token: int | Collection[int] | None) -> tuple[int, ...]:
    """The tokens that end a row: none, one, or any of several."""
    if end_token is None:
        return ()
    return tuple(end_token) if isinstance(end_token, Collection) else (end_token,)


def is_end(tokens: Array, ends: tuple[int, ...]) -> Array:
    """Which tokens end a row, bool of the shape of `tokens`."""
    return jnp.isin(tokens, jnp.asarray(ends, tokens.dtype))


def num_bytes(tree: PyTree) -> int:
    """Size of all arrays of a tree, or of their shapes."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def where_rows(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """Chooses whole rows of trees by condition [B]."""
    expand = lambda a: condition.reshape(condition.shape + (1,) * (a.ndim - 1))  # noqa: E731
    return jax.tree.map(lambda y, n: jnp.where(expand(y), y, n), yes, no)


def take_rows(tree: PyTree, index: Array) -> PyTree:
    """Rows of every array by index [B']."""
    return jax.tree.map(lambda a: jnp.take(a, index, axis=0), tree)


def repeat_rows(tree: PyTree, count: int) -> PyTree:
    """Every row `count` times, one after the other."""
    return jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), tree)
