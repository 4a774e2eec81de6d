"""CLIP on the contract; tests/interop holds it against the library transformers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.multimodal.clip import CLIP, clip_network
from genjax.model import DEVICE_AXIS, value_and_gradient
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


def test_the_negatives_of_pmap_are_those_of_the_whole_batch(batch, state):
    update = lambda params, batch: value_and_gradient(MODEL.loss, params, batch, jax.random.key(0))[:2]  # noqa: E731
    gradient, metrics = jax.jit(update)(state.params, batch)
    parts = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
    found = jax.pmap(update, DEVICE_AXIS, in_axes=(None, 0), devices=jax.devices()[:2])(state.params, parts)
    np.testing.assert_allclose(found[1]["loss"], metrics["loss"], rtol=1e-5)
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


def test_copies_that_fill_up_a_batch_are_no_negatives(batch, state):
    evaluate = jax.jit(MODEL.evaluate)
    alone = evaluate(state, jax.tree.map(lambda a: a[:3], batch), jax.random.key(0))
    filled = evaluate(state, jax.tree.map(lambda a: a[jnp.minimum(jnp.arange(8), 2)], batch), jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:3], rtol=1e-5), alone, filled)
