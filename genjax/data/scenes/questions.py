"""Questions about scenes, so balanced that they cannot be answered without the picture.

A question's words are drawn first, then its answer, evenly among the answers that training scenes allow, and then a
scene in which the answer is right:

    colour     what colour is the circle?                        one of 5, as the sixth is held out
    shape      what shape is the red thing?                      one of 3 or 4
    size       what size is the red circle?                      small, large
    count      how many things are there?                        one, two, three
    exists     is there a red circle?                            yes, no
    relation   is the red circle left of the blue square?        yes, no
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from genjax.data.base import check_split
from genjax.data.scenes.grammar import (
    COLOURS,
    HELD_OUT_RELATION,
    RELATIONS,
    REVERSE,
    SHAPES,
    SIZES,
    Kind,
    Scene,
    relation,
)
from genjax.data.scenes.making import SEEN_PAIRS, draw_kind, make

QUESTIONS = ("colour", "shape", "size", "count", "exists", "relation")
NUMBERS = ("one", "two", "three")
#: Every answer.
ANSWERS = (*COLOURS, *SHAPES, *SIZES, *NUMBERS, "yes", "no")
#: Share of right answers that an even guess among the possible answers of each kind has at most.
CHANCE = {"colour": 1 / 5, "shape": 1 / 4, "size": 1 / 2, "count": 1 / 3, "exists": 1 / 2, "relation": 1 / 2}
#: Splits in the order of their numbers, which decide their random numbers.
_SPLITS = ("train", "validation", "test")


class Question(NamedTuple):
    """A question about a scene of one to three things.

    Attributes:
      scene: the scene.
      kind: one of QUESTIONS.
      text: the question.
      answer: the right answer.
    """

    scene: Scene
    kind: str
    text: str
    answer: str


def make_question(split: str, seed: int, index: int) -> Question:
    """The question of a split with this seed and index; the kinds take turns.

    Raises:
      DataError: there is no such split.
    """
    check_split(split, _SPLITS, "questions about scenes")
    rng = np.random.default_rng([1000 + _SPLITS.index(split), seed, index])
    kind = QUESTIONS[index % len(QUESTIONS)]
    text, answer, count, wanted, fits = _ASK[kind](rng)

    def kinds() -> list[Kind]:
        number = count or max(1 + int(rng.integers(3)), len(wanted))
        while True:
            drawn = [*wanted, *(draw_kind(rng) for _ in range(number - len(wanted)))]
            if fits(drawn):
                return [drawn[i] for i in rng.permutation(number)]

    if kind != "relation":
        return Question(make(rng, kinds), kind, text, answer)
    return Question(_related(rng, kinds, text, answer), kind, text, answer)


class _Asked(NamedTuple):
    """A question's words and answer; the number of things of its scene (None for any), things that are there, and
    whether a list of things makes the answer right.
    """

    text: str
    answer: str
    count: int | None
    wanted: tuple[Kind, ...]
    fits: Callable[[list[Kind]], bool]


def _choice(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _only(drawn: list[Kind], **wanted: str) -> list[Kind]:
    return [kind for kind in drawn if all(getattr(kind, name) == value for name, value in wanted.items())]


def _ask_colour(rng: np.random.Generator) -> _Asked:
    kind = draw_kind(rng)
    fits = lambda drawn: len(_only(drawn, shape=kind.shape)) == 1
    return _Asked(f"what colour is the {kind.shape}?", kind.colour, None, (kind,), fits)


def _ask_shape(rng: np.random.Generator) -> _Asked:
    # Three questions of four ask of colours that all shapes have, so that fewer can be guessed.
    whole = [c for c in COLOURS if sum(colour == c for colour, _ in SEEN_PAIRS) == len(SHAPES)]
    colour = _choice(rng, whole if rng.integers(4) else [c for c in COLOURS if c not in whole])
    shape = _choice(rng, [s for c, s in SEEN_PAIRS if c == colour])
    fits = lambda drawn: len(_only(drawn, colour=colour)) == 1
    wanted = (Kind(_choice(rng, SIZES), colour, shape),)
    return _Asked(f"what shape is the {colour} thing?", shape, None, wanted, fits)


def _ask_size(rng: np.random.Generator) -> _Asked:
    kind = draw_kind(rng)
    fits = lambda drawn: len(_only(drawn, colour=kind.colour, shape=kind.shape)) == 1
    return _Asked(f"what size is the {kind.colour} {kind.shape}?", kind.size, None, (kind,), fits)


def _ask_count(rng: np.random.Generator) -> _Asked:
    count = 1 + int(rng.integers(3))
    return _Asked("how many things are there?", NUMBERS[count - 1], count, (), lambda drawn: True)


def _ask_exists(rng: np.random.Generator) -> _Asked:
    # The thing is drawn before the answer, from one distribution for both answers.
    kind, there = draw_kind(rng), bool(rng.integers(2))
    fits = lambda drawn: there == bool(_only(drawn, colour=kind.colour, shape=kind.shape))
    text = f"is there a {kind.colour} {kind.shape}?"
    return _Asked(text, "yes" if there else "no", None, (kind,) if there else (), fits)


def _ask_relation(rng: np.random.Generator) -> _Asked:
    above, held_out, below = HELD_OUT_RELATION
    while True:
        first, second, name = draw_kind(rng), draw_kind(rng), _choice(rng, RELATIONS)
        # Of the relation that is held out nothing is asked: the answer would always be no.
        asked = (first.shape, name, second.shape)
        if first[1:] != second[1:] and asked not in ((above, held_out, below), (below, REVERSE[held_out], above)):
            break
    text = f"is the {' '.join(first[1:])} {name} the {' '.join(second[1:])}?"
    return _Asked(text, "yes" if rng.integers(2) else "no", 2, (first, second), lambda drawn: True)


_ASK: dict[str, Callable[[np.random.Generator], _Asked]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "size": _ask_size,
    "count": _ask_count,
    "exists": _ask_exists,
    "relation": _ask_relation,
}


def _related(rng: np.random.Generator, kinds: Callable[[], list[Kind]], text: str, answer: str) -> Scene:
    """A scene of two things in which the answer to a question about their relation is right."""
    name = next(name for name in RELATIONS if f" {name} the " in text)
    first = tuple(text.removeprefix("is the ").split()[:2])
    while True:
        scene = make(rng, kinds)
        a, b = scene.things if scene.things[0].kind[1:] == first else scene.things[::-1]
        if (relation(a, b) == name) == (answer == "yes"):
            return scene
