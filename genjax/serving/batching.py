"""Rows that are written together, each as if it were alone.

    waiting rows  --read (prompts of like length together)-->  rows of a pool  --advance-->  tokens, row by row

A row joins the others between two steps, and leaves as soon as it is over.  Its draws come from its own key and the
number of its own tokens, so that neighbours do not change them: it gets the tokens that `decoding.generate` gives for
the same key.  Numbers of rows, lengths of prompts and places of the memory are rounded up to powers of two, so that few
programs are compiled.

One thread runs the device.  What else needs it (pictures, vectors) is called in the same thread, between two steps.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from genjax import config
from genjax.batch import Array, PyTree
from genjax.decoding import Decoder, Sampling, compiled, prefill, take_rows
from genjax.decoding.generate import row_keys
from genjax.decoding.sampling import FORBIDDEN
from genjax.errors import UserError
from genjax.serving.rows import Row, Score

_logger = logging.getLogger(__name__)
Result = TypeVar("Result")

#: Largest number of likeliest tokens in a place, as in the OpenAI interface.
MOST_LIKELIEST = 20
#: Steps of one call of the device, while a step takes less than QUICK seconds.
STEPS_OF_A_CALL, QUICK = 8, 0.004
#: Prompts that are read in one call, and the places that a prompt is padded to at least.
PROMPTS_OF_A_CALL, FEWEST_PLACES = 8, 16
#: Places of a pool's memory at least; each number of places has programs of its own, which take time and memory.
FEWEST_OF_MEMORY = 128


class BusyError(UserError):
    """Too many requests wait already, or the server is about to end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is done at a time.

    Attributes:
      slots: largest number of texts that are written together.
      max_waiting: largest number of texts that wait for a slot; further ones are refused.
      max_context: largest number of tokens of a prompt and its new text; by default the model's own limit.
    """

    slots: int = 32
    max_waiting: int = 256
    max_context: int | None = None

    def __post_init__(self) -> None:
        config.check_at_least(self, slots=1, max_waiting=0, max_context=2)


#: Largest number of tokens where neither the model nor the options have a limit.
DEFAULT_CONTEXT = 4096


class Pool(NamedTuple):
    """Rows on the device: the model's memory, logits of the next token [B, V], and which tokens are seen [B, V] or
    None.
    """

    memory: PyTree
    logits: Array
    seen: Array | None


def keys_of(seed: int, count: int) -> np.ndarray:
    """Data of the keys of `count` rows [count, ...]: those that `decoding.generate` makes of a seed for its rows."""
    return np.asarray(jax.random.key_data(row_keys(jax.random.key(seed), jnp.zeros((count, 1), jnp.int32))))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


class Batcher:
    """Writes the rows of one model; see the module."""

    def __init__(self, decoder: Decoder | None, sampling: Sampling, limits: Limits | None = None) -> None:
        """Starts the thread.

        Args:
          decoder: the model, or None where only `call` is used.
          sampling: the model's own settings; rows have a temperature and a top_p of their own.
          limits: how much is done at a time.
        """
        self.limits = limits or Limits()
        self.num_written = 0  # tokens since the start
        self._decoder, self._sampling = decoder, sampling
        self._changed = threading.Condition()
        self._waiting: collections.deque[Row] = collections.deque()
        self._calls: collections.deque[tuple[concurrent.futures.Future[Any], Callable[[], Any]]] = collections.deque()
        self._rows: list[Row | None] = []  # one for each row of the pool
        self._entering: list[Row] = []  # no longer waiting, and not among the others yet
        self._pool: Pool | None = None
        self._places = 0  # of the pool's memory
        self._step_seconds = float("inf")
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    # From any thread.

    @property
    def max_context(self) -> int:
        """Largest number of tokens of a prompt and its new text."""
        longest = None if self._decoder is None else self._decoder.max_length
        given = [length for length in (longest, self.limits.max_context) if length is not None]
        return min(given, default=DEFAULT_CONTEXT)

    @property
    def num_active(self) -> int:
        """Number of texts that are being written."""
        return sum(row is not None and not row.over for row in self._rows)

    @property
    def num_waiting(self) -> int:
        """Number of texts that wait for a slot, and of calls that wait for the device."""
        return len(self._waiting) + len(self._calls)

    def submit(self, rows: Sequence[Row]) -> None:
        """Adds rows; what they write is emitted.

        Raises:
          BusyError: too many wait, or the batcher is closing.
          UserError: a prompt is empty, or does not leave room for the new tokens.
        """
        for row in rows:
            if not len(row.prompt):
                raise UserError("the prompt is empty; it needs at least one token")
            if len(row.prompt) + row.max_new_tokens > self.max_context:
                raise UserError(
                    f"the prompt has {len(row.prompt)} tokens and {row.max_new_tokens} new ones are asked for, "
                    f"and the longest context is {self.max_context} tokens"
                )
        with self._changed:
            self._check_room(len(rows))
            self._waiting.extend(rows)
            self._changed.notify()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Frees the places of rows that nobody waits for."""
        with self._changed:
            for row in rows:
                row.cancelled = True
            self._waiting = collections.deque(row for row in self._waiting if not row.cancelled)
            self._changed.notify()

    def call(self, function: Callable[[], Result]) -> concurrent.futures.Future[Result]:
        """Calls a function between two steps, in the thread that runs the device.

        Raises:
          BusyError: as `submit` does.
        """
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        with self._changed:
            self._check_room(1)
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finishes what was begun or waits, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _check_room(self, count: int) -> None:
        if self._closing:
            raise BusyError("the server is about to end; ask another one, or later")
        free = self.limits.slots - self.num_active
        if self.num_waiting + count > self.limits.max_waiting + max(free, 0):
            raise BusyError(f"{self.num_waiting} requests wait already; ask again later")

    # In the device's thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._waiting or any(self._rows) or self._closing):
                    self._changed.wait()
                if not (self._calls or self._waiting or any(self._rows)):
                    return
                called = self._calls.popleft() if self._calls else None
            if called is not None:
                _answer(*called)
            self._rows = [None if row is None or row.over else row for row in self._rows]
            try:
                self._admit()
                if any(self._rows):
                    self._step()
            except Exception:
                # A defect, or a device without memory: the requests end, the server goes on.
                _logger.exception("the texts in work have failed")
                failed = [row for row in (*self._rows, *self._entering) if row is not None]
                self._rows, self._entering, self._pool = [], [], None
                for row in failed:
                    row.fail()

    def _admit(self) -> None:
        """Reads the prompts of waiting rows into free slots."""
        with self._changed:
            active = [row for row in self._rows if row is not None]
            new: list[Row] = []
            free = min(self.limits.slots - len(active), PROMPTS_OF_A_CALL)
            while self._waiting and len(new) < free:
                if new and _places_of(self._waiting[0]) != _places_of(new[0]):
                    break
                new.append(self._waiting.popleft())
        self._entering = new
        if not active:
            self._rows, self._pool, self._places = [], None, 0
        size = power_of_two(max(len(active) + len(new), 1))
        if active and size != len(self._rows):
            self._resize(size)
        if not new:
            return
        slots = self._seats(new, size)
        self._entering = []
        places = max(power_of_two(max(len(row.prompt) + row.max_new_tokens for row in new)), FEWEST_OF_MEMORY)
        if self._decoder.max_length is not None:
            places = min(places, self._decoder.max_length)
        if places > self._places and self._pool is not None and self._decoder.grow is not None:
            self._pool = self._pool._replace(memory=self._grow(self._pool.memory, places))
        self._places = max(self._places, places)
        width = min(_places_of(new[0]), self._places)
        # Copies of the last prompt fill up the rows.
        read = [*new, *new[-1:] * (power_of_two(len(new)) - len(new))]
        prompts = np.zeros((len(read), width), np.int32)
        for line, row in zip(prompts, read):
            line[: len(row.prompt)] = row.prompt
        lengths = np.array([len(row.prompt) for row in read], np.int32)
        slots += slots[-1:] * (len(read) - len(slots))
        rows = self._read(prompts, lengths, self._places)
        if self._pool is None:
            index = np.zeros(size, np.int32)
            index[slots] = np.arange(len(read))
            self._pool = self._take(rows, index)
        else:
            self._pool = self._place(self._pool, rows, np.array(slots, np.int32))

    def _seats(self, new: Sequence[Row], size: int) -> list[int]:
        """Gives each new row a free row of a pool of `size` rows."""
        self._rows += [None] * (size - len(self._rows))
        slots = [place for place, row in enumerate(self._rows) if row is None][: len(new)]
        for slot, row in zip(slots, new):
            self._rows[slot] = row
        return slots

    def _resize(self, size: int) -> None:
        """Moves the active rows together into a pool of `size` rows."""
        index = [place for place, row in enumerate(self._rows) if row is not None]
        padded = np.array([*index, *[index[0]] * (size - len(index))], np.int32)
        self._pool = self._take(self._pool, padded)
        self._rows = [*(self._rows[place] for place in index), *[None] * (size - len(index))]

    def _step(self) -> None:
        """Writes a token of each row, or several."""
        rows, size = self._rows, len(self._rows)
        active = [(place, row) for place, row in enumerate(rows) if row is not None]
        keys = np.zeros((size, *active[0][1].key.shape), np.uint32)
        steps, temperature, top_p = np.zeros(size, np.int32), np.zeros(size, np.float32), np.ones(size, np.float32)
        mask = np.ones((size, self._pool.logits.shape[1]), bool) if any(row.walk for _, row in active) else None
        for place, row in active:
            keys[place], steps[place] = row.key, row.num_tokens
            temperature[place], top_p[place] = row.temperature, row.top_p
            if mask is not None and (allowed := row.allowed()) is not None:
                mask[place] = allowed
        several = mask is None and self._step_seconds < QUICK and max(row.left for _, row in active) > 4
        num_steps = STEPS_OF_A_CALL if several else 1
        began = time.perf_counter()
        (tokens, scores), self._pool = self._advance(
            self._pool,
            keys,
            steps,
            temperature,
            top_p,
            mask,
            num_steps=num_steps,
            drawn=bool((temperature > 0).any()),
            nucleus=bool((top_p < 1).any()),
            scored=any(row.num_likeliest is not None for _, row in active),
        )
        tokens, scores = jax.device_get((tokens, scores))
        self._step_seconds = (time.perf_counter() - began) / num_steps
        for step in range(num_steps):
            for place, row in active:
                if not row.over:
                    self.num_written += 1
                    row.take(int(tokens[step, place]), _score(row, tokens, scores, step, place))

    @functools.cached_property
    def _read(self) -> Callable[[np.ndarray, np.ndarray, int], Pool]:
        read = compiled(_read_prompts, self._decoder, static_argnums=3, static_argnames="sampling")
        return functools.partial(read, sampling=self._sampling)

    @functools.cached_property
    def _advance(self) -> Callable[..., Any]:
        settings = ("sampling", "num_steps", "drawn", "nucleus", "scored")
        advance = compiled(_advance, self._decoder, static_argnames=settings, donate_argnums=1)
        return functools.partial(advance, sampling=self._sampling)

    @functools.cached_property
    def _take(self) -> Callable[[Pool, np.ndarray], Pool]:
        return jax.jit(take_rows)

    @functools.cached_property
    def _place(self) -> Callable[[Pool, Pool, np.ndarray], Pool]:
        put = lambda pool, rows, slots: jax.tree.map(lambda a, new: a.at[slots].set(new), pool, rows)
        return jax.jit(put, donate_argnums=0)

    @functools.cached_property
    def _grow(self) -> Callable[[PyTree, int], PyTree]:
        return jax.jit(self._decoder.grow, static_argnums=1)


