"""Supervised fine-tuning: what its step is, and that its exact matches are those of greedy answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.data import Chat
from genjax.families.alignment.sft import SupervisedEncoderDecoder, SupervisedGPT
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.gpt import GPT
from genjax.nn.tokens import token_weights
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD

pytest.importorskip("jinja2")
NETWORK = Transformer(num_layers=1, width=8, num_heads=2, mlp_dim=16, max_length=160, init_std=0.5)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data():
    return Chat(tokenizer="bytes", sequence_length=100)


@pytest.fixture(scope="module")
def model(data):
    spec = data.spec()
    return SupervisedGPT(
        vocab_size=spec["vocab_size"], end_token=spec["end_token"], network=NETWORK, optimizer=SGD(learning_rate=1.0)
    )


@pytest.fixture(scope="module")
def batch(data):
    return {name: jnp.asarray(a[:8]) for name, a in data.load("train").arrays().items()}


@pytest.fixture(scope="module")
def state(model, batch):
    return jax.jit(model.init)(KEY, batch)


def test_the_mean_is_over_tokens_or_rows(model, state, batch):
    weights = token_weights(batch)
    total = -(jax.jit(model.token_log_probs)(state.params, batch) * weights).sum()
    for mean, count in (("tokens", weights.sum()), ("rows", weights.size)):
        _, metrics = jax.jit(dataclasses.replace(model, mean=mean).train_step)(state, batch, KEY)
        np.testing.assert_allclose(metrics["loss"], total / count, rtol=1e-5)
    plain = {f.name: getattr(model, f.name) for f in dataclasses.fields(GPT)}
    rows = jax.jit(dataclasses.replace(model, mean="rows").train_step)(state, batch, KEY)[0]
    usual = jax.jit(GPT(**plain).train_step)(state, batch, KEY)[0]
    jax.tree.map(np.testing.assert_array_equal, rows.params, usual.params)
    assert issubclass(SupervisedEncoderDecoder, EncoderDecoder) and SupervisedEncoderDecoder().mean == "tokens"


def test_what_is_not_learned_changes_nothing_of_the_step(model, state, batch):
    step = jax.jit(model.train_step)
    new, metrics = step(state, batch, KEY)
    # Targets that are no answer may be any tokens where they are not read: behind the end of a row.
    noise = jnp.where(batch["mask"], batch["tokens"], 7)
    other, changed = step(state, {**batch, "tokens": noise}, KEY)
    np.testing.assert_allclose(changed["loss"], metrics["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, other.params)
    # trl 1623: padding that is the end token hides no end.
    ends = jnp.where(batch["mask"], batch["tokens"], model.end_token)
    other, changed = step(state, {**batch, "tokens": ends}, KEY)
    np.testing.assert_allclose(changed["loss"], metrics["loss"], rtol=1e-6)
    learned = (batch["loss_mask"] & (batch["tokens"] == model.end_token)).sum(1)
    assert (learned >= 1).all()


def test_exact_matches_are_those_of_greedy_answers(model, state, batch, data):
    step, evaluate = jax.jit(model.train_step), jax.jit(model.evaluate)
    few = {name: a[:2] for name, a in batch.items()}
    assert evaluate(state, few, KEY)["exact_match"].sum() == 0
    tuned = dataclasses.replace(model, optimizer=SGD(learning_rate=0.3, momentum=0.9, clip_norm=1.0))
    learner, step = jax.jit(tuned.init)(KEY, batch), jax.jit(tuned.train_step)
    for t in range(250):
        learner, _ = step(learner, few, jax.random.key(t))
    found = evaluate(learner, few, KEY)["exact_match"]
    greedy = decoding.Sampling(temperature=0.0)
    for row, exact in zip(data.conversations("train")[:2], found):
        prompt = jnp.asarray(data.prompt_ids(row["messages"][:1]))[None]
        out = model.generate(learner, KEY, prompt, 50, sampling=greedy)
        right = data.decode(out.tokens[0, : int(out.lengths[0])]) == row["messages"][1]["content"] + "<|im_end|>"
        assert right or not exact
    assert found.max() == 1.0
