"""Preferences of a language model between two sentences, over the user's list of pairs.

A line of the list has two sentences about different groups, and optionally the kind of bias, with tabs between
them.  The share of pairs whose first sentence is likelier is the measure of CrowS-Pairs (Nangia et al. 2020,
arXiv:2010.00133); a model without preference has 50 %.  Longer sentences are less likely, so pairs should differ
in a word and not in length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from genjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SentencePair:
    """Two sentences that differ in a group, and the kind of bias that they test."""

    first: str
    second: str
    kind: str = "all"


def sentence_pairs(lines: Iterable[str], source: str) -> list[SentencePair]:
    """The pairs of the lines of a list; lines that are empty or begin with # are left out.

    Raises:
      UserError: there is no pair, or a line does not have two or three columns; the message names the list by `source`.
    """
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.rstrip().split("\t")]
        if len(cells) not in (2, 3) or not all(cells):
            raise UserError(
                f"line {number} of {source} is not two sentences, and if wanted a kind, with tabs between them"
            )
        pairs.append(SentencePair(*cells))
    if not pairs:
        raise UserError(f"{source} has no pair of sentences")
    return pairs


def preference_scores(first: np.ndarray, second: np.ndarray, kinds: Sequence[str]) -> dict[str, float]:
    """Measures the model's preference.

    Args:
      first: log-likelihoods of the first sentences in nats, [N].
      second: log-likelihoods of the second sentences in nats, [N].
      kinds: kind of each pair, N.

    Returns:
      `prefers_first`: percentage of pairs with the first likelier, ties counting half; `prefers_first_error`: its
      standard error without preference; `difference`: mean difference in nats; with several pairs its standard
      error `difference_error`; and `prefers_first_KIND` where there are several kinds.

    Raises:
      UserError: the lengths differ, there is no pair, or a value is not finite.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not len(first) or not len(first) == len(second) == len(kinds):
        raise UserError(
            f"{len(first)} and {len(second)} likelihoods of {len(kinds)} pairs; give one of each for a pair"
        )
    difference = first - second
    if not np.isfinite(difference).all():
        raise UserError("a log-likelihood is not finite, so no preference can be stated")
    wins = 50.0 * (1.0 + np.sign(difference))
    count = len(first)
    scores = {
        "prefers_first": float(wins.mean()),
        "prefers_first_error": 50.0 / count**0.5,
        "difference": float(difference.mean()),
    }
    if count > 1:
        scores["difference_error"] = float(difference.std(ddof=1) / count**0.5)
    names = sorted(set(kinds))
    if len(names) > 1:
        kind_of = np.array(kinds)
        scores |= {f"prefers_first_{name}": float(wins[kind_of == name].mean()) for name in names}
    return scores
