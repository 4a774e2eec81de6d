"""Translation: the data of two domains, the pool, the losses, and style by Gram matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from genjax.data import DataError, Translations
from genjax.data.base import split_of_file
from genjax.data.translations import outlines
from genjax.families.classifier.feature_net import FeatureNetwork
from genjax.families.gan import layers
from genjax.families.gan.cycle_gan import CycleGAN, pool_exchange, pool_init
from genjax.families.gan.pix2pix import Pix2Pix
from genjax.families.gan.translation import PatchDiscriminator, Translator, UNetTranslator
from genjax.families.style.neural_style import NeuralStyle, captured_maps, gram_matrix
from genjax.optimizers import SGD, Adam


def test_outlines_are_where_pictures_change():
    picture = np.zeros((1, 6, 6, 2), np.uint8)
    picture[0, 2:4, 2:4, 1] = 9
    outline = outlines(picture)[0, ..., 0]
    assert outline.dtype == np.uint8 and (outline[1:5, 1:5] == 9).all() and outline.sum() == 16 * 9


def test_pairs_fit_together_and_unpaired_domains_share_no_picture():
    paired = Translations(name="digits").load("train").arrays()
    np.testing.assert_array_equal(paired["source"], outlines(paired["x"]))
    data = Translations(name="digits", paired=False)
    examples = data.load("train")
    apart = examples.gather(np.arange(len(examples)))
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


def test_two_folders_are_two_domains(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (30, 4, 4, 3), np.uint8)
    for folder, count, suffix in (("x", 30, "png"), ("source", 30, "bmp"), ("few", 20, "png")):
        (tmp_path / folder).mkdir()
        for i in range(count):
            picture = pictures[i] if folder == "x" else 255 - pictures[i]
            Image.fromarray(picture).save(tmp_path / folder / f"{i:03d}.{suffix}")
    two = lambda **options: Translations(name="folder", dir=str(tmp_path / "x"), **options)
    paired = two(source_dir=str(tmp_path / "source"))
    for split in ("train", "validation", "test"):
        arrays = paired.load(split).arrays()
        np.testing.assert_array_equal(arrays["source"], 255 - arrays["x"])
    unpaired = two(source_dir=str(tmp_path / "few"), paired=False)
    examples = unpaired.load("train")
    arrays, count = examples.gather(np.arange(len(examples))), len(paired.load("train"))
    assert arrays["x"].shape == arrays["source"].shape == (count, 4, 4, 3)
    few = sum(split_of_file(tmp_path / f"{i:03d}.png", tmp_path) == "train" for i in range(20))
    assert (
        len({row.tobytes() for row in arrays["x"]}) == count and len({row.tobytes() for row in arrays["source"]}) == few
    )
    assert unpaired.spec()["paired"] is False and "unpaired with the pictures of" in unpaired.protocol()
    with pytest.raises(DataError, match="but 020 is not once in each"):
        two(source_dir=str(tmp_path / "few")).load("train")
    # Classes that a run knows are those of x.
    (tmp_path / "few").rename(tmp_path / "all")
    (tmp_path / "few").mkdir()
    (tmp_path / "all").rename(tmp_path / "few" / "all")
    assert len(two(source_dir=str(tmp_path / "few"), paired=False, class_names=("cat",)).load("test"))
    with pytest.raises(DataError, match="give the first as --data.name=folder"):
        Translations(name="digits", source_dir=str(tmp_path / "x")).load("train")
    (path,) = paired.write_answers(
        {n: 2.0 * a[:5] / 255 - 1 for n, a in arrays.items()}, np.zeros((5, 4, 4, 1)), tmp_path / "a"
    )
    with Image.open(path) as sheet:
        assert sheet.size[0] > sheet.size[1]


def test_weights_and_patches_are_those_of_the_papers():
    picture = jnp.zeros((1, 256, 256, 3))
    scores, variables = jax.eval_shape(
        lambda x: PatchDiscriminator((64, 128, 256)).init_with_output(jax.random.key(0), x), picture
    )
    kernels = [leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim == 4]
    # A score sees 4 pixels of the map before, whose pixels see 4, ..., two of which lie a stride apart.
    seen = 1
    for stride in (1, 1, 2, 2, 2):
        seen = 4 + stride * (seen - 1)
    assert scores.shape == (1, 30, 30) and seen == 70 and set(kernels) == {
        (4, 4, 3, 64), (4, 4, 64, 128), (4, 4, 128, 256), (4, 4, 256, 512), (4, 4, 512, 1)
    }  # fmt: skip
    params = jax.jit(UNetTranslator(channels=(64,)).build(3).init)(jax.random.key(0), picture[:, :8, :8])["params"]
    for kernel in (leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4):
        np.testing.assert_allclose([kernel.mean(), kernel.std()], [0.0, 0.02], atol=1e-3)
    with pytest.raises(ValueError, match="halves pictures 2 times needs 12 pixels each way, not 8 x 8"):
        PatchDiscriminator((4, 4)).init(jax.random.key(0), picture[:, :8, :8])


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


@dataclasses.dataclass(frozen=True)
class _Pixels(Translator):
    """Each pixel by itself, which compiles fast."""

    def build(self, num_outputs, dtype=jnp.float32):
        return _Pixelwise(num_outputs)


@pytest.fixture
def xla_convolutions(monkeypatch):
    """They compile faster than products of patches, which have a test of their own."""
    monkeypatch.setattr(layers, "prefers_matrix_products", lambda: False)


class _Pixelwise(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, x, keys=None):
        return jnp.tanh(nn.Dense(self.num_outputs)(x))


def test_losses_of_cycle_gan_are_their_formulas(batch, xla_convolutions):
    model = CycleGAN(
        data_shape=(8, 8, 1),
        source_shape=(8, 8, 1),
        network=_Pixels(),
        discriminator_channels=(2,),
        pool_size=4,
    )

    @jax.jit
    def step_and_its_parts(x, source):
        state = model.init(jax.random.key(1), batch)
        generators, judges = state.params["generators"], state.params["discriminators"]
        there, back = lambda s: model.to_x(generators, s), lambda y: model.to_source(generators, y)
        fake_x, fake_source = there(source), back(x)
        pictures = (back(fake_x), there(fake_source), there(x), back(source))
        pairs = (("x", x), ("x", fake_x), ("source", source), ("source", fake_source))
        scores = [model.score(judges, domain, y) for domain, y in pairs]
        return model.train_step(state, batch, jax.random.key(2))[1], pictures, scores

    x, source = (np.asarray(batch[name]) for name in ("x", "source"))
    metrics, pictures, scores = jax.tree.map(np.asarray, step_and_its_parts(x, source))
    source_again, x_again, x_kept, source_kept = pictures
    real_x, false_x, real_source, false_source = scores
    # Each judge sees a map of 2 x 2 patches.
    assert real_x.shape == (4, 2, 2)
    cycle = np.abs(source_again - source).mean() + np.abs(x_again - x).mean()
    identity = np.abs(x_kept - x).mean() + np.abs(source_kept - source).mean()
    deceived = 0.5 * ((false_x - 1) ** 2).mean() + 0.5 * ((false_source - 1) ** 2).mean()
    judged = sum(
        0.5 * ((real - 1) ** 2).mean() + 0.5 * (false**2).mean()
        for real, false in ((real_x, false_x), (real_source, false_source))
    )
    # The pools are empty, and give back what comes.
    expected = {"cycle_l1": cycle, "identity_l1": identity, "adversarial": deceived, "discriminators_loss": judged}
    expected["loss"] = deceived + 5.0 * cycle + 2.5 * identity
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_losses_of_pix2pix_are_their_formulas(batch, xla_convolutions):
    model = Pix2Pix(
        data_shape=(8, 8, 1),
        network=_Pixels(),
        discriminator_channels=(2,),
        discriminator_optimizer=SGD(learning_rate=0.0),
    )

    @jax.jit
    def step_and_its_parts(x, source):
        state = model.init(jax.random.key(1), batch)
        fake = model.translate(state.params["generator"], source)
        scores = [model.score(state.params["discriminator"], source, y) for y in (x, fake)]
        return model.train_step(state, batch, jax.random.key(2))[1], fake, *scores

    metrics, fake, real_score, fake_score = jax.tree.map(np.asarray, step_and_its_parts(batch["x"], batch["source"]))
    l1 = np.abs(np.asarray(batch["x"]) - fake).mean()
    judged = 0.5 * (np.log1p(np.exp(-real_score)) + np.log1p(np.exp(fake_score))).mean()
    np.testing.assert_allclose(metrics["discriminator_loss"], judged, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], np.log1p(np.exp(-fake_score)).mean() + 100.0 * l1, rtol=1e-4)
    np.testing.assert_allclose(metrics["l1"], l1, rtol=1e-4)


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
    with pytest.raises(ValueError, match="dropout_rate=0.5 would never be drawn"):
        CycleGAN(network=UNetTranslator())
    with pytest.raises(ValueError, match="data.paired=false has none"):
        Pix2Pix(paired=False)


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
