"""Recurrent language models: the contract, carried states and packed documents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.batch import DEVICE_AXIS
from genjax.families.recurrent.language import RecurrentLanguageModel
from genjax.model import GenerativeModel
from genjax.nn.recurrent import Recurrent
from genjax.optimizers import SGD, Adam

MODEL = RecurrentLanguageModel(
    vocab_size=7,
    sequence_length=6,
    start_token=0,
    embedding_dim=5,
    network=Recurrent(cell="lstm", num_layers=2, hidden_dim=6),
    optimizer=Adam(learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def batch():
    return {"tokens": jax.random.randint(jax.random.key(3), (4, 7), 0, 7), "window": jnp.array([0, 5, 10, 15])}


@pytest.mark.parametrize("cell", ["lstm", "gru", "min_gru"])
def test_the_contract_and_decoding_equals_teacher_forcing(cell, batch):
    model = dataclasses.replace(MODEL, network=dataclasses.replace(MODEL.network, cell=cell), tie_embeddings=True)
    assert isinstance(model, GenerativeModel)
    state = jax.jit(model.init)(jax.random.key(0), batch)
    step = jax.jit(model.train_step)
    losses = []
    for t in range(15):
        state, metrics = step(state, batch, jax.random.key(t))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    samples = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(1), 3)
    assert samples.shape == (3, 7) and (samples[:, 0] == 0).all()
    greedy = decoding.Sampling(temperature=0.0)
    out = model.generate(state, jax.random.key(0), batch["tokens"][:, :2], 5, sampling=greedy)
    text = jnp.concatenate([batch["tokens"][:, :2], out.tokens], 1)
    np.testing.assert_array_equal(model.logits(state, text)[:, 1:-1].argmax(-1), out.tokens)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_logits_are_float32_whatever_the_network_computes_in(tie_embeddings, batch):
    network = Recurrent(cell="rnn", hidden_dim=5)
    model = dataclasses.replace(MODEL, network=network, tie_embeddings=tie_embeddings, compute_dtype="bfloat16")
    params = jax.jit(model.init)(jax.random.key(0), batch).params
    logits, _, hidden = jax.jit(lambda p: model.module().apply({"params": p}, batch["tokens"]))(params)
    map_ = params["embedding"]["embedding"].T if tie_embeddings else params["output"]["kernel"]
    exact = hidden.astype(jnp.float32) @ map_.astype(jnp.bfloat16).astype(jnp.float32)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)


def test_carried_states_make_two_windows_one(batch):
    model = dataclasses.replace(MODEL, carry_state=True, optimizer=SGD(learning_rate=0.0))
    long = jax.random.randint(jax.random.key(5), (4, 13), 0, 7)
    first = {"tokens": long[:, :7], "window": batch["window"]}
    second = {"tokens": long[:, 6:], "window": batch["window"] + 1}
    state = model.init(jax.random.key(0), first)
    step = jax.jit(model.train_step)
    state, one = step(state, first, jax.random.key(0))
    after, two = step(state, second, jax.random.key(0))
    whole, _ = MODEL.loss(state.params, {"tokens": long}, jax.random.key(0))
    np.testing.assert_allclose((one["loss"] + two["loss"]) / 2, whole, rtol=1e-5)
    # A window that does not follow starts from zeros.
    _, alone = step(state, {**second, "window": batch["window"] + 3}, jax.random.key(0))
    np.testing.assert_allclose(alone["loss"], MODEL.loss(state.params, second, jax.random.key(0))[0], rtol=1e-5)
    # Microbatches carry the same states.
    halves = dataclasses.replace(model, optimizer=SGD(learning_rate=0.0, accumulation_steps=2))
    parts, _ = jax.jit(halves.train_step)(state, second, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts.extra, after.extra)


def test_documents_that_are_packed_do_not_see_each_other():
    model = dataclasses.replace(MODEL, carry_state=True, optimizer=SGD(learning_rate=0.0))
    row = jax.random.randint(jax.random.key(5), (2, 13), 0, 7)
    segments = jnp.array([[1] * 4 + [2] * 9, [1] * 6 + [2] * 7])
    windows = [
        {"tokens": row[:, i : i + 7], "segment_ids": segments[:, i : i + 7], "window": jnp.array([i // 6, 5 + i // 6])}
        for i in (0, 6)
    ]
    state = jax.jit(model.init)(jax.random.key(0), windows[0])
    step = jax.jit(model.train_step)
    state, one = step(state, windows[0], jax.random.key(0))
    state, two = step(state, windows[1], jax.random.key(0))
    # The second row's second document begins with its second window, and must not see what was carried there.
    documents = [row[:1, :4], row[:1, 4:], row[1:, :6], row[1:, 6:]]
    nats = [(d.shape[1] - 1) * MODEL.loss(state.params, {"tokens": d}, jax.random.key(0))[0] for d in documents]
    np.testing.assert_allclose((one["loss"] + two["loss"]) * 6 * 2, sum(nats), rtol=1e-5)


def test_what_cannot_be_served_is_said(batch):
    with pytest.raises(ValueError, match="cannot read from the end"):
        RecurrentLanguageModel(network=Recurrent(bidirectional=True))
    with pytest.raises(ValueError, match="number their windows"):
        dataclasses.replace(MODEL, carry_state=True).init(jax.random.key(0), {"tokens": batch["tokens"]})


def test_carried_states_are_the_same_on_several_devices(batch):
    model = dataclasses.replace(MODEL, carry_state=True, optimizer=SGD(learning_rate=0.1))
    state = model.init(jax.random.key(0), batch)
    one, _ = jax.jit(model.train_step)(state, batch, jax.random.key(1))
    shard = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), {**batch, "example_index": jnp.arange(4)})
    devices = jax.devices()[:2]
    step = jax.pmap(model.train_step, axis_name=DEVICE_AXIS, in_axes=(None, 0, None), devices=devices)
    two, _ = step(state, shard, jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), two.extra, one.extra)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-6), two.params, one.params)
