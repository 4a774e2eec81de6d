"""CLIP on the contract; tests/interop holds it against the library transformers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import DEVICE_AXIS
from genjax.families.multimodal.clip import CLIP
from genjax.families.multimodal.networks import clip_network
from genjax.gradients import value_and_gradient
from genjax.optimizers import SGD

STACK = clip_network(1, 8, 2, mlp_dim=16, max_length=8)
MODEL = CLIP(
    data_shape=(4, 4, 1), vocab_size=12, end_token=11, text=STACK, vision=STACK, patch_size=2, embedding_dim=6,
    optimizer=SGD(learning_rate=100.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(0, 11, (8, 6))
    tokens[:, -1] = 11
    return {"x": jax.random.normal(jax.random.key(0), (8, 4, 4, 1)), "tokens": jnp.asarray(tokens)}


@pytest.fixture(scope="module")
def state(batch):
    return jax.jit(MODEL.init)(jax.random.key(1), batch)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_negatives_are_those_of_all_devices_and_microbatches(accumulation, batch, state):
    def update(params, batch, count=accumulation):
        return value_and_gradient(MODEL.loss, params, batch, jax.random.key(0), count)[:2]

    gradient, metrics = jax.jit(lambda params: update(params, batch, 1))(state.params)
    parts = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
    found = jax.pmap(update, DEVICE_AXIS, in_axes=(None, 0), devices=jax.devices()[:2])(state.params, parts)
    for name, value in metrics.items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-5), found[0], gradient)


def test_dropout_drops_and_the_factor_stays_below_a_hundred(batch, state):
    dropping = dataclasses.replace(STACK, dropout=0.5)
    plain = jax.jit(MODEL.loss)(state.params, batch, jax.random.key(0))[0]
    for part in ("text", "vision"):
        loss = jax.jit(dataclasses.replace(MODEL, **{part: dropping}).loss)
        one, other = (loss(state.params, batch, jax.random.key(k))[0] for k in (0, 1))
        assert len({float(plain), float(one), float(other)}) == 3
    # Pairs that are told apart well ask for an ever larger factor.
    far = {**state.params, "logit_scale": jnp.asarray(4.7)}
    after, _ = jax.jit(MODEL.train_step)(state.replace(params=far), batch, jax.random.key(0))
    assert after.params["logit_scale"] <= math.log(100.0) + 1e-6


def test_padding_and_equal_texts_are_no_negatives(batch, state):
    evaluate = jax.jit(MODEL.evaluate)
    alone = evaluate(state, jax.tree.map(lambda a: a[:3], batch), jax.random.key(0))
    filled = evaluate(state, {**batch, "padding": jnp.arange(8) > 2}, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:3], rtol=1e-5), alone, filled)
    # Pictures 0 and 1 have one caption, pictures 2 and 3 are one: by hand, each has the others for negatives.
    shared = {
        **batch,
        "tokens": batch["tokens"].at[1].set(batch["tokens"][0]),
        "x": batch["x"].at[3].set(batch["x"][2]),
    }
    logits = np.asarray(MODEL.logits(state, shared), np.float64)
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        logits[i, j] = -np.inf
    nll = [np.log(np.exp(part).sum(1)) - np.diagonal(part) for part in (logits, logits.T)]
    values = evaluate(state, shared, jax.random.key(0))
    np.testing.assert_allclose(values["nll"], 0.5 * (nll[0] + nll[1]), rtol=1e-4)
    np.testing.assert_array_equal(values["retrieval_accuracy"], logits.argmax(1) == np.arange(8))
    np.testing.assert_allclose(
        jax.jit(MODEL.loss)(state.params, shared, jax.random.key(0))[0], values["nll"].mean(), rtol=1e-5
    )
