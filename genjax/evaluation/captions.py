"""Measures of captions and of answers to questions about pictures.

CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726, sections 4 and 6) compares the n-grams of a caption c with those of the
captions s_1 .. s_m that people wrote of the same picture, each n-gram w weighted by how few pictures have it:

    g_n(c)_w = count of w in c  *  log(pictures / pictures with w in a caption of people)
    CIDEr-D_n = 10/m sum_j exp(-(|c| - |s_j|)^2 / (2 6^2))  min(g_n(c), g_n(s_j)) . g_n(s_j) / (|g_n(c)| |g_n(s_j)|)
    CIDEr-D = mean of CIDEr-D_1 .. CIDEr-D_4

The accuracy of VQA (Antol et al. 2015, arXiv:1505.00468, section 5; the published program) is min(1, people who said
the same / 3), as a mean over all ways to leave out one of the people.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence

import numpy as np

from genjax.errors import UserError

#: Longest n-gram, and standard deviation of the penalty on lengths.
_LONGEST, _SIGMA = 4, 6.0

_PUNCTUATION = re.compile(r"[^\w\s']+")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
#: Marks that the program of VQA takes out of answers.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def caption_words(text: str) -> list[str]:
    """Words of a caption in lower case, without punctuation."""
    return _PUNCTUATION.sub(" ", text.lower()).split()


def _grams(words: Sequence[str]) -> list[collections.Counter[tuple[str, ...]]]:
    """Counts of the n-grams of each length."""
    return [
        collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, _LONGEST + 1)
    ]


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption, from 0 to 10; what is published is often ten times the mean.

    Args:
      captions: a caption of each picture.
      references: captions of people of each picture, at least one; they tell how rare n-grams are too.

    Returns:
      float64 [N].  All are 0 where there is but one picture, as then no n-gram is rare.

    Raises:
      UserError: the numbers do not fit, or a picture has no references.
    """
    _check(captions, references)
    wanted = [[caption_words(text) for text in own] for own in references]
    counts = [[_grams(words) for words in own] for own in wanted]
    pictures_with: collections.Counter[tuple[str, ...]] = collections.Counter()
    for own in counts:
        pictures_with.update({gram for grams in own for counter in grams for gram in counter})

    def vectors(grams: list[collections.Counter[tuple[str, ...]]]) -> list[dict[tuple[str, ...], float]]:
        weight = lambda gram: math.log(len(captions) / max(1, pictures_with[gram]))
        return [{gram: count * weight(gram) for gram, count in counter.items()} for counter in grams]

    scores = np.zeros(len(captions))
    for i, text in enumerate(captions):
        words = caption_words(text)
        ours = vectors(_grams(words))
        for own_words, own_counts in zip(wanted[i], counts[i]):
            penalty = math.exp(-((len(words) - len(own_words)) ** 2) / (2.0 * _SIGMA**2))
            alike = [_likeness(a, b) for a, b in zip(ours, vectors(own_counts))]
            scores[i] += 10.0 * penalty * sum(alike) / _LONGEST / len(wanted[i])
    return scores


def _likeness(ours: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    """The clipped product of two vectors, divided by their lengths."""
    lengths = math.sqrt(sum(v * v for v in ours.values()) * sum(v * v for v in theirs.values()))
    product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in ours.items() if gram in theirs)
    return product / lengths if lengths else 0.0


def normalize_vqa(answer: str) -> str:
    """An answer as VQA compares it: lower case, no articles, numbers to ten as digits, no punctuation.

    Apostrophes go too, where the published program puts missing ones into contractions: "dont" is "don't" in both.
    A comma between digits goes without leaving a blank, and so does punctuation beside a blank.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip().lower().replace("'", "")
    in_number = re.search(r"\d,\d", text) is not None
    for mark in _MARKS:
        whole = in_number or f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if whole else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    return " ".join(_DIGITS.get(word, word) for word in text.split() if word not in ("a", "an", "the"))


def vqa_accuracy(answers: Sequence[str], votes: Sequence[Sequence[str]]) -> np.ndarray:
    """Accuracy of each answer by the votes of people, from 0 to 1.

    Args:
      answers: an answer to each question.
      votes: what people answered, at least one for each question.

    Returns:
      float64 [N].  Where fewer than four people answered, so that three of the others cannot agree, an answer is right
      if one of them gave it.

    Raises:
      UserError: the numbers do not fit, or a question has no votes.
    """
    _check(answers, votes)
    scores = []
    for answer, own in zip(answers, votes):
        given = normalize_vqa(answer)
        agree = sum(normalize_vqa(vote) == given for vote in own)
        others = len(own) - agree
        if len(own) < 4:
            scores.append(float(agree > 0))
            continue
        # One of those who agree is left out, or one of the others.
        total = agree * min(1.0, (agree - 1) / 3.0) + others * min(1.0, agree / 3.0)
        scores.append(total / len(own))
    return np.array(scores)


def _check(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not len(texts) or len(texts) != len(references):
        raise UserError(f"there are {len(texts)} texts for {len(references)} pictures; give one for each, at least one")
    empty = next((i for i, own in enumerate(references) if isinstance(own, str) or not len(own)), None)
    if empty is not None:
        raise UserError(f"picture {empty + 1} needs a list of references with at least one in it")
