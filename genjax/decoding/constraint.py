"""Constrained decoding: an automaton says which tokens may follow (Willard & Louf 2023, arXiv:2307.09702).

A table holds, for every state and every kind of token, the state that the token's text leads to, so that decoding only
looks up a row.  Two tokens are of one kind if they lead to the same state from every state; for most patterns a
vocabulary has few kinds.  Let n(s) be the number of tokens on the shortest way from state s to the end of a text.  Then

    token v may follow state s with m tokens left to write  <=>  n(table[s, v]) <= m - 1

so that the written text is always a whole match: there is always room to finish it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.decoding.base import end_tokens
from genjax.decoding.regular_expression import compile_pattern
from genjax.errors import UserError

#: Length of a way that does not exist.
_NEVER = np.iinfo(np.int32).max
#: Largest number of entries of a table: 256 MiB.
MOST_ENTRIES = 2**26


class Automaton(flax.struct.PyTreeNode):
    """A deterministic automaton over tokens; see `from_table`.

    Attributes:
      table: state after each kind of token, -1 where the token is not allowed, int32 [S, C].
      kinds: kind of each token, int32 [V].
      accepting: whether the text may end in a state, bool [S].
      shortest: number of tokens, at least one, on the shortest way from a state to an accepting state, int32 [S].
      start: first state.
    """

    table: Array
    kinds: Array
    accepting: Array
    shortest: Array
    start: int = flax.struct.field(pytree_node=False, default=0)

    @classmethod
    def from_table(
        cls, table: np.ndarray, accepting: np.ndarray, start: int = 0, kinds: np.ndarray | None = None
    ) -> Automaton:
        """Makes an automaton from a table.

        Tokens after which no accepting state can be reached are not allowed either.

        Args:
          table: state after each token, -1 where the token is not allowed, int [S, V]; or, with `kinds`, state after
            each kind of token, int [S, C].
          accepting: whether a text may end in a state, bool [S].
          start: first state.
          kinds: kind of each token, int [V], or None if each token has a column of its own.

        Raises:
          UserError: no text of tokens leads from the first state to an accepting state.
        """
        table, accepting = np.asarray(table, np.int32), np.asarray(accepting, bool)
        kinds = np.arange(table.shape[1]) if kinds is None else np.asarray(kinds)
        distance = np.append(_distances(table, accepting), _NEVER)  # the last serves -1
        nearest = distance[table].min(1, initial=_NEVER)
        shortest = np.where(nearest < _NEVER, nearest, _NEVER - 1) + 1
        if distance[start] == _NEVER:
            raise UserError("no text of these tokens leads to an accepting state of the automaton")
        table = np.where(distance[table] < _NEVER, table, -1)
        arrays = (table, kinds.astype(np.int32), accepting, shortest.astype(np.int32))
        # Not by jnp.asarray, which compiles a program for each shape.
        return cls(*map(jax.device_put, arrays), start)

    @property
    def num_tokens(self) -> int:
        """Number V of tokens of the vocabulary."""
        return self.kinds.shape[0]

    def check(self, max_new_tokens: int) -> None:
        """Raises UserError if no accepted text is short enough; while a function is traced, nothing is checked."""
        if isinstance(self.shortest, jax.core.Tracer) or bool(np.asarray(self.accepting)[self.start]):
            return
        least = int(np.asarray(self.shortest)[self.start])
        if least > max_new_tokens:
            raise UserError(
                f"max_new_tokens={max_new_tokens} is too few for the constraint, whose shortest text has {least} tokens"
            )

    def allowed(self, state: Array, end_token: int | Collection[int] | None, left: Array | None = None) -> Array:
        """Tokens that may follow states [B], bool [B, V].

        End tokens are allowed in accepting states, and in states where no other token is allowed, so that the row ends.

        Args:
          state: states [B].
          end_token: a token, or several, that ends a row; or None.
          left: number of tokens that may still be written, this token included, [B]; None for any number.
        """
        after = self.table[state]  # [B, C]
        mask = after >= 0
        if left is not None:
            needed = jnp.where(self.accepting, 0, self.shortest)[after]
            mask &= needed < left[:, None]
        mask = mask[:, self.kinds]
        if not (ends := end_tokens(end_token)):
            return mask
        mask = mask.at[:, jnp.array(ends)].set(False)
        may_end = self.accepting[state] | ~mask.any(1)
        return mask.at[:, jnp.array(ends)].set(may_end[:, None])

    def may_go_on(self, state: Array, left: Array) -> Array:
        """Whether a token other than the end token may follow states [B] with `left` [B] tokens to write, bool [B]."""
        return self.shortest[state] <= left

    def advance(self, state: Array, token: Array) -> Array:
        """States after tokens [B]; a token that is not allowed leaves the state as it is."""
        after = self.table[state, self.kinds[token]]
        return jnp.where(after < 0, state, after)

    def matches(self, tokens: Sequence[int]) -> bool:
        """Whether a whole sequence is accepted."""
        table, kinds, state = np.asarray(self.table), np.asarray(self.kinds), self.start
        for token in tokens:
            state = table[state, kinds[token]]
            if state < 0:
                return False
        return bool(np.asarray(self.accepting)[state])


def from_regular_expression(pattern: str, vocabulary: Sequence[str | bytes]) -> Automaton:
    """Compiles a pattern that the whole text must match.

    Args:
      pattern: see genjax/decoding/regular_expression.py.
      vocabulary: text of each token, or its bytes, which may be a part of a character in UTF-8; tokens with empty text
        (padding, start, end) are never allowed by the table.

    Raises:
      UserError: the pattern is not understood, no text of the tokens matches it, or its table would be too large.
    """
    by_byte, accepting = compile_pattern(pattern)
    pieces = [text.encode() if isinstance(text, str) else text for text in vocabulary]
    try:
        table, kinds = _over_tokens(by_byte, pieces)
    except _TooLargeError:
        raise UserError(
            f"the pattern {pattern!r} has {len(by_byte)} states, and a table over them and the vocabulary would take "
            f"more than {4 * MOST_ENTRIES >> 20} MiB; shorten its repetitions"
        ) from None
    # States that are reached only inside a token's text are left out.
    reached, new = np.zeros(len(table), bool), np.array([0])
    while new.size:
        reached[new] = True
        after = np.unique(table[new])
        new = after[(after >= 0) & ~reached[after]]
    number = np.append(np.cumsum(reached) - 1, -1)  # the last serves -1
    try:
        return Automaton.from_table(number[table[reached]], accepting[reached], kinds=kinds)
    except UserError:
        raise UserError(f"no text of the vocabulary's tokens matches the pattern {pattern!r}") from None


def stop_strings(strings: Sequence[str], vocabulary: Sequence[str | bytes]) -> Automaton:
    """An automaton that is in an accepting state once the text has held one of the strings (Aho & Corasick 1975).

    The strings are found in the bytes of the text, wherever they are divided into tokens, and also inside of a token.

    Args:
      strings: texts that end a generation.
      vocabulary: text of each token, or its bytes; empty for special tokens.

    Raises:
      UserError: there is no string, one is empty, or the tokens can write none of them.
    """
    wanted = [text.encode() for text in strings]
    if not wanted or not all(wanted):
        raise UserError("stop strings must be one text or more, and none of them empty")
    prefixes = {text: i for i, text in enumerate(sorted({w[:i] for w in wanted for i in range(len(w))}, key=len))}
    found = len(prefixes)
    by_byte = np.full((found + 1, 256), found, np.int32)
    for prefix, state in prefixes.items():
        for byte in range(256):
            text = prefix + bytes([byte])
            if not text.endswith(tuple(wanted)):
                # The longest end of the text that may become one of the strings.
                by_byte[state, byte] = next(prefixes[text[i:]] for i in range(len(text) + 1) if text[i:] in prefixes)
    table, kinds = _over_tokens(by_byte, [text.encode() if isinstance(text, str) else text for text in vocabulary])
    try:
        return Automaton.from_table(table, np.arange(found + 1) == found, start=prefixes[b""], kinds=kinds)
    except UserError:
        raise UserError(
            f"the tokens of this vocabulary can write none of the stop strings {', '.join(strings)}"
        ) from None


class _TooLargeError(Exception):
    """A table would have more than MOST_ENTRIES entries."""


def _distances(table: np.ndarray, accepting: np.ndarray) -> np.ndarray:
    """Number of tokens on the shortest way from each state to an accepting state, _NEVER if there is none; int [S]."""
    import scipy.sparse.csgraph

    states, places = np.nonzero(table >= 0)
    size, ends = len(table), np.flatnonzero(accepting)
    # The search goes backwards, from an additional node that all accepting states lead to.
    heads = np.concatenate([table[states, places], np.full(len(ends), size)])
    tails = np.concatenate([states, ends])
    backwards = scipy.sparse.csr_matrix((np.ones(len(heads), bool), (heads, tails)), (size + 1, size + 1))
    order, before = scipy.sparse.csgraph.breadth_first_order(backwards, size)
    distance = np.full(size + 1, _NEVER, np.int32)
    distance[size] = -1
    for node in order[1:]:
        distance[node] = distance[before[node]] + 1
    return distance[:-1]


def _over_tokens(by_byte: np.ndarray, pieces: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Where tokens lead.

    Returns:
      State after all bytes of each kind of token, -1 where there is none or the tokens have no bytes, int32 [S, C]; and
      the kind of each token, int [V].
    """
    # Bytes that lead to the same state from every state are one letter; tokens with the same letters are one word.
    rows = np.concatenate([by_byte, np.full((1, 256), -1, np.int32)]).T.copy()  # [256, S + 1], the last serves -1
    letter_of = {row.tobytes(): byte for byte, row in enumerate(rows)}
    letters = bytes(letter_of[row.tobytes()] for row in rows)
    words = [piece.translate(letters) for piece in pieces]
    nowhere = np.full(len(by_byte), -1, np.int32)
    columns, kind_of, kind_of_word = [nowhere], {nowhere.tobytes(): 0}, {b"": 0}
    # In sorted order, so that words with the same beginning share the states along it.
    path, way = b"", [np.arange(len(by_byte), dtype=np.int32)]
    for word in sorted(set(words) - {b""}):
        common = next((i for i, (a, b) in enumerate(zip(path, word)) if a != b), min(len(path), len(word)))
        del way[common + 1 :]
        for letter in word[len(way) - 1 :]:
            way.append(rows[letter][way[-1]])
            if (way[-1] < 0).all():
                break
        # The way is shorter than the word if the word leads nowhere before its end.
        path, column = word[: len(way) - 1], way[-1]
        kind = kind_of.setdefault(column.tobytes(), len(columns))
        if kind == len(columns):
            if len(by_byte) * (kind + 1) > MOST_ENTRIES:
                raise _TooLargeError
            columns.append(column)
        kind_of_word[word] = kind
    return np.stack(columns, axis=1), np.array([kind_of_word[word] for word in words])
