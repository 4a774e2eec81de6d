"""Every named preprocessing against its formula, and log-determinants against Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Images, transforms

LEVELS = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(6))


def apply(name, levels=LEVELS, num_levels=256, alpha=0.05):
    return transforms.apply(name, jnp.asarray(levels), KEYS, num_levels, alpha)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unit", LEVELS / 255.0),
        ("signed", LEVELS / 127.5 - 1.0),
        ("levels", LEVELS.astype(np.float32)),
        ("binarize_threshold", (LEVELS > 127).astype(np.float32)),
    ],
)
def test_fixed_transforms_are_their_formulas(name, expected):
    x, log_abs_det = apply(name)
    np.testing.assert_allclose(x, expected, atol=1e-6)
    assert log_abs_det is None and x.dtype == jnp.float32


def test_dynamic_binarisation_has_the_probabilities_of_the_levels():
    levels = np.tile(np.array([0, 64, 128, 255], np.uint8), (40000, 1))[:, :, None, None]
    keys = jax.random.split(jax.random.key(1), 40000)
    x, _ = transforms.apply("binarize_dynamic", jnp.asarray(levels), keys, 256, 0.0)
    assert set(np.unique(x)) == {0.0, 1.0}
    mean, probability = np.asarray(x).mean(0).ravel(), np.array([0, 64, 128, 255]) / 255
    assert (np.abs(mean - probability) <= 4 * np.sqrt(probability * (1 - probability) / 40000)).all()


def test_static_binarisation_is_drawn_once_with_the_probabilities_of_the_levels():
    binary = Images(name="digits", preprocessing="binarize_static").load("train").arrays()["x"]
    again = Images(name="digits", preprocessing="binarize_static", batch_size=7).load("train").arrays()["x"]
    grey = Images(name="digits").load("train").arrays()["x"] / 16
    np.testing.assert_array_equal(binary, again)
    assert set(np.unique(binary)) == {0, 1}
    error = 4 * np.sqrt((grey * (1 - grey)).sum()) / grey.size
    assert abs(binary.mean() - grey.mean()) < error
    assert binary[grey == 0].max() == 0 and binary[grey == 1].min() == 1


@pytest.mark.parametrize("name", ["dequantize", "dequantize_signed", "logit"])
def test_log_determinants_are_those_of_the_jacobian(name):
    x, log_abs_det = apply(name)
    noise = transforms.uniform_per_example(KEYS, LEVELS.shape[1:])
    values = jnp.asarray(LEVELS, jnp.float32) + noise

    def bijection(v):
        y = v / 256.0
        if name == "dequantize_signed":
            return 2.0 * y - 1.0
        return y if name == "dequantize" else transforms.logit(y[None], 0.05)[0][0]

    for i in range(3):
        jacobian = jax.jacfwd(bijection)(values[i].ravel())
        np.testing.assert_allclose(log_abs_det[i], jnp.linalg.slogdet(jacobian)[1], rtol=1e-4)
        np.testing.assert_allclose(x[i].ravel(), bijection(values[i].ravel()), rtol=1e-4, atol=1e-4)


def test_uniform_dequantisation_of_a_known_mass_gives_its_entropy():
    # A density that is constant on each bin is exact: log p(x) + log|det| = log P(v).
    probability = np.array([0.1, 0.2, 0.3, 0.4])
    levels = np.repeat(np.arange(4), [1000, 2000, 3000, 4000])[:, None].astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), len(levels))
    x, log_abs_det = transforms.apply("dequantize", jnp.asarray(levels), keys, 4, 0.0)
    density = 4 * probability[np.floor(np.asarray(x)[:, 0] * 4).astype(int)]
    nll = -(np.log(density) + log_abs_det).mean()
    np.testing.assert_allclose(nll, -(probability * np.log(probability)).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["unit", "signed", "levels", "dequantize", "dequantize_signed", "logit"])
def test_pictures_are_got_back(name):
    x, _ = apply(name)
    np.testing.assert_allclose(transforms.to_unit(name, x, 256, 0.05), LEVELS / 255.0, atol=1e-5)


def test_noise_belongs_to_the_example_and_not_to_its_place():
    data = Images(name="digits", preprocessing="dequantize")
    raw = data.load("train").gather(np.arange(8))
    whole = data.transform({k: jnp.asarray(v) for k, v in raw.items()}, jax.random.key(3))
    part = {k: jnp.asarray(v[4:]) for k, v in raw.items()}
    part = data.transform({**part, "example_index": jnp.arange(4, 8)}, jax.random.key(3))
    np.testing.assert_array_equal(whole["x"][4:], part["x"])
