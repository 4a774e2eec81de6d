"""The autoencoder of latent diffusion: its loss against the formulas, its adaptive weight against gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import example_keys
from genjax.errors import UserError
from genjax.families.vae.autoencoder_kl import AutoencoderKL
from genjax.families.vae.picture_autoencoder import PictureNetwork
from genjax.nn.convolution import Halving, halve
from genjax.optimizers import SGD

MODEL = AutoencoderKL(
    data_shape=(8, 8, 3),
    network=PictureNetwork(channels=(4, 4), num_groups=2),
    gan_weight=0.5,
    gan_start=1,
    discriminator_channels=(4,),
    optimizer=SGD(learning_rate=1e-3),
    discriminator_optimizer=SGD(learning_rate=1e-3),
)
BATCH = {"x": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)}


@pytest.fixture(scope="module")
def steps():
    state = jax.jit(MODEL.init)(jax.random.key(0), BATCH)
    step = jax.jit(MODEL.train_step)
    first, early = step(state, BATCH, jax.random.key(1))
    second, late = step(first, BATCH, jax.random.key(2))
    return state, first, second, early, late


def test_codes_and_shapes(steps):
    state = steps[0]
    params = state.params["autoencoder"]
    posterior = jax.jit(MODEL.posterior)
    mean = posterior(params, BATCH["x"]).mean
    assert MODEL.code_shape == mean.shape[1:] == (4, 4, 4)
    assert jax.eval_shape(MODEL.decode_maps, params, mean).shape == BATCH["x"].shape
    huge = jax.tree.map(lambda p: p * 1e4, params)
    assert float(posterior(huge, BATCH["x"]).log_scale.max()) == 10.0


def test_halving_is_a_strided_convolution_off_the_centre():
    x, kernel = np.random.default_rng(1).normal(size=(2, 6, 4, 3)), np.random.default_rng(2).normal(size=(3, 3, 3, 2))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = np.zeros((2, 3, 2, 2))
    for i in range(3):
        for j in range(2):
            expected[:, i, j] = np.einsum("bklc,klcd->bd", padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel)
    for products in (True, False):
        np.testing.assert_allclose(halve(jnp.asarray(x), jnp.asarray(kernel), products), expected, atol=1e-5)
    assert Halving(5).init_with_output(jax.random.key(0), jnp.asarray(x))[0].shape == (2, 3, 2, 5)


def test_the_discriminator_waits_for_gan_start(steps):
    state, first, second, early, late = steps
    equal = lambda a, b: all(jax.tree.leaves(jax.tree.map(lambda p, q: bool((p == q).all()), a, b)))
    assert equal(state.params["discriminator"], first.params["discriminator"])
    assert not equal(first.params["discriminator"], second.params["discriminator"])
    expected = early["reconstruction"] + MODEL.kl_weight * early["kl"]
    np.testing.assert_allclose(early["loss"], expected, rtol=1e-6)
    expected = late["reconstruction"] + MODEL.kl_weight * late["kl"]
    expected -= MODEL.gan_weight * late["gan_factor"] * late["generator_score"]
    np.testing.assert_allclose(late["loss"], expected, rtol=1e-5)


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(steps):
    _, first, _, _, late = steps
    noise_keys = example_keys(jax.random.key(2), BATCH)
    noise = jax.vmap(lambda k: jax.random.normal(k, (4, 4, 4)))(noise_keys)
    params = first.params["autoencoder"]
    z = jax.jit(MODEL.posterior)(params, BATCH["x"]).sample(noise)

    def term(kernel, judged):
        output = {**params["decoder"]["output"], "kernel": kernel}
        y = MODEL.decode_maps({"decoder": {**params["decoder"], "output": output}}, z)
        if judged:
            return -MODEL.score(first.params["discriminator"], y).mean()
        return jnp.abs(BATCH["x"] - y).sum((1, 2, 3)).mean()

    kernel = params["decoder"]["output"]["kernel"]
    gradient = jax.jit(jax.grad(term), static_argnums=1)
    norms = [jnp.linalg.norm(gradient(kernel, judged)) for judged in (False, True)]
    np.testing.assert_allclose(late["gan_factor"], norms[0] / (norms[1] + 1e-4), rtol=1e-4)


def test_evaluation_is_of_the_mean(steps):
    state = steps[0]
    metrics = jax.jit(MODEL.evaluate)(state, BATCH, jax.random.key(0))
    y = jax.jit(MODEL.reconstruct)(state, BATCH, jax.random.key(0))
    error = jnp.square(y - BATCH["x"]).mean((1, 2, 3))
    np.testing.assert_allclose(metrics["psnr"], 20 * np.log10(2 / np.sqrt(error)), rtol=1e-5)
    sample = lambda state: MODEL.sample(state, jax.random.key(3), 2)
    assert jax.eval_shape(sample, state).shape == (2, 8, 8, 3)


def test_what_is_refused():
    change = lambda **fields: dataclasses.replace(MODEL, **fields)
    for model, words in (
        (change(data_shape=(9, 8, 3)), "multiples of 2"),
        (change(data_shape=None), "data_shape is None"),
        (change(data_shape=(16, 16, 3)), "examples have the shape"),
        (change(perceptual_weight=1.0), "needs --model.perceptual_file"),
        (change(network=PictureNetwork(channels=(4, 4), num_groups=3)), "num_groups=3 does not divide the 4"),
    ):
        with pytest.raises(UserError, match=words):
            jax.eval_shape(model.init, jax.random.key(0), BATCH)
