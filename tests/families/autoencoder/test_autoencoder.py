"""Autoencoders against principal components, closed-form scores, and Jacobians by forward mode."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from genjax.families.autoencoder.autoencoder import Autoencoder
from genjax.families.autoencoder.contractive import ContractiveAutoencoder
from genjax.families.autoencoder.denoising import (
    DenoisingAutoencoder,
    GaussianNoise,
    Masking,
    SaltAndPepper,
)
from genjax.families.autoencoder.sparse import SparseAutoencoder, bernoulli_kl
from genjax.model import TrainState
from genjax.nn.distributions import Gaussian
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import SGD, Adam, Cosine

AFFINE = {"network": MLPNetwork(hidden_dims=()), "output": Gaussian()}
SMALL = {"data_shape": (8, 8, 1), "latent_dim": 4, "network": MLPNetwork(hidden_dims=(8,), activation="tanh")}


@pytest.fixture(scope="module")
def digits():
    return {"x": jnp.asarray(load_digits().images[:16, :, :, None] / 16.0, jnp.float32)}


def _train(model, batch, num_steps):
    state = model.init(jax.random.key(0), batch)

    @jax.jit
    def run(state):
        return jax.lax.scan(
            lambda s, _: model.train_step(s, batch, jax.random.fold_in(jax.random.key(1), s.step)),
            state,
            None,
            length=num_steps,
        )

    return run(state)


def test_affine_autoencoder_finds_the_principal_components():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) @ np.diag([2.0, 1.0, 0.3]) + 1.0
    model = Autoencoder(
        data_shape=(3,), latent_dim=2, **AFFINE, optimizer=Adam(learning_rate=3e-2, schedule=Cosine(num_steps=1000))
    )
    batch = {"x": jnp.float32(x)}
    state, _ = _train(model, batch, 1000)
    left_over = np.linalg.eigvalsh(np.cov(x.T, bias=True))[0]
    error = model.evaluate(state, batch, jax.random.key(0))["squared_error"].mean()
    np.testing.assert_allclose(error, left_over, rtol=1e-2)


SIGMA = 0.5
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
MEAN = np.array([0.5, -1.0])


def _optimal_denoiser():
    """r(x) = mean + K (x - mean), K = S (S + sigma^2)^-1, as parameters whose code is x itself."""
    gain = COVARIANCE @ np.linalg.inv(COVARIANCE + SIGMA**2 * np.eye(2))
    dense = lambda kernel, bias: {"MLP_0": {"Dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}
    return {
        "encoder": dense(np.eye(2), np.zeros(2)),
        "decoder": {"_MLPDecoder_0": dense(gain.T, MEAN - gain @ MEAN)},
    }


@pytest.fixture(scope="module")
def gaussian_data():
    noise = np.random.default_rng(0).normal(size=(2000, 2))
    noise = (noise - noise.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T, bias=True))).T
    # Mean and covariance of the sample are exact.
    return {"x": jnp.float32(MEAN + noise @ np.linalg.cholesky(COVARIANCE).T)}


DENOISING = DenoisingAutoencoder(data_shape=(2,), latent_dim=2, **AFFINE, corruption=GaussianNoise(scale=SIGMA))


def test_reconstruction_of_the_optimum_is_the_score_of_the_noisy_gaussian(gaussian_data):
    state = DENOISING.init(jax.random.key(0), gaussian_data).replace(params=_optimal_denoiser())
    x = gaussian_data["x"][:20]
    expected = -np.linalg.solve(COVARIANCE + SIGMA**2 * np.eye(2), (np.asarray(x) - MEAN).T).T
    np.testing.assert_allclose(DENOISING.score(state, x), expected, atol=1e-4)


def test_loss_is_stationary_at_the_closed_form_denoiser(gaussian_data):
    params = _optimal_denoiser()
    extra = DENOISING.init(jax.random.key(0), gaussian_data).learned
    gradient = jax.jit(
        jax.vmap(jax.grad(lambda p, k: DENOISING.loss(p, gaussian_data, k, extra)[0]), in_axes=(None, 0))
    )
    rows = gradient(params, jax.random.split(jax.random.key(1), 400))
    for leaf in jax.tree.leaves(rows):
        error = leaf.std(0) / np.sqrt(len(leaf))
        assert (jnp.abs(leaf.mean(0)) < 5 * error + 1e-4).all()


def test_training_learns_the_score(gaussian_data):
    model = dataclasses.replace(
        DENOISING, optimizer=Adam(learning_rate=1e-2, schedule=Cosine(num_steps=1500, final_scale=0.01))
    )
    state, _ = _train(model, gaussian_data, 1500)
    x = jnp.array([[0.0, 0.0], [1.0, -2.0], [-0.5, -1.0]])
    expected = -np.linalg.solve(COVARIANCE + SIGMA**2 * np.eye(2), (np.asarray(x) - MEAN).T).T
    np.testing.assert_allclose(model.score(state, x), expected, atol=0.05)


def test_corruptions_change_the_fraction_of_values_that_they_say():
    x = jnp.full((200, 200), 0.5)
    masked = Masking(probability=0.3)(x, jax.random.key(0))
    assert abs(float((masked == 0).mean()) - 0.3) < 0.01 and set(np.unique(masked)) == {0.0, 0.5}
    speckled = SaltAndPepper(probability=0.2)(x, jax.random.key(0))
    assert abs(float((speckled == 0).mean()) - 0.1) < 0.01
    assert abs(float((speckled == 1).mean()) - 0.1) < 0.01
    noisy = GaussianNoise(scale=0.3)(x, jax.random.key(0))
    assert abs(float((noisy - x).std()) - 0.3) < 0.01


def test_a_score_needs_gaussian_noise(digits):
    model = DenoisingAutoencoder(**SMALL, corruption=Masking())
    with pytest.raises(ValueError, match="gaussian_noise, not Masking"):
        model.score(model.init(jax.random.key(0), digits), digits["x"])


def test_jacobian_norm_is_that_of_forward_mode(digits):
    model = ContractiveAutoencoder(**SMALL)
    params = model.init(jax.random.key(0), digits).params
    jacobian = jax.vmap(jax.jacfwd(lambda x: model.code(params, x[None])[0]))(digits["x"])  # [B, latent, 8, 8, 1]
    np.testing.assert_allclose(model.jacobian_norm(params, digits["x"]), (jacobian**2).sum((1, 2, 3, 4)), rtol=1e-4)


def test_jacobian_norm_of_one_sigmoid_layer_is_the_papers(digits):
    model = ContractiveAutoencoder(**{**SMALL, "network": MLPNetwork(hidden_dims=())})
    params = model.init(jax.random.key(0), digits).params
    h = np.asarray(model.code(params, digits["x"]))
    squared_weights = (np.asarray(params["encoder"]["MLP_0"]["Dense_0"]["kernel"]) ** 2).sum(0)
    np.testing.assert_allclose(
        model.jacobian_norm(params, digits["x"]), (h * (1 - h)) ** 2 @ squared_weights, rtol=1e-4
    )


def test_target_activation_is_reached_under_a_heavy_penalty(digits):
    np.testing.assert_allclose(bernoulli_kl(0.2, jnp.array([0.2, 0.5])), [0.0, 0.19274475], atol=1e-6)
    model = SparseAutoencoder(**SMALL, weight=300.0, target=0.1, optimizer=Adam(learning_rate=2e-2))
    state, metrics = _train(model, digits, 400)
    np.testing.assert_allclose(model.encode(state, digits).mean(0), 0.1, atol=0.02)
    assert metrics["sparsity_penalty"][-1] < 0.01 < metrics["sparsity_penalty"][0]


def test_the_mean_activation_is_of_all_microbatches(digits):
    model = SparseAutoencoder(**SMALL, weight=10.0, target=0.1)
    params = model.init(jax.random.key(0), digits).params
    results = []
    for count in (1, 4):
        optimizer = SGD(accumulation_steps=count)
        step = jax.jit(dataclasses.replace(model, optimizer=optimizer).train_step)
        start = TrainState.create(params, optimizer, learned=model.init(jax.random.key(0), digits).learned)
        results.append(step(start, digits, jax.random.key(1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def test_l1_penalty_is_the_mean_absolute_code(digits):
    model = SparseAutoencoder(**SMALL, penalty="l1", code_activation="relu", weight=2.0)
    codes = jnp.array([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert model.regulariser(None, None, codes)[0] == pytest.approx(4.0)
    with pytest.raises(ValueError, match="needs model.code_activation=sigmoid"):
        dataclasses.replace(model, penalty="kl").init(jax.random.key(0), digits)


@pytest.mark.parametrize("cls", [Autoencoder, DenoisingAutoencoder, SparseAutoencoder, ContractiveAutoencoder])
def test_moments_of_the_codes_are_kept_and_sampled(cls, digits):
    model = cls(**SMALL, code_decay=0.5)
    state, metrics = _train(model, digits, 60)
    assert metrics["loss"][-1] < metrics["loss"][0]
    # Of the examples as they are, decayed once a step into however many parts it is divided.
    codes = np.asarray(model.encode(state, digits))
    for count in (1, 4):
        parted = dataclasses.replace(model, optimizer=Adam(accumulation_steps=count))
        learned = jax.jit(parted.train_step)(state, digits, jax.random.key(1))[0].learned
        for name, now in (("code_mean", codes.mean(0)), ("code_second_moment", codes.T @ codes / 16)):
            np.testing.assert_allclose(learned[name], 0.5 * state.learned[name] + 0.5 * now, rtol=1e-4, atol=1e-5)
    samples = model.sample(state, jax.random.key(0), 5)
    assert samples.shape == (5, 8, 8, 1) and jnp.isfinite(samples).all()
