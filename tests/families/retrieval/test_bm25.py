"""BM25 against its formulas written out, word by word, and against two libraries."""

import math

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.retrieval.bm25 import BM25, BM25Index, words_of

DOCUMENTS = [
    words_of(text)
    for text in (
        "The cat sat on the mat", "A dog and a cat", "Dogs bark; the dog barks at the cat, the cat, the cat", "mat",
        "nothing in common with others", "the the the the", "a mat for a dog",
    )
]  # fmt: skip
QUERIES = [["the", "cat"], ["dog", "dog", "mat"], ["unknown", "cat"], ["common", "a"]]
METHODS = ("lucene", "robertson", "atire", "bm25l", "bm25+")


def written_out(method: str, query: list[str], document: list[str], k1: float, b: float, delta: float) -> float:
    """The score of one document, by the table in bm25.py's first lines."""
    every, mean = len(DOCUMENTS), sum(map(len, DOCUMENTS)) / len(DOCUMENTS)
    norm, total = 1 - b + b * len(document) / mean, 0.0
    for word in set(query) & set(document):
        n, tf = sum(word in other for other in DOCUMENTS), document.count(word)
        if method == "lucene":
            score = math.log(1 + (every - n + 0.5) / (n + 0.5)) * tf / (tf + k1 * norm)
        elif method == "robertson":
            score = max(0, math.log((every - n + 0.5) / (n + 0.5))) * tf / (tf + k1 * norm)
        elif method == "atire":
            score = math.log(every / n) * tf * (k1 + 1) / (tf + k1 * norm)
        elif method == "bm25l":
            c = tf / norm + delta
            score = math.log((every + 1) / (n + 0.5)) * (k1 + 1) * c / (k1 + c)
        else:
            score = math.log((every + 1) / n) * (tf * (k1 + 1) / (tf + k1 * norm) + delta)
        total += query.count(word) * score
    return total


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_formula(method):
    settings = BM25(method=method, k1=1.2, b=0.6, delta=0.7, dtype="float64")
    hits = settings.index(DOCUMENTS).search(QUERIES, len(DOCUMENTS))
    for query, documents, scores in zip(QUERIES, *hits):
        holding = [i for i, document in enumerate(DOCUMENTS) if set(query) & set(document)]
        assert sorted(documents[documents >= 0]) == holding
        expected = [written_out(method, query, DOCUMENTS[i], 1.2, 0.6, 0.7) for i in documents if i >= 0]
        np.testing.assert_allclose(scores[: len(holding)], expected, atol=1e-12)
        assert np.all(scores[len(holding) :] == -np.inf) and np.all(np.diff(scores[: len(holding)]) <= 0)


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_bm25s(method):
    bm25s = pytest.importorskip("bm25s")
    peer = bm25s.BM25(method=method, dtype="float64")
    peer.index(DOCUMENTS, show_progress=False)
    index = BM25(method=method, absent_words=True, dtype="float64").index(DOCUMENTS)
    for query in QUERIES:
        expected = peer.get_scores([word for word in query if word in index.vocabulary])
        (documents,), (scores,) = index.search([query], len(DOCUMENTS))
        np.testing.assert_allclose(scores[documents >= 0], expected[documents[documents >= 0]], atol=1e-9)


def test_scores_are_those_of_rank_bm25():
    rank_bm25 = pytest.importorskip("rank_bm25")
    peer = rank_bm25.BM25Plus(DOCUMENTS, delta=0.5)
    index = BM25(method="bm25+", absent_words=True, dtype="float64").index(DOCUMENTS)
    (documents,), (scores,) = index.search([["the", "cat"]], len(DOCUMENTS))
    found = documents >= 0
    np.testing.assert_allclose(scores[found], peer.get_scores(["the", "cat"])[documents[found]], atol=1e-9)


def test_delta_counts_only_where_absent_words_do_not():
    """Lv & Zhai's bound from below: a long document with both words rises above a short one that repeats one word."""
    documents = [["x"] * 5, ["x", "y", *["filler"] * 300], ["z"], ["z"], ["y"]]

    def first(delta: float, absent_words: bool) -> int:
        settings = BM25(method="bm25+", delta=delta, absent_words=absent_words)
        return int(settings.index(documents).search([["x", "y"]], 1).documents[0, 0])

    assert first(0.0, absent_words=False) == 0 and first(5.0, absent_words=False) == 1
    assert first(0.0, absent_words=True) == 0 and first(5.0, absent_words=True) == 0


def test_equal_scores_come_in_the_order_of_ids_and_a_cut_does_not_change_it():
    index = BM25().index([["a"], ["b"], ["a"], ["a"], ["a", "b"]])
    assert index.search([["a"]], 5).documents.tolist() == [[0, 2, 3, 4, -1]]
    assert index.search([["a"]], 2).documents.tolist() == [[0, 2]]


def test_a_query_of_unknown_words_finds_nothing():
    hits = BM25().index(DOCUMENTS).search([["xyz"], []], 2)
    assert hits.documents.tolist() == [[-1, -1], [-1, -1]] and np.all(hits.scores == -np.inf)


def test_an_index_is_the_same_after_a_round_trip_through_arrays():
    index = BM25(method="bm25l").index(DOCUMENTS)
    again = BM25Index.from_arrays(index.settings, index.arrays())
    for first, second in zip(index.search(QUERIES, 4), again.search(QUERIES, 4)):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: BM25().index([]), "there is no document to index"),
        (lambda: BM25().index([["a"], []]), "document 1 has no word"),
        (lambda: BM25(k1=-1.0), "k1=-1.0 must be a finite number, and not negative"),
        (lambda: BM25(k1=np.nan), "k1=nan must be a finite number"),
        (lambda: BM25(k1=np.inf), "k1=inf must be a finite number"),
        (lambda: BM25(b=np.nan), "b=nan must lie between 0 and 1"),
        (lambda: BM25(delta=np.nan), "delta=nan must be a finite number"),
        (lambda: BM25(method="bm26"), "method=bm26 must be one of lucene, robertson, atire, bm25l, bm25[+]"),
        (lambda: BM25(dtype="int8"), "dtype=int8 must be one of float32, float64"),
        (lambda: BM25(b=1.5), "b=1.5 must lie between 0 and 1"),
        (lambda: BM25(delta=-1.0), "delta=-1.0 must be a finite number, and not negative"),
        (lambda: BM25().index([["a"]]).search([["a"]], 0), "num_documents=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
