"""The language of Scenes: things, what may stand where, captions, and what a caption says.

    thing     a SIZE COLOUR SHAPE                                    "a small red circle"
    caption   thing, or thing RELATION thing, and so on              "a small red circle left of a large blue square"
    SIZE small, large    COLOUR of 6    SHAPE of 4    RELATION left of, right of, above, below

A relation is the direction of the larger distance between two centres; in made scenes the two distances differ by 3
pixels or more, so that exactly one relation is true.  The paraphrase says the same in words that no other caption has:
"there is a small red circle", "a small red circle is to the left of a large blue square".
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from genjax.data.base import DataError

SIZES = ("small", "large")
#: Red, green and blue in [0, 1].
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.70, 0.20, 0.85),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle", "cross")
#: Each relation with its reverse.
REVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(REVERSE)
#: Pairs of colour and shape that only the split held_out_pairs has.
HELD_OUT_PAIRS = (("red", "triangle"), ("green", "cross"), ("blue", "circle"), ("yellow", "square"))
#: What only the split held_out_relation has: a thing of the first shape stands above a thing of the last.
HELD_OUT_RELATION = ("circle", "above", "square")
#: Smallest difference between the two distances of two centres, in pixels.
MARGIN = 3.0
_PARAPHRASES = {
    "left of": "is to the left of",
    "right of": "is to the right of",
    "above": "is above",
    "below": "is below",
}


class Kind(NamedTuple):
    """What a caption says of a thing."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


class Thing(NamedTuple):
    """A thing in a picture.

    Attributes:
      kind: its size, colour and shape.
      x, y: its centre in pixels from the left and from the top.
    """

    kind: Kind
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """A made picture.

    Attributes:
      things: the things in the order in which the caption names them.
      ground: brightness of the ground, in [0, 0.25].
    """

    things: tuple[Thing, ...]
    ground: float

    @property
    def description(self) -> Description:
        """What the scene's caption says."""
        pairs = itertools.pairwise(self.things)
        return Description(tuple(t.kind for t in self.things), tuple(relation(a, b) for a, b in pairs))


@dataclasses.dataclass(frozen=True)
class Description:
    """The meaning of a caption.

    Attributes:
      kinds: the things that are there, and no others.
      relations: where each thing stands to the thing that is named after it; one fewer than `kinds`.
    """

    kinds: tuple[Kind, ...]
    relations: tuple[str, ...] = ()

    def caption(self, paraphrase: bool = False) -> str:
        """The description in words."""
        if paraphrase and len(self.kinds) == 1:
            return f"there is {self.kinds[0]}"
        words = [str(self.kinds[0])]
        for name, kind in zip(self.relations, self.kinds[1:]):
            words += [_PARAPHRASES[name] if paraphrase else name, str(kind)]
        return " ".join(words)

    def is_true_of(self, things: Sequence[Thing]) -> bool:
        """Whether exactly these things are there, and stand as described."""
        if sorted(t.kind for t in things) != sorted(self.kinds):
            return False
        orders = (o for o in itertools.permutations(things) if all(t.kind == k for t, k in zip(o, self.kinds)))
        stand = lambda order: tuple(relation(a, b) for a, b in itertools.pairwise(order)) == self.relations
        return any(map(stand, orders))


def lexicon() -> list[str]:
    """Captions that together have every word of captions and paraphrases, so that a vocabulary depends on no split."""
    kinds = itertools.product(SIZES, COLOURS, SHAPES)
    alone = [Description((Kind(*kind),)) for kind in kinds]
    pair = alone[0].kinds * 2
    together = [Description(pair, (name,)) for name in RELATIONS]
    return [d.caption(paraphrase) for d in [*alone, *together] for paraphrase in (False, True)]


def relation(first: Thing, second: Thing) -> str:
    """Where the first thing stands to the second: the direction of the larger distance."""
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def is_clear(first: Thing, second: Thing) -> bool:
    """Whether one relation of two things is true by the margin."""
    return abs(abs(second.x - first.x) - abs(second.y - first.y)) >= MARGIN


def is_held_out(first: Thing, second: Thing) -> bool:
    """Whether two things stand as only those of held_out_relation do, in either order of naming."""
    above, name, below = HELD_OUT_RELATION
    shapes, stands = (first.kind.shape, second.kind.shape), relation(first, second)
    return (shapes == (above, below) and stands == name) or (shapes == (below, above) and stands == REVERSE[name])


def parse(text: str) -> Description:
    """What a caption or its paraphrase says.

    Raises:
      DataError: it is not a caption of Scenes.
    """
    words = text.lower().replace(",", " ").replace(".", " ").split()
    if words[:2] == ["there", "is"]:
        words = words[2:]
    phrases = {tuple(p.split()): name for name, p in [*_PARAPHRASES.items(), *zip(RELATIONS, RELATIONS)]}
    kinds, relations = [], []
    while True:
        kind = words[1:4]
        if words[:1] != ["a"] or len(kind) < 3 or not _is_kind(kind):
            break
        kinds.append(Kind(*kind))
        words = words[4:]
        if not words:
            return Description(tuple(kinds), tuple(relations))
        found = next((p for p in phrases if tuple(words[: len(p)]) == p), None)
        if found is None:
            break
        relations.append(phrases[found])
        words = words[len(found) :]
    raise DataError(
        f"{text!r} is no caption of Scenes, such as 'a small red circle left of a large blue square': sizes are "
        f"{' '.join(SIZES)}, colours {' '.join(COLOURS)}, shapes {' '.join(SHAPES)}"
    )


def _is_kind(words: Sequence[str]) -> bool:
    return words[0] in SIZES and words[1] in COLOURS and words[2] in SHAPES
