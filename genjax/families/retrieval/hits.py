"""What a search finds: documents by their place in the index, with scores, best first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from genjax.errors import UserError


class Hits(NamedTuple):
    """The K best documents for each of Q queries.

    Attributes:
      documents: places in the index, int64 [Q, K]; -1 where fewer than K were found.
      scores: scores, float [Q, K], the largest first; -inf where no document was found.
    """

    documents: np.ndarray
    scores: np.ndarray

    @classmethod
    def stack(cls, rows: list[Hits]) -> Hits:
        """Rows [K] of several queries as one, [Q, K]."""
        return cls(np.stack([row.documents for row in rows]), np.stack([row.scores for row in rows]))


def best(documents: np.ndarray, scores: np.ndarray, num_documents: int) -> Hits:
    """The best of M candidates [M], whose ids rise, as a row [K], by score, and by id where scores are equal."""
    count = min(num_documents, len(scores))
    if count < len(scores):
        # All candidates from the K-th score on, so that equal scores are decided by their ids.
        bound = np.partition(scores, len(scores) - count)[len(scores) - count] if count else np.inf
        kept = scores >= bound
        documents, scores = documents[kept], scores[kept]
    order = np.argsort(-scores, kind="stable")[:count]
    missing = num_documents - count
    return Hits(
        np.append(documents[order], np.full(missing, -1)).astype(np.int64),
        np.append(scores[order], np.full(missing, -np.inf)).astype(scores.dtype),
    )


#: Documents of a group, whose maximum stands for them in the first step of `best_positive`.
_GROUP = 128


def whole_groups(num_documents: int) -> int:
    """The number of scores that `best_positive` takes for this number of documents."""
    return -(-num_documents // _GROUP) * _GROUP


def best_positive(scores: np.ndarray, num_documents: int) -> Hits:
    """The best of all documents whose score is above 0, from the scores of `whole_groups(N)` documents, as a row [K].

    The K groups of neighbours that have the largest maxima hold the best K documents, so only these are sorted.
    """
    groups = scores.reshape(-1, _GROUP)
    maxima = groups.max(1)
    if num_documents < len(maxima):
        bound = np.partition(maxima, len(maxima) - num_documents)[len(maxima) - num_documents]
        above = np.flatnonzero(maxima > bound)
        chosen = np.sort(np.append(above, np.flatnonzero(maxima == bound)[: num_documents - len(above)]))
        places = (chosen[:, None] * _GROUP + np.arange(_GROUP)).reshape(-1)
        candidates = groups[chosen].reshape(-1)
    else:
        places, candidates = np.arange(len(scores)), scores
    positive = candidates > 0
    return best(places[positive], candidates[positive], num_documents)


def check_number(num_documents: int) -> None:
    """Raises UserError unless at least one document is asked for."""
    if num_documents < 1:
        raise UserError(f"num_documents={num_documents} must be at least 1")
