"""Approximate search by faiss beside exact search, and what is said without faiss."""

import sys

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.retrieval.approximate import ApproximateIndex, Approximation
from genjax.families.retrieval.vector_index import VectorIndex

RNG = np.random.default_rng(0)
DOCUMENTS = RNG.standard_normal((1000, 16)).astype(np.float32)
QUERIES = RNG.standard_normal((20, 16)).astype(np.float32)


@pytest.mark.parametrize("metric", ["inner_product", "cosine", "euclidean"])
def test_all_lists_give_what_exact_search_gives(metric):
    pytest.importorskip("faiss", reason="approximate search: pip install 'genjax[faiss]'")
    exact = VectorIndex.of(DOCUMENTS, metric)
    every = Approximation(num_lists=10, num_probes=10)
    index = ApproximateIndex.of(exact, "ivf", QUERIES, 5, every)
    found, wanted = index.search(QUERIES, 5), exact.search(QUERIES, 5)
    np.testing.assert_array_equal(found.documents, wanted.documents)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
    assert index.recall == 1 and "finds 1.000 of the 5 best documents of exact search" in index.report()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_recall_is_the_share_of_exact_search_and_grows_with_the_width(kind):
    pytest.importorskip("faiss", reason="approximate search: pip install 'genjax[faiss]'")
    exact = VectorIndex.of(DOCUMENTS)
    wanted = exact.search(QUERIES, 10)
    recalls = []
    for probes, width in ((1, 10), (20, 400)):
        settings = Approximation(
            num_lists=20, num_probes=probes, num_neighbors=4, build_width=8 if probes == 1 else 200, search_width=width
        )
        index = ApproximateIndex.of(exact, kind, QUERIES, 10, settings)
        found = index.search(QUERIES, 10)
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(found.documents.tolist(), wanted.documents.tolist())]
        np.testing.assert_allclose(index.recall, np.mean(shares), atol=1e-9)
        # Scores are those of the documents.
        own = np.einsum("qd,qkd->qk", QUERIES, DOCUMENTS[found.documents])
        np.testing.assert_allclose(found.scores, own, atol=1e-4)
        assert (np.diff(found.scores) <= 0).all()
        recalls.append(index.recall)
    assert recalls[0] < 0.9 < recalls[1]


def test_more_documents_than_there_are_leaves_places_free_and_equal_scores_keep_their_order():
    pytest.importorskip("faiss", reason="approximate search: pip install 'genjax[faiss]'")
    exact = VectorIndex.of(np.repeat(DOCUMENTS[:1], 3, axis=0))
    hits = ApproximateIndex.of(exact, "ivf", QUERIES, 5).search(QUERIES[:2], 5)
    assert hits.documents.tolist() == [[0, 1, 2, -1, -1]] * 2 and np.isneginf(hits.scores[:, 3:]).all()


def test_without_faiss_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="needs the package faiss-cpu: pip install 'genjax.faiss.'"):
        ApproximateIndex.of(VectorIndex.of(DOCUMENTS[:4]), "hnsw", QUERIES)


def test_bad_input_is_one_sentence():
    pytest.importorskip("faiss", reason="approximate search: pip install 'genjax[faiss]'")
    exact = VectorIndex.of(DOCUMENTS[:4])
    with pytest.raises(UserError, match="with queries to measure its recall on"):
        ApproximateIndex.of(exact, "ivf", QUERIES[:0])
    with pytest.raises(UserError, match="num_lists=5 must be at most the number of documents, 4"):
        ApproximateIndex.of(exact, "ivf", QUERIES, settings=Approximation(num_lists=5))
    with pytest.raises(UserError, match="16 numbers each"):
        ApproximateIndex.of(exact, "hnsw", QUERIES).search(QUERIES[:, :3])
