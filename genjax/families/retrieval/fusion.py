"""Rankings joined by their ranks: reciprocal rank fusion (Cormack, Clarke & Buettcher 2009,
doi:10.1145/1571941.1572114).

    score(d) = sum over rankings that hold d of weight / (60 + rank(d))         ranks count from 1

A ranking that does not hold a document adds nothing to its score.
"""

from __future__ import annotations

import numpy as np

from genjax.errors import UserError
from genjax.families.retrieval.hits import Hits, best, check_number


def reciprocal_rank_fusion(
    rankings: list[Hits], num_documents: int, constant: float = 60.0, weights: list[float] | None = None
) -> Hits:
    """The best documents of several rankings of the same queries over the same documents.

    Args:
      rankings: documents found for Q queries, each [Q, K_i], best first.
      num_documents: number K of documents to return for each query.
      constant: number that is added to a rank; the larger, the less the first ranks count.
      weights: weight of each ranking; None weighs all alike.

    Returns:
      Documents [Q, K] with their fused scores; documents of equal score in the order of their ids.

    Raises:
      UserError: no ranking is given, rankings have different numbers of queries, the weights do not fit them, the
        constant is negative, or fewer than one document is asked for.
    """
    check_number(num_documents)
    if not constant >= 0:
        raise UserError(f"constant={constant} must not be negative")
    if not rankings:
        raise UserError("there is no ranking to join")
    if len({len(hits.documents) for hits in rankings}) > 1:
        numbers = [len(hits.documents) for hits in rankings]
        raise UserError(f"rankings of {numbers} queries cannot be joined; search with the same queries")
    if weights is not None and len(weights) != len(rankings):
        raise UserError(f"{len(weights)} weights do not fit {len(rankings)} rankings")
    if weights is not None and not np.isfinite(weights).all():
        raise UserError(f"weights={weights} must be finite")
    if not len(rankings[0].documents):
        return Hits(np.zeros((0, num_documents), np.int64), np.zeros((0, num_documents)))
    rows = []
    for query in range(len(rankings[0].documents)):
        scores: dict[int, float] = {}
        for weight, hits in zip(weights or [1.0] * len(rankings), rankings):
            documents = hits.documents[query]
            for rank, document in enumerate(documents[documents >= 0].tolist(), start=1):
                scores[document] = scores.get(document, 0.0) + weight / (constant + rank)
        found = np.array(sorted(scores), np.int64)
        rows.append(best(found, np.array([scores[d] for d in found.tolist()], np.float64), num_documents))
    return Hits.stack(rows)
