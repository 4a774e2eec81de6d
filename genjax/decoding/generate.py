"""Continuing prompts token by token: greedy or sampled, constrained, watermarked, in one loop or as a stream."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genjax import devices
from genjax.batch import Array, PyTree, example_keys
from genjax.decoding.base import (
    Decoder,
    Generation,
    check_lengths,
    compiled,
    end_tokens,
    is_end,
    num_bytes,
    prefill,
    repeat_rows,
)
from genjax.decoding.constraint import Automaton
from genjax.decoding.sampling import FORBIDDEN, PLAIN, Sampling
from genjax.decoding.watermark import Watermark
from genjax.errors import UserError

#: KV caches above LARGE_MEMORY bytes are grown in NUM_STAGES steps when at least FEWEST_TOKENS are generated.
LARGE_MEMORY, NUM_STAGES, FEWEST_TOKENS = 2**23, 6, 32
#: On CPU the batch is split so that cache + parameters fit in PROCESSOR_CACHE, with at least FEWEST_ROWS rows a part.
PROCESSOR_CACHE, FEWEST_ROWS = 13 * 2**20, 16
#: Noise of all steps is drawn before the first step if it takes at most NOISE_IN_ADVANCE bytes.
NOISE_IN_ADVANCE = 2**20


class ChoiceState(NamedTuple):
    """What `Choice` carries from one token to the next.

    Attributes:
      seen: which tokens of the vocabulary each row already has, bool [B, V]; None if the sampling does not ask.
      state: state of the constraint's automaton, [B], or None.
      heard: state of the automaton of stop strings, [B], or None.
      previous: last token, [B].
      left: number of tokens that may still be written, [B]; it no longer changes once a row has ended.
      ended: whether the row has ended, [B].
    """

    seen: Array | None
    state: Array | None
    heard: Array | None
    previous: Array
    left: Array
    ended: Array


class Choice(NamedTuple):
    """The settings by which the next token is chosen, and the choice."""

    sampling: Sampling
    ends: tuple[int, ...]
    constraint: Automaton | None
    watermark: Watermark | None
    stop: Automaton | None = None

    def init(self, prompts: Array, lengths: Array | None, vocab_size: int, max_new_tokens: int) -> ChoiceState:
        """The state after the prompts [B, P].

        Raises:
          UserError: the constraint, or the stop strings, were made for another vocabulary.
        """
        for name, automaton in (("constraint is", self.constraint), ("automaton of stop strings is", self.stop)):
            if automaton is not None and automaton.num_tokens != vocab_size:
                raise UserError(
                    f"the {name} one of {automaton.num_tokens} tokens and the model has {vocab_size}; "
                    "tokens without text are empty ones in its vocabulary"
                )
        batch, size = prompts.shape
        place = jnp.full((batch,), size) if lengths is None else lengths
        previous = jnp.take_along_axis(prompts, place[:, None] - 1, axis=1)[:, 0]
        seen = None
        if self.sampling.needs_seen:
            real = jnp.arange(size)[None] < place[:, None]
            seen = jnp.zeros((batch, vocab_size), bool)
            seen = jax.vmap(lambda row, tokens, real: row.at[tokens].max(real))(seen, prompts, real)
        begin = lambda automaton: None if automaton is None else jnp.full((batch,), automaton.start, jnp.int32)
        state, heard = begin(self.constraint), begin(self.stop)
        left = jnp.full((batch,), max_new_tokens, jnp.int32)
        return ChoiceState(seen, state, heard, previous, left, self._over(state, left))

    @property
    def fill(self) -> int:
        """The token that fills a row after its end."""
        return self.ends[0] if self.ends else 0

    def _over(self, state: Array | None, left: Array) -> Array:
        """Rows [B] that have ended because the constraint allows no further token and there is no end token."""
        if self.constraint is None or self.ends:
            return jnp.zeros(left.shape, bool)
        return ~self.constraint.may_go_on(state, left)

    def __call__(self, noise: Array | None, logits: Array, past: ChoiceState) -> tuple[Array, Array, ChoiceState]:
        """Chooses from logits [B, V]; returns tokens [B], their log-probabilities [B], and the state after them.

        `noise` is a result of `Sampling.noise`.
        """
        logits = logits.astype(jnp.float32)
        if self.constraint is not None:
            logits = jnp.where(self.constraint.allowed(past.state, self.ends, past.left), logits, FORBIDDEN)
        if self.watermark is not None:
            logits = self.watermark.shift(logits, past.previous)
        filtered = self.sampling.filter(logits, past.seen)
        token = self.sampling.draw(noise, filtered)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(filtered, axis=-1), token[:, None], axis=1)[:, 0]
        seen, state, heard, ended = past.seen, past.state, past.heard, past.ended
        left = past.left - ~ended
        if self.ends or self.constraint is not None or self.stop is not None:
            token = jnp.where(ended, self.fill, token)
            log_prob = jnp.where(ended, 0.0, log_prob)
        if self.ends:
            ended = ended | is_end(token, self.ends)
        if seen is not None:
            seen = jax.vmap(lambda row, index: row.at[index].set(True))(seen, token)
        if state is not None:
            state = self.constraint.advance(state, token)
            ended = ended | self._over(state, left)
        if heard is not None:
            heard = self.stop.advance(heard, token)
            ended = ended | self.stop.accepting[heard]
        return token, log_prob, ChoiceState(seen, state, heard, token, left, ended)


def row_keys(key: Array, prompts: Array, example_index: Array | None = None) -> Array:
    """One key for each row of prompts [B, P] (see `example_keys`), so that draws do not depend on
    how rows are split.
    """
    return example_keys(key, {"tokens": prompts} | ({} if example_index is None else {"example_index": example_index}))


def _keys_of_step(keys: Array, step: Array | int) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)


def generate(
    decoder: Decoder,
    key: Array,
    prompts: Array,
    max_new_tokens: int,
    *,
    lengths: Array | None = None,
    sampling: Sampling = PLAIN,
    end_token: int | Collection[int] | None = None,
    constraint: Automaton | None = None,
    watermark: Watermark | None = None,
    stop: Automaton | None = None,
    example_index: Array | None = None,
) -> Generation:
    """Continues prompts in one compiled program.

    Outside of `jit` the program of a decoder that tells its weights is kept for further calls of the same shapes and
    settings.  The program is one loop over tokens, or several loops, each with a larger memory than the one before.
    On a CPU it may continue the rows in parts.  Draws do not depend on the parts, as each row has a key of its own.

    Args:
      decoder: the model.
      key: random key; or a key for each row [B], so that draws do not depend on the place of a row; or G keys for each
        row, [B G]: each prompt is then read once and continued G times, in G successive rows of the result.
      prompts: [B, P] int32, padded on the right if they differ in length.
      max_new_tokens: largest number N of new tokens.
      lengths: number of tokens of each prompt, [B]; None if all prompts have P tokens.
      sampling: filters and temperature.
      end_token: a token, or several, that ends a row; the loop stops when all rows have ended.
      constraint: automaton that the new tokens obey; without an end token a row ends where the automaton allows no
        further token.
      watermark: green-list watermark to put in.
      stop: automaton of `stop_strings`; a row ends with the token that completes one of them.
      example_index: place of each row in the whole batch, [B], if `prompts` are a part of it; see `example_keys`.

    Raises:
      UserError: the prompt does not fit, max_new_tokens is less than 1 or too small for the constraint, or the
        constraint was made for another vocabulary.
    """
    _check(max_new_tokens, constraint)
    if lengths is not None:
        check_lengths(lengths, *prompts.shape)
    arrays = (key, prompts.astype(jnp.int32), lengths, constraint, stop, example_index)
    ends = end_tokens(end_token)
    settings = (max_new_tokens, sampling, ends, watermark)
    if decoder.with_weights is None or not _are_on_one_device((arrays, decoder.weights)):
        return _continued(decoder, *settings, *arrays)
    return compiled(_continued, decoder, static_argnums=(1, 2, 3, 4))(*settings, *arrays)


def _are_on_one_device(tree: PyTree) -> bool:
    """Whether all arrays are values, and none of them is divided or copied among devices."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return not any(isinstance(array, jax.core.Tracer) or len(array.devices()) > 1 for array in arrays)


