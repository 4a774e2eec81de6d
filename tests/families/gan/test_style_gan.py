"""StyleGAN2 and StyleGAN3: filters against SciPy, convolutions against explicit ones, styles, path lengths,
equivariance.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from genjax import config
from genjax.batch import DEVICE_AXIS
from genjax.families.gan.equivariance import equivariance, read_filtered, shift_matrix
from genjax.families.gan.style_gan import StyleGAN
from genjax.families.gan.style_gan2 import StyleGAN2Network, convolve_and_halve, group_deviation
from genjax.families.gan.style_gan3 import StyleGAN3Network, signals
from genjax.families.gan.style_layers import STATISTICS, modulated_convolution, truncate
from genjax.families.gan.style_tools import correlation_of_neighbours, project, style_deviation
from genjax.families.gan.upfirdn import binomial, blur, low_pass, upfirdn
from genjax.model import TrainState
from genjax.optimizers import Adam

BATCH = {"x": jnp.tanh(jax.random.normal(jax.random.key(0), (4, 8, 8, 1)))}
SMALL = {"style_dim": 6, "num_mapping_layers": 1, "channel_base": 32, "channel_max": 6}


@pytest.fixture(scope="module")
def style_gan_2():
    """A tiny model, its state after a step, and the metrics of that step."""
    adam = Adam(learning_rate=2e-3, b1=0.0, b2=0.99)
    model = StyleGAN(
        data_shape=(8, 8, 1),
        latent_dim=5,
        network=StyleGAN2Network(**SMALL),
        generator_optimizer=adam,
        discriminator_optimizer=adam,
    )
    state = jax.jit(model.init)(jax.random.key(1), BATCH)
    return model, *jax.jit(model.train_step)(state, BATCH, jax.random.key(2))


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_upfirdn_equals_scipy(up, down):
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 3)).astype(np.float32)
    taps = (0.5, -1.0, 2.0, 0.25, 3.0)
    padding = (len(taps) - 1, len(taps) - up)
    expected = scipy.signal.upfirdn(taps, scipy.signal.upfirdn(taps, x, up, down, axis=1), up, down, axis=2)
    for matrix_products in (True, False):
        y = upfirdn(jnp.asarray(x), taps, up, down, padding, matrix_products)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    both = tuple(tuple(a * b for b in taps) for a in taps)
    np.testing.assert_allclose(upfirdn(jnp.asarray(x), both, up, down, padding), expected, rtol=1e-4, atol=1e-4)
    cropped = upfirdn(jnp.asarray(x), taps, up, down, (padding[0] - down, padding[1] - 1), True)
    np.testing.assert_allclose(cropped, expected[:, 1:, 1:][:, : cropped.shape[1], : cropped.shape[2]], atol=1e-4)


def test_low_pass_filters_are_those_of_scipy():
    for num_taps, cutoff, width, rate in ((12, 3.0, 2.0, 16), (24, 8.0, 10.0, 64), (6, 2.0, 0.1, 8)):
        expected = scipy.signal.firwin(num_taps, cutoff, width=width, fs=rate)
        np.testing.assert_allclose(low_pass(num_taps, cutoff, width, rate), expected, rtol=1e-5, atol=1e-7)
    radial = np.asarray(low_pass(12, 3.0, 2.0, 16, True))
    np.testing.assert_allclose(radial.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(radial, np.rot90(radial), atol=1e-9)
    assert low_pass(1, 3.0, 2.0, 16) is None


def test_the_first_blur_is_a_gaussian_that_ends():
    x = jax.random.normal(jax.random.key(0), (2, 12, 9, 3))
    blurred = jax.jit(lambda r: blur(x, r, 10.0))
    taps = 2.0 ** -((np.arange(-6, 7) / 2.0) ** 2)
    expected = np.asarray(x)
    for axis in (1, 2):
        expected = scipy.ndimage.convolve1d(expected, taps / taps.sum(), axis=axis, mode="constant")
    np.testing.assert_allclose(blurred(2.0), expected, atol=1e-5)
    for radius in (0.3, 0.0):
        np.testing.assert_allclose(blurred(radius), x, atol=1e-6)
    model = StyleGAN(network=StyleGAN3Network(**SMALL), blur_radius=4.0, blur_steps=2)
    for step, expected in ((0, blurred(4.0)), (1, blurred(2.0)), (2, x)):
        view = model.view(TrainState(step=jnp.int32(step), params={}), {"x": x}, jax.random.key(0))
        np.testing.assert_allclose(view.augment(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "batch_size", "gamma", "rate", "pictures"),
    [
        ("stylegan2_ffhq", 32, 10.0, 0.002, 10_000),  # arXiv:1912.04958, configuration F
        ("stylegan2_celeba_hq", 64, 1.0, 0.0025, 20_000),  # arXiv:2006.06676, at 256 x 256
        ("stylegan3_ffhq", 64, 1.0, 0.0025, 20_000),  # the authors' ablations at 256 x 256
    ],
)
def test_style_gans_have_the_papers_rates_as_penalties_have_no_steps_of_their_own(
    name, batch_size, gamma, rate, pictures
):
    experiment = config.import_experiments()[name].build()
    model = experiment.model
    assert (experiment.data.batch_size, model.penalty_weight) == (batch_size, gamma)
    for rule in (model.generator_optimizer, model.discriminator_optimizer):
        assert (rule.learning_rate, rule.b1, rule.b2) == (rate, 0.0, 0.99)
    np.testing.assert_allclose(model.generator_optimizer.ema_decay ** (pictures / batch_size), 0.5)


def test_modulated_convolution_is_one_convolution_for_each_example():
    keys = jax.random.split(jax.random.key(0), 3)
    x, styles = jax.random.normal(keys[0], (3, 5, 5, 4)), jax.random.normal(keys[1], (3, 4)) + 1.0
    kernel = jax.random.normal(keys[2], (3, 3, 4, 2))
    for demodulate in (True, False):
        y = modulated_convolution(x, kernel, styles, demodulate)
        for i in range(3):
            w = np.asarray(kernel) * np.asarray(styles[i])[None, None, :, None]
            if demodulate:
                w = w / np.sqrt((w**2).sum((0, 1, 2)) + 1e-8)
            dimensions = ("NHWC", "HWIO", "NHWC")
            expected = jax.lax.conv_general_dilated(
                x[i : i + 1], jnp.asarray(w), (1, 1), "SAME", dimension_numbers=dimensions
            )
            np.testing.assert_allclose(y[i : i + 1], expected, rtol=1e-4, atol=1e-4)
    assert modulated_convolution(x, kernel, styles, full=True).shape == (3, 7, 7, 2)


def test_convolution_that_halves_equals_filter_then_strided_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    ours, plain = (convolve_and_halve(x, kernel, matrix_products) for matrix_products in (True, False))
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)
    # Constant pictures stay constant inside, doubled or halved.
    ones = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(upfirdn(ones, binomial(2.0), up=2, padding=(2, 1))[:, 2:-2, 2:-2], 1.0, rtol=1e-6)
    np.testing.assert_allclose(convolve_and_halve(ones, jnp.ones((1, 1, 1, 1)), True)[:, 1:-1, 1:-1], 1.0, rtol=1e-6)


def test_group_deviation_is_that_of_the_examples_of_a_group_without_padding():
    x = jax.random.normal(jax.random.key(0), (9, 2, 2, 3))
    deviations = jax.jit(lambda x, counted: group_deviation(x, 3, counted)[..., -1])
    for count in (9, 7, 6, 5, 2):
        channel, groups = np.asarray(deviations(x, jnp.arange(9) < count)), max(count // 3, 1)
        for i in range(groups):
            members = np.arange(i, count, groups)
            deviation = np.sqrt(np.asarray(x)[members].var(0) + 1e-8).mean()
            np.testing.assert_allclose(channel[members], deviation, rtol=1e-5)
    np.testing.assert_array_equal(deviations(x, None), deviations(x, jnp.ones(9, bool)))


def test_groups_are_those_of_the_whole_batch_under_pmap():
    x = jax.random.normal(jax.random.key(0), (8, 2, 2, 3))

    def score(x):
        return jnp.tanh(group_deviation(x, 4)).sum((1, 2, 3))

    whole = jax.jit(lambda x: (score(x), jax.grad(lambda x: score(x).sum())(x)))(x)
    for count in (2, 8):  # Alone on a device an example would have no deviation.
        parts = jax.pmap(
            lambda x: (score(x), jax.grad(lambda x: score(x).sum())(x)), DEVICE_AXIS, devices=jax.devices()[:count]
        )(x.reshape(count, -1, *x.shape[1:]))
        for a, b in zip(whole, parts):
            np.testing.assert_allclose(b.reshape(a.shape), a, rtol=1e-5, atol=1e-6)


def test_path_lengths_are_norms_of_the_jacobian_times_the_direction(style_gan_2):
    model, state, metrics = style_gan_2
    assert np.isfinite([float(value) for value in metrics.values()]).all()
    assert float(metrics["penalty"]) > 0.0 and float(metrics["path_length_penalty"]) > 0.0
    params, variables, key = state.params["generator"], state.learned["generator"], jax.random.key(5)
    plain = dataclasses.replace(model, network=dataclasses.replace(model.network, mixing=0.0))
    one = {"x": BATCH["x"][:1]}
    length = float(jax.jit(plain.path_lengths)(params, variables, one, key)[0])
    # The same by differences along the gradient's own direction, in float32: |J^T y| = d <G(w), y> / d(unit step).
    latent_key, _, noise_key, direction_key = jax.random.split(key, 4)
    latents = plain.latents(latent_key, one)
    noise_keys, direction = jax.random.fold_in(noise_key, 0)[None], jax.random.fold_in(direction_key, 0)
    y = jax.random.normal(direction, (1, 8, 8, 1)) / 8.0
    apply = jax.jit(
        lambda w: plain.generator().apply({"params": params, **variables}, w, noise_keys, method="synthesize")
    )
    styles = plain.styles(state, latents)
    value = lambda w: float(np.sum(np.asarray(apply(w), np.float64) * np.asarray(y)))
    gradient = np.zeros(styles.shape)
    for place in np.ndindex(styles.shape):
        step = np.zeros(styles.shape, np.float32)
        step[place] = 1e-2
        gradient[place] = (value(styles + step) - value(styles - step)) / 2e-2
    np.testing.assert_allclose(length, np.sqrt((gradient**2).sum(2).mean(1))[0], rtol=2e-2)
    # The running mean follows, and without a due step nothing changes.
    penalty, _, later = jax.jit(model.generator_penalty)(params, variables, BATCH, key, jnp.int32(1))
    assert float(penalty) == 0.0
    assert float(later[STATISTICS]["mean_path_length"]) == float(variables[STATISTICS]["mean_path_length"]) > 0.0


def test_styles_are_truncated_and_mixed(style_gan_2):
    model, state, _ = style_gan_2
    latents = jax.random.normal(jax.random.key(3), (2, 5))
    styles = jax.jit(model.styles)(state, latents)
    assert styles.shape == (2, 4, 6)
    mean = state.learned["generator"][STATISTICS]["mapping"]["mean_style"]
    assert np.abs(mean).max() > 0.0, "the mean of w follows the training"
    np.testing.assert_allclose(truncate(styles, mean, 0.0), jnp.broadcast_to(mean[None, None], styles.shape), atol=1e-6)
    np.testing.assert_allclose(truncate(styles, mean, 0.5, 2)[:, 2:], styles[:, 2:])
    grid = jax.jit(model.mix_styles, static_argnums=3)(state, styles, styles, (0, 2))
    pictures = jax.jit(model.synthesize)(state, styles)
    assert grid.shape == (2, 2, 8, 8, 1)
    np.testing.assert_allclose(grid[[0, 1], [0, 1]], pictures, atol=1e-5)
    assert np.abs(np.asarray(grid[0, 1] - pictures[0])).max() > 1e-4
    # Without noise in them, samples are the synthesis of their styles.
    np.testing.assert_allclose(jax.jit(model.decode)(state, latents), pictures, atol=1e-5)


def test_pictures_get_a_second_style_behind_a_random_place_in_training(style_gan_2):
    model, state, _ = style_gan_2
    variables = {"params": state.params["generator"], **state.learned["generator"]}
    latents, keys = jax.random.normal(jax.random.key(3), (600, 5)), jax.random.split(jax.random.key(4), 600)
    styles = np.asarray(
        jax.jit(lambda z: model.generator().apply(variables, z, None, True, keys, method="styles"))(latents)
    )
    np.testing.assert_allclose(styles[:, 0], jax.jit(model.styles)(state, latents)[:, 0], atol=1e-6)
    other = np.abs(styles - styles[:, :1]).max(2) > 0.0
    assert (np.diff(other.astype(int), axis=1) >= 0).all(), "once begun, it stays"
    np.testing.assert_array_equal(np.where(other[:, 1:-1, None], styles[:, 1:-1] - styles[:, -1:], 0.0), 0.0)
    # Nine of ten, at each of the three places as often.
    shares = np.bincount(np.where(other.any(1), other.argmax(1), 4), minlength=5) / 600
    np.testing.assert_allclose(shares, [0.0, 0.3, 0.3, 0.3, 0.1], atol=0.06)


def test_projection_finds_a_picture_of_the_generator_again(style_gan_2):
    model, state, _ = style_gan_2
    key = jax.random.key(9)
    pictures = jax.jit(lambda s: model.synthesize(s, model.styles(s, jax.random.normal(key, (2, 5)))))(state)
    run = jax.jit(lambda s, x: project(model, s, x, jax.random.key(4), num_steps=150))
    styles, noise, distances = run(state, pictures)
    assert styles.shape == (2, 4, 6)
    assert (distances[-1] < 0.05 * distances[0]).all(), distances[[0, -1]]
    # The noise, of a map for each layer, stays like noise.
    maps = jax.tree.leaves(noise)
    assert [m.shape for m in maps] == [(2, 4, 4), (2, 8, 8), (2, 8, 8)]
    for m in maps:
        np.testing.assert_allclose([m.mean((1, 2)), m.var((1, 2))], [[0.0] * 2, [1.0] * 2], atol=1e-3)
    # Noise that is given is what enters: with a strength, other maps give other pictures.
    block = {**state.params["generator"]["synthesis"]["block_1"], "noise_strength": jnp.ones(())}
    synthesis = {**state.params["generator"]["synthesis"], "block_1": block}
    strong = state.replace(params={**state.params, "generator": {**state.params["generator"], "synthesis": synthesis}})
    draw = jax.jit(lambda maps: model.synthesize(strong, styles, noise=maps))
    assert np.abs(np.asarray(draw(noise) - draw(jax.tree.map(jnp.negative, noise)))).max() > 1e-2


def test_noise_on_styles_counts_all_dimensions_and_correlations_are_found_at_all_sizes():
    styles = 3.0 * jax.random.normal(jax.random.key(0), (4000, 16))
    np.testing.assert_allclose(style_deviation(styles), 3.0 * 4.0, rtol=0.02)
    noise = jax.random.normal(jax.random.key(1), (1, 32, 32))
    coarse = 0.5 * jnp.repeat(jnp.repeat(jax.random.normal(jax.random.key(2), (1, 4, 4)), 8, 1), 8, 2)
    assert float(correlation_of_neighbours(noise)) < 0.1 < 1.0 < float(correlation_of_neighbours(noise + coarse))
    checks = jnp.asarray((-1.0) ** np.add.outer(np.arange(8), np.arange(8)), jnp.float32)[None]
    np.testing.assert_allclose(correlation_of_neighbours(checks), 2.0, rtol=1e-6)


def test_sizes_of_style_gan_3_follow_the_paper():
    plan = signals(StyleGAN3Network(), 256)
    assert [s.size for s in plan] == [36] * 3 + [52] * 2 + [84] * 2 + [148] * 3 + [276] * 3 + [256] * 2
    assert plan[0].cutoff == 2.0 and plan[12].cutoff == plan[14].cutoff == 128.0
    with pytest.raises(ValueError, match="power of two"):
        StyleGAN(data_shape=(12, 12, 1), network=StyleGAN3Network()).init(
            jax.random.key(0), {"x": jnp.zeros((2, 12, 12, 1))}
        )
    with pytest.raises(ValueError, match="moved"):
        equivariance(StyleGAN(network=StyleGAN2Network()), None, None, None, "translation")


STYLE_GAN_3 = {"num_layers": 2, "num_critical": 1, "margin": 4, "channel_base": 64, "channel_max": 6, "style_dim": 6}


#: Compiling takes longer than running.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def style_gan_3(size, **changes):
    network = StyleGAN3Network(**STYLE_GAN_3, num_mapping_layers=1)
    model = StyleGAN(data_shape=(size, size, 1), latent_dim=5, network=network, path_length_weight=0.0, penalty="none")
    return dataclasses.replace(
        model,
        network=dataclasses.replace(network, **{k: v for k, v in changes.items() if hasattr(network, k)}),
        **{k: v for k, v in changes.items() if not hasattr(network, k)},
    )


def waves(rows, columns):
    """Values of a smooth function at places, about the centre of a picture of 32 pixels, with a channel."""
    return jnp.stack([jnp.sin(0.5 * rows + 0.3), jnp.cos(0.4 * columns - 0.7 * rows)], axis=-1)


def test_references_of_equivariance_are_the_moved_continuous_picture():
    place = np.arange(32) - 15.5
    rows, columns = np.meshgrid(place, place, indexing="ij")
    x = waves(rows, columns)
    (down, valid_rows), (right, valid_columns) = shift_matrix(32, 2.3), shift_matrix(32, -3.0)
    moved = jnp.einsum("ph,hwc,qw->pqc", down, x, right)
    assert list(np.flatnonzero(valid_rows)) == list(range(5, 32)) and list(np.flatnonzero(valid_columns)) == list(
        range(29)
    )
    error = np.abs(np.asarray(moved - waves(rows - 2.3, columns + 3.0)))
    assert error[5:, :29].max() < 0.03
    turn = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]], np.float32)
    turned = waves(*(turn @ np.stack([columns.ravel(), rows.ravel()]))[::-1].reshape(2, 32, 32))
    read = quickly(read_filtered)
    both = read(x[None], jnp.asarray(turn)), read(turned[None], jnp.eye(2))
    disc = np.hypot(rows, columns) < 8.0
    assert np.abs(np.asarray(both[0] - both[1]))[0][disc].max() < 2e-3
    stripes = jnp.asarray((-1.0) ** np.arange(32))[:, None, None] * jnp.ones((32, 32, 2))
    assert np.abs(np.asarray(read(stripes[None], jnp.eye(2))))[0, disc].max() < 0.02


def test_filters_make_the_generator_equivariant():
    assert [s.rate for s in signals(style_gan_3(32).network, 32)] == [16, 32, 32]
    measured = {}
    for name, changes, motion in (
        ("T", {}, "fractional"),
        ("unfiltered", {"filter_size": 1}, "fractional"),
        ("R", {"rotation": True}, "rotation"),
    ):
        model = style_gan_3(32, **changes)
        styles = jax.random.normal(jax.random.key(2), (2, 5, 6))

        def measure(key, model=model, motion=motion, styles=styles):
            variables = model.generator().init(key, jnp.zeros((2, 5)))
            state = TrainState.create({"generator": variables.pop("params")}, learned={"generator": variables})
            return equivariance(model, state, styles, jax.random.key(3), motion, 4), model.synthesize(
                state, styles
            ).std()

        decibels, deviation = quickly(measure)(jax.random.key(1))
        measured[name] = float(decibels + 20.0 * jnp.log10(deviation))
    assert min(measured["T"], measured["R"]) > measured["unfiltered"] + 10.0, measured


def test_style_gan_3_takes_a_step_of_each_configuration():
    for model, update in (
        (style_gan_3(8, compute_dtype="bfloat16"), "train_step"),
        (style_gan_3(8, rotation=True), "generator_update"),
    ):
        state = quickly(model.init)(jax.random.key(1), BATCH)
        after, metrics = quickly(getattr(model, update))(state, BATCH, jax.random.key(2))
        assert all(np.isfinite(float(value)) for value in metrics.values()), metrics
        for leaf in jax.tree.leaves(after.params):
            assert leaf.dtype == jnp.float32 and np.isfinite(np.asarray(leaf)).all()
        change = jax.tree.map(lambda old, new: jnp.abs(old - new).max(), state.params, after.params)
        assert max(jax.tree.leaves(change["generator"])) > 1e-4
        assert max(jax.tree.leaves(change["discriminator"])) > 1e-4 or update == "generator_update"
