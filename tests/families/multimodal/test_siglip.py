"""SigLIP on the contract; tests/interop holds it against the library transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import DEVICE_AXIS
from genjax.errors import UserError
from genjax.families.multimodal.networks import siglip_network
from genjax.families.multimodal.siglip import SigLIP
from genjax.gradients import value_and_gradient
from genjax.optimizers import SGD

STACK = siglip_network(2, 8, 2, mlp_dim=16, max_length=6)
MODEL = SigLIP(
    data_shape=(4, 4, 1), vocab_size=12, text=STACK, vision=STACK, patch_size=2, optimizer=SGD(), logit_bias=-1.0
)


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(0, 12, (8, 6))
    tokens[1] = tokens[0]
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 1))
    return {"x": x.at[3].set(x[2]), "tokens": jnp.asarray(tokens)}


@pytest.fixture(scope="module")
def state(batch):
    return jax.jit(MODEL.init)(jax.random.key(1), batch)


def by_hand(logits, excluded):
    """The loss of each picture by the paper's formula, pair by pair."""
    losses = []
    for i, row in enumerate(logits):
        signs = np.where(np.arange(len(row)) == i, 1.0, -1.0)
        terms = np.log1p(np.exp(-signs * row))
        losses.append(sum(t for j, t in enumerate(terms) if (i, j) not in excluded))
    return np.array(losses)


def test_loss_is_a_sigmoid_of_every_pair_but_equal_ones_and_padding(batch, state):
    logits = np.asarray(MODEL.logits(state, batch), np.float64)
    params = state.params
    image, text = MODEL.encode_image(state, batch["x"]), MODEL.encode_text(state, batch["tokens"])
    scale, bias = np.exp(params["logit_scale"]), params["logit_bias"]
    np.testing.assert_allclose(logits, scale * np.asarray(image) @ np.asarray(text).T + bias, atol=1e-5)
    np.testing.assert_allclose([scale, bias], [10.0, -1.0], rtol=1e-6)
    equal = {(0, 1), (1, 0), (2, 3), (3, 2)}
    evaluate = jax.jit(MODEL.evaluate)
    found = evaluate(state, batch, jax.random.key(0))
    np.testing.assert_allclose(found["nll"], by_hand(logits, equal), rtol=1e-5)
    for i, j in equal:
        logits[i, j] = -np.inf
    np.testing.assert_array_equal(found["retrieval_accuracy"], logits.argmax(1) == np.arange(8))
    padded = evaluate(state, {**batch, "padding": jnp.arange(8) > 4}, jax.random.key(0))
    np.testing.assert_allclose(padded["nll"][:5], by_hand(logits[:5, :5], equal), rtol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_whole_accumulated_and_divided_among_devices_are_one(accumulation, batch, state):
    def update(params, batch, count=accumulation):
        return value_and_gradient(MODEL.loss, params, batch, jax.random.key(0), count)[:2]

    gradient, metrics = jax.jit(lambda params: update(params, batch, 1))(state.params)
    parts = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
    found = jax.pmap(update, DEVICE_AXIS, in_axes=(None, 0), devices=jax.devices()[:2])(state.params, parts)
    np.testing.assert_allclose(found[1]["loss"], metrics["loss"], rtol=1e-6)
    # Each array to a millionth of its largest entry, and of 1 where that is smaller.
    close = lambda a, b: np.testing.assert_allclose(a[0], b, rtol=0, atol=1e-6 * max(1.0, float(jnp.abs(b).max())))
    jax.tree.map(close, found[0], gradient)


def test_features_before_the_last_block_are_those_of_a_shorter_stack(batch, state):
    features = MODEL.image_features(state, batch["x"], layer=-2)
    assert features.shape == (8, 4, 8)
    other = jax.tree.map(lambda a: a, state.params)
    other["vision_encoder"]["stack"]["layer_1"] = jax.tree.map(
        jnp.ones_like, other["vision_encoder"]["stack"]["layer_1"]
    )
    np.testing.assert_array_equal(MODEL.image_features(state.with_params(other), batch["x"], layer=-2), features)
    assert np.abs(MODEL.image_features(state, batch["x"], layer=-1) - features).max() > 1e-3
    assert MODEL.text_features(state, batch["tokens"]).shape == (8, 6, 8)
    with pytest.raises(UserError, match="layer=-3 is no block of a stack of 2, counted from the end by -1, -2"):
        MODEL.image_features(state, batch["x"], layer=-3)


def test_a_batch_without_captions_is_one_sentence(batch):
    with pytest.raises(
        UserError, match="SigLIP learns from pairs of a picture and a text, and the batch has only x; choose"
    ):
        MODEL.init(jax.random.key(0), {"x": batch["x"]})
