"""Claims about n-grams, against counting by hand."""

import numpy as np
import pytest

from genjax.families.markov.ngram import NGram

RNG = np.random.default_rng(0)
DOCUMENTS = [np.cumsum(RNG.choice([0, 1, 1, 3], 50)) % 5 for _ in range(4)]


@pytest.mark.parametrize("smoothing", ["additive", "witten_bell", "kneser_ney"])
@pytest.mark.parametrize("order", [1, 3, 6])
def test_probabilities_sum_to_one_and_make_up_those_of_sequences(smoothing, order):
    model = NGram(DOCUMENTS, 6, order, smoothing)
    sequence, log_prob = np.array([1, 2, 3, 5, 1, 4]), 0.0
    for t, token in enumerate(sequence):
        p = model.next_token_probs(sequence[:t])
        np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-9)
        assert (p > 0).all()
        log_prob += np.log(p[token])
    np.testing.assert_allclose(model.log_prob(sequence), log_prob, rtol=1e-9)


def test_witten_bell_and_additive_by_hand():
    model = NGram([np.array([0, 1, 0, 1, 0, 2])], 3, 2, "witten_bell")
    unigram = (np.array([3, 2, 1]) + 3 / 3) / (6 + 3)
    np.testing.assert_allclose(model.next_token_probs(np.array([0])), (np.array([0, 2, 1]) + 2 * unigram) / (3 + 2))
    model = NGram([np.array([0, 1, 0, 1, 0, 2])], 3, 2, "additive", 0.5)
    np.testing.assert_allclose(model.next_token_probs(np.array([0])), np.array([0.5, 2.5, 1.5]) / 4.5)


def test_longer_contexts_predict_training_text_better_and_samples_follow_it():
    nll = [-sum(map(NGram(DOCUMENTS, 5, n, "witten_bell").log_prob, DOCUMENTS)) for n in (1, 2, 4)]
    assert nll[0] > nll[1] > nll[2]
    chain = NGram([np.arange(100) % 4], 4, 2, "witten_bell")
    sample = chain.sample(np.random.default_rng(0), 200)
    assert ((np.diff(sample) % 4) == 1).mean() > 0.9


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least 1"):
        NGram(DOCUMENTS, 5, 0)
    with pytest.raises(ValueError, match="from 0 to 3"):
        NGram(DOCUMENTS, 4)
    with pytest.raises(ValueError, match="none of"):
        NGram(DOCUMENTS, 5, smoothing="laplace")
