"""Late interaction (Khattab & Zaharia 2020, arXiv:2004.12832): documents compared token by token, exactly.

    score(q, d) = sum over tokens i of q of  max over tokens j of d of  q_i . d_j                         (equation 3)

The vectors of all documents stand one behind the other, so that no place is lost to padding.  A search holds one block
of documents and its similarities [T, tokens of the block] at a time.  Documents of equal score come in the order of
their places, whatever the block.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.retrieval.hits import Hits, best, check_number


@functools.partial(jax.jit, static_argnames="num_documents")
def _scores(query: Array, vectors: Array, owners: Array, *, num_documents: int) -> Array:
    """Scores [N] of documents for the vectors [T, D] of a query, from vectors [M, D] and their documents [M]."""
    similar = jnp.einsum("td,md->mt", query, vectors, precision=jax.lax.Precision.HIGHEST)
    return jax.ops.segment_max(similar, owners, num_documents, indices_are_sorted=True).sum(1)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenIndex:
    """Vectors of the tokens of documents.

    Attributes:
      vectors: float32 [M, D], document after document.
      starts: first vector of each document, and M at the end, int64 [N + 1].
      block_size: number of vectors that are compared at a time, at least; whole documents are.
    """

    vectors: np.ndarray
    starts: np.ndarray
    block_size: int = 65536

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], block_size: int = 65536) -> TokenIndex:
        """The index of documents, each the vectors [T, D] of its tokens.

        Raises:
          UserError: there is no document, one has no vector, widths differ, or a number is not finite.
        """
        if not len(documents):
            raise UserError("there is no document to index")
        if block_size < 1:
            raise UserError(f"block_size={block_size} must be at least 1")
        width = np.shape(documents[0])[-1]
        for place, document in enumerate(documents):
            if np.ndim(document) != 2 or not len(document) or document.shape[1] != width:
                raise UserError(
                    f"document {place} has vectors of shape {list(np.shape(document))}; expected is [T, {width}] with "
                    "T >= 1"
                )
            if not np.isfinite(document).all():
                raise UserError(f"document {place} has a vector with NaN or infinity")
        starts = np.append(0, np.cumsum([len(document) for document in documents]))
        return cls(np.concatenate(documents).astype(np.float32), starts.astype(np.int64), block_size)

    def scores(self, query: np.ndarray) -> np.ndarray:
        """Scores of all documents for the vectors [T, D] of a query's tokens, float32 [N].

        Raises:
          UserError: the query has no vector, another width than the documents, or a number that is not finite.
        """
        query = np.asarray(query, np.float32)
        if query.ndim != 2 or not len(query) or query.shape[1] != self.vectors.shape[1]:
            raise UserError(
                f"a query has shape [T, {self.vectors.shape[1]}] with T >= 1 in this index, and not {list(query.shape)}"
            )
        if not np.isfinite(query).all():
            raise UserError("the query has a vector with NaN or infinity")
        parts, first, count = [], 0, len(self.starts) - 1
        while first < count:
            last = int(np.searchsorted(self.starts, self.starts[first] + self.block_size, side="right")) - 1
            last = min(max(last, first + 1), count)
            rows = slice(self.starts[first], self.starts[last])
            owners = np.repeat(np.arange(last - first), np.diff(self.starts[first : last + 1]))
            parts.append(np.asarray(_scores(query, self.vectors[rows], owners, num_documents=last - first)))
            first = last
        return np.concatenate(parts)

    def search(self, queries: Sequence[np.ndarray], num_documents: int = 10) -> Hits:
        """The best documents for queries, each the vectors [T, D] of its tokens, as [Q, K]."""
        check_number(num_documents)
        places = np.arange(len(self.starts) - 1)
        if not len(queries):
            return Hits(np.zeros((0, num_documents), np.int64), np.zeros((0, num_documents), np.float32))
        return Hits.stack([best(places, self.scores(query), num_documents) for query in queries])
