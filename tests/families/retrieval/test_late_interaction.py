"""Late interaction against a loop over documents and tokens."""

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.retrieval.late_interaction import TokenIndex
from genjax.families.retrieval.vector_index import VectorIndex

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.normal(size=(length, 6)).astype(np.float32) for length in (3, 1, 5, 2, 4, 1)]
QUERIES = [RNG.normal(size=(length, 6)).astype(np.float32) for length in (2, 4)]


def score(query, document):
    return sum(max(float(q.astype(np.float64) @ d) for d in document) for q in query)


@pytest.mark.parametrize("block_size", [1, 6, 1000])
def test_scores_are_sums_of_the_best_tokens(block_size):
    index = TokenIndex.of(DOCUMENTS, block_size)
    want = np.array([[score(query, document) for document in DOCUMENTS] for query in QUERIES])
    np.testing.assert_allclose([index.scores(query) for query in QUERIES], want, atol=1e-5)
    hits = index.search(QUERIES, 4)
    order = np.argsort(-want, axis=1)[:, :4]
    np.testing.assert_array_equal(hits.documents, order)
    np.testing.assert_allclose(hits.scores, np.take_along_axis(want, order, 1), atol=1e-5)
    assert index.search(QUERIES, 8).documents[:, 6:].tolist() == [[-1, -1]] * 2


def test_one_vector_each_is_the_inner_product():
    single = np.concatenate([document[:1] for document in DOCUMENTS])
    found = TokenIndex.of([row[None] for row in single]).search([query[:1] for query in QUERIES], 3)
    want = VectorIndex.of(single).search(np.concatenate([query[:1] for query in QUERIES]), 3)
    np.testing.assert_array_equal(found.documents, want.documents)
    np.testing.assert_allclose(found.scores, want.scores, rtol=1e-5)


def test_equal_scores_come_in_the_order_of_places():
    same = TokenIndex.of([DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0][::-1]], 4)
    found = same.search([DOCUMENTS[0]], 3).documents[0].tolist()
    assert [place for place in found if place != 1] == [0, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TokenIndex.of([]), "no document to index"),
        (lambda: TokenIndex.of([DOCUMENTS[0], np.zeros((0, 6))]), "document 1 has vectors of shape"),
        (lambda: TokenIndex.of([DOCUMENTS[0], np.zeros((2, 5))]), r"expected is \[T, 6\]"),
        (lambda: TokenIndex.of([np.full((2, 6), np.nan)]), "document 0 has a vector with NaN"),
        (lambda: TokenIndex.of(DOCUMENTS).scores(np.zeros((2, 5))), r"a query has shape \[T, 6\]"),
        (lambda: TokenIndex.of(DOCUMENTS).scores(np.full((1, 6), np.inf)), "the query has a vector with NaN"),
        (lambda: TokenIndex.of(DOCUMENTS).search(QUERIES, 0), "must be at least 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
