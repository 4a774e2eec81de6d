"""One text that is written token by token: its settings, where it ends, and what may be shown of it so far.

Text that may be the beginning of a stop string is held back until more is known, and so are the bytes of a character
that is not complete; what was shown is never taken back.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from genjax.decoding import Automaton, Decoder

FinishReason = Literal["stop", "length", "error"]


class Score(NamedTuple):
    """A token with its log-probability in nats, and the likeliest tokens in its place with theirs."""

    token: int
    log_prob: float
    likeliest: tuple[tuple[int, float], ...] = ()


class Piece(NamedTuple):
    """What is new of a text.

    Attributes:
      text: characters, perhaps none.
      scores: the tokens that end in these characters; empty where they were not asked for.
      finish: why the text has ended, or None.
    """

    text: str
    scores: tuple[Score, ...] = ()
    finish: FinishReason | None = None


class Assembler:
    """Joins the bytes of tokens to text, and looks for stop strings across the borders of tokens.

    Attributes:
      stopped: whether a stop string was found; the text ends before it.
    """

    def __init__(self, pieces: Sequence[bytes], stops: Sequence[str] = (), without_first_blank: bool = False) -> None:
        self.stopped = False
        self._strips = without_first_blank  # until the first character that is none
        self._pieces, self._stops = pieces, tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._num_shown = 0
        self._scores: list[tuple[int, int, Score]] = []  # with the place of the first character and of the one behind

    def take(self, token: int, score: Score | None = None) -> Piece:
        """The text that can be shown after one more token."""
        first = self._num_shown + len(self._held)
        text = self._decoder.decode(self._pieces[token] if token < len(self._pieces) else b"")
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        self._held += text
        if score is not None:
            # A token that ends inside a character is told with the token that completes it.
            inside = bool(self._decoder.getstate()[0])
            self._scores.append((first, self._num_shown + len(self._held) + inside, score))
        return self._show(self._num_free())

    def finish(self) -> Piece:
        """The rest of the text."""
        self._held += self._decoder.decode(b"", True)
        self._num_free()
        piece = self._show(len(self._held))
        return piece._replace(scores=(*piece.scores, *self._rest()))

    def _num_free(self) -> int:
        """Number of held characters that no stop string can begin in; cuts the text at a stop string."""
        found = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return len(self._held)
        longest = max(map(len, self._stops), default=1)
        for place in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(stop.startswith(self._held[place:]) for stop in self._stops):
                return place
        return len(self._held)

    def _show(self, count: int) -> Piece:
        text, self._held = self._held[:count], self._held[count:]
        self._num_shown += len(text)
        ready = 0
        # A token that a stop string cuts still belongs to the text where its first character does.
        reached = lambda first, last: first < self._num_shown if self.stopped else last <= self._num_shown
        while ready < len(self._scores) and reached(*self._scores[ready][:2]):
            ready += 1
        shown, self._scores = self._scores[:ready], self._scores[ready:]
        return Piece(text, tuple(score for _, _, score in shown))

    def _rest(self) -> tuple[Score, ...]:
        rest = () if self.stopped else tuple(score for _, _, score in self._scores)
        self._scores = []
        return rest


class Walk:
    """A walk through an automaton on the host; `decoding.Automaton` allows the same tokens."""

    def __init__(self, automaton: Automaton) -> None:
        self.state = automaton.start
        self._table, self._kinds, self._accepting, self._shortest = (
            np.asarray(a) for a in (automaton.table, automaton.kinds, automaton.accepting, automaton.shortest)
        )

    def allowed(self, ends: Sequence[int], left: int) -> np.ndarray:
        """Tokens that may follow with `left` tokens to write, the next included, bool [V]."""
        after = self._table[self.state]
        needed = np.where(self._accepting, 0, self._shortest)[after]
        mask = ((after >= 0) & (needed < left))[self._kinds]
        if ends:
            mask[list(ends)] = False
            mask[list(ends)] = self.may_end or not mask.any()
        return mask

    def advance(self, token: int) -> None:
        """Goes on by an allowed token."""
        self.state = int(self._table[self.state, self._kinds[token]])

    @property
    def may_end(self) -> bool:
        """Whether the text so far is a whole match."""
        return bool(self._accepting[self.state])

    def may_go_on(self, left: int) -> bool:
        """Whether there is a longer match with at most `left` tokens more."""
        return bool(self._shortest[self.state] <= left)


@dataclasses.dataclass(eq=False)
class Row:
    """A text that is written.

    Attributes:
      prompt: tokens to continue, int32 [P].
      max_new_tokens: largest number of new tokens.
      key: data of the random key of the row.
      assembler: makes text of tokens.
      emit: called with each new piece, in the thread that runs the device.
      temperature: 0 takes the likeliest token.
      top_p: probability mass of the likeliest tokens that are kept.
      ends: tokens that end the text.
      walk: place in the automaton that the text obeys, or None.
      num_likeliest: number of likeliest tokens to tell in each place; None if no log-probabilities are asked for.
      decoder: makes the decoder that reads the prompt, where that is not the batcher's own: it has seen pictures.
      num_tokens: number of tokens so far, with the end token.
      finish: why the row has ended, or None.
      cancelled: whether nobody waits for the text any more.
    """

    prompt: np.ndarray
    max_new_tokens: int
    key: np.ndarray
    assembler: Assembler
    emit: Callable[[Piece], None]
    temperature: float = 1.0
    top_p: float = 1.0
    ends: tuple[int, ...] = ()
    walk: Walk | None = None
    num_likeliest: int | None = None
    decoder: Callable[[], Decoder] | None = None
    num_tokens: int = 0
    finish: FinishReason | None = None
    cancelled: bool = False

    @property
    def left(self) -> int:
        """Number of tokens that may still be written."""
        return self.max_new_tokens - self.num_tokens

    @property
    def over(self) -> bool:
        """Whether nothing more is to be written."""
        return self.finish is not None or self.cancelled

    def allowed(self) -> np.ndarray | None:
        """Tokens that may follow, bool [V]; None for all."""
        return None if self.walk is None else self.walk.allowed(self.ends, self.left)

    def take(self, tokens: Sequence[int], scores: Sequence[Score] | None = None) -> None:
        """Adds tokens to the text, up to its end, and emits what is new."""
        text: list[str] = []
        told: list[Score] = []
        for place, token in enumerate(tokens):
            piece = self._add(token, None if scores is None else scores[place])
            text.append(piece.text)
            told.extend(piece.scores)
            if self.finish is not None:
                break
        if told or self.finish or any(text):
            self.emit(Piece("".join(text), tuple(told), self.finish))

    def _add(self, token: int, score: Score | None) -> Piece:
        self.num_tokens += 1
        piece = Piece("")
        if token in self.ends:
            self.finish = "stop"
        else:
            if self.walk is not None:
                self.walk.advance(token)
            piece = self.assembler.take(token, score)
            self.finish = self._reason()
        if self.finish is None:
            return piece
        rest = self.assembler.finish()
        return Piece(piece.text + rest.text, piece.scores + rest.scores)

    def fail(self) -> None:
        """Ends the row after a failure of the device."""
        self.finish = "error"
        self.emit(Piece("", finish="error"))

    def _reason(self) -> FinishReason | None:
        if self.assembler.stopped:
            return "stop"
        if self.walk is not None and not self.ends and not self.walk.may_go_on(self.left):
            return "stop"
        if self.left > 0:
            return None
        # A match that is whole has not been cut.
        return "stop" if self.walk is not None and self.walk.may_end else "length"
