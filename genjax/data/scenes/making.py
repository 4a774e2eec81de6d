"""Scenes by (split, seed, index): the same triple gives the same scene, whatever else is made.

train, validation, test   one or two things, without the pairs and the relation that are held out
held_out_pairs            at least one thing of a pair of colour and shape that training never shows
held_out_relation         two things that stand as they never do in training
three_things              three things, of which training shows two at most
paraphrase                as test, in other words
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from genjax.data.base import check_split
from genjax.data.scenes.grammar import (
    COLOURS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATION,
    SHAPES,
    SIZES,
    Kind,
    Scene,
    Thing,
    is_clear,
    is_held_out,
)
from genjax.data.scenes.pictures import SIDE, extent

#: Splits in the order of their numbers, which decide their random numbers.
SPLITS = ("train", "validation", "test", "held_out_pairs", "held_out_relation", "three_things", "paraphrase")
#: Pairs of colour and shape that training shows.
SEEN_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS)
#: Pixels between two things, and between a thing and the edge of the picture.
_GAP, EDGE = 2.0, 1.0
#: Times that a place is looked for before things are drawn anew.
_ATTEMPTS = 60


def make_scene(split: str, seed: int, index: int) -> Scene:
    """The scene of a split with this seed and index.

    Raises:
      DataError: there is no such split.
    """
    check_split(split, SPLITS, "scenes")
    rng = np.random.default_rng([SPLITS.index(split), seed, index])
    # The number of things is fixed by the index, so that every split has an exact share of each.
    count = {"held_out_relation": 2, "three_things": 3}.get(split, 1 + index % 2)

    def kinds() -> list[Kind]:
        drawn = [draw_kind(rng) for _ in range(count)]
        if split == "held_out_pairs":
            drawn[0] = Kind(drawn[0].size, *HELD_OUT_PAIRS[rng.integers(len(HELD_OUT_PAIRS))])
        if split == "held_out_relation":
            shapes = (HELD_OUT_RELATION[0], HELD_OUT_RELATION[2])
            drawn = [Kind(k.size, _colour_for(rng, shape), shape) for k, shape in zip(drawn, shapes)]
        return [drawn[i] for i in rng.permutation(count)]

    return make(rng, kinds, held_out_relation=split == "held_out_relation")


def make(rng: np.random.Generator, kinds: Callable[[], list[Kind]], held_out_relation: bool = False) -> Scene:
    """A scene of drawn things.

    Args:
      rng: decides places and ground.
      kinds: draws the kinds of the things, in the order of naming; it is called again where they find no places.
      held_out_relation: whether two things stand as HELD_OUT_RELATION says, or none do.
    """
    ground = round(float(rng.uniform(0.0, 0.25)), 4)
    while True:
        things = place(rng, kinds())
        if things is None:
            continue
        held_out = any(is_held_out(a, b) for i, a in enumerate(things) for b in things[i + 1 :])
        if held_out == held_out_relation:
            return Scene(things, ground)


def draw_kind(rng: np.random.Generator) -> Kind:
    """A thing that training shows."""
    return Kind(SIZES[rng.integers(2)], *SEEN_PAIRS[rng.integers(len(SEEN_PAIRS))])


def _colour_for(rng: np.random.Generator, shape: str) -> str:
    seen = [c for c, s in SEEN_PAIRS if s == shape]
    return seen[rng.integers(len(seen))]


def place(rng: np.random.Generator, kinds: list[Kind]) -> tuple[Thing, ...] | None:
    """The things at random pixels where they do not touch and relations are clear, or None if none were found."""
    extents = [extent(kind) for kind in kinds]
    # Centres lie on centres of pixels: the first that leaves room at the left (or top), and the number of choices.
    ranges = []
    for side, up, down in extents:
        for before, behind in ((side, side), (up, down)):
            first = math.ceil(before + EDGE - 0.5)
            ranges.append((first, math.floor(SIDE - behind - EDGE - 0.5) + 1 - first))
    firsts, counts = np.array(ranges).T
    drawn = firsts + np.floor(rng.random((_ATTEMPTS, len(ranges))) * counts) + 0.5
    for row in drawn.tolist():
        things: list[Thing] = []
        for kind, x, y in zip(kinds, row[::2], row[1::2]):
            thing = Thing(kind, x, y)
            if not all(is_clear(other, thing) and _apart(other, thing) for other in things):
                break
            things.append(thing)
        else:
            return tuple(things)
    return None


def _apart(first: Thing, second: Thing) -> bool:
    """Whether the boxes around two things have a gap between them."""
    (side, up, down), (other_side, other_up, other_down) = extent(first.kind), extent(second.kind)
    return (
        abs(first.x - second.x) >= side + other_side + _GAP
        or second.y - first.y >= down + other_up + _GAP
        or first.y - second.y >= up + other_down + _GAP
    )
