"""Constrained decoding: an automaton says which tokens may follow (Willard & Louf 2023, arXiv:2307.09702).

A regular expression over characters becomes a deterministic automaton (Thompson's construction and the subset
construction); a table then says for every state and token where the token's characters lead, so that decoding looks
one row up.  Understood are literals, `.`, classes `[a-z]` and `[^...]`, `\\d \\w \\s` and escapes, groups `( )`, `|`, and
`* + ? {m} {m,} {m,n}`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_CLASSES = {"d": string.digits, "w": string.ascii_letters + string.digits + "_", "s": " \t\n\r\f\v"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class Automaton(flax.struct.PyTreeNode):
    """A deterministic automaton over tokens.

    Attributes:
      table: state after each token, -1 where it is not allowed, int32 [S, V].
      accepting: states in which the text may end, bool [S].
      start: first state.
    """

    table: Array
    accepting: Array
    start: int = flax.struct.field(pytree_node=False, default=0)

    def allowed(self, state: Array, end_token: int | None) -> Array:
        """Tokens that may follow states [B], bool [B, V].

        The end token is allowed in accepting states, and only there; and where nothing else is, so that a row with no
        way on ends.
        """
        mask = self.table[state] >= 0
        if end_token is None:
            return mask
        mask = mask.at[:, end_token].set(False)
        may_end = self.accepting[state] | ~mask.any(1)
        return mask.at[:, end_token].set(may_end)

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


def from_regular_expression(pattern: str, vocabulary: Sequence[str]) -> Automaton:
    """Compiles a pattern that the whole text must match.

    Args:
      pattern: see the top of this file.
      vocabulary: text of each token; tokens with empty text (padding, start, end) are never allowed by the table.

    Raises:
      ValueError: the pattern is not understood, or no text of these tokens matches it.
    """
    alphabet = frozenset("".join(vocabulary))
    transitions, accepting = _determinize(*_Parser(pattern, alphabet).automaton())
    table = np.full((len(transitions), len(vocabulary)), -1, np.int32)
    for state in range(len(transitions)):
        for token, text in enumerate(vocabulary):
            after: int | None = state if text else None
            for character in text:
                after = transitions[after].get(character)
                if after is None:
                    break
            if after is not None:
                table[state, token] = after
    live = _leading_to(table, accepting)
    if not live[0]:
        raise ValueError(f"no text of the vocabulary's tokens matches the pattern {pattern!r}")
    table = np.where((table >= 0) & live[table], table, -1)
    return Automaton(table=jnp.asarray(table, jnp.int32), accepting=jnp.asarray(accepting))


def _leading_to(table: np.ndarray, accepting: np.ndarray) -> np.ndarray:
    """States from which an accepting one can be reached."""
    live = accepting.copy()
    while True:
        more = live | ((table >= 0) & live[table]).any(1)
        if (more == live).all():
            return live
        live = more


class _Parser:
    """Recursive descent to a non-deterministic automaton: edges[state] = [(characters or None, next state)]."""

    def __init__(self, pattern: str, alphabet: frozenset[str]):
        self.pattern, self.alphabet, self.place = pattern, alphabet, 0
        self.edges: list[list[tuple[frozenset[str] | None, int]]] = []

    def automaton(self) -> tuple[list[list[tuple[frozenset[str] | None, int]]], int, int]:
        start, end = self._alternatives()
        if self.place < len(self.pattern):
            self._fail("an unmatched )")
        return self.edges, start, end

    def _fail(self, what: str) -> None:
        raise ValueError(f"the pattern {self.pattern!r} has {what} at place {self.place}")

    def _state(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def _peek(self) -> str:
        return self.pattern[self.place] if self.place < len(self.pattern) else ""

    def _take(self) -> str:
        character = self._peek()
        if not character:
            self._fail("an unexpected end")
        self.place += 1
        return character

    def _alternatives(self) -> tuple[int, int]:
        start, end = self._state(), self._state()
        while True:
            first, last = self._sequence()
            self.edges[start].append((None, first))
            self.edges[last].append((None, end))
            if self._peek() != "|":
                return start, end
            self.place += 1

    def _sequence(self) -> tuple[int, int]:
        start = end = self._state()
        while self._peek() not in ("", "|", ")"):
            first, last = self._repeated()
            self.edges[end].append((None, first))
            end = last
        return start, end

    def _repeated(self) -> tuple[int, int]:
        begin = self.place
        first, last = self._atom()
        stop = self.place
        low, high = self._bounds()
        if (low, high) == (1, 1):
            return first, last

        def copy() -> tuple[int, int]:
            # Reading the atom again makes a copy of it.
            after, self.place = self.place, begin
            part = self._atom()
            assert self.place == stop
            self.place = after
            return part

        start = end = self._state()
        for i in range(low if high is None else high):
            part = (first, last) if i == 0 else copy()
            self.edges[end].append((None, part[0]))
            if i >= low:
                self.edges[part[0]].append((None, part[1]))
            end = part[1]
        if high is None:
            part = (first, last) if low == 0 else copy()
            loop = self._state()
            self.edges[end].append((None, loop))
            self.edges[loop].append((None, part[0]))
            self.edges[part[1]].append((None, loop))
            end = loop
        final = self._state()
        self.edges[end].append((None, final))
        return start, final

    def _bounds(self) -> tuple[int, int | None]:
        match self._peek():
            case "*":
                bounds = (0, None)
            case "+":
                bounds = (1, None)
            case "?":
                bounds = (0, 1)
            case "{":
                close = self.pattern.find("}", self.place)
                low, comma, high = self.pattern[self.place + 1 : max(close, self.place + 1)].partition(",")
                if close < 0 or not low.isdigit() or (high and not high.isdigit()):
                    self._fail("a repetition that is not {m}, {m,} or {m,n}")
                bounds = (int(low), int(high) if high else (None if comma else int(low)))
                if bounds[1] is not None and bounds[1] < bounds[0]:
                    self._fail("a repetition whose bounds are out of order")
                self.place = close
            case _:
                return 1, 1
        self.place += 1
        return bounds

    def _atom(self) -> tuple[int, int]:
        character = self._take()
        if character == "(":
            if self.pattern.startswith("?:", self.place):
                self.place += 2
            part = self._alternatives()
            if self._peek() != ")":
                self._fail("a ( without its )")
            self.place += 1
            return part
        if character in "*+?{":
            self.place -= 1
            self._fail(f"{character} with nothing to repeat")
        if character == ".":
            chosen = self.alphabet - {"\n"}
        elif character == "[":
            chosen = self._class()
        elif character == "\\":
            chosen = self._escaped()
        else:
            chosen = frozenset(character)
        start, end = self._state(), self._state()
        self.edges[start].append((chosen, end))
        return start, end

    def _escaped(self) -> frozenset[str]:
        character = self._take()
        if character.lower() in _CLASSES:
            members = frozenset(_CLASSES[character.lower()])
            return members if character.islower() else self.alphabet - members
        return frozenset(_ESCAPES.get(character, character))

    def _class(self) -> frozenset[str]:
        negated = self._peek() == "^"
        if negated:
            self.place += 1
        members: set[str] = set()
        first = True
        while first or self._peek() != "]":
            first = False
            character = self._take()
            if character == "\\":
                chosen = self._escaped()
                members |= chosen
                if len(chosen) > 1:
                    continue
                character = next(iter(chosen))
            members.add(character)
            if self._peek() == "-" and self.pattern[self.place + 1 : self.place + 2] not in ("]", ""):
                self.place += 1
                last = self._take()
                members |= {chr(code) for code in range(ord(character), ord(last) + 1)}
        self.place += 1
        return self.alphabet - members if negated else frozenset(members)


def _determinize(edges: list, start: int, end: int) -> tuple[list[dict[str, int]], np.ndarray]:
    """Subset construction; returns the transitions of each state by character and which states accept."""

    def closure(states: frozenset[int]) -> frozenset[int]:
        found, open_states = set(states), list(states)
        while open_states:
            for characters, after in edges[open_states.pop()]:
                if characters is None and after not in found:
                    found.add(after)
                    open_states.append(after)
        return frozenset(found)

    first = closure(frozenset({start}))
    numbers, queue, transitions = {first: 0}, [first], []
    while queue:
        current = queue.pop(0)
        targets: dict[str, set[int]] = {}
        for state in current:
            for characters, after in edges[state]:
                for character in characters or ():
                    targets.setdefault(character, set()).add(after)
        row = {}
        for character, after in targets.items():
            after = closure(frozenset(after))
            if after not in numbers:
                numbers[after] = len(numbers)
                queue.append(after)
            row[character] = numbers[after]
        transitions.append(row)
    return transitions, np.array([end in states for states in numbers])
