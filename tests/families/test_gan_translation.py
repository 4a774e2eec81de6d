"""Translation: the data of two domains, the pool, the losses, and style by Gram matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import DataError, Translations
from genjax.data.translations import outlines
from genjax.families.classifier.feature_net import FeatureNetwork
from genjax.families.gan.cycle_gan import CycleGAN, pool_exchange, pool_init
from genjax.families.gan.pix2pix import Pix2Pix
from genjax.families.gan.translation import ResNetTranslator, UNetTranslator
from genjax.families.style.neural_style import NeuralStyle, captured_maps, gram_matrix
from genjax.optimizers import Adam


def test_outlines_are_where_pictures_change():
    picture = np.zeros((1, 6, 6, 2), np.uint8)
    picture[0, 2:4, 2:4, 1] = 9
    outline = outlines(picture)[0, ..., 0]
    assert outline.dtype == np.uint8 and (outline[1:5, 1:5] == 9).all() and outline.sum() == 16 * 9


def test_pairs_fit_together_and_unpaired_domains_share_no_picture():
    paired = Translations(name="digits").load("train").arrays()
    np.testing.assert_array_equal(paired["source"], outlines(paired["x"]))
    data = Translations(name="digits", paired=False)
    apart = data.load("train").arrays()
    half = len(paired["x"]) // 2
    assert len(apart["x"]) == half
    np.testing.assert_array_equal(apart["x"], paired["x"][half : 2 * half])
    rows = {row.tobytes() for row in paired["source"][:half]}
    assert {row.tobytes() for row in apart["source"]} == rows
    assert (apart["source"] != paired["source"][:half]).any()
    np.testing.assert_array_equal(
        data.load("test").gather(np.arange(3))["source"], outlines(data.load("test").gather(np.arange(3))["x"])
    )
    assert data.spec()["source_shape"] == (8, 8, 1)
    with pytest.raises(DataError, match="neither flattened nor mirrored"):
        Translations(flatten=True)


def test_a_pool_fills_then_exchanges_half_of_what_comes():
    pool, exchange = pool_init(4, (1,)), jax.jit(pool_exchange)
    pictures = jnp.arange(1.0, 7.0)[:, None]
    pool, given = exchange(pool, pictures[:3], jax.random.key(0))
    np.testing.assert_array_equal(given, pictures[:3])
    assert int(pool["count"]) == 3
    held, came, returned = [], 0, 0
    for i in range(200):
        new = jnp.arange(3.0)[:, None] + 10.0 + 3 * i
        before = np.asarray(pool["pictures"]).ravel()
        pool, given = exchange(pool, new, jax.random.key(i))
        known = set(before) | set(np.asarray(new).ravel())
        assert set(np.asarray(given).ravel()) <= known and set(np.asarray(pool["pictures"]).ravel()) <= known
        # Nothing is lost and nothing is doubled: what was held and what came is held or given back.
        if i:
            together = sorted([*np.asarray(given).ravel(), *np.asarray(pool["pictures"]).ravel()])
            new_ones = np.asarray(new).ravel()
            kept_new = [p for p in new_ones if p in np.asarray(pool["pictures"])]
            given_new = [p for p in new_ones if p in np.asarray(given)]
            assert set(kept_new) | set(given_new) == set(new_ones) and len(together) == 7
            came, returned = came + 3, returned + len(given_new)
        held.append(int(pool["count"]))
    assert set(held) == {4}
    assert returned / came == pytest.approx(0.5, abs=0.08)
    empty, given = pool_exchange(pool_init(0, (1,)), pictures, jax.random.key(0))
    assert empty["pictures"].shape == (0, 1) and given is pictures


@pytest.fixture(scope="module")
def batch():
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1), minval=-1.0)
    return {"x": x, "source": -x}


def test_cycle_and_identity_errors_are_those_of_the_two_generators(batch):
    model = CycleGAN(
        data_shape=(8, 8, 1),
        source_shape=(8, 8, 1),
        network=ResNetTranslator(num_channels=2, num_residual_blocks=1, outer_kernel_size=3),
        discriminator_channels=(2,),
    )
    state = model.init(jax.random.key(1), batch)

    @jax.jit
    def both(params, discriminators, x, source):
        there, back = lambda s: model.to_x(params, s), lambda y: model.to_source(params, y)
        cycle = jnp.abs(back(there(source)) - source).mean() + jnp.abs(there(back(x)) - x).mean()
        identity = jnp.abs(there(x) - x).mean() + jnp.abs(back(source) - source).mean()
        scores = model.score(discriminators, "x", x)
        return cycle, identity, scores, model.generator_loss(params, discriminators, {"x": x, "source": source})

    cycle, identity, scores, (loss, metrics) = both(*state.params.values(), batch["x"], batch["source"])
    np.testing.assert_allclose(metrics["cycle_l1"], cycle, rtol=1e-5)
    np.testing.assert_allclose(metrics["identity_l1"], identity, rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["adversarial"] + 5.0 * cycle + 2.5 * identity, rtol=1e-5)
    # Each judge sees a map of 4 x 4 patches.
    assert scores.shape == (4, 4, 4)


def test_a_u_net_learns_a_simple_translation(batch):
    model = Pix2Pix(
        data_shape=(8, 8, 1),
        network=UNetTranslator(channels=(16, 16), dropout_rate=0.2),
        discriminator_channels=(4,),
        generator_optimizer=Adam(learning_rate=3e-3),
    )
    state = model.init(jax.random.key(1), batch)
    step, errors = jax.jit(model.train_step, donate_argnums=0), []
    for i in range(200):
        state, metrics = step(state, batch, jax.random.key(i))
        errors.append(float(metrics["l1"]))
    assert errors[-1] < 0.4 * errors[0] and np.isfinite(metrics["loss"])
    # The noise is dropout: two translations of one source differ.
    sample = jax.jit(model.sample, static_argnums=2)
    first, second = (sample(state, jax.random.key(i), 4, source=batch["source"]) for i in (0, 1))
    assert np.abs(first - second).max() > 1e-3


def test_wrong_pictures_are_named(batch):
    model = Pix2Pix(data_shape=(8, 8, 1), network=UNetTranslator(channels=(2, 2, 2, 2)))
    with pytest.raises(ValueError, match="multiples of 16"):
        model.init(jax.random.key(0), batch)
    with pytest.raises(ValueError, match="pictures of two domains, x and source"):
        model.init(jax.random.key(0), {"x": batch["x"]})
    with pytest.raises(ValueError, match="one height and width"):
        model.init(jax.random.key(0), {"x": batch["x"], "source": batch["x"][:, :4]})
    with pytest.raises(ValueError, match="scores patches"):
        Pix2Pix(objective="relativistic")


def test_gram_matrices_are_the_products_of_channels_whatever_their_places():
    maps = jax.random.normal(jax.random.key(0), (1, 3, 4, 5))
    flat = np.asarray(maps).reshape(12, 5)
    np.testing.assert_allclose(gram_matrix(maps)[0], flat.T @ flat / 12, rtol=1e-5)
    np.testing.assert_allclose(gram_matrix(maps[:, ::-1]), gram_matrix(maps), rtol=1e-5, atol=1e-6)


def test_style_is_matched_through_any_network_and_content_alone_stays():
    network = FeatureNetwork(3, (4,), 2, 0.0)
    content, style = jax.random.uniform(jax.random.key(0), (2, 1, 8, 8, 1))
    variables = network.init(jax.random.key(1), content)
    layers = ("Downsample_0", "Convolution_0")
    maps = captured_maps(network, variables, layers)
    _, terms = NeuralStyle(
        content_layers=layers[1:], style_layers=layers, content_weight=0.0, style_weight=1e4, num_steps=200
    ).apply(maps, content, style, jax.random.key(2))
    assert terms["style"][-1] < 0.02 * terms["style"][0]
    keeps = NeuralStyle(content_layers=layers[1:], style_layers=layers, style_weight=0.0, num_steps=2)
    kept, terms = keeps.apply(maps, content, style, jax.random.key(2))
    np.testing.assert_allclose(kept, content)
    assert terms["loss"][0] == 0.0
    with pytest.raises(ValueError, match="no maps of a layer 'Dense_0'; its layers are .*Convolution_0"):
        captured_maps(network, variables, ("Dense_0",))(content)
