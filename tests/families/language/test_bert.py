"""BERT on the contract, and its corruption, counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import DEVICE_AXIS
from genjax.families.language.bert import BERT, RoBERTa
from genjax.families.language.encoder_tasks import (
    Classification,
    MaskedLanguageModel,
    SentenceEmbedding,
    SpanExtraction,
    TokenClassification,
    Vocabulary,
)
from genjax.families.language.networks import bert_network
from genjax.gradients import value_and_gradient
from genjax.model import GenerativeModel
from genjax.optimizers import Adam

MASK, SPECIAL = 11, (8, 9, 10, 11)
NETWORK = bert_network(1, 8, 2, mlp_dim=16, max_length=12, init_std=0.5, dropout=0.0, attention_dropout=0.0)
MODEL = RoBERTa(
    vocab_size=12,
    sequence_length=6,
    mask_token=MASK,
    special_tokens=SPECIAL,
    network=NETWORK,
    task=MaskedLanguageModel(mask_rate=0.3),
    optimizer=Adam(learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(3), 4)
    tokens = jax.random.randint(keys[0], (4, 8), 0, 8).at[:, 0].set(8)
    mask = jnp.arange(8)[None] < jnp.array([[8], [6], [8], [3]])
    return {
        "tokens": jnp.where(mask, tokens, 9),
        "mask": mask,
        "types": (jnp.arange(8)[None] > 3).astype(jnp.int32) * jnp.ones((4, 1), jnp.int32),
        "label": jnp.array([0, 1, 0, 1]),
        "token_labels": jnp.where(mask, jax.random.randint(keys[1], (4, 8), -1, 3), -1),
        "span": jnp.array([[1, 2], [3, 3], [0, 0], [1, 2]]),
    }


def test_corruption_has_the_published_shares():
    task = MaskedLanguageModel()
    tokens = jax.random.randint(jax.random.key(0), (4000, 40), 0, 90).at[:, 0].set(98)
    mask = jnp.arange(40)[None] < jnp.where(jnp.arange(4000) % 2, 40, 21)[:, None]
    vocabulary = Vocabulary(100, 99, (98, 99))
    keys = jax.random.split(jax.random.key(1), 4000)
    out = jax.jit(lambda batch: task.prepare(batch, keys, vocabulary))({"tokens": tokens, "mask": mask})
    counts = out["weights"].sum(1)
    np.testing.assert_array_equal(counts[:2], [np.round(0.15 * 20), np.round(0.15 * 39)])
    chosen = np.zeros(tokens.shape, bool)
    np.put_along_axis(chosen, np.asarray(out["places"]), np.asarray(out["weights"]) > 0, axis=1)
    before, after = np.asarray(tokens), np.asarray(out["tokens"])
    assert not chosen[:, 0].any() and not chosen[~np.asarray(mask)].any()
    np.testing.assert_array_equal(after[~chosen], before[~chosen])
    np.testing.assert_array_equal(np.take_along_axis(before, np.asarray(out["places"]), 1), out["targets"])
    total = chosen.sum()
    tolerance = 5 * np.sqrt(0.25 / total)
    assert abs((after[chosen] == 99).mean() - (0.8 + 0.1 / 100)) < tolerance
    assert abs((after[chosen] == before[chosen]).mean() - (0.1 + 0.1 / 100)) < tolerance
    # What no loss counts is read as it is.
    kept = (tokens + jnp.arange(40)[None]) % 2 == 0
    out = jax.jit(lambda batch: task.prepare(batch, keys, vocabulary))(
        {"tokens": tokens, "mask": mask, "loss_mask": kept}
    )
    np.testing.assert_array_equal(out["tokens"][~kept], tokens[~kept])
    assert (out["weights"].sum(1) > 0).all()
    # Every place of a full row is chosen equally often.
    share = chosen[1::2, 1:].mean(0)
    assert np.abs(share - 6 / 39).max() < 5 * np.sqrt(0.15 * 0.85 / 2000)


TASKS = {
    "masked": MaskedLanguageModel(mask_rate=0.3, next_sentence=True),
    "class": Classification(num_classes=2),
    "tokens": TokenClassification(num_classes=3),
    "span": SpanExtraction(),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_contract_of_each_task(name, batch):
    settings = {f.name: getattr(MODEL, f.name) for f in dataclasses.fields(MODEL)}
    model = BERT(**{**settings, "task": TASKS[name], "num_types": 2, "position_offset": 0, "skip_padding": False})
    assert isinstance(model, GenerativeModel)
    state = jax.jit(model.init)(jax.random.key(0), batch)

    @jax.jit
    def run(state):
        step = lambda state, _: model.train_step(state, batch, jax.random.key(1))
        return jax.lax.scan(step, state, None, length=60)

    new, metrics = run(state)
    assert metrics["loss"][-1] < 0.6 * metrics["loss"][0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new.params, state.params)
    assert all(jax.tree.leaves(moved)), moved
    values, samples = jax.jit(
        lambda state: (model.evaluate(state, batch, jax.random.key(0)), model.sample(state, jax.random.key(1), 3))
    )(new)
    assert all(value.shape == (4,) for value in jax.tree.leaves(values))
    assert samples.shape[0] == 3
    if name == "masked":
        assert samples.shape == (3, 6) and (samples < 8).all()
    if name == "span":
        assert ((values["f1"] >= values["exact_match"]) & (values["f1"] <= 1)).all()


@pytest.fixture(scope="module")
def state(batch):
    return jax.jit(MODEL.init)(jax.random.key(0), batch)


def test_padding_changes_nothing(state, batch):
    logits = jax.jit(MODEL.token_logits)
    row = {name: batch[name][3:, :3] for name in ("tokens", "mask")}
    full = logits(state, {name: batch[name] for name in ("tokens", "mask")})[3, :3]
    np.testing.assert_allclose(full, logits(state, row)[0], atol=1e-5)
    # RoBERTa's positions count tokens, so padding before them changes nothing either.
    left = {"tokens": jnp.pad(row["tokens"], ((0, 0), (2, 0))), "mask": jnp.pad(row["mask"], ((0, 0), (2, 0)))}
    np.testing.assert_allclose(logits(state, left)[0, 2:], full, atol=1e-5)


def test_pseudo_log_prob_masks_each_place_in_turn(state, batch):
    part = {name: batch[name] for name in ("tokens", "mask")}
    total = jax.jit(MODEL.pseudo_log_prob)(state, part)
    logits = jax.jit(MODEL.token_logits)
    row, expected = part["tokens"][3], 0.0
    for i in (1, 2):
        masked = {"tokens": part["tokens"].at[3, i].set(MASK), "mask": part["mask"]}
        expected += jax.nn.log_softmax(logits(state, masked)[3, i])[row[i]]
    np.testing.assert_allclose(total[3], expected, rtol=1e-5)


def test_contrast_pulls_partners_together(batch):
    network = dataclasses.replace(NETWORK, dropout=0.1)
    model = dataclasses.replace(MODEL, task=SentenceEmbedding(), network=network)
    state = jax.jit(model.init)(jax.random.key(0), batch)
    pairs = {name: batch[name] for name in ("tokens", "mask")}
    loss = jax.jit(lambda params, key: model.loss(params, pairs, key)[0])
    assert loss(state.params, jax.random.key(1)) != loss(state.params, jax.random.key(2))
    embedded = jax.jit(model.embed)(state, pairs)
    np.testing.assert_allclose((embedded**2).sum(1), 1.0, rtol=1e-5)
    similarity = embedded @ embedded.T / 0.05
    pairs = {**pairs, "tokens_pair": pairs["tokens"], "mask_pair": pairs["mask"]}
    plain = dataclasses.replace(model, network=NETWORK)
    expected = -jnp.diagonal(jax.nn.log_softmax(similarity)).mean()
    np.testing.assert_allclose(jax.jit(plain.loss)(state.params, pairs, jax.random.key(0))[0], expected, rtol=1e-4)
    # Partners of another length, as sets of pairs have them: the loss is that of the rows one by one.
    texts = {"tokens": pairs["tokens"][:3], "mask": pairs["mask"][:3]}
    texts |= {"source": pairs["tokens"][:3, :5], "source_mask": pairs["mask"][:3, :5].at[:, 3:].set(False)}
    features = jax.jit(plain.hidden)
    rows = [features(state, {name: texts[name][i : i + 1] for name in ("tokens", "mask")})[0] for i in range(3)]
    first = [np.asarray(row)[np.asarray(real)].mean(0) for row, real in zip(rows, texts["mask"])]
    rows = [features(state, {"tokens": texts["source"][i : i + 1, :3]})[0] for i in range(3)]
    second = [np.asarray(row).mean(0) for row in rows]
    unit = lambda vectors: np.stack([v / np.sqrt((v**2).sum()) for v in vectors])
    similar = unit(first) @ unit(second).T / 0.05
    expected = np.mean(np.log(np.exp(similar).sum(1)) - np.diagonal(similar))
    np.testing.assert_allclose(jax.jit(plain.loss)(state.params, texts, jax.random.key(0))[0], expected, rtol=1e-4)


def test_partners_are_told_from_the_texts_of_all_devices(batch):
    model = dataclasses.replace(MODEL, task=SentenceEmbedding())
    pairs = {**batch, "tokens_pair": batch["tokens"][:, ::-1]}
    params = jax.jit(model.init)(jax.random.key(0), pairs).params
    loss = jax.jit(model.loss)(params, pairs, jax.random.key(1))[0]
    parts = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), pairs)
    apart = jax.pmap(
        lambda params, part: model.loss(params, part, jax.random.key(1))[0],
        DEVICE_AXIS,
        in_axes=(None, 0),
        devices=jax.devices()[:2],
    )(params, parts)
    np.testing.assert_allclose(apart, loss, rtol=1e-5)
    # And from those of all microbatches.
    update = jax.jit(lambda p, n: value_and_gradient(model.loss, p, pairs, jax.random.key(1), n)[:2], static_argnums=1)
    (whole, metrics), (accumulated, others) = update(params, 1), update(params, 2)
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), accumulated, whole)
    # What fills up the last batch of an evaluation is no text, and an equal text no negative.
    state, evaluate = jax.jit(model.init)(jax.random.key(0), pairs), jax.jit(model.evaluate)
    rows = lambda *index: jax.tree.map(lambda a: a[jnp.array(index)], pairs)
    alone = evaluate(state, rows(0, 1), jax.random.key(0))
    filled = {**rows(0, 1, 2, 3), "padding": jnp.array([False, False, True, True])}
    values = evaluate(state, filled, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:2], rtol=1e-5), alone, values)
    values = evaluate(state, rows(0, 1, 1, 1), jax.random.key(0))
    np.testing.assert_allclose(values["nll"][1:], [alone["nll"][1]] * 3, rtol=1e-5)


@pytest.mark.parametrize("task", [Classification(num_classes=3), SpanExtraction()])
def test_logits_of_heads_are_not_rounded(task, batch):
    model = dataclasses.replace(MODEL, task=task, compute_dtype="bfloat16")
    state = jax.jit(model.init)(jax.random.key(0), batch)
    (logits,) = jax.jit(model.predict)(state, batch).values()
    assert logits.dtype == jnp.float32
    assert (logits != logits.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.8


def test_bad_settings_are_one_clear_sentence(batch):
    with pytest.raises(ValueError, match="mask_rate=0.0 must lie"):
        MaskedLanguageModel(mask_rate=0.0)
    with pytest.raises(ValueError, match="causal=true hides what follows from an encoder"):
        dataclasses.replace(MODEL, network=dataclasses.replace(NETWORK, causal=True))
    with pytest.raises(ValueError, match="mask_token is None"):
        dataclasses.replace(MODEL, mask_token=None).loss({}, batch, jax.random.key(0))
    long = {"tokens": jnp.zeros((1, 20), jnp.int32)}
    state = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), batch))
    for call in (
        lambda state: MODEL.init(jax.random.key(0), long),
        lambda state: MODEL.evaluate(state, {**long, "label": jnp.zeros(1, jnp.int32)}, jax.random.key(0)),
        lambda state: MODEL.fill(state, jax.random.key(0), long),
        lambda state: MODEL.likeliest(state, long),
        lambda state: MODEL.embed(state, long),
    ):
        with pytest.raises(ValueError, match="take 20 places, but the longest context is model.network.max_length="):
            jax.eval_shape(call, state)


def test_shares_of_tokens_are_of_all_tokens():
    labels = jnp.array([[0, 1, 0, 1], [1, -1, -1, -1], [-1, -1, -1, -1]])
    logits = jax.nn.one_hot(jnp.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]), 2)
    batch = {"tokens": jnp.zeros((3, 4), jnp.int32), "token_labels": labels}
    task, outputs = TokenClassification(num_classes=2), {"token_classes": logits}
    found = jax.tree.map(jnp.mean, task.measures(outputs, batch)["accuracy"])
    np.testing.assert_allclose([found.value(), task.loss(outputs, batch)[1]["accuracy"].value()], 0.8, rtol=1e-6)
    # Of tokens without any label there is nothing to tell.
    rest = {**batch, "token_labels": jnp.full((3, 4), -1)}
    assert np.isnan(task.loss(outputs, rest)[1]["accuracy"].value())
