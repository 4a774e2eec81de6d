"""Exact search against a sort of all scores, and against faiss."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.retrieval.vector_index import VectorIndex, best_of_rows

RNG = np.random.default_rng(0)
#: Numbers of few values, so that many scores are equal.
DOCUMENTS = RNG.integers(-2, 3, (700, 6)).astype(np.float32)
QUERIES = RNG.integers(-2, 3, (5, 6)).astype(np.float32)


def all_scores(metric: str) -> np.ndarray:
    documents, queries = DOCUMENTS.astype(np.float64), QUERIES.astype(np.float64)
    if metric == "euclidean":
        return -((queries[:, None] - documents[None]) ** 2).sum(2)
    return queries @ documents.T


@pytest.mark.parametrize("metric", ["inner_product", "euclidean"])
@pytest.mark.parametrize("block_size", [64, 256, 1000])
def test_the_best_are_those_of_a_stable_sort_whatever_the_block(metric, block_size):
    hits = VectorIndex.of(DOCUMENTS, metric, block_size).search(QUERIES, 10)
    scores = all_scores(metric)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(hits.documents, order)
    np.testing.assert_allclose(hits.scores, np.take_along_axis(scores, order, 1), atol=1e-5)


@pytest.mark.parametrize("metric", ["inner_product", "euclidean"])
@pytest.mark.parametrize(("num_devices", "block_size"), [(8, 250), (3, 1000)])
def test_devices_find_together_what_one_finds(metric, num_devices, block_size):
    present = RNG.random(len(DOCUMENTS)) < 0.7
    for there in (None, present):
        want = VectorIndex.of(DOCUMENTS, metric).search(QUERIES, 10, there)
        hits = VectorIndex.of(DOCUMENTS, metric, block_size, num_devices).search(QUERIES, 10, there)
        np.testing.assert_array_equal(hits.documents, want.documents)
        np.testing.assert_allclose(hits.scores, want.scores, atol=1e-5)
    few = VectorIndex.of(DOCUMENTS[:5], metric, block_size, num_devices).search(QUERIES, 9)
    assert np.all(few.documents[:, 5:] == -1) and np.all(np.sort(few.documents[:, :5], axis=1) == np.arange(5))


def test_cosines_do_not_depend_on_lengths():
    kept = np.abs(DOCUMENTS).sum(1) > 0
    index = VectorIndex.of(DOCUMENTS[kept] * RNG.uniform(0.1, 9, (kept.sum(), 1)), "cosine", 100)
    documents = DOCUMENTS[kept].astype(np.float64)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    scores = QUERIES @ documents.T / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    hits = index.search(7 * QUERIES, 4)
    np.testing.assert_allclose(hits.scores, -np.sort(-scores, axis=1)[:, :4], atol=1e-6)


def test_the_best_of_rows_are_those_of_top_k_with_many_equal_values():
    rows = jnp.asarray(RNG.integers(0, 4, (3, 5000)).astype(np.float32))
    values, places = best_of_rows(rows, 7)
    order = np.argsort(-np.asarray(rows), axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(values, np.take_along_axis(np.asarray(rows), order, 1))


def test_more_documents_than_there_are_leaves_places_free():
    hits = VectorIndex.of(DOCUMENTS[:3]).search(QUERIES, 5)
    assert np.all(hits.documents[:, 3:] == -1) and np.all(hits.scores[:, 3:] == -np.inf)
    assert np.all(np.sort(hits.documents[:, :3], axis=1) == np.arange(3))


def test_ids_and_scores_are_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    documents, queries = RNG.standard_normal((2000, 32), np.float32), RNG.standard_normal((20, 32), np.float32)
    for metric, peer, sign in (("inner_product", faiss.IndexFlatIP(32), 1), ("euclidean", faiss.IndexFlatL2(32), -1)):
        peer.add(documents)
        scores, ids = peer.search(queries, 10)
        hits = VectorIndex.of(documents, metric, 512).search(queries, 10)
        np.testing.assert_array_equal(hits.documents, ids)
        np.testing.assert_allclose(hits.scores, sign * scores, atol=5e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VectorIndex.of(np.zeros((0, 3))), r"shape \[N, D\] with N, D >= 1, not \[0, 3\]"),
        (lambda: VectorIndex.of(np.zeros((2, 0))), r"with N, D >= 1, not \[2, 0\]"),
        (lambda: VectorIndex.of([[1.0, 2.0], [1.0]]), "each document must have a vector of as many numbers as the oth"),
        (lambda: VectorIndex.of([["a"]]), "each document must have a vector of as many numbers"),
        (lambda: VectorIndex.of(DOCUMENTS, "dot"), "metric=dot must be one of inner_product, cosine, euclidean"),
        (lambda: VectorIndex.of(np.array([[1.0], [np.nan]])), "document 1 has a vector with NaN"),
        (lambda: VectorIndex.of(np.array([[1.0], [0.0]]), "cosine"), "document 1 has the vector 0"),
        (lambda: VectorIndex.of(DOCUMENTS, block_size=0), "block_size=0 must be at least 1"),
        (lambda: VectorIndex.of(DOCUMENTS).search(np.zeros((1, 5))), r"queries have shape \[1, 5\].*6 numbers each"),
        (
            lambda: VectorIndex.of(DOCUMENTS).search(np.full((1, 6), np.inf)),
            "query 0 has a vector with NaN or infinity",
        ),
        (lambda: VectorIndex.of(DOCUMENTS, "cosine").search(np.zeros((1, 6))), "query 0 has the vector 0"),
        (lambda: VectorIndex.of(DOCUMENTS).search([[1.0] * 6, [1.0]]), "each query must have a vector of as many"),
        (lambda: VectorIndex.of(DOCUMENTS[:3]).search(QUERIES, 1, np.ones(2, bool)), r"shape \[2\].* 3 documents"),
        (lambda: VectorIndex.of(DOCUMENTS).search(QUERIES, 0), "num_documents=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
