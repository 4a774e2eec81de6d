"""Repetition of training text in generated text: longest common substrings, exactly and in bounded memory.

The training text is read in parts.  For each part the suffix array of part and samples together is sorted by prefix
doubling (Karp, Miller & Rosenberg 1972): after round k suffixes stand in the order of their first 2^k tokens.  The
longest match of a sample's suffix is with the nearest suffix of the training text above or below it.  Neighbouring
parts overlap by the longest sample, so that no match is cut.

`extraction_scores` measures how much of the training text a model reproduces when it is given the text before (Carlini
et al. 2023, arXiv:2202.07646: a text is extractable if it is the likeliest continuation of its prefix).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from genjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Match:
    """The longest part of a sample that stands in the training text.

    Attributes:
      length: number of tokens of the part.
      place: place in the sample where the part begins.
      source: place in the training text where the part begins; -1 if its length is 0.
      covered: share of the sample's tokens in common substrings of at least `min_length` tokens.
    """

    length: int
    place: int
    source: int
    covered: float


def suffix_array(tokens: np.ndarray) -> np.ndarray:
    """Places of the suffixes of tokens [N] in lexicographic order; a prefix of a suffix stands before it."""
    count = len(tokens)
    rank = np.unique(tokens, return_inverse=True)[1].astype(np.int64) + 1
    width = 1
    while True:
        second = np.zeros(count, np.int64)
        second[: max(count - width, 0)] = rank[width:]
        key = rank * (count + 1) + second
        order = np.argsort(key, kind="stable")
        sorted_key = key[order]
        rank = np.empty(count, np.int64)
        rank[order] = 1 + np.concatenate([[0], np.cumsum(sorted_key[1:] != sorted_key[:-1])])
        width *= 2
        if width >= count or rank.max() == count:
            return order


def _common_prefix(tokens: np.ndarray, first: np.ndarray, second: np.ndarray, end: np.ndarray, stop: int) -> np.ndarray:
    """Common length of the suffixes at `first` (up to `end`) and at `second` (up to `stop`), all [M]."""
    length = np.zeros(len(first), np.int64)
    active = np.flatnonzero((second >= 0) & (first < end))
    while len(active):
        a, b = first[active] + length[active], second[active] + length[active]
        inside = (a < end[active]) & (b < stop)
        active, a, b = active[inside], a[inside], b[inside]
        active = active[tokens[a] == tokens[b]]
        length[active] += 1
    return length


def matching_lengths(
    samples: Sequence[np.ndarray], corpus: np.ndarray, part_size: int = 2**20
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each place of each sample, the longest substring beginning there that stands in the corpus.

    Args:
      samples: integer arrays [L_i].
      corpus: integer array [N].
      part_size: number of tokens of the corpus that are sorted at a time; each takes about 100 bytes of memory.

    Returns:
      For each sample the lengths [L_i], and the places in the corpus where matches begin [L_i] (-1 if the length is 0).

    Raises:
      UserError: there is no sample.
    """
    if not len(samples):
        raise UserError("there is no sample to compare with the training text")
    sizes = np.array([len(s) for s in samples])
    queries = np.concatenate([np.asarray(s, np.int64) for s in samples])
    ends = np.repeat(np.cumsum(sizes), sizes)
    best, source = np.zeros(len(queries), np.int64), np.full(len(queries), -1, np.int64)
    overlap = max(int(sizes.max()) - 1, 0)
    for start in range(0, max(len(corpus), 1), part_size):
        part = np.asarray(corpus[start : start + part_size + overlap], np.int64)
        tokens = np.concatenate([part, queries])
        order = suffix_array(tokens)
        from_part = order < len(part)
        position = np.arange(len(order))
        above = np.maximum.accumulate(np.where(from_part, position, -1))
        below = np.minimum.accumulate(np.where(from_part, position, len(order))[::-1])[::-1]
        asked = np.flatnonzero(~from_part)
        first = order[asked]
        query = first - len(part)
        for neighbour in (above[asked], below[asked]):
            exists = (neighbour >= 0) & (neighbour < len(order))
            second = np.where(exists, order[np.clip(neighbour, 0, len(order) - 1)], -1)
            length = _common_prefix(tokens, first, second, ends[query] + len(part), len(part))
            better = length > best[query]
            best[query[better]], source[query[better]] = length[better], start + second[better]
    cuts = np.cumsum(sizes)[:-1]
    return list(zip(np.split(best, cuts), np.split(source, cuts)))


def longest_matches(
    samples: Sequence[np.ndarray], corpus: np.ndarray, min_length: int = 50, part_size: int = 2**20
) -> list[Match]:
    """The longest common substring of each sample with the corpus, and how much of the sample such substrings cover.

    Args:
      samples: integer arrays.
      corpus: integer array [N].
      min_length: smallest number of tokens of a common substring that counts for `covered`.
      part_size: see `matching_lengths`.
    """
    matches = []
    for lengths, sources in matching_lengths(samples, corpus, part_size):
        if not len(lengths):
            matches.append(Match(0, 0, -1, 0.0))
            continue
        place = int(lengths.argmax())
        reach = np.where(lengths >= min_length, np.arange(len(lengths)) + lengths, 0)
        covered = float((np.maximum.accumulate(reach) > np.arange(len(lengths))).mean())
        matches.append(Match(int(lengths[place]), place, int(sources[place]), covered))
    return matches


def memorization_scores(matches: Sequence[Match]) -> dict[str, float]:
    """Mean, median and largest length of the matches, and the mean share of covered tokens."""
    lengths = [m.length for m in matches]
    return {
        "longest_match_mean": float(np.mean(lengths)),
        "longest_match_median": float(np.median(lengths)),
        "longest_match_max": float(np.max(lengths)),
        "covered": float(np.mean([m.covered for m in matches])),
    }


def extraction_scores(continuations: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Measures how much of the true continuation of a prefix the model's continuation repeats.

    Args:
      continuations: the model's likeliest continuations, integers [N, T].
      references: the continuations in the text, [N, T].

    Returns:
      `extracted`: share of texts repeated to the last token; `repeated_tokens`: mean tokens
        before the first that differs.

    Raises:
      UserError: the shapes differ or there is no text.
    """
    continuations, references = np.asarray(continuations), np.asarray(references)
    if continuations.shape != references.shape or continuations.ndim != 2 or not continuations.size:
        raise UserError(f"continuations {continuations.shape} and references {references.shape} must both be [N, T]")
    same = np.cumprod(continuations == references, axis=1).sum(1)
    return {
        "extracted": float((same == references.shape[1]).mean()),
        "repeated_tokens": float(same.mean()),
    }
