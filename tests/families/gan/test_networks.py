"""Networks of GANs: spectral norm against SVD, batch norm, classes, and updates inside one call and in several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.gan.augmentation import ADA, DiffAugment, band_filters, filter_bands
from genjax.families.gan.dcgan import DCGANNetwork
from genjax.families.gan.gan import GAN
from genjax.families.gan.layers import BatchNorm, Convolution, largest_singular_value
from genjax.families.gan.maxout import MaxoutNetwork
from genjax.families.gan.networks import Head, PlainNetwork, times_halved
from genjax.families.gan.sngan import SNGANNetwork
from genjax.families.gan.style_layers import EqualDense
from genjax.families.gan.turns import shares_of
from genjax.nn.convolution import downsample
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import SGD

PICTURES = jnp.tanh(jax.random.normal(jax.random.key(0), (6, 8, 8, 1)))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])
BATCH = {"x": PICTURES, "label": LABELS}


def tiny(**changes):
    model = GAN(data_shape=(8, 8, 1), num_classes=3, latent_dim=3, network=DCGANNetwork(base_channels=4))
    return dataclasses.replace(model, **changes)


def test_power_iteration_reaches_the_largest_singular_value():
    matrix = jax.random.normal(jax.random.key(0), (12, 7))
    u = jnp.ones(7)
    for _ in range(100):
        sigma, u = largest_singular_value(matrix, u)
    np.testing.assert_allclose(sigma, np.linalg.svd(np.asarray(matrix))[1][0], rtol=1e-5)
    # At the fixed point the gradient is that of the singular value: the outer product of its two directions.
    left, _, right = np.linalg.svd(np.asarray(matrix))
    gradient = jax.grad(lambda m: largest_singular_value(m, u)[0])(matrix)
    np.testing.assert_allclose(gradient, np.outer(left[:, 0], right[0]), atol=1e-3)


def test_spectral_convolution_has_norm_one_and_keeps_its_state():
    layer = Convolution(5, kernel_size=3, use_bias=False, spectral=True, kernel_init=jax.nn.initializers.normal(1.0))
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 4))
    variables = layer.init(jax.random.key(1), x)
    kernel = np.asarray(variables["params"]["kernel"])
    step = jax.jit(
        lambda state: layer.apply({"params": variables["params"], "spectral": state}, x, mutable=["spectral"])
    )
    state = variables["spectral"]
    for _ in range(60):
        y, updated = step(state)
        state = updated["spectral"]
    plain = Convolution(5, kernel_size=3, use_bias=False).apply(
        {"params": {"kernel": kernel / np.linalg.svd(kernel.reshape(-1, 5))[1][0]}}, x
    )
    np.testing.assert_allclose(y, plain, rtol=1e-3, atol=1e-4)


def test_batch_norm_normalises_in_training_and_uses_averages_otherwise():
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
    layer = BatchNorm(momentum=0.0)
    variables = layer.init(jax.random.key(1), x, True)
    y, updated = layer.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1.0, atol=1e-3)
    again = layer.apply({**variables, **updated}, x, False)
    np.testing.assert_allclose(again, y, atol=1e-4)
    # A class has its own scale and offset.
    condition = jax.nn.one_hot(jnp.arange(64) % 2, 2)
    variables = layer.init(jax.random.key(1), x, True, condition)
    params = {"class_scale": jnp.array([[1.0] * 3, [2.0] * 3]), "class_bias": jnp.array([[0.0] * 3, [5.0] * 3])}
    z = layer.apply({**variables, "params": params}, x, True, condition)
    np.testing.assert_allclose(z[1::2], 2.0 * y[1::2] + 5.0, atol=1e-3)


def test_dcgan_starts_as_the_paper_says_and_ends_in_the_data_shape():
    model = GAN(data_shape=(32, 32, 3), latent_dim=100, network=DCGANNetwork(base_channels=16))
    batch = {"x": jnp.zeros((2, 32, 32, 3))}
    state = jax.eval_shape(model.init, jax.random.key(0), batch)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim == 4}
    assert {(4, 4, 64, 32), (4, 4, 32, 16), (4, 4, 16, 3), (4, 4, 3, 16), (4, 4, 16, 32), (4, 4, 32, 64)} == shapes
    assert set(jax.eval_shape(tiny().init, jax.random.key(0), BATCH).learned) == {"generator"}, (
        "8 x 8 pixels leave the discriminator one layer, which has no norm"
    )
    model = GAN(data_shape=(16, 16, 1), latent_dim=100, network=DCGANNetwork(base_channels=64))
    state = jax.jit(model.init)(jax.random.key(0), {"x": jnp.zeros((2, 16, 16, 1))})
    named = {"kernel": [], "scale": [], "bias": []}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        named[path[-1].key].append(np.asarray(leaf))
    assert len(named["kernel"]) == 6 and len(named["scale"]) == 3
    for kernel in named["kernel"]:
        np.testing.assert_allclose([kernel.std(), kernel.mean() + 1.0], [0.02, 1.0], rtol=0.05)
    scales = np.concatenate(named["scale"])
    np.testing.assert_allclose([scales.std(), scales.mean()], [0.02, 1.0], rtol=0.1)
    assert not np.concatenate(named["bias"]).any()


def test_sngan_has_the_sizes_and_the_initial_spread_of_the_papers_cifar_networks():
    model = GAN(data_shape=(32, 32, 3), latent_dim=128, network=SNGANNetwork())
    state = jax.eval_shape(model.init, jax.random.key(0), {"x": jnp.zeros((2, 32, 32, 3))})
    count = lambda name: sum(leaf.size for leaf in jax.tree.leaves(state.params[name]))
    conv, norm = lambda inputs, outputs, size: (size * size * inputs + 1) * outputs, 2 * 256
    doubling = 2 * conv(256, 256, 3) + conv(256, 256, 1) + 2 * norm
    assert count("generator") == 129 * 4096 + 3 * doubling + norm + conv(256, 3, 3) == 4276739
    first = conv(3, 128, 3) + conv(128, 128, 3) + conv(3, 128, 1)
    halving, keeping = 2 * conv(128, 128, 3) + conv(128, 128, 1), 2 * conv(128, 128, 3)
    assert count("discriminator") == first + halving + 2 * keeping + 129
    small = tiny(network=SNGANNetwork(generator_channels=8, discriminator_channels=8))
    params = jax.jit(small.init)(jax.random.key(0), BATCH).params
    for path, kernel in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] == "kernel" and kernel.ndim == 4 and kernel.size > 60:
            fans = kernel.shape[0] * kernel.shape[1] * (kernel.shape[2] + kernel.shape[3])
            residual = "Block" in names[1] and names[2] != "shortcut"
            np.testing.assert_allclose(jnp.abs(kernel).max(), np.sqrt((12 if residual else 6) / fans), rtol=0.05)


def test_plain_networks_take_spectral_norm_and_an_output_activation():
    network = PlainNetwork(network=MLPNetwork(hidden_dims=(8,)), spectral=True, output_activation="tanh")
    model = GAN(data_shape=(3,), latent_dim=2, network=network)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    state = jax.jit(model.init)(jax.random.key(1), {"x": x})
    params, module = state.params["discriminator"], model.discriminator()
    train = jax.jit(
        lambda variables: module.apply({"params": params, **variables}, x, None, True, mutable=["spectral"])
    )
    variables = state.learned["discriminator"]
    for _ in range(100):
        outputs, variables = train(variables)
    divided = jax.tree.map(lambda p: p / np.linalg.svd(np.asarray(p))[1][0] if p.ndim == 2 else p, params)
    plain = dataclasses.replace(model, network=MLPNetwork(hidden_dims=(8,)))
    np.testing.assert_allclose(outputs[:, 0], plain.score(divided, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.score(params, x, None, variables), outputs[:, 0], rtol=1e-4, atol=1e-5)
    unbounded = plain.generate(state.params["generator"], 9.0 * x[:, :2])
    np.testing.assert_allclose(
        model.generate(state.params["generator"], 9.0 * x[:, :2]), jnp.tanh(unbounded), rtol=1e-4
    )


def test_maxout_units_are_their_largest_piece_and_what_is_dropped_belongs_to_the_example():
    network = MaxoutNetwork(generator_dims=(5,), discriminator_dims=(4,), num_pieces=3)
    model = GAN(data_shape=(8, 8, 1), num_classes=3, latent_dim=3, network=network)
    state = jax.jit(model.init)(jax.random.key(1), BATCH)
    params, module = state.params["discriminator"], model.discriminator()
    dense, head = params["Dense_0"], params["Head_0"]["score"]
    pieces = PICTURES.reshape(6, 64) @ dense["kernel"] + dense["bias"][None]
    units = jnp.stack([pieces[:, 3 * i : 3 * i + 3].max(1) for i in range(4)], axis=1)
    expected = units @ head["kernel"] + head["bias"][None]
    apply = jax.jit(lambda x, keys: module.apply({"params": params}, x, None, True, keys))
    np.testing.assert_allclose(apply(PICTURES, None), expected, rtol=1e-4, atol=1e-5)
    keys = jax.random.split(jax.random.key(2), 6)
    noisy = apply(PICTURES, keys)
    np.testing.assert_allclose(apply(PICTURES[3:], keys[3:]), noisy[3:], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(noisy - expected)).min() > 0.0
    # What is dropped are values of x: a class that comes with them is always seen.
    seeing = dataclasses.replace(model, conditioning="concatenation", network=dataclasses.replace(network, dropout=0.0))
    classes, zeros = jnp.eye(3)[jnp.arange(6) % 3], jnp.zeros_like(PICTURES)
    everything = seeing.discriminator().init_with_output
    scores = [
        everything(
            jax.random.key(1), zeros, classes, True, None if i is None else jax.random.split(jax.random.key(i), 6)
        )[0]
        for i in (None, 2)
    ]
    np.testing.assert_allclose(*scores)
    # What the discriminator drops belongs to the step's key.
    step = jax.jit(model.discriminator_update)
    losses = [float(step(state, BATCH, jax.random.key(i))[1]["discriminator_loss"]) for i in (5, 5, 6)]
    assert losses[0] == losses[1] != losses[2]


def test_consistency_compares_scores_under_the_same_augmentation():
    model = tiny(
        network=MLPNetwork(hidden_dims=(4,)),
        augmentation=DiffAugment(policy=("translation",)),
        consistency="balanced",
        consistency_augmentation=DiffAugment(policy=()),
    )
    state = jax.jit(model.init)(jax.random.key(1), BATCH)
    metrics = jax.jit(model.discriminator_update)(state, BATCH, jax.random.key(2))[1]
    np.testing.assert_allclose(metrics["consistency"], 0.0, atol=1e-9)


@pytest.mark.parametrize(("size", "count"), [(28, 2), (32, 3), (64, 4), (8, 1)])
def test_pictures_are_halved_to_four_or_seven(size, count):
    assert times_halved((size, size, 1)) == count


def test_bad_pictures_and_labels_are_named():
    for shape, message in (((30, 30, 1), "odd"), ((9, 9, 1), "cannot be halved"), ((4, 4, 1), "too small")):
        with pytest.raises(ValueError, match=message):
            tiny(data_shape=shape).init(jax.random.key(0), {"x": jnp.zeros((2, *shape))})
    model = tiny(conditioning="concatenation")
    with pytest.raises(ValueError, match="between 0 and 2"):
        model.init(jax.random.key(0), {**BATCH, "label": LABELS + 1})
    with pytest.raises(ValueError, match="between 0 and 2"):  # What the engine says of a loss that is not finite.
        model.diagnose(None, {**BATCH, "label": LABELS + 1}, jax.random.key(0))
    with jax.debug_nans(False):  # Compiled steps cannot look at labels, and make the loss NaN.
        np.testing.assert_array_equal(jnp.isnan(jax.jit(model.condition)(LABELS + 1)).all(-1), LABELS == 2)
    wrong = LABELS + 1
    with pytest.raises(ValueError, match="between 0 and 2"):  # Labels that are not traced can be seen everywhere.
        jax.eval_shape(lambda scale: scale * model.condition(wrong), 1.0)
    with pytest.raises(ValueError, match="labelled"):
        model.init(jax.random.key(0), {"x": PICTURES})
    with pytest.raises(ValueError, match="not conditional"):
        tiny().check_labels(LABELS)
    for penalty in ("wgan_gp", "r1", "r1_r2"):
        with pytest.raises(ValueError, match="discriminator_norm"):
            tiny(penalty=penalty).init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match="projection"):
        tiny(conditioning="projection", network=MLPNetwork(hidden_dims=(4,))).init(jax.random.key(0), BATCH)


def test_several_discriminator_steps_inside_one_call_equal_as_many_calls():
    model = tiny(
        network=DCGANNetwork(base_channels=4, discriminator_norm="spectral"),
        objective="hinge",
        num_discriminator_steps=3,
        generator_optimizer=SGD(learning_rate=0.1, ema_decay=0.9),
        discriminator_optimizer=SGD(learning_rate=0.1),
    )
    start = jax.jit(model.init)(jax.random.key(1), BATCH)
    key = jax.random.key(2)
    together, metrics = jax.jit(model.train_step)(start, BATCH, key)
    critic, apart = jax.jit(model.discriminator_update), start
    for i in (1, 2, 3):
        apart, critic_metrics = critic(apart, BATCH, jax.random.fold_in(key, i))
    apart, generator_metrics = jax.jit(model.generator_update)(apart, BATCH, jax.random.fold_in(key, 0))
    assert model.generator_variables(together) is together.extra["averaged_generator"]
    extra = {**together.extra, "averaged_generator": None}
    apart = apart.replace(extra={**apart.extra, "averaged_generator": None})
    for a, b in zip(
        jax.tree.leaves((together.params, together.learned, extra)),
        jax.tree.leaves((apart.params, apart.learned, apart.extra)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], generator_metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["discriminator_loss"], critic_metrics["discriminator_loss"], rtol=1e-5)
    assert [leaf.shape[:2] for leaf in jax.tree.leaves(shares_of(BATCH, 3, fresh=True))] == [(3, 2), (3, 2)]
    with pytest.raises(ValueError, match="batch_size"):
        shares_of(BATCH, 4, fresh=True)
    # The second of two devices has the second half of every share, with the noise of its places there.
    second = shares_of({"example_index": jnp.arange(6, 12)}, 3, fresh=True)["example_index"]
    np.testing.assert_array_equal(second, [[2, 3]] * 3)


def test_statistics_of_the_averaged_generator_are_those_of_its_own_pass():
    slow, fast = SGD(learning_rate=0.05, ema_decay=0.9), SGD(learning_rate=0.1)
    model = tiny(network=DCGANNetwork(base_channels=4), generator_optimizer=slow, discriminator_optimizer=fast)
    step = jax.jit(lambda state, i: model.train_step(state, BATCH, jax.random.fold_in(jax.random.key(2), i))[0])
    state = jax.jit(model.init)(jax.random.key(1), BATCH)
    for i in range(2):
        before, state = state, step(state, i)
    # Of two steps the first renewed them: .9 of the start and .1 of the moments of 6 latents under the averaged
    # parameters.
    for a, b in zip(
        jax.tree.leaves(state.extra["averaged_generator"]), jax.tree.leaves(before.extra["averaged_generator"])
    ):
        np.testing.assert_array_equal(a, b)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(2), 0), 2)
    start = jax.jit(model.init)(jax.random.key(1), BATCH).learned["generator"]
    _, expected = jax.jit(model._fake)(before.ema_params["generator"], start, BATCH, key)
    for a, b in zip(jax.tree.leaves(state.extra["averaged_generator"]), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # Samples are those of the averages.
    latents, generate = jax.random.normal(jax.random.key(3), (2, model.latent_dim)), jax.jit(model.generate)
    averaged = generate(state.ema_params["generator"], latents, None, state.extra["averaged_generator"])
    np.testing.assert_allclose(
        jax.jit(model.sample, static_argnums=2)(state, jax.random.key(3), 2), averaged, atol=1e-6
    )
    own = generate(state.params["generator"], latents, None, state.learned["generator"])
    assert np.abs(np.asarray(averaged - own)).max() > 1e-4


def test_each_conditioning_trains_and_samples_the_classes_asked_for():
    for conditioning, network, options in (
        ("auxiliary", DCGANNetwork(base_channels=4, discriminator_norm="none"), {"objective": "relativistic_average"}),
        ("projection", SNGANNetwork(generator_channels=4, discriminator_channels=4), {"consistency": "real"}),
    ):
        augmentation = ADA(groups=("color",), target=-1.5, images_to_one=60)
        model = tiny(conditioning=conditioning, network=network, augmentation=augmentation, **options)
        start = jax.jit(model.init)(jax.random.key(1), BATCH)
        state, metrics = jax.jit(model.train_step)(start, BATCH, jax.random.key(2))
        assert all(np.isfinite(float(value)) for value in metrics.values()), metrics
        if conditioning == "auxiliary":  # An objective of differences, whose scores may lie anywhere.
            real = model.score(start.params["discriminator"], PICTURES, model.condition(LABELS))
            middle = (metrics["real_score"] + metrics["fake_score"]) / 2
            np.testing.assert_allclose(metrics["real_score_sign"], np.sign(real - middle).mean(), atol=1e-6)
        assert ("class_accuracy" in metrics) == (conditioning == "auxiliary")
        # Above its target, the mean sign raises the probability by 6 pictures of 60.
        np.testing.assert_allclose(metrics["augmentation_probability"], 0.1, rtol=1e-5)
        sample = jax.jit(lambda s, label, model=model: model.sample(s, jax.random.key(3), 3, label=label))
        default, given, other = (sample(state, c) for c in (None, jnp.array([0, 1, 2]), jnp.array([1, 1, 1])))
        np.testing.assert_allclose(default, given, atol=1e-6)
        assert np.abs(np.asarray(default - other)).max((1, 2, 3))[[0, 2]].min() > 0.0


def test_projection_adds_the_product_of_features_and_the_class_vector():
    model = tiny(conditioning="projection", network=DCGANNetwork(base_channels=4, discriminator_norm="none"))
    params = jax.jit(model.init)(jax.random.key(1), BATCH).params["discriminator"]
    one_hot = jax.nn.one_hot(LABELS, 3)
    features = PICTURES
    layer = params["Downsample_0"]
    features = jax.nn.leaky_relu(downsample(features, layer["kernel"], False) + layer["bias"][None, None, None], 0.2)
    features = features.reshape(6, -1)
    head = params["Head_0"]
    expected = (features @ head["score"]["kernel"])[:, 0] + head["score"]["bias"]
    expected += jnp.sum(features * (one_hot @ head["projection"]["kernel"].T), axis=-1)
    np.testing.assert_allclose(model.score(params, PICTURES, one_hot), expected, rtol=1e-4, atol=1e-5)
    # Of equalised layers both parts have variance 1, however many classes there are.
    features, one_hot = jax.random.normal(jax.random.key(0), (400, 256)), jax.nn.one_hot(jnp.arange(400) % 4, 4)
    equalised = Head("projection", EqualDense)
    scores, _ = equalised.init_with_output(jax.random.key(1), features, one_hot)
    assert 0.7 < float(scores.std()) / 2**0.5 < 1.4


def test_lazy_penalty_counts_for_the_steps_without_it():
    model = tiny(network=DCGANNetwork(base_channels=4, discriminator_norm="none"), penalty="r1_r2", penalty_every=2)
    state = jax.jit(model.init)(jax.random.key(1), BATCH)
    update = jax.jit(model.discriminator_update)
    penalties = [update(state.replace(step=jnp.int32(i)), BATCH, jax.random.key(2))[1]["penalty"] for i in (0, 1, 2)]
    every = jax.jit(dataclasses.replace(model, penalty_every=1).discriminator_update)(state, BATCH, jax.random.key(2))[
        1
    ]
    np.testing.assert_allclose(penalties, [2 * every["penalty"], 0.0, 2 * every["penalty"]], rtol=1e-4)


def test_diff_augment_is_differentiable_and_moves_what_it_says():
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    keys = jax.random.split(jax.random.key(1), 4)
    one = jnp.float32(1.0)
    apply = lambda *policy: jax.jit(lambda y: DiffAugment(policy=policy)(y, keys, one))
    cut = np.asarray(apply("cutout")(x))
    assert ((cut == 0) | (cut == np.asarray(x))).all() and 0.05 < (cut == 0).mean() <= 0.26
    moved = np.asarray(apply("translation")(jnp.ones((4, 16, 16, 1))))
    assert set(np.unique(moved)) <= {0.0, 1.0} and moved.mean() > 0.7
    shifted = np.stack(
        [np.pad(np.asarray(x)[0], ((r, 4 - r), (c, 4 - c), (0, 0)))[2:18, 2:18] for r in range(5) for c in range(5)]
    )
    assert np.abs(shifted - np.asarray(apply("translation")(x))[0]).max((1, 2, 3)).min() == 0.0
    # All of them are affine in the pictures, so a directional derivative is the exact difference.
    everything = apply("color", "translation", "cutout", "flip")
    direction = jax.random.normal(jax.random.key(2), x.shape)
    _, tangent = jax.jvp(everything, (x,), (direction,))
    np.testing.assert_allclose(tangent, everything(x + direction) - everything(x), atol=1e-4)


def test_adaptive_augmentation_does_nothing_at_zero_and_everything_at_one():
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3), minval=-1.0)
    keys = jax.random.split(jax.random.key(1), 4)
    augment = jax.jit(ADA(groups=("blit", "geometry", "color", "filter", "corruption")).__call__)
    np.testing.assert_allclose(augment(x, keys, jnp.float32(0.0)), x, atol=1e-5)
    changed = augment(x, keys, jnp.float32(1.0))
    assert np.isfinite(np.asarray(changed)).all() and np.abs(np.asarray(changed - x)).max((1, 2, 3)).min() > 0.1
    many = jax.random.split(jax.random.key(2), 200)
    grey = jax.jit(ADA(groups=("color",)).__call__)(jnp.tile(x[:1, :, :, :1], (200, 1, 1, 1)), many, jnp.float32(1.0))
    slopes = np.asarray(grey[:, 0, 1, 0] - grey[:, 0, 0, 0]) / float(x[0, 0, 1, 0] - x[0, 0, 0, 0])
    assert 0.4 < (slopes < 0.0).mean() < 0.6, "brightness is inverted every other time, of grey pictures too"
    # Pictures from 0 to 1 are changed about their own middle.
    unit = jax.jit(ADA(groups=("color", "corruption"), low=0.0).__call__)(0.5 + 0.5 * x, keys, jnp.float32(1.0))
    signed = jax.jit(ADA(groups=("color", "corruption")).__call__)(x, keys, jnp.float32(1.0))
    np.testing.assert_allclose(unit, 0.5 + 0.5 * signed, atol=1e-5)
    with pytest.raises(
        ValueError, match="from -?[0-9.]* to 255, but the augmentation declares -1 to 1; change model.augmentation.low"
    ):
        tiny(augmentation=ADA()).diagnose(None, {"x": 255.0 * PICTURES / PICTURES.max()}, keys[0])
    ada = ADA(target=0.6, images_to_one=100)
    assert float(ada.adapted(jnp.float32(0.5), jnp.float32(0.9), 10)) == pytest.approx(0.6)
    assert float(ada.adapted(jnp.float32(0.05), jnp.float32(0.1), 10)) == 0.0


def test_frequency_bands_add_up_to_the_picture_and_equal_convolutions_of_a_mirrored_one():
    bands = band_filters()
    np.testing.assert_allclose(bands.sum(0), np.eye(43)[21], atol=1e-12)
    response = np.abs(
        np.exp(-1j * np.outer([np.pi / 32, 3 * np.pi / 16, 3 * np.pi / 8, np.pi], np.arange(43))) @ bands.T
    )
    assert (response.argmax(1) == np.arange(4)).all() and response.max(1).min() > 0.7, response
    x = jax.random.normal(jax.random.key(0), (12, 16, 2))
    np.testing.assert_allclose(filter_bands(x, jnp.ones(4)), x, atol=1e-5)
    gains = np.array([0.5, 2.0, 1.0, 0.25])
    padded = np.pad(np.asarray(x), ((21, 21), (21, 21), (0, 0)), mode="symmetric")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, gains @ bands, mode="valid")
    np.testing.assert_allclose(filter_bands(x, jnp.asarray(gains, jnp.float32)), padded, atol=1e-5)


def test_corruption_adds_half_normal_noise_and_cuts_a_square_out():
    augment = ADA(groups=("corruption",))
    changed = np.asarray(
        jax.jit(augment.__call__)(jnp.ones((200, 16, 16, 1)), jax.random.split(jax.random.key(0), 200), 1.0)
    )
    cut = (changed == 0.0).reshape(200, -1)
    # A square of half the size whose middle lies anywhere keeps 7/8 of each side inside, so (7/16)^2 of the picture.
    np.testing.assert_allclose(cut.mean(), (7 / 16) ** 2, rtol=0.05)
    assert cut.mean(1).max() <= 0.25
    deviations = np.array([picture[picture != 0.0].std() for picture in changed])
    np.testing.assert_allclose(np.sqrt((deviations**2).mean()), 0.1, rtol=0.15)
