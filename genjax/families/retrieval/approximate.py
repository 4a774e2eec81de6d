"""Approximate search by faiss (Douze et al. 2024, arXiv:2401.08281), told together with its recall beside exact search.

    ivf    documents lie in lists around the centres of k-means; a query is compared with the nearest lists alone
    hnsw   a graph of near neighbours is walked from layer to layer (Malkov & Yashunin 2016, arXiv:1603.09320)

Recall is the share of the K documents of exact search that are found.  An index is made with queries to measure it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from genjax import config
from genjax.errors import UserError
from genjax.families.retrieval.hits import Hits, check_number
from genjax.families.retrieval.vector_index import VectorIndex

Kind = Literal["ivf", "hnsw"]
#: Documents of a list that k-means of faiss asks for.
_FEWEST_OF_LIST = 39


@dataclasses.dataclass(frozen=True, kw_only=True)
class Approximation:
    """How far an approximate search looks.

    Attributes:
      num_lists: lists of ivf; None for 4 sqrt(N), and so few that each has documents enough.
      num_probes: lists that ivf compares a query with.
      num_neighbors: edges of a document in the graph of hnsw.
      build_width: documents that hnsw considers when it puts one into the graph.
      search_width: documents that hnsw considers for a query, at least as many as are asked for.
    """

    num_lists: int | None = None
    num_probes: int = 8
    num_neighbors: int = 32
    build_width: int = 200
    search_width: int = 64

    def __post_init__(self) -> None:
        config.check_at_least(self, num_lists=1, num_probes=1, num_neighbors=2, build_width=1, search_width=1)


@dataclasses.dataclass(frozen=True, eq=False)
class ApproximateIndex:
    """An index of faiss over vectors, and what it finds of what exact search finds.

    Attributes:
      exact: the vectors.
      library: faiss's index of them.
      settings: how far it looks.
      recall: share of the documents of exact search that it found for the queries that it was made with.
      num_queries: number of these queries.
      num_documents: number K of documents that were asked for.
    """

    exact: VectorIndex
    library: Any
    settings: Approximation
    recall: float = math.nan
    num_queries: int = 0
    num_documents: int = 0

    @classmethod
    def of(
        cls,
        exact: VectorIndex,
        kind: Kind,
        queries: np.ndarray,
        num_documents: int = 10,
        settings: Approximation | None = None,
    ) -> ApproximateIndex:
        """The index of vectors, with its recall.

        Args:
          exact: the vectors.
          kind: ivf or hnsw.
          queries: vectors that recall is measured on, float [Q, D] with Q >= 1.
          num_documents: number K of documents of a query.
          settings: how far it looks.

        Raises:
          UserError: faiss is not installed, there are more lists than documents, there is no query, or as
            `VectorIndex.search` does.
        """
        settings = settings or Approximation()
        faiss = _faiss()
        check_number(num_documents)
        if not len(queries):
            raise UserError("an approximate index is made with queries to measure its recall on; give at least one")
        count, width = exact.vectors.shape
        metric = faiss.METRIC_L2 if exact.metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
        vectors = np.ascontiguousarray(exact.vectors, np.float32)
        if kind == "ivf":
            num_lists = settings.num_lists or max(min(round(4 * math.sqrt(count)), count // _FEWEST_OF_LIST), 1)
            if num_lists > count:
                raise UserError(f"num_lists={num_lists} must be at most the number of documents, {count}")
            centres = faiss.IndexFlat(width, metric)
            library = faiss.IndexIVFFlat(centres, width, num_lists, metric)
            library.train(vectors)
            library.nprobe = min(settings.num_probes, num_lists)
        else:
            library = faiss.IndexHNSWFlat(width, settings.num_neighbors, metric)
            library.hnsw.efConstruction = settings.build_width
        library.add(vectors)
        index = cls(exact, library, settings)
        found = index.search(queries, num_documents).documents
        wanted = exact.search(queries, num_documents).documents
        hits = ((wanted[:, :, None] == found[:, None]) & (wanted >= 0)[:, :, None]).sum()
        recall = float(hits / (wanted >= 0).sum())
        measured = {"recall": recall, "num_queries": len(queries), "num_documents": num_documents}
        return dataclasses.replace(index, **measured)

    def search(self, queries: np.ndarray, num_documents: int = 10) -> Hits:
        """Good documents for queries [Q, D], as [Q, K]; equal scores come in the order of their places.

        Raises:
          UserError: as `VectorIndex.search` does.
        """
        check_number(num_documents)
        queries = self.exact.prepared(queries)
        if hasattr(self.library, "hnsw"):
            self.library.hnsw.efSearch = max(self.settings.search_width, num_documents)
        scores, places = self.library.search(np.ascontiguousarray(queries), num_documents)
        scores = np.where(places < 0, -np.inf, -scores if self.exact.metric == "euclidean" else scores)
        order = np.lexsort((places, -scores), axis=-1)
        return Hits(
            np.take_along_axis(places, order, 1).astype(np.int64),
            np.take_along_axis(scores, order, 1).astype(np.float32),
        )

    def report(self) -> str:
        """The recall in words."""
        return (
            f"approximate search finds {self.recall:.3f} of the {self.num_documents} best documents of exact search "
            f"(recall on {self.num_queries} queries)"
        )


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("approximate search needs the package faiss-cpu: pip install 'genjax[faiss]'") from None
    return faiss
