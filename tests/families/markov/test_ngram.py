"""Claims about n-grams, against counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.markov import inference
from genjax.families.markov.ngram import NGram
from genjax.families.markov.ngram_model import NGramModel

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


@pytest.mark.parametrize("smoothing", ["additive", "witten_bell", "kneser_ney"])
def test_tables_that_grow_by_batches_equal_those_of_all_documents(smoothing):
    documents = np.stack(DOCUMENTS * 2 + [np.flip(d) for d in DOCUMENTS])  # [12, 50]
    # The first token of a row is context only, so the oracle's documents begin with a mark that nothing follows twice.
    model = NGramModel(order=4, smoothing=smoothing, vocab_size=7, capacity=600, sequence_length=20, start_token=6)
    tokens = jnp.asarray(np.pad(documents, ((0, 0), (1, 0)), constant_values=6), jnp.int32)
    mask = jnp.asarray(np.arange(51)[None] < np.arange(40, 52)[:, None])
    state = model.init(jax.random.key(0), {"tokens": tokens[:4]})
    step = jax.jit(model.train_step)
    for i in range(3):
        state, metrics = step(state, {"tokens": tokens[4 * i : 4 * i + 4], "mask": mask[4 * i : 4 * i + 4]}, None)
    assert metrics["lost_ngrams"] == 0
    counted = [np.asarray(t)[np.asarray(m)] for t, m in zip(tokens, mask)]
    oracle = NGram(counted, 7, 4, smoothing)
    assert [int((np.asarray(k[0]) != 2**31 - 1).sum()) for k in state.params["keys"][1:]] == oracle.num_ngrams[1:]
    if smoothing == "kneser_ney":
        return
    # The mark itself is counted by the oracle only, which shows in single tokens alone.
    tables = jax.tree.map(jnp.copy, {name: state.params[name] for name in ("keys", "counts")})
    tables["counts"][0] = tables["counts"][0].at[6].add(len(tokens))
    state = state.replace(params={**tables, **model._smoothing(tables)})
    log_prob = np.asarray(model.token_log_prob(state.params, tokens[:, :30]))
    for row, document in zip(log_prob, np.asarray(tokens)[:, :30]):
        np.testing.assert_allclose(row, oracle.token_log_prob(document)[1:], rtol=1e-4, atol=1e-5)


def test_kneser_ney_of_one_text_on_the_contract():
    text = np.random.default_rng(1).integers(0, 4, 400)
    text = np.where(np.arange(400) % 3, text, 0)
    model = NGramModel(order=3, vocab_size=4, sequence_length=12, start_token=0)
    batch = {"tokens": jnp.asarray(text, jnp.int32)[None]}
    state, metrics = jax.jit(model.train_step)(model.init(jax.random.key(0), batch), batch, None)
    np.testing.assert_allclose(metrics["loss"].value(), np.log(4), rtol=1e-6)
    oracle = NGram([text], 4, 3)
    np.testing.assert_allclose(
        model.token_log_prob(state.params, batch["tokens"])[0], oracle.token_log_prob(text)[1:], atol=2e-3
    )
    logits = model.logits(state, batch["tokens"][:, :20])
    np.testing.assert_allclose(jnp.exp(logits).sum(-1), 1.0, rtol=1e-5)
    chosen = jnp.take_along_axis(logits[0, :-1], batch["tokens"][0, 1:20, None], -1)[:, 0]
    np.testing.assert_allclose(chosen, model.token_log_prob(state.params, batch["tokens"])[0, :19], rtol=1e-4)
    assert model.sample(state, jax.random.key(0), 3).shape == (3, 13)
    tiny = NGramModel(order=3, vocab_size=4, capacity=5)
    assert jax.jit(tiny.train_step)(tiny.init(jax.random.key(0), batch), batch, None)[1]["lost_ngrams"] > 0
    with pytest.raises(ValueError, match="capacity=0 must lie"):
        NGramModel(capacity=0)


def test_a_fitted_chain_has_its_stationary_distribution_and_mixes():
    text = np.random.default_rng(2).integers(0, 3, 3000)
    text[1::2] = (text[:-1:2] + 1) % 3
    model = NGramModel(order=2, smoothing="witten_bell", vocab_size=3, sequence_length=4)
    batch = {"tokens": jnp.asarray(text, jnp.int32)[None]}
    state, _ = jax.jit(model.train_step)(model.init(jax.random.key(0), batch), batch, None)
    transition = model.transition_matrix(state)
    oracle = NGram([text], 3, 2, "witten_bell")
    # The first token is context only in the one, counted in the other.
    np.testing.assert_allclose(transition, [oracle.next_token_probs(np.array([i])) for i in range(3)], atol=1e-3)
    frequency = np.bincount(text, minlength=3) / len(text)
    np.testing.assert_allclose(inference.stationary_distribution(transition), frequency, atol=2e-3)
    assert inference.mixing_time(transition, 0.01) > inference.mixing_time(transition, 0.25) >= 1
    with pytest.raises(ValueError, match="order=2"):
        NGramModel(order=3, vocab_size=3).transition_matrix(state)


@pytest.mark.parametrize("vocab_size, capacity", [(64, 40), (100_000, 40)])
def test_contexts_of_a_vocabulary_larger_than_the_tables_are_not_lost(vocab_size, capacity):
    text = np.tile([vocab_size - 1, vocab_size - 30, vocab_size - 2, vocab_size - 30, 0], 6)
    model = NGramModel(order=2, smoothing="witten_bell", vocab_size=vocab_size, capacity=capacity)
    batch = {"tokens": jnp.asarray(text, jnp.int32)[None]}
    state, metrics = jax.jit(model.train_step)(model.init(jax.random.key(0), batch), batch, None)
    assert metrics["lost_ngrams"] == 0
    # By hand: counts of the pairs, mixed with those of the single tokens behind the first.
    pairs, nll = list(zip(text[:-1], text[1:])), 0.0
    for before, token in pairs:
        follow = [b for a, b in pairs if a == before]
        kinds, singles = len(set(follow)), text[1:]
        p = ((singles == token).sum() + len(set(singles)) / vocab_size) / (len(singles) + len(set(singles)))
        nll -= np.log((follow.count(token) + kinds * p) / (len(follow) + kinds))
    np.testing.assert_allclose(-jax.jit(model.log_prob)(state, batch), [nll], rtol=1e-5)


def test_tokens_outside_of_the_vocabulary_are_refused():
    model, inside = NGramModel(order=2, vocab_size=4), jnp.array([[0, 1, 2]])
    state = model.init(jax.random.key(0), {"tokens": inside})
    for token in (4, -1):
        batch = {"tokens": inside.at[0, 1].set(token)}
        for call in (
            lambda batch=batch: model.log_prob(state, batch),
            lambda batch=batch: model.train_step(state, batch, None),
            lambda batch=batch: model.logits(state, batch["tokens"]),
            lambda token=token: NGram(DOCUMENTS, 5, 2).log_prob(np.array([0, token if token < 0 else 5])),
        ):
            with pytest.raises(ValueError, match="lies outside the vocabulary"):
                call()
