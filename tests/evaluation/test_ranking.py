"""Measures of rankings against values by hand, and against trec_eval."""

import math

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.evaluation.ranking import query_measures, ranked, ranking_measures

JUDGEMENTS = {"q1": {"d1": 2, "d2": 0, "d3": 1, "d9": 1}, "q2": {"d2": 1}, "q3": {"d5": 0}, "q4": {"d4": -1, "d6": 3}}
RUN = {
    "q1": {"d2": 3.0, "d1": 2.0, "d3": 2.0, "d4": 2.0},
    "q2": {"d7": 1.0, "d2": 1.0 - 1e-9, "d1": 0.5},
    "q3": {"d5": 1.0},
    "q4": {"d4": 2.0, "d6": 1.0},
}


def test_measures_by_hand():
    measures = query_measures({"a": 2, "b": 1, "c": 0}, ["x", "b", "a"], (1, 2, 3))
    assert measures["reciprocal_rank"] == 1 / 2
    assert measures["average_precision"] == (1 / 2 + 2 / 3) / 2
    assert [measures[f"precision@{k}"] for k in (1, 2, 3)] == [0, 1 / 2, 2 / 3]
    assert [measures[f"recall@{k}"] for k in (1, 2, 3)] == [0, 1 / 2, 1]
    ideal = 2 + 1 / math.log2(3)
    assert measures["ndcg@3"] == pytest.approx((1 / math.log2(3) + 2 / 2) / ideal, abs=1e-15)
    assert measures["ndcg@1"] == 0


def test_equal_scores_are_ordered_by_id_whatever_order_they_came_in():
    # trec_eval 22, pytrec_eval 56, beir 105: ties.
    assert ranked({"a": 1.0, "c": 1.0, "b": 1.0, "d": 2.0}) == ["d", "c", "b", "a"]
    # Scores that are equal in float32 are equal.
    assert ranked({"a": 1.0 + 1e-12, "b": 1.0}) == ["b", "a"]


def test_measures_are_those_of_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    names = {
        "ndcg@5": "ndcg_cut_5",
        "average_precision": "map",
        "reciprocal_rank": "recip_rank",
        "recall@5": "recall_5",
    }
    peer = pytrec_eval.RelevanceEvaluator(JUDGEMENTS, {"ndcg_cut_5", "map", "recip_rank", "recall_5", "P_5"}).evaluate(
        RUN
    )
    rng = np.random.default_rng(0)
    judgements = {f"q{i}": {f"d{j}": int(g) for j, g in enumerate(rng.integers(0, 3, 30))} for i in range(20)}
    run = {q: {f"d{j}": float(s) for j, s in enumerate(rng.integers(0, 8, 40))} for q in judgements}
    random = pytrec_eval.RelevanceEvaluator(
        judgements, {"ndcg_cut_5", "map", "recip_rank", "recall_5", "P_5"}
    ).evaluate(run)
    for grades, scores, expected in ((JUDGEMENTS, RUN, peer), (judgements, run, random)):
        for query in scores:
            ours = query_measures(grades[query], ranked(scores[query]), (5,))
            for name, theirs in {**names, "precision@5": "P_5"}.items():
                assert ours[name] == pytest.approx(expected[query][theirs], abs=1e-15), (query, name)


def test_a_judged_query_that_found_nothing_counts_as_zero():
    run = {query: RUN[query] for query in ("q1", "q2")}
    all_four, two = ranking_measures(JUDGEMENTS, run), ranking_measures({q: JUDGEMENTS[q] for q in run}, run)
    assert all_four["recall@5"] == pytest.approx(two["recall@5"] / 2, abs=1e-15)


def test_a_query_among_the_documents_can_be_left_out():
    # beir 91: the query itself among the documents.
    judgements, run = {"d1": {"d1": 1, "d2": 1}}, {"d1": {"d1": 9.0, "d3": 2.0, "d2": 1.0}}
    assert ranking_measures(judgements, run, (1,))["precision@1"] == 1
    measures = ranking_measures(judgements, run, (1,), exclude_self=True)
    assert measures["precision@1"] == 0 and measures["average_precision"] == 1 / 2


@pytest.mark.parametrize(
    "judgements, run, cutoffs, message",
    [
        ({}, {}, (1,), "no query is judged"),
        ({"q": {"d": 1}}, {"p": {"d": 1.0}}, (1,), r"query p was run but is not judged \(1 of 1"),
        ({"q": {"d": 1}}, {}, (0,), "a cutoff must be at least 1"),
        ({"q": {"d": 1}}, {"q": {"d": math.nan}}, (1,), "document d has the score NaN"),
    ],
)
def test_bad_input_is_one_sentence(judgements, run, cutoffs, message):
    with pytest.raises(UserError, match=message):
        ranking_measures(judgements, run, cutoffs)
