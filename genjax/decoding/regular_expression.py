"""Regular expressions as deterministic automata over the bytes of UTF-8.

A pattern becomes a non-deterministic automaton (Thompson's construction), which becomes a deterministic automaton (the
subset construction).  Each interval of code points is split into a few sequences of intervals of bytes:

    U+0000 .. U+07FF  =  [00-7F]  |  [C2-DF][80-BF]

so that a token may begin or end inside a character, as tokens of bytes and of byte-level BPE do.

The syntax: literals, `.`, classes `[a-z]` and `[^...]`, `\\d \\w \\s` of ASCII and their opposites `\\D \\W \\S`,
`\\n \\t \\r` and escaped punctuation, groups `( )` and `(?: )`, `|`, and `* + ? {m} {m,} {m,n}`.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator

import numpy as np

from genjax.errors import UserError

#: Intervals of code points or of bytes, both ends included.
Intervals = tuple[tuple[int, int], ...]
#: Edges of each state: the interval of bytes that an edge reads (None if it reads no byte), and the next state.
Edges = list[list[tuple[tuple[int, int] | None, int]]]

#: Limits, which a few seconds of work can reach: states of the deterministic automaton; states of the non-deterministic
#: automaton; and the sum, over deterministic states, of the non-deterministic states that they stand for.
MOST_STATES, MOST_PARTS, MOST_MEMBERS = 20_000, 200_000, 4_000_000
_LAST, _SURROGATES = 0x10FFFF, (0xD800, 0xDFFF)
_CLASSES = {"d": string.digits, "w": string.ascii_letters + string.digits + "_", "s": " \t\n\r\f\v"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


def compile_pattern(pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """Makes an automaton that accepts the texts which a pattern matches as a whole.

    Returns:
      State after each byte, -1 where the byte is not allowed, int32 [S, 256], with 0 as the first state; and whether
      each state accepts, bool [S].

    Raises:
      UserError: the pattern is not understood, or its automaton would be too large.
    """
    try:
        return _determinize(*_Parser(pattern).automaton())
    except _TooLargeError:
        raise UserError(
            f"the pattern {pattern!r} needs too large an automaton, of more than {MOST_STATES} states; "
            "shorten its repetitions"
        ) from None
    except RecursionError:
        raise UserError(f"the pattern {pattern!r} has groups within groups too deep to be read") from None


class _TooLargeError(Exception):
    """The automaton would be too large to be made in a few seconds."""


def _points(characters: Iterable[str]) -> Intervals:
    return tuple((ord(c), ord(c)) for c in characters)


def _others(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """All characters except the characters in `intervals`."""
    result, low = [], 0
    for first, last in sorted([*intervals, _SURROGATES]):
        if low < first:
            result.append((low, first - 1))
        low = max(low, last + 1)
    return (*result, (low, _LAST)) if low <= _LAST else tuple(result)


def _as_bytes(low: int, high: int) -> Iterator[Intervals]:
    """Sequences of intervals of bytes whose products are the characters low .. high in UTF-8."""
    for last in (0x7F, 0x7FF, 0xFFFF):  # the last character of one byte, of two bytes, of three bytes
        if low <= last < high:
            yield from _as_bytes(low, last)
            yield from _as_bytes(last + 1, high)
            return
    for bits in (6, 12, 18):  # the bits of the last byte, of the last two bytes, of the last three bytes
        rest = (1 << bits) - 1
        if low >> bits != high >> bits and high > 0x7F:
            # Characters with the same first bytes form one sequence only if all their continuations are in low .. high.
            if low & rest:
                yield from _as_bytes(low, low | rest)
                yield from _as_bytes((low | rest) + 1, high)
                return
            if high & rest != rest:
                yield from _as_bytes(low, (high & ~rest) - 1)
                yield from _as_bytes(high & ~rest, high)
                return
    first, last = (chr(code).encode(errors="surrogatepass") for code in (low, high))
    yield tuple(zip(first, last))


class _Parser:
    """Recursive descent to a non-deterministic automaton."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.place = pattern, 0
        self.edges: Edges = []

    def automaton(self) -> tuple[Edges, int, int]:
        """Edges, first state and last state."""
        start, end = self._alternatives()
        if self.place < len(self.pattern):
            self._fail("an unmatched )")
        return self.edges, start, end

    def _fail(self, what: str) -> None:
        raise UserError(f"the pattern {self.pattern!r} has {what} at place {self.place}")

    def _state(self) -> int:
        if len(self.edges) >= MOST_PARTS:
            raise _TooLargeError
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
            # Parsing the atom again makes a copy of its states.
            after, self.place = self.place, begin
            part = self._atom()
            assert self.place == stop
            self.place = after
            return part

        start = end = self._state()
        final = self._state()
        for i in range(low if high is None else high):
            part = (first, last) if i == 0 else copy()
            self.edges[end].append((None, part[0]))
            if i >= low:
                # An edge straight to the end: a way through all later copies would be as long as their number.
                self.edges[end].append((None, final))
            end = part[1]
        if high is None:
            part = (first, last) if low == 0 else copy()
            loop = self._state()
            self.edges[end].append((None, loop))
            self.edges[loop].append((None, part[0]))
            self.edges[part[1]].append((None, loop))
            end = loop
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
                if close < 0 or not low.isdecimal() or (high and not high.isdecimal()):
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
            elif self._peek() == "?":
                self._fail("a group (? that is not (?: )")
            part = self._alternatives()
            if self._peek() != ")":
                self._fail("a ( without its )")
            self.place += 1
            return part
        if character in "*+?{^$":
            self.place -= 1
            if character in "^$":
                self._fail(
                    f"the anchor {character} (leave it out, the whole text must match; a literal is \\{character})"
                )
            self._fail(f"{character} with nothing to repeat")
        if character == ".":
            chosen = _others(_points("\n"))
        elif character == "[":
            chosen = self._class()
        elif character == "\\":
            chosen = self._escaped()
        else:
            chosen = _points(character)
        return self._one_of(chosen)

    def _one_of(self, chosen: Intervals) -> tuple[int, int]:
        """A part that reads one of the `chosen` characters; characters with the same last bytes share states."""
        start, end = self._state(), self._state()
        shared: dict[Intervals, int] = {(): end}
        for low, high in chosen:
            for sequence in _as_bytes(low, high):
                for i in reversed(range(1, len(sequence))):
                    if sequence[i:] not in shared:
                        shared[sequence[i:]] = self._state()
                        self.edges[shared[sequence[i:]]].append((sequence[i], shared[sequence[i + 1 :]]))
                self.edges[start].append((sequence[0], shared[sequence[1:]]))
        return start, end

    def _escaped(self) -> Intervals:
        character = self._take()
        if character.lower() in _CLASSES:
            members = _points(_CLASSES[character.lower()])
            return members if character.islower() else _others(members)
        if character.isalnum() and character not in _ESCAPES:
            self.place -= 2
            self._fail(f"the unknown escape \\{character}")
        return _points(_ESCAPES.get(character, character))

    def _class(self) -> Intervals:
        negated = self._peek() == "^"
        if negated:
            self.place += 1
        members: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            chosen = self._member()
            if self._peek() == "-" and self.pattern[self.place + 1 : self.place + 2] not in ("]", ""):
                self.place += 1
                last = self._member()
                ends = (*chosen, *last)
                if len(ends) != 2 or ends[0] > ends[1]:
                    self._fail("a range whose ends are no characters in order")
                chosen = ((ends[0][0], ends[1][1]),)
            members.extend(chosen)
        self.place += 1
        others = _others(members)
        return others if negated else _others(others)

    def _member(self) -> Intervals:
        character = self._take()
        return self._escaped() if character == "\\" else _points(character)


def _determinize(edges: Edges, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Subset construction; returns what `compile_pattern` returns."""

    def closure(states: Iterable[int]) -> frozenset[int]:
        found = set(states)
        open_states = list(found)
        while open_states:
            for interval, after in edges[open_states.pop()]:
                if interval is None and after not in found:
                    found.add(after)
                    open_states.append(after)
        return frozenset(found)

    first = closure([start])
    numbers, queue, table, members = {first: 0}, [first], [], 0
    for current in queue:
        members += len(current)
        if len(queue) > MOST_STATES or members > MOST_MEMBERS:
            raise _TooLargeError
        leading = [(*interval, after) for state in current for interval, after in edges[state] if interval]
        # All bytes between two neighbouring cuts lead to the same states.
        cuts = sorted({cut for low, high, _ in leading for cut in (low, high + 1)})
        row = np.full(256, -1, np.int32)
        for low, stop in zip(cuts, cuts[1:]):
            states = frozenset(after for first, last, after in leading if first <= low <= last)
            if not states:
                continue
            states = closure(states)
            if states not in numbers:
                numbers[states] = len(numbers)
                queue.append(states)
            row[low:stop] = numbers[states]
        table.append(row)
    return np.stack(table), np.array([end in states for states in numbers])
