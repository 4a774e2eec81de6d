"""CIDEr-D on a corpus computed by hand, and the accuracy of VQA."""

import math

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.evaluation.captions import caption_words, cider_d, normalize_vqa, vqa_accuracy


def test_cider_d_of_a_corpus_computed_by_hand():
    # Weights of words: "a" and "cat" stand in both pictures, log 1 = 0; "red", "big" in one, log 2.  The weight of each
    # bigram is log 2 too, and there are no longer n-grams.
    references = [["a cat", "red cat"], ["a big cat"]]
    given = ["Red cat.", "a big"]
    # First picture, first reference: no n-gram in common that has a weight.  Second: the same, so each of the two
    # lengths of n-grams gives 1 of 4.
    first = 10 * (0 + (1 + 1) / 4) / 2
    # Second picture: the word "big" alone has a weight, so unigrams give 1; of the bigrams "a big" is one of two, which
    # gives 1 / sqrt(2); there is one word less.
    second = 10 * math.exp(-1 / 72) * (1 + 1 / math.sqrt(2)) / 4
    np.testing.assert_allclose(cider_d(given, references), [first, second], rtol=1e-12)


def test_cider_d_clips_repeated_words_and_weighs_rare_ones():
    references = [["dog dog cat"], ["bird"], ["dog"]]
    rare, common = math.log(3), math.log(3 / 2)
    # "dog" four times counts as the two of the reference.
    ours, theirs = 4 * common, math.hypot(2 * common, rare)
    unigrams = (2 * common) ** 2 / (ours * theirs)
    # The bigram "dog dog" three times counts once; "dog cat" is missing.
    bigrams = rare * rare / (3 * rare * math.hypot(rare, rare))
    expected = 10 * math.exp(-1 / 72) * (unigrams + bigrams) / 4
    found = cider_d(["dog dog dog dog", "bird", ""], references)
    np.testing.assert_allclose(found, [expected, 10 / 4, 0.0], rtol=1e-12)
    assert cider_d(["a cat"], [["a cat"]]).tolist() == [0.0]
    assert caption_words("A man, in a T-shirt!") == ["a", "man", "in", "a", "t", "shirt"]


def test_vqa_counts_votes_with_each_person_left_out():
    votes = ["red"] * 2 + ["blue"] * 3 + ["green"] * 5
    by_leaving_out = lambda answer: np.mean(
        [min(1.0, sum(v == answer for v in votes[:i] + votes[i + 1 :]) / 3) for i in range(10)]
    )
    answers = ["red", "Blue.", "the green", "pink"]
    expected = [by_leaving_out(answer) for answer in ("red", "blue", "green", "pink")]
    np.testing.assert_allclose(vqa_accuracy(answers, [votes] * 4), expected)
    # Where few were asked, one of them is enough.
    assert vqa_accuracy(["red", "two"], [["red"], ["blue", "green"]]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "same"),
    [("The  Two Dogs", "2 dogs"), ("don't", "dont"), ("1,000", "1000"), ("blue/green", "blue green"),
     ("st. 2.5", "st 2.5"), ("none", "0"), ("yes.", "yes")],
)  # fmt: skip
def test_answers_are_normalized(answer, same):
    assert normalize_vqa(answer) == normalize_vqa(same) == same.replace("don't", "dont")


@pytest.mark.parametrize("measure", [cider_d, vqa_accuracy])
def test_references_that_do_not_fit_are_refused(measure):
    with pytest.raises(UserError, match="2 texts for 1 pictures"):
        measure(["a", "b"], [["a"]])
    with pytest.raises(UserError, match="picture 2 needs a list of references"):
        measure(["a", "b"], [["a"], []])
