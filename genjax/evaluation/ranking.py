"""How well rankings of documents put the relevant ones first; the measures of the program trec_eval, and their ties.

With rel(r) the judged grade of the document at rank r, R the number of documents judged above 0, and k a cutoff:

    precision@k         #{r <= k : rel(r) > 0} / k
    recall@k            #{r <= k : rel(r) > 0} / R
    reciprocal_rank     1 / the first r with rel(r) > 0, or 0
    average_precision   1/R sum over r with rel(r) > 0 of precision@r
    ndcg@k              sum_{r <= k} max(rel(r), 0) / log2(r + 1), over the same sum of the best order of all judged
                        documents (Jarvelin & Kekalainen 2002, doi:10.1145/582415.582418, gains linear in the grade)

Documents are ordered by their score in float32, the largest first; documents of equal score by their id, the last in
the order of strings first, as trec_eval does it.  So a measure does not depend on the order in which documents came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from genjax.errors import UserError

#: Grades of documents, by the id of a query and the id of a document; a document that is not judged has grade 0.
Judgements = Mapping[str, Mapping[str, int]]
#: Scores of the documents that were found, by the id of a query and the id of a document.
Run = Mapping[str, Mapping[str, float]]


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Ids of documents, best first.

    Raises:
      UserError: a score is NaN.
    """
    for document, score in scores.items():
        if math.isnan(score):
            raise UserError(f"document {document} has the score NaN; a ranking needs numbers")
    # Python's sort keeps the order of what is equal, so the second key is sorted first.
    by_id = sorted(scores, reverse=True)
    return sorted(by_id, key=lambda document: np.float32(scores[document]), reverse=True)


def query_measures(
    grades: Mapping[str, int], ranking: Sequence[str], cutoffs: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Measures of one query: its judged `grades`, and the ids that were found, best first.

    A query without a relevant document has 0 in every measure.
    """
    found = np.array([max(grades.get(document, 0), 0) for document in ranking], np.float64)
    best = np.sort([grade for grade in grades.values() if grade > 0])[::-1].astype(np.float64)
    relevant, number = found > 0, len(best)
    ranks = np.arange(1, len(found) + 1)
    precision = np.cumsum(relevant) / ranks
    measures = {
        "reciprocal_rank": 1 / ranks[relevant][0] if relevant.any() else 0.0,
        "average_precision": precision[relevant].sum() / number if number else 0.0,
    }
    for k in cutoffs:
        measures[f"precision@{k}"] = relevant[:k].sum() / k
        measures[f"recall@{k}"] = relevant[:k].sum() / number if number else 0.0
        measures[f"ndcg@{k}"] = _discounted(found[:k]) / _discounted(best[:k]) if number else 0.0
    return {name: float(value) for name, value in measures.items()}


def _discounted(gains: np.ndarray) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def ranking_measures(
    judgements: Judgements, run: Run, cutoffs: Sequence[int] = (1, 5, 10), exclude_self: bool = False
) -> dict[str, float]:
    """Means of the measures over all judged queries; a query for which nothing was found counts as 0.

    Args:
      judgements: the grades.
      run: the scores of what was found.
      cutoffs: numbers k of documents that are looked at.
      exclude_self: leave out a document with the id of its query, as where queries are documents themselves (ArguAna).

    Raises:
      UserError: no query is judged, a query that was run is not judged, a cutoff is below 1, or a score is NaN.
    """
    if not judgements:
        raise UserError("no query is judged; a ranking is measured by the documents that are relevant to each query")
    if min(cutoffs, default=1) < 1:
        raise UserError(f"cutoffs={tuple(cutoffs)}: a cutoff must be at least 1")
    unknown = sorted(set(run) - set(judgements))
    if unknown:
        raise UserError(f"query {unknown[0]} was run but is not judged ({len(unknown)} of {len(run)} queries are not)")
    each = []
    for query, grades in judgements.items():
        ranking = ranked(run.get(query, {}))
        if exclude_self:
            ranking, grades = [d for d in ranking if d != query], {d: g for d, g in grades.items() if d != query}
        each.append(query_measures(grades, ranking, cutoffs))
    return {name: float(np.mean([measures[name] for measures in each])) for name in each[0]}