def _continued(
    decoder: Decoder,
    max_new_tokens: int,
    sampling: Sampling,
    ends: tuple[int, ...],
    watermark: Watermark | None,
    key: Array,
    prompts: Array,
    lengths: Array | None,
    constraint: Automaton | None,
    stop: Automaton | None,
    example_index: Array | None,
) -> Generation:
    """`generate` of what was checked."""
    choice = Choice(sampling, ends, constraint, watermark, stop)
    keys = row_keys(key, prompts, example_index) if key.ndim == 0 else key
    keys = keys.reshape(prompts.shape[0], -1)
    count = keys.shape[1]
    continued = functools.partial(_generate, decoder, choice, max_new_tokens)
    parts = _num_parts(decoder, prompts, max_new_tokens, lengths is not None or count > 1, count)
    if parts == 1:
        return continued(keys, prompts, lengths)

    def of_part(part: PyTree) -> PyTree:
        return jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]), continued(*part))

    out = _in_parts(of_part, (keys, prompts, lengths), parts)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)


def _generate(
    decoder: Decoder, choice: Choice, max_new_tokens: int, keys: Array, prompts: Array, lengths: Array | None
) -> Generation:
    """`generate` for all rows at once, with G keys for each row [B, G]."""
    (batch, count), size = keys.shape, prompts.shape[1]
    ragged = lengths is not None or count > 1
    stages = _stages(decoder, batch * count, size, max_new_tokens, ragged)
    logits, memory, _ = prefill(decoder, prompts, lengths, stages[0], ragged)
    if count > 1:
        logits, memory, prompts, lengths = repeat_rows((logits, memory, prompts, lengths), count)
    keys, batch = keys.reshape(-1), batch * count
    past = choice.init(prompts, lengths, logits.shape[-1], max_new_tokens)
    noise_of_step = _noise(choice.sampling, keys, max_new_tokens, logits.shape[-1])
    token, log_prob, past = choice(noise_of_step(0), logits, past)
    # The step is the first axis, so that each step writes one row in place.
    tokens = jnp.full((max_new_tokens, batch), choice.fill, jnp.int32).at[0].set(token)
    log_probs = jnp.zeros((max_new_tokens, batch)).at[0].set(log_prob)

    def going_on(places: int, carry: tuple[Any, ...]) -> Array:
        step, _, past, _, _ = carry
        return (size + step <= places) & ~past.ended.all()

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, memory, past, tokens, log_probs = carry
        out = decoder.extend(memory, past.previous[:, None])
        token, log_prob, past = choice(noise_of_step(step), out.logits[:, 0], past)
        return step + 1, out.memory, past, tokens.at[step].set(token), log_probs.at[step].set(log_prob)

    step = jnp.asarray(1)
    for places in stages:
        if places > stages[0]:
            memory = decoder.grow(memory, places)
        carry = (step, memory, past, tokens, log_probs)
        step, memory, past, tokens, log_probs = jax.lax.while_loop(functools.partial(going_on, places), body, carry)
    return Generation(tokens.T, max_new_tokens - past.left, log_probs.T)


