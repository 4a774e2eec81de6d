"""What decoding asks of a model: a memory of fixed shape, and a function that reads more tokens into it.

The memory of a transformer holds its keys and values (the KV cache); the memory of a recurrent network is its state.
In a `ragged` memory every array has the batch as its first axis, so that rows can be chosen and repeated, and can hold
different numbers of tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, PyTree
from genjax.errors import UserError


class Step(NamedTuple):
    """Logits [B, K, V] after each token that was read, the new memory, and hidden features [B, K, C] or None."""

    logits: Array
    memory: PyTree
    hidden: Array | None = None


class Decoder(NamedTuple):
    """A model as decoding sees it.

    Attributes:
      init: (batch, length, ragged) -> an empty memory for `length` tokens; where there is `rewind`, it also takes the
        number of tokens that the memory is to go back by, as `back`, which is 1 otherwise.
      extend: (memory, tokens [B, K]) -> Step.  A ragged memory drops tokens that it has no place for.
      rewind: (memory, length [B]) -> the memory as it was after `length` tokens; None if the memory cannot go back.
      until: (memory, length [B]) -> the memory, which will hold no more than `length` tokens of each row after the next
        call of `extend`; None where a ragged memory goes back by any number of tokens.
      grow: (memory, length) -> the same memory with place for `length` tokens; None if the size of the memory does not
        depend on the number of tokens.
      max_length: the largest number of tokens that a memory can hold, or None.
      weight_bytes: size of the parameters that every step reads; None if the batch must not be split (the decoder holds
        per-row state such as an encoder's output).
      weights: the arrays that the functions above read besides their arguments; None if they are not told.
      with_weights: makes the decoder of other such arrays; None if they are not told.
    """

    init: Callable[..., PyTree]
    extend: Callable[[PyTree, Array], Step]
    rewind: Callable[[PyTree, Array], PyTree] | None = None
    until: Callable[[PyTree, Array], PyTree] | None = None
    grow: Callable[[PyTree, int], PyTree] | None = None
    max_length: int | None = None
    weight_bytes: int | None = None
    weights: PyTree = None
    with_weights: Callable[[PyTree], Decoder] | None = None


class Generation(NamedTuple):
    """What was generated.

    Attributes:
      tokens: new tokens, [B, N]; after its end a row is filled with the first end token, or with 0 if there is none.
      lengths: number of new tokens, including the end token, [B].
      log_probs: log-probability of each token in the distribution that it was drawn from, [B, N]; 0 after the end.
    """

    tokens: Array
    lengths: Array
    log_probs: Array


def of_weights(make: Callable[[PyTree], Decoder], weights: PyTree) -> Decoder:
    """The decoder that `make` makes of weights, which it tells to `compiled`.

    `make` should be a method of the model, which holds no arrays: programs are kept for it.
    """
    weights = jax.tree.map(jnp.asarray, weights)
    return make(weights)._replace(weights=weights, with_weights=make)


def compiled(function: Callable[..., Any], decoder: Decoder, **options: Any) -> Callable[..., Any]:
    """`jax.jit(function, **options)` with the decoder as its first argument, to be called with the others.

    The decoder's weights become an argument of the program.  Weights that a function only captures are constants: each
    program holds a copy, which the compiler reads and folds.  Programs of decoders that tell their weights are kept,
    for the function and the method that makes the decoder.
    """
    if decoder.with_weights is None:
        return functools.partial(_program(function, lambda _: decoder, **options), None)
    kept = _kept_program(function, decoder.with_weights, tuple(sorted(options.items())))
    return functools.partial(kept, _on_one_device(decoder.weights))


def _on_one_device(weights: PyTree) -> PyTree:
    """Weights of which every device has a whole copy, on the first device; others as they are."""
    leaves = jax.tree.leaves(weights)
    if any(isinstance(leaf, jax.core.Tracer) or not leaf.is_fully_replicated for leaf in leaves):
        return weights
    return jax.tree.map(lambda a: a.addressable_data(0) if len(a.devices()) > 1 else a, weights)


def _program(function: Callable[..., Any], make: Callable[[PyTree], Decoder], **options: Any) -> Callable[..., Any]:
    def program(weights: PyTree, *arguments: Any, **settings: Any) -> Any:
        return function(make(weights), *arguments, **settings)

    return jax.jit(program, **options)


@functools.lru_cache(maxsize=128)
def _kept_program(
    function: Callable[..., Any], make: Callable[[PyTree], Decoder], options: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    return _program(function, make, **dict(options))


def prefill(
    decoder: Decoder, prompts: Array, lengths: Array | None, capacity: int, ragged: bool = False
) -> tuple[Array, PyTree, Array | None]:
    """Reads prompts.

    Args:
      decoder: the model.
      prompts: [B, P], padded on the right if they differ in length.
      lengths: number of tokens of each prompt, [B], or None if all prompts have P tokens.
      capacity: number of tokens that the memory has place for.
      ragged: whether rows may later hold different numbers of tokens; `lengths` implies it.

    Returns:
      Logits of the next token [B, V], the memory, and hidden features of the prompt [B, P, C] or None.

    Raises:
      UserError: a prompt is empty or does not fit into the memory.  Values of `lengths` are checked outside `jit` only.
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
    step = decoder.extend(memory if decoder.until is None else decoder.until(memory, lengths), prompts)
    memory = decoder.rewind(step.memory, lengths)
    last = jnp.clip(lengths - 1, 0, size - 1)
    return jnp.take_along_axis(step.logits, last[:, None, None], axis=1)[:, 0], memory, step.hidden


def check_lengths(lengths: Array, batch: int, size: int) -> None:
    """Raises UserError if `lengths` are not lengths of `batch` prompts of at most `size` tokens.

    Inside `jit`, where values are not known, only the shape is checked.
    """
    if lengths.shape != (batch,):
        raise UserError(f"lengths of {batch} prompts have the shape ({batch},), and not {lengths.shape}")
    if not isinstance(lengths, jax.core.Tracer):
        bad = [int(length) for length in np.asarray(lengths) if not 1 <= length <= size]
        if bad:
            raise UserError(f"a prompt with the length {bad[0]} must have between 1 and {size} tokens")


def _prefill_by_token(decoder: Decoder, prompts: Array, lengths: Array, memory: PyTree) -> tuple[Array, PyTree, None]:
    """`prefill` for a memory without `rewind`: reads token by token; a row's memory is kept once its prompt is over."""

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
    """The tokens that end a row, as a tuple; empty for None."""
    if end_token is None:
        return ()
    return tuple(end_token) if isinstance(end_token, Collection) else (end_token,)


def is_end(tokens: Array, ends: tuple[int, ...]) -> Array:
    """Which tokens end a row, bool of the shape of `tokens`."""
    return jnp.isin(tokens, jnp.asarray(ends, tokens.dtype))


def num_bytes(tree: PyTree) -> int:
    """Size in bytes of all arrays (or shapes) in a tree."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def where_rows(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """Takes each row from the tree `yes` or from the tree `no`, by condition [B]."""
    expand = lambda a: condition.reshape(condition.shape + (1,) * (a.ndim - 1))
    return jax.tree.map(lambda y, n: jnp.where(expand(y), y, n), yes, no)


def take_rows(tree: PyTree, index: Array) -> PyTree:
    """The rows at index [B'] of every array in a tree."""
    return jax.tree.map(lambda a: jnp.take(a, index, axis=0), tree)


def repeat_rows(tree: PyTree, count: int) -> PyTree:
    """Every row `count` times, one after the other."""
    return jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), tree)
