"""Prompts with answers: rows without a hole, splits that do not give each other away, and what does not fit."""

import dataclasses

import numpy as np
import pytest

from genjax.data import DataError, PromptedText

SUMS = PromptedText(prompt_length=7, answer_length=4)


def test_rows_are_start_prompt_answer_end_and_answers_alone_count():
    arrays = SUMS.load("test").arrays()
    for i, (prompt, answer) in enumerate(SUMS.pairs("test")[:50]):
        size = int(arrays["mask"][i].sum())
        assert SUMS.decode(arrays["tokens"][i]) == prompt + answer
        counted = arrays["tokens"][i][arrays["loss_mask"][i]]
        np.testing.assert_array_equal(counted, arrays["answer"][i][arrays["answer_mask"][i]])
        assert arrays["tokens"][i, size - 1] == SUMS.separator_token and len(counted) == len(answer) + 1
        np.testing.assert_array_equal(
            arrays["prompt"][i][arrays["prompt_mask"][i]], arrays["tokens"][i, : 1 + len(prompt)]
        )


def test_a_sum_in_the_other_order_is_in_the_same_split():
    split = {prompt: name for name in ("train", "validation", "test") for prompt, _ in SUMS.pairs(name)}
    assert len(split) == 8100
    for prompt, name in split.items():
        first, second = prompt.rstrip("=").split("+")
        assert split[f"{second}+{first}="] == name


def test_demonstrations_are_the_first_in_a_fixed_order_and_do_not_change_the_tokens():
    few, more = (dataclasses.replace(SUMS, num_demonstrations=n) for n in (20, 50))
    assert few.pairs("train") == more.pairs("train")[:20] and set(more.pairs("train")) < set(SUMS.pairs("train"))
    assert few.spec() == SUMS.spec() and len(few.pairs("test")) == len(SUMS.pairs("test"))


def test_reviews_have_an_empty_prompt_and_a_judge():
    data = PromptedText(name="reviews", prompt_length=1, answer_length=64)
    arrays = data.load("test").arrays()
    assert (arrays["prompt"] == data.start_token).all()
    assert {data.judged(data.decode(row)) for row in arrays["tokens"][:40]} == {True, False}


def test_examples_that_do_not_fit_are_left_out_or_refused(caplog):
    short = dataclasses.replace(SUMS, answer_length=3)
    kept = len(short.load("test"))
    assert kept == sum(len(answer) == 2 for _, answer in SUMS.pairs("test"))
    assert f"of {len(SUMS.pairs('test'))} examples of sums do not fit into data.prompt_length=7" in caplog.text
    with pytest.raises(DataError, match="no example of the split test of sums fits"):
        dataclasses.replace(SUMS, answer_length=1).load("test")
    with pytest.raises(DataError, match="is not a set of prompts and answers: sums, reviews, table"):
        PromptedText(name="poems").pairs("train")
