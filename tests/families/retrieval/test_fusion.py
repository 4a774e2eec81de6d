"""Reciprocal rank fusion by hand."""

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.retrieval.fusion import reciprocal_rank_fusion
from genjax.families.retrieval.hits import Hits


def hits(*rows: list[int]) -> Hits:
    return Hits(np.array(rows), -np.arange(np.size(rows)).reshape(np.shape(rows)).astype(float))


def test_ranks_count_from_one_and_absent_documents_add_nothing():
    # sentence-transformers 3883: ranks were counted from 0, and absent documents ranked.
    fused = reciprocal_rank_fusion([hits([4, 2, -1]), hits([2, 7, 9])], 5)
    assert fused.documents.tolist() == [[2, 4, 7, 9, -1]]
    np.testing.assert_allclose(fused.scores[0, :4], [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], atol=1e-15)
    assert fused.scores[0, 4] == -np.inf


def test_weights_and_equal_scores():
    assert reciprocal_rank_fusion([hits([5]), hits([3])], 2).documents.tolist() == [[3, 5]]
    assert reciprocal_rank_fusion([hits([5]), hits([3])], 2, weights=[2.0, 1.0]).documents.tolist() == [[5, 3]]


@pytest.mark.parametrize(
    "rankings, settings, message",
    [
        ([], {}, "there is no ranking to join"),
        ([hits([1]), hits([1], [2])], {}, r"rankings of \[1, 2\] queries cannot be joined"),
        ([hits([1])], {"weights": [1.0, 2.0]}, "2 weights do not fit 1 rankings"),
        ([hits([1])], {"weights": [np.nan]}, r"weights=\[nan\] must be finite"),
        ([hits([1])], {"constant": -1.0}, "constant=-1.0 must not be negative"),
        ([hits([1])], {"constant": np.nan}, "constant=nan must not be negative"),
        ([hits([1])], {"num_documents": 0}, "num_documents=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(rankings, settings, message):
    with pytest.raises(UserError, match=message):
        reciprocal_rank_fusion(rankings, **{"num_documents": 1, **settings})


def test_no_query_gives_no_row_and_a_query_without_documents_an_empty_one():
    none = Hits(np.zeros((0, 3), np.int64), np.zeros((0, 3)))
    assert reciprocal_rank_fusion([none, none], 2).documents.shape == (0, 2)
    found = reciprocal_rank_fusion([hits([-1, -1])], 2)
    assert found.documents.tolist() == [[-1, -1]] and np.all(np.isneginf(found.scores))