def _read_prompts(decoder: Decoder, prompts: Array, lengths: Array, places: int, *, sampling: Sampling) -> Pool:
    """Rows after their prompts [B, P], in a memory of a number of places."""
    logits, memory, _ = prefill(decoder, prompts, lengths, places)
    seen = None
    if sampling.needs_seen:
        real = jnp.arange(prompts.shape[1])[None] < lengths[:, None]
        seen = jnp.zeros(logits.shape, bool)
        seen = jax.vmap(lambda row, tokens, real: row.at[tokens].max(real))(seen, prompts, real)
    return Pool(memory, logits.astype(jnp.float32), seen)


def _advance(
    decoder: Decoder,
    pool: Pool,
    keys: Array,
    steps: Array,
    temperature: Array,
    top_p: Array,
    mask: Array | None,
    *,
    sampling: Sampling,
    num_steps: int,
    drawn: bool,
    nucleus: bool,
    scored: bool,
) -> tuple[Any, Pool]:
    """The next tokens [num_steps, B] of a pool with their scores, or None, and the pool after them."""
    keys, greedy = jax.random.wrap_key_data(keys), (temperature == 0)[:, None]
    row_temperature = jnp.where(greedy, 1.0, temperature[:, None])

    def one(pool: Pool, step: Array) -> tuple[Pool, Any]:
        logits = pool.logits if mask is None else jnp.where(mask, pool.logits, FORBIDDEN)
        filtered = sampling.filter(logits, pool.seen, row_temperature, top_p[:, None] if nucleus else None)
        if sampling.typical_p is not None:
            # The likeliest token may be too likely to be typical.
            penalty = Sampling(repetition_penalty=sampling.repetition_penalty)
            filtered = jnp.where(greedy, penalty.filter(logits, pool.seen), filtered)
        if drawn:
            step_keys = jax.vmap(jax.random.fold_in)(keys, steps + step)
            noise = jax.vmap(lambda key: jax.random.gumbel(key, (logits.shape[-1],)))(step_keys)
            filtered = filtered + jnp.where(greedy, 0.0, noise)
        token = filtered.argmax(-1).astype(jnp.int32)
        scores = None
        if scored:
            # The model's own distribution, before temperature, filters and automaton.
            log_probs = jax.nn.log_softmax(pool.logits, axis=-1)
            own = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
            scores = (own, *jax.lax.top_k(log_probs, min(MOST_LIKELIEST, log_probs.shape[-1])))
        out = decoder.extend(pool.memory, token[:, None])
        seen = pool.seen
        if seen is not None:
            seen = jax.vmap(lambda row, index: row.at[index].set(True))(seen, token)
        return Pool(out.memory, out.logits[:, 0].astype(jnp.float32), seen), (token, scores)

    pool, written = jax.lax.scan(one, pool, jnp.arange(num_steps))
    return written, pool


def _answer(future: concurrent.futures.Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)


def _places_of(row: Row) -> int:
    """Number of places that a prompt is padded to."""
    return power_of_two(max(len(row.prompt), FEWEST_PLACES))


def _score(row: Row, tokens: np.ndarray, scores: Any, step: int, place: int) -> Score | None:
    if row.num_likeliest is None:
        return None
    own, values, ids = scores
    likeliest = zip(ids[step, place, : row.num_likeliest].tolist(), values[step, place].tolist())
    return Score(int(tokens[step, place]), float(own[step, place]), tuple(likeliest))