def _noise(sampling: Sampling, keys: Array, num_steps: int, vocab_size: int) -> Callable[[Array | int], Array | None]:
    """A function from the number of a step to its noise; small noise is drawn before the loop, which is cheaper."""
    of_step = lambda step: sampling.noise(_keys_of_step(keys, step), vocab_size)
    if sampling.temperature == 0.0 or 4 * num_steps * keys.shape[0] * vocab_size > NOISE_IN_ADVANCE:
        return of_step
    noise = jax.vmap(of_step)(jnp.arange(num_steps))  # [N, B, V]
    return lambda step: noise[step]


def _check(max_new_tokens: int, constraint: Automaton | None) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if constraint is not None:
        constraint.check(max_new_tokens)


def _num_parts(decoder: Decoder, prompts: Array, max_new_tokens: int, ragged: bool, count: int = 1) -> int:
    """Number of parts to continue one after the other, so that a part's KV cache stays in the processor's cache.

    Each prompt has `count` continuations, which are not parted.

    The number is 1 if even the smallest part would not fit, as every further part reads the parameters once more.
    """
    if devices.platform() != "cpu" or decoder.weight_bytes is None or max_new_tokens < FEWEST_TOKENS:
        return 1
    batch, size = prompts.shape[0] * count, prompts.shape[1]
    # The rows may be divided among all devices.
    room, fewest = (each * devices.num_devices() for each in (PROCESSOR_CACHE - decoder.weight_bytes, FEWEST_ROWS))
    parts = -(-_memory_bytes(decoder, batch, size + max_new_tokens - 1, ragged) // room) if room > 0 else batch
    if count > 1:
        # Copies of the last prompt would fill up the parts, each with all its continuations.
        parts = next((n for n in range(parts, prompts.shape[0] + 1) if prompts.shape[0] % n == 0), batch + 1)
    return parts if parts * fewest <= batch else 1


def _in_parts(continue_part: Callable[[PyTree], PyTree], rows: PyTree, parts: int) -> PyTree:
    """Applies a function to parts of trees of rows [B, ...], one after the other, and joins the results.

    Row i is in part i mod `parts`, so that each part has rows of every device that holds some of the rows.
    """
    batch = jax.tree.leaves(rows)[0].shape[0]
    size = -(-batch // parts)

    def divide(a: Array) -> Array:
        # Copies of the last row fill up the parts.
        index = jnp.minimum(jnp.arange(size * parts), batch - 1)
        a = a if size * parts == batch else a[index]
        return a.reshape(size, parts, *a.shape[1:]).swapaxes(0, 1)

    out = jax.lax.map(continue_part, jax.tree.map(divide, rows))
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(size * parts, *a.shape[2:])[:batch], out)


def _memory_bytes(decoder: Decoder, batch: int, capacity: int, ragged: bool) -> int:
    return num_bytes(jax.eval_shape(lambda: decoder.init(batch, capacity, ragged)))


def _stages(decoder: Decoder, batch: int, size: int, max_new_tokens: int, ragged: bool) -> tuple[int, ...]:
    """Number of places in the memory for each of the successive loops; the last number is enough for all tokens.

    A step reads all places of the memory, also empty places.  A memory that fits into the processor's caches, or that
    the prompts fill by half, would gain little for the time that more loops take to compile.
    """
    capacity = size + max_new_tokens - 1
    if decoder.grow is None or 2 * size > capacity or max_new_tokens < FEWEST_TOKENS:
        return (capacity,)
    if _memory_bytes(decoder, batch, capacity, ragged) < LARGE_MEMORY:
        return (capacity,)
    return tuple(size + -(-(max_new_tokens - 1) * i // NUM_STAGES) for i in range(1, NUM_STAGES + 1))


def finished(tokens: Array, log_probs: Array, ends: tuple[int, ...]) -> Generation:
    """A `Generation` with the length of each row, up to and including its first end token."""
    at_end = is_end(tokens, ends)
    lengths = jnp.where(at_end.any(1), at_end.argmax(1) + 1, tokens.shape[1])
    return Generation(tokens, lengths, log_probs)


def _read_prompt(decoder: Decoder, prompts: Array, capacity: int) -> tuple[Array, PyTree]:
    logits, memory, _ = prefill(decoder, prompts, None, capacity)
    return logits, memory


def _stream_step(
    decoder: Decoder,
    memory: PyTree,
    logits: Array,
    keys: Array,
    step: int,
    past: ChoiceState,
    constraint: Automaton | None,
    stop: Automaton | None,
    *,
    sampling: Sampling,
    ends: tuple[int, ...],
    watermark: Watermark | None,
    first: bool,
) -> tuple[Array, PyTree, ChoiceState]:
    """One step of a stream: the next token [1], the memory and the state after it."""
    if not first:
        out = decoder.extend(memory, past.previous[:, None])
        logits, memory = out.logits[:, 0], out.memory
    choice = Choice(sampling, ends, constraint, watermark, stop)
    noise = sampling.noise(_keys_of_step(keys, step), logits.shape[-1])
    token, _, past = choice(noise, logits, past)
    return token, memory, past


def stream(
    decoder: Decoder,
    key: Array,
    prompt: Array,
    max_new_tokens: int,
    *,
    sampling: Sampling = PLAIN,
    end_token: int | Collection[int] | None = None,
    constraint: Automaton | None = None,
    watermark: Watermark | None = None,
    stop: Automaton | None = None,
) -> Iterator[int]:
    """Yields the new tokens of one prompt [P] as they are chosen; `generate` with the same key gives the same tokens.

    Raises:
      UserError: as `generate` does.
    """
    _check(max_new_tokens, constraint)
    prompts = jnp.asarray(prompt, jnp.int32)[None]
    capacity = prompts.shape[1] + max_new_tokens - 1
    logits, memory = compiled(_read_prompt, decoder, static_argnums=2)(prompts, capacity)
    choice = Choice(sampling, end_tokens(end_token), constraint, watermark, stop)
    settings = ("sampling", "ends", "watermark", "first")
    advance = compiled(_stream_step, decoder, static_argnames=settings, donate_argnums=1)
    past = choice.init(prompts, None, logits.shape[-1], max_new_tokens)
    keys, ended, step = row_keys(key, prompts), bool(past.ended[0]), 0
    while not ended and step < max_new_tokens:
        token, memory, past = advance(
            memory,
            logits,
            keys,
            step,
            past,
            constraint,
            stop,
            sampling=sampling,
            ends=choice.ends,
            watermark=watermark,
            first=step == 0,
        )
        value, ended = (a.item() for a in jax.device_get((token, past.ended)))
        yield value
        step += 1
