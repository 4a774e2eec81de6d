"""Rows that are written together, each as if it were alone.

    waiting rows  --read (prompts of like length together)-->  rows of a pool  --advance-->  tokens, row by row

A row joins the others between two steps, and leaves as soon as it is over.  Its draws come from its own key and the
number of its own tokens, so that neighbours do not change them: it gets the tokens that `decoding.generate` gives for
the same key.

Few programs are compiled, so that memory does not grow with what is asked: numbers of rows, lengths of prompts and
places of the memory are powers of two, a pool grows and shrinks by steps of two, and whether tokens are drawn, bound or
scored is an argument of one program.  After `Batcher.warm_up`, those of the smallest memory are compiled while nobody
asks.

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
from collections.abc import Callable, Iterator, Sequence
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
#: Seconds that a call of the device should take, after which a row may join or leave, and its largest number of steps.
CALL_SECONDS, STEPS_OF_A_CALL = 0.01, 32
#: Prompts that are read in one call, and the places that a prompt is padded to at least.
PROMPTS_OF_A_CALL, FEWEST_PLACES = 8, 16
#: Prompts are read together if they have at most SHORT places and are more than FEW; one alone would else cost as much.
SHORT, FEW = 64, 2
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


class Chosen(NamedTuple):
    """How the tokens of each row are chosen: data of keys [B, ...], number of tokens so far, temperature and top_p [B].

    They come from the host with each call: what a program gives has another sharding, and needs a program of its own.
    """

    keys: np.ndarray
    steps: np.ndarray
    temperature: np.ndarray
    top_p: np.ndarray


class How(NamedTuple):
    """What one call of the device does.

    Attributes:
      num_steps: number of tokens of each row.
      bound: whether patterns forbid tokens.
      drawn: whether a row is not greedy.
      nucleus: whether a row keeps only its likeliest tokens.
      scored: whether log-probabilities are told.
    """

    num_steps: int
    bound: bool
    drawn: bool
    nucleus: bool
    scored: bool


def keys_of(seed: int, count: int) -> np.ndarray:
    """Data of the keys of `count` rows [count, ...]: those that `decoding.generate` makes of a seed for its rows."""
    return np.asarray(_keys_data(jax.random.key(seed), power_of_two(count)))[:count]


@functools.partial(jax.jit, static_argnums=1)
def _keys_data(key: Array, count: int) -> Array:
    return jax.random.key_data(row_keys(key, jnp.zeros((count, 1), jnp.int32)))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


class Batcher:
    """Writes the rows of one model; see the module."""

    def __init__(
        self, decoder: Decoder | None, sampling: Sampling, limits: Limits | None = None, read_alone: bool = False
    ) -> None:
        """Starts the thread.

        Args:
          decoder: the model, or None where only `call` is used.
          sampling: the model's own settings; rows have a temperature and a top_p of their own.
          limits: how much is done at a time.
          read_alone: whether each prompt is read by a decoder of its row; `decoder` writes its text all the same.
        """
        self.limits, self._read_alone = limits or Limits(), read_alone
        self.num_written = 0  # tokens since the start
        # Each row has a top_p of its own.
        self._decoder, self._sampling = decoder, dataclasses.replace(sampling, top_p=None)
        self._changed = threading.Condition()
        self._waiting: collections.deque[Row] = collections.deque()
        self._calls: collections.deque[tuple[concurrent.futures.Future[Any], Callable[[], Any]]] = collections.deque()
        self._rows: list[Row | None] = []  # one for each row of the pool
        self._entering: list[Row] = []  # no longer waiting, and not among the others yet
        self._pool: Pool | None = None
        self._chosen: Chosen | None = None  # None once other rows have come
        self._places = 0  # of the pool's memory
        self._warming: Iterator[None] | None = None
        self._unbound: np.ndarray | None = None  # see _all_allowed
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

    @property
    def is_warming_up(self) -> bool:
        """Whether programs are still compiled that nobody has needed yet."""
        return self._warming is not None

    def warm_up(self) -> None:
        """Lets the programs be compiled that texts need while a pool's memory has its fewest places.

        It returns at once; requests go first.
        """
        if self._decoder is not None:
            with self._changed:
                self._warming = self._compile()
                self._changed.notify()

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
                while not (self._has_work() or self._closing or self._warming):
                    self._changed.wait()
                if not self._has_work() and self._closing:
                    return
                idle = not self._has_work()
                called = self._calls.popleft() if self._calls else None
            if idle:
                self._warm()
                continue
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

    def _has_work(self) -> bool:
        return bool(self._calls or self._waiting or any(self._rows))

    def _warm(self) -> None:
        """Compiles one more program."""
        try:
            next(self._warming)
        except StopIteration:
            self._warming = None
        except Exception:
            # A device without memory for the largest pool: requests may need less.
            _logger.exception("not all programs could be compiled in advance")
            self._warming = None

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
        if active:
            self._resize(size)
        if not new:
            return
        self._make_room(max(len(row.prompt) + row.max_new_tokens for row in new))
        width = min(_places_of(new[0]), self._places)
        together = len(new) > FEW and width <= SHORT and not self._read_alone
        for group in [new] if together else [[row] for row in new]:
            self._enter(group, width, size)

    def _enter(self, group: Sequence[Row], width: int, size: int) -> None:
        """Reads prompts, padded to a width, into a pool of `size` rows."""
        # Copies of the last prompt fill up the rows.
        read = [*group, *group[-1:] * (self._prompts_of_a_call - len(group))] if len(group) > 1 else group
        prompts = np.zeros((len(read), width), np.int32)
        for line, row in zip(prompts, read):
            line[: len(row.prompt)] = row.prompt
        lengths = np.array([len(row.prompt) for row in read], np.int32)
        own = group[0].decoder
        rows = (self._read if own is None else self._reader(own()))(prompts, lengths, self._places)
        if self._pool is None:
            self._pool, self._rows = rows, [*group, *[None] * (len(read) - len(group))]
            slots = []
        else:
            slots = [place for place, row in enumerate(self._rows) if row is None][: len(group)]
            slots += slots[-1:] * (len(read) - len(group))
            self._pool = self._place(self._pool, rows, np.array(slots, np.int32))
            for slot, row in zip(slots, group):
                self._rows[slot] = row
        self._entering = self._entering[len(group) :]
        self._chosen = None
        self._resize(size)

    @property
    def _prompts_of_a_call(self) -> int:
        return 1 if self._read_alone else min(PROMPTS_OF_A_CALL, power_of_two(self.limits.slots))

    def _compile(self) -> Iterator[None]:
        """Compiles a program at a time."""
        places = self._enough(FEWEST_OF_MEMORY)
        read = lambda count, width: self._read(np.zeros((count, width), np.int32), np.ones(count, np.int32), places)
        width, pools = min(FEWEST_PLACES, places), {}
        while True:
            for count in {1, self._prompts_of_a_call} if width <= SHORT else {1}:
                pools[count] = read(count, width)
                yield
            if width == places:
                break
            width = min(2 * width, places)
        how, pool, size = np.array(How(1, False, False, False, False), np.int32), read(1, width), 1
        while True:
            none = np.zeros(size, np.float32)
            chosen = Chosen(keys_of(0, size), none.astype(np.int32), none, none)
            _, pool = self._advance(pool, chosen, how, np.zeros((size, -(-pool.logits.shape[1] // 8)), np.uint8))
            yield
            for count, rows in pools.items():
                if count <= size:
                    pool = self._place(pool, rows, np.arange(count, dtype=np.int32))
            if size > 1:
                self._take(pool, np.arange(size // 2, dtype=np.int32))
            if size >= self.limits.slots:
                break
            pool, size = self._take(pool, np.arange(2 * size, dtype=np.int32) % size), 2 * size

    def _enough(self, places: int) -> int:
        """Number of places of a memory that holds `places` tokens."""
        if self._decoder.grow is None:
            return self.max_context
        return min(max(power_of_two(places), FEWEST_OF_MEMORY), self.max_context)

    def _make_room(self, places: int) -> None:
        """Sees to it that the pool's memory has that many places at least."""
        places = self._enough(places)
        if self._pool is None:
            self._places = places
        while self._places < places:
            self._places = min(2 * self._places, self.max_context)
            self._pool = self._pool._replace(memory=self._grow(self._pool.memory, self._places))

    def _resize(self, size: int) -> None:
        """Moves the active rows together into a pool of `size` rows, by steps of two."""
        while len(self._rows) != size:
            step = 2 * len(self._rows) if len(self._rows) < size else len(self._rows) // 2
            index = [place for place, row in enumerate(self._rows) if row is not None]
            padded = np.array([*index, *[index[0]] * (step - len(index))], np.int32)
            self._pool = self._take(self._pool, padded)
            self._rows = [*(self._rows[place] for place in index), *[None] * (step - len(index))]
            self._chosen = None

    def _step(self) -> None:
        """Writes a token of each row, or several."""
        active = [(place, row) for place, row in enumerate(self._rows) if row is not None]
        bound = any(row.walk for _, row in active)
        several = 1 if bound else int(min(CALL_SECONDS / self._step_seconds, STEPS_OF_A_CALL))
        how = How(
            num_steps=max(min(several, max(row.left for _, row in active)), 1),
            bound=bound,
            drawn=any(row.temperature > 0 for _, row in active),
            nucleus=any(row.top_p < 1 for _, row in active),
            scored=any(row.num_likeliest is not None for _, row in active),
        )
        began = time.perf_counter()
        tokens, scores = self._call(how, self._allowed(active) if bound else self._all_allowed(len(self._rows)))
        self._step_seconds = (time.perf_counter() - began) / how.num_steps
        for place, row in active:
            told = row.num_likeliest is not None
            before = row.num_tokens
            row.take(tokens[place], _scores(row, scores, tokens[place], place) if told else None)
            self.num_written += row.num_tokens - before

    def _call(self, how: How, allowed: np.ndarray) -> tuple[list[list[int]], Any]:
        """The next tokens of each row, and their scores, where they are wanted."""
        if self._chosen is None:
            self._chosen = self._choices()
        (tokens, scores), self._pool = self._advance(self._pool, self._chosen, np.array(how, np.int32), allowed)
        self._chosen = self._chosen._replace(steps=self._chosen.steps + np.int32(how.num_steps))
        tokens, scores = jax.device_get((tokens, scores if how.scored else None))
        return tokens[: how.num_steps].T.tolist(), scores

    def _choices(self) -> Chosen:
        """How the tokens of the rows are chosen; rows that nobody has are greedy."""
        filled = next(row for row in self._rows if row is not None)
        of = lambda value, dtype: np.array([value(row) for row in self._rows], dtype)
        return Chosen(
            keys=of(lambda row: (row or filled).key, np.uint32),
            steps=of(lambda row: 0 if row is None else row.num_tokens, np.int32),
            temperature=of(lambda row: 0.0 if row is None else row.temperature, np.float32),
            top_p=of(lambda row: 1.0 if row is None else row.top_p, np.float32),
        )

    def _allowed(self, active: Sequence[tuple[int, Row]]) -> np.ndarray:
        """Tokens that may follow in each row, 8 to a byte [B, V / 8]."""
        mask = np.ones((len(self._rows), self._pool.logits.shape[1]), bool)
        for place, row in active:
            if (allowed := row.allowed()) is not None:
                mask[place] = allowed
        return np.packbits(mask, axis=1)

    def _all_allowed(self, size: int) -> np.ndarray:
        """What stands for the allowed tokens where no row is bound."""
        if self._unbound is None or self._unbound.shape[0] != size:
            self._unbound = np.zeros((size, -(-self._pool.logits.shape[1] // 8)), np.uint8)
        return self._unbound

    @functools.cached_property
    def _read(self) -> Callable[[np.ndarray, np.ndarray, int], Pool]:
        return self._reader(self._decoder)

    def _reader(self, decoder: Decoder) -> Callable[[np.ndarray, np.ndarray, int], Pool]:
        read = compiled(_read_prompts, decoder, static_argnums=3, static_argnames="sampling")
        return functools.partial(read, sampling=self._sampling)

    @functools.cached_property
    def _advance(self) -> Callable[..., Any]:
        advance = compiled(_advance, self._decoder, static_argnames="sampling", donate_argnums=1)
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
    decoder: Decoder, pool: Pool, chosen: Chosen, how: Array, allowed: Array, *, sampling: Sampling
) -> tuple[Any, Pool]:
    """The next tokens of a pool.

    Args:
      decoder: the model.
      pool: its rows.
      chosen: how each row's tokens are chosen.
      how: the fields of `How`.
      allowed: tokens that may follow, 8 to a byte [B, V / 8]; read where `how.bound`.
      sampling: filters.

    Returns:
      Tokens [S, B], S = STEPS_OF_A_CALL, of which the first `how.num_steps` are written; their log-probabilities
      [S, B], and those of the likeliest tokens with these [S, B, K], written where `how.scored`; the pool after them.
    """
    does = How(*how)
    keys, greedy = jax.random.wrap_key_data(chosen.keys), (chosen.temperature == 0)[:, None]
    temperature, top_p = jnp.where(greedy, 1.0, chosen.temperature[:, None]), chosen.top_p[:, None]
    size, vocab_size = pool.logits.shape
    num_likeliest = min(MOST_LIKELIEST, vocab_size)

    def bound(logits: Array) -> Array:
        mask = jnp.unpackbits(allowed, axis=1, count=vocab_size).astype(bool)
        return jnp.where(mask, logits, FORBIDDEN)

    def noisy(filtered: Array, step: Array) -> Array:
        step_keys = jax.vmap(jax.random.fold_in)(keys, chosen.steps + step)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,)))(step_keys)
        return filtered + jnp.where(greedy, 0.0, noise)

    def scores(logits: Array, token: Array) -> tuple[Array, ...]:
        # The model's own distribution, before temperature, filters and automaton.
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
        return (own, *jax.lax.top_k(log_probs, num_likeliest))

    def one(step: Array, carry: tuple[Pool, Any]) -> tuple[Pool, Any]:
        pool, written = carry
        logits = jax.lax.cond(does.bound, bound, lambda logits: logits, pool.logits)
        filtered = jax.lax.cond(
            does.nucleus,
            lambda logits: sampling.filter(logits, pool.seen, temperature, top_p),
            lambda logits: sampling.filter(logits, pool.seen, temperature),
            logits,
        )
        if sampling.typical_p is not None:
            # The likeliest token may be too likely to be typical.
            penalty = Sampling(repetition_penalty=sampling.repetition_penalty)
            filtered = jnp.where(greedy, penalty.filter(logits, pool.seen), filtered)
        filtered = jax.lax.cond(does.drawn, noisy, lambda filtered, step: filtered, filtered, step)
        token = filtered.argmax(-1).astype(jnp.int32)
        told = jax.lax.cond(
            does.scored,
            scores,
            lambda logits, token: jax.tree.map(lambda a: a[0], written[1]),
            pool.logits,
            token,
        )
        out = decoder.extend(pool.memory, token[:, None])
        seen = pool.seen
        if seen is not None:
            seen = jax.vmap(lambda row, index: row.at[index].set(True))(seen, token)
        pool = Pool(out.memory, out.logits[:, 0].astype(jnp.float32), seen)
        return pool, jax.tree.map(lambda a, new: a.at[step].set(new), written, (token, told))

    empty = lambda *shape, dtype=jnp.float32: jnp.zeros((STEPS_OF_A_CALL, size, *shape), dtype)
    told = empty(), empty(num_likeliest), empty(num_likeliest, dtype=jnp.int32)
    pool, written = jax.lax.fori_loop(0, does.num_steps, one, (pool, (empty(dtype=jnp.int32), told)))
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


def _scores(row: Row, scores: Any, tokens: Sequence[int], place: int) -> list[Score]:
    """The scores of one row's tokens."""
    own, values, ids = (a[: len(tokens), place].tolist() for a in scores)
    count = row.num_likeliest
    return [
        Score(token, each, tuple(zip(best[:count], likeliest)))
        for token, each, likeliest, best in zip(tokens, own, values, ids)
    ]
