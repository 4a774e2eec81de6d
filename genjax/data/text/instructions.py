"""Made instructions whose answers a program can check: a small grammar of movements, in the manner of SCAN (Lake &
Baroni 2018, arXiv:1711.00350).

    walk left twice and jump           LEFT WALK LEFT WALK JUMP
    run thrice after look right        RIGHT LOOK RUN RUN RUN
    again                              the answer before, once more
    backwards                          the answer before, from its end

A chat has one or two turns.  It belongs to one split by a checksum of its first instruction, so that no composition of
the test split is trained on.  `solve` reads the turns alone and works out the answer; it shares no code with the maker
but the words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from genjax.errors import UserError

VERBS = ("walk", "run", "jump", "look", "swim", "dance")
DIRECTIONS = ("left", "right")
TIMES = {"twice": 2, "thrice": 3}
FOLLOW_UPS = ("again", "backwards")


def _phrase(rng: np.random.Generator) -> tuple[str, list[str]]:
    """A phrase and its movements."""
    verb = VERBS[int(rng.integers(len(VERBS)))]
    direction = ("", *DIRECTIONS)[int(rng.integers(3))]
    adverb = ("", *TIMES)[int(rng.integers(3))]
    movements = [direction.upper()] * bool(direction) + [verb.upper()]
    return " ".join(filter(None, (verb, direction, adverb))), movements * TIMES.get(adverb, 1)


def make_chat(rng: np.random.Generator) -> list[dict[str, str]]:
    """Turns of a chat, as role and content."""
    text, answer = _phrase(rng)
    kind = int(rng.integers(3))
    if kind:
        other, movements = _phrase(rng)
        text, answer = (
            f"{text} {('and', 'after')[kind - 1]} {other}",
            (answer + movements if kind == 1 else movements + answer),
        )
    turns = [(text, answer)]
    if rng.integers(3) == 0:
        follow_up = FOLLOW_UPS[int(rng.integers(2))]
        turns.append((follow_up, answer if follow_up == "again" else answer[::-1]))
    return [
        message
        for text, answer in turns
        for message in ({"role": "user", "content": text}, {"role": "assistant", "content": " ".join(answer)})
    ]


def solve(messages: Sequence[Mapping[str, str]]) -> str:
    """The answer to the last turn of a chat that ends with the user's instruction.

    Raises:
      UserError: the last turn is no instruction of the grammar.
    """
    *before, last = messages
    text = last["content"]
    if text in FOLLOW_UPS and len(before) >= 2:
        earlier = solve(before[:-1]).split()
        return " ".join(earlier if text == "again" else reversed(earlier))
    joined = re.fullmatch(r"(.+) (and|after) (.+)", text)
    phrases = [text] if joined is None else [joined[1], joined[3]]
    if joined is not None and joined[2] == "after":
        phrases.reverse()
    words: list[str] = []
    for phrase in phrases:
        found = re.fullmatch(rf"({'|'.join(VERBS)})(?: (left|right))?(?: (twice|thrice))?", phrase)
        if found is None:
            raise UserError(f"{text[:60]!r} is no instruction of the grammar, such as: walk left twice and jump")
        once = [found[2].upper(), found[1].upper()] if found[2] else [found[1].upper()]
        words += {"twice": 2, "thrice": 3}.get(found[3] or "", 1) * once
    return " ".join(words)
