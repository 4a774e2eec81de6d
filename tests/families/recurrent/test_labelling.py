"""Labels of sequences: chains against enumeration, and what labellers learn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import DataError, PythonSource
from genjax.data.text.python_source import CLASSES, lexical_classes
from genjax.families.recurrent.labelling import SequenceLabeller, chain_log_normalizer, chain_log_prob, viterbi
from genjax.model import GenerativeModel, HasLogProb
from genjax.nn.recurrent import Recurrent
from genjax.optimizers import Adam

K, T = 3, 4
ALL = np.array(list(itertools.product(range(K), repeat=T)))


def test_chains_equal_enumeration_and_ignore_padding():
    keys = jax.random.split(jax.random.key(0), 2)
    scores, transitions = jax.random.normal(keys[0], (2, T, K)), jax.random.normal(keys[1], (K, K))
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    normalizer, _ = chain_log_normalizer(scores, transitions, mask)
    best = viterbi(scores, transitions, mask)
    every = []
    for row, length in enumerate((4, 2)):
        paths = np.unique(ALL[:, :length], axis=0)
        totals = np.array([
            sum(scores[row, t, p[t]] for t in range(length))
            + sum(transitions[p[t], p[t + 1]] for t in range(length - 1))
            for p in paths
        ])  # fmt: skip
        np.testing.assert_allclose(normalizer[row], np.logaddexp.reduce(totals), rtol=1e-5)
        np.testing.assert_array_equal(best[row, :length], paths[totals.argmax()])
        every.append((paths, totals))
    alone = chain_log_normalizer(scores[1:, :2], transitions, mask[1:, :2])[0]
    np.testing.assert_allclose(normalizer[1], alone[0], rtol=1e-6)
    # Of four labels the second is known, and in the row of two the first is.
    labels = jnp.array([[-1, 2, -1, -1], [0, -1, -1, -1]])
    for row, (paths, totals) in enumerate(every):
        known = paths[:, 1 - row] == labels[row, 1 - row]
        expected = np.logaddexp.reduce(totals[known]) - np.logaddexp.reduce(totals)
        np.testing.assert_allclose(chain_log_prob(scores, transitions, labels, mask)[row], expected, rtol=1e-4)


@pytest.mark.parametrize("output", ["independent", "chain"])
def test_labellers_learn_and_draw_from_their_distribution(output):
    model = SequenceLabeller(
        vocab_size=5,
        num_classes=K,
        embedding_dim=4,
        network=Recurrent(cell="gru", hidden_dim=5, bidirectional=True),
        output=output,
        optimizer=Adam(learning_rate=0.03),
    )
    assert isinstance(model, GenerativeModel) and isinstance(model, HasLogProb)
    tokens = jax.random.randint(jax.random.key(0), (16, T), 0, 5)
    # The label is known only from the token that follows.
    labels = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], 1) % K
    batch = {"tokens": tokens, "token_labels": labels, "mask": jnp.ones((16, T), bool).at[0, 3].set(False)}
    state = jax.jit(model.init)(jax.random.key(1), batch)
    step = jax.jit(model.train_step)
    for t in range(30):
        state, metrics = step(state, batch, jax.random.key(t))
    means = jax.tree.map(jnp.mean, model.evaluate(state, batch, None))
    assert means["accuracy"].value() > 0.6 and means["num_tokens"] == 63 / 16
    every = {"tokens": jnp.tile(tokens[1], (len(ALL), 1)), "token_labels": jnp.asarray(ALL)}
    p = np.exp(model.log_prob(state, every))
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-4)
    # What is not counted is summed over: the marginal of the first two labels.
    counted = jnp.broadcast_to(jnp.arange(T) < 2, every["tokens"].shape)
    marginal = [p[(ALL[:, :2] == row[:2]).all(1)].sum() for row in ALL]
    np.testing.assert_allclose(np.exp(model.log_prob(state, {**every, "loss_mask": counted})), marginal, rtol=1e-4)
    np.testing.assert_array_equal(model.predict(state, {"tokens": tokens[1:2]})[0], ALL[p.argmax()])
    draws = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(2), 20_000, jnp.tile(tokens[1], (20_000, 1)))
    counts = np.bincount(np.asarray(draws) @ (K ** np.arange(T - 1, -1, -1)), minlength=len(ALL))
    assert np.abs(counts / 20_000 - p).max() < 0.015


def test_sources_are_labelled_by_lexical_class(tmp_path):
    codes, labels = lexical_classes('x = f("é") # why\nif 10:\n    pass\n')
    names = [CLASSES[label] for label in labels]
    assert names[0] == "name" and names[2] == "operator" and names[6:9] == ["string"] * 3 and names[11] == "comment"
    assert names[17:19] == ["keyword"] * 2 and names[20:22] == ["number"] * 2 and codes[7] == 127
    # A form feed ends no line.
    np.testing.assert_array_equal(lexical_classes("a\n\x0c\nif b:\n  1\n")[1][4:], lexical_classes("if b:\n  1\n")[1])
    data = PythonSource(sequence_length=64)
    batch = data.load("test").gather(np.arange(8))
    assert batch["tokens"].shape == batch["token_labels"].shape == (8, 64) and data.spec()["num_classes"] == 7
    assert data.write_samples(batch["token_labels"], tmp_path / "s")[0].read_text().count("\n") == 8
    with pytest.raises(DataError, match="fewer than one window"):
        PythonSource(sequence_length=10**8).load("test")
