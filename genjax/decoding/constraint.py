"""Constrained decoding: an automaton says which tokens may follow (Willard & Louf 2023, arXiv:2307.09702).

A table says for every state and token where the token's text leads, so that decoding looks one row up.  With the
number n(s) of tokens of the shortest way from state s to the end of a text,

    token v may follow state s with m tokens left to write  <=>  n(table[s, v]) <= m - 1

so that what is written is a whole match, and never one that there was no place to finish.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from genjax.decoding.base import end_tokens
from genjax.decoding.regular_expression import compile_pattern
from genjax.errors import UserError

Array = jax.Array

#: Number of tokens of a way that there is none of.
_NEVER = np.iinfo(np.int32).max


class Automaton(flax.struct.PyTreeNode):
    """A deterministic automaton over tokens; see `from_table`.

    Attributes:
      table: state after each token, -1 where it is not allowed, int32 [S, V].
      accepting: states in which the text may end, bool [S].
      shortest: tokens of the shortest way on from a state to an accepting one, at least one token, int32 [S].
      start: first state.
    """

    table: Array
    accepting: Array
    shortest: Array
    start: int = flax.struct.field(pytree_node=False, default=0)

    @classmethod
    def from_table(cls, table: np.ndarray, accepting: np.ndarray, start: int = 0) -> Automaton:
        """The automaton of a table int [S, V], -1 where a token is not allowed, and of accepting states bool [S].

        Tokens from which no accepting state can be reached are not allowed either.

        Raises:
          UserError: no text of tokens leads from the first state to an accepting one.
        """
        table, accepting = np.asarray(table, np.int32), np.asarray(accepting, bool)
        leads = np.zeros((len(table), len(table) + 1), bool)  # the last column serves -1
        leads[np.arange(len(table))[:, None], table] = True
        shortest = np.full(len(table), _NEVER, np.int32)
        length, reached = 0, accepting
        while reached.any():
            length += 1
            reached = (shortest == _NEVER) & leads[:, :-1][:, reached].any(1)
            shortest[reached] = length
        live = accepting | (shortest < _NEVER)
        if not live[start]:
            raise UserError("no text of these tokens leads to an accepting state of the automaton")
        table = np.where((table >= 0) & live[table], table, -1)
        return cls(jnp.asarray(table), jnp.asarray(accepting), jnp.asarray(shortest), start)

    def check(self, max_new_tokens: int) -> None:
        """Raises UserError if no text is short enough, where the automaton is known (not while a function is traced)."""
        if isinstance(self.shortest, jax.core.Tracer) or bool(np.asarray(self.accepting)[self.start]):
            return
        least = int(np.asarray(self.shortest)[self.start])
        if least > max_new_tokens:
            raise UserError(
                f"max_new_tokens={max_new_tokens} is too few for the constraint, whose shortest text has {least} tokens"
            )

    def allowed(self, state: Array, end_token: int | Collection[int] | None, left: Array | None = None) -> Array:
        """Tokens that may follow states [B], bool [B, V].

        End tokens are allowed in accepting states, and only there; and where nothing else is, so that a row with no
        way on ends.

        Args:
          state: states [B].
          end_token: what ends a row, any of several, or None.
          left: number of tokens that may still be written, this one among them, [B]; None for any number.
        """
        after = self.table[state]
        mask = after >= 0
        if left is not None:
            needed = jnp.where(self.accepting, 0, self.shortest)[after]
            mask &= needed < left[:, None]
        if not (ends := end_tokens(end_token)):
            return mask
        mask = mask.at[:, jnp.array(ends)].set(False)
        may_end = self.accepting[state] | ~mask.any(1)
        return mask.at[:, jnp.array(ends)].set(may_end[:, None])

    def may_go_on(self, state: Array, left: Array) -> Array:
        """Whether any token but the end token may follow states [B] with so many tokens left [B], bool [B]."""
        return self.shortest[state] <= left

    def advance(self, state: Array, token: Array) -> Array:
        """States after tokens [B]; where a token is not allowed the state stays."""
        after = self.table[state, token]
        return jnp.where(after < 0, state, after)

    def matches(self, tokens: Sequence[int]) -> bool:
        """Whether a whole sequence is accepted."""
        table, state = np.asarray(self.table), self.start
        for token in tokens:
            state = table[state, token]
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
      UserError: the pattern is not understood, or no text of these tokens matches it.
    """
    by_byte, accepting = compile_pattern(pattern)
    pieces = [text.encode() if isinstance(text, str) else text for text in vocabulary]
    table = _over_tokens(by_byte, pieces)
    # States within a token's text are those of no text of whole tokens.
    reached, new = np.zeros(len(table), bool), np.array([0])
    while new.size:
        reached[new] = True
        after = np.unique(table[new])
        new = after[(after >= 0) & ~reached[after]]
    number = np.append(np.cumsum(reached) - 1, -1)  # the last serves -1
    try:
        return Automaton.from_table(number[table[reached]], accepting[reached])
    except ValueError:
        raise UserError(f"no text of the vocabulary's tokens matches the pattern {pattern!r}") from None


def _over_tokens(by_byte: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """State after all bytes of each token, -1 where there is none or the token has no bytes; int32 [S, V]."""
    lengths = np.array([len(piece) for piece in pieces], int)
    table = np.full((len(by_byte), len(pieces)), -1, np.int32)
    table[:, lengths > 0] = np.arange(len(by_byte))[:, None]
    steps = np.concatenate([by_byte, np.full((1, 256), -1, np.int32)])  # the last row serves -1
    for place in range(lengths.max(initial=0)):
        tokens = np.flatnonzero(lengths > place)
        table[:, tokens] = steps[table[:, tokens], np.array([pieces[token][place] for token in tokens])]
    return table
