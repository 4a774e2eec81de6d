"""The objectives that vary the VAE's, each against what can be worked out for it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from genjax.families.vae.beta_vae import BetaTCVAE, BetaVAE, CapacityVAE, aggregated_posterior_log_probs
from genjax.families.vae.conditional_vae import ConditionalVAE
from genjax.families.vae.iwae import IWAE
from genjax.families.vae.vae import VAE
from genjax.nn.distributions import DiagonalGaussian, Gaussian
from genjax.nn.encoder_decoder import MLPNetwork

NETWORK = MLPNetwork(hidden_dims=(8,), activation="tanh")
SMALL = {"data_shape": (8, 8, 1), "latent_dim": 2, "network": NETWORK}


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return {
        "x": jnp.asarray(data.images[:12, :, :, None] / 16.0, jnp.float32),
        "label": jnp.asarray(data.target[:12], jnp.int32),
    }


# IWAE


def test_iwae_bound_is_the_importance_weighted_likelihood(digits):
    model = IWAE(**SMALL, num_samples=6)
    state = model.init(jax.random.key(0), digits)
    expected = model.log_likelihood(state, digits, jax.random.key(1), 6)
    np.testing.assert_allclose(
        model.log_prob_bound(state, digits, jax.random.fold_in(jax.random.key(1), 0)), expected, rtol=1e-5
    )


def _mean_gradients(model, params, batch, count):
    gradient = jax.grad(lambda p, k: model.loss(p, batch, k, jnp.zeros(()))[0])
    rows = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(params, jax.random.split(jax.random.key(2), count))
    rows = np.concatenate([np.asarray(r).reshape(count, -1) for r in jax.tree.leaves(rows["encoder"])], axis=1)
    return rows.mean(0), rows.std(0) / np.sqrt(count)


# x | z ~ N(z, 1) and z ~ N(0, 1): the posterior is N(x / 2, 1 / 2), and p(x) = N(x; 0, 2).
SCALAR = {"data_shape": (1,), "latent_dim": 1, "network": MLPNetwork(hidden_dims=()), "output": Gaussian()}
SCALAR_BATCH = {"x": jnp.array([[0.3], [-1.2]])}


def _scalar_params(error):
    """Parameters whose posterior is off by `error`."""
    dense = lambda kernel, bias: {"MLP_0": {"Dense_0": {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}}}
    return {
        "encoder": dense([[0.5 + error, 0.0]], [error, 0.5 * np.log(0.5) + error]),
        "decoder": {"_MLPDecoder_0": dense([[1.0]], [0.0])},
    }


def test_doubly_reparametrised_gradient_has_the_same_mean_and_less_variance():
    model = IWAE(**SCALAR, num_samples=3)
    params = _scalar_params(0.2)
    mean, error = _mean_gradients(model, params, SCALAR_BATCH, 20_000)
    doubly = dataclasses.replace(model, gradient="doubly_reparametrised")
    doubly_mean, doubly_error = _mean_gradients(doubly, params, SCALAR_BATCH, 20_000)
    assert (np.abs(mean - doubly_mean) < 5 * np.hypot(error, doubly_error) + 1e-6).all()
    assert (doubly_error < 0.8 * error).all()


def test_gradients_of_the_encoder_vanish_without_noise_at_an_exact_posterior():
    params = _scalar_params(0.0)
    for gradient in ("doubly_reparametrised", "sticking_the_landing"):
        model = IWAE(**SCALAR, gradient=gradient)
        grads = jax.grad(lambda p, m=model: m.loss(p, SCALAR_BATCH, jax.random.key(0), jnp.zeros(()))[0])(params)
        jax.tree.map(lambda g: np.testing.assert_allclose(g, 0.0, atol=1e-6), grads["encoder"])
    expected = -0.5 * SCALAR_BATCH["x"][:, 0] ** 2 / 2.0 - 0.5 * np.log(2 * np.pi * 2.0)
    np.testing.assert_allclose(model.bound(params, SCALAR_BATCH, jax.random.key(0))[0], expected, rtol=1e-5)


# beta-VAE and its relatives


def test_beta_weighs_the_kl():
    kl = jnp.array([[0.5, 1.0], [1.5, 3.0]])
    assert BetaVAE(**SMALL, beta=3.0).kl_penalty(kl, jnp.zeros(())) == pytest.approx(9.0)


def test_capacity_rises_linearly_and_holds_the_kl():
    model = CapacityVAE(**SMALL, gamma=10.0, max_capacity=4.0, capacity_steps=8)
    kl = jnp.array([[0.5, 1.0], [1.5, 3.0]])
    penalties = [float(model.kl_penalty(kl, jnp.int32(step))) for step in (0, 4, 8, 100)]
    np.testing.assert_allclose(penalties, [30.0, 10 * (0.5 + 2.5) / 2, 10 * (2.5 + 0.5) / 2, 15.0])


@pytest.fixture(scope="module")
def mixture():
    rng = np.random.default_rng(0)
    posterior = DiagonalGaussian(jnp.float32(rng.normal(size=(4, 2))), jnp.float32(0.3 * rng.normal(size=(4, 2))))
    return posterior, posterior.sample(jnp.float32(rng.normal(size=(4, 2))))


def test_aggregated_posterior_of_the_whole_set_is_the_mixture(mixture):
    posterior, z = mixture
    densities = stats.norm(np.asarray(posterior.mean), np.exp(posterior.log_scale)).pdf(z[:, None])  # [4, 4, 2]
    joint, product = aggregated_posterior_log_probs(z, posterior, jnp.arange(4), 4)
    np.testing.assert_allclose(joint, np.log(densities.prod(-1).mean(1)), rtol=1e-4)
    np.testing.assert_allclose(product, np.log(densities.mean(1)).sum(-1), rtol=1e-4)


def test_aggregated_posterior_of_a_batch_is_unbiased_over_all_batches(mixture):
    posterior, z = mixture
    exact = jnp.exp(aggregated_posterior_log_probs(z, posterior, jnp.arange(4), 4)[0])
    for n in range(4):
        estimates = []
        for others in itertools.combinations([m for m in range(4) if m != n], 2):
            rows = jnp.array([n, *others])
            part = DiagonalGaussian(posterior.mean[rows], posterior.log_scale[rows])
            joint, _ = aggregated_posterior_log_probs(z[n][None], part, jnp.zeros(1, jnp.int32), 4)
            estimates.append(float(jnp.exp(joint[0])))
        np.testing.assert_allclose(np.mean(estimates), exact[n], rtol=1e-4)


def test_parts_of_the_kl_sum_to_it(digits):
    model = BetaTCVAE(**SMALL, num_examples=100)
    state = model.init(jax.random.key(0), digits)
    posterior = model.posterior(state.params, digits)
    z = posterior.with_sample_axis().sample(model.noise(jax.random.key(1), digits, 1))[0]
    parts = model.kl_parts(posterior, z)
    expected = posterior.log_prob(z) + 0.5 * (z**2 + np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(sum(parts.values()), expected, atol=1e-4)
    same = dataclasses.replace(model, beta=1.0)
    # With all weights 1 the loss is the VAE's with a sampled KL.
    loss, metrics = jax.jit(same.loss)(state.params, digits, jax.random.key(1), jnp.zeros(()))
    np.testing.assert_allclose(loss, metrics["reconstruction"] + expected.mean(), rtol=1e-4)


def test_total_correlation_is_the_same_under_pmap_and_accumulation(digits):
    model = BetaTCVAE(**SMALL, num_examples=100)
    state = model.init(jax.random.key(0), digits)
    index = jnp.arange(12)
    whole = jax.jit(model.train_step)(state, {**digits, "example_index": index}, jax.random.key(1))
    devices = jax.devices()[:2]
    split = {name: a.reshape(2, 6, *a.shape[1:]) for name, a in {**digits, "example_index": index}.items()}
    copies = jax.tree.map(lambda a: jnp.stack([a, a]), state)
    accumulated = dataclasses.replace(model, optimizer=dataclasses.replace(model.optimizer, accumulation_steps=3))
    parts = jax.pmap(accumulated.train_step, axis_name="device", in_axes=(0, 0, None), devices=devices)(
        copies, split, jax.random.key(1)
    )
    for name, value in whole[1].items():
        np.testing.assert_allclose(parts[1][name][0], value, rtol=2e-4, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-4), parts[0].params, whole[0].params)


# Conditional VAE


@pytest.fixture(scope="module")
def conditional(digits):
    model = ConditionalVAE(**SMALL, num_classes=10, condition_keys=("label", "thickness"))
    batch = {**digits, "thickness": jnp.arange(12.0)[:, None] / 12}
    return model, batch, model.init(jax.random.key(0), batch)


def test_encoder_and_decoder_see_the_condition(conditional):
    model, batch, state = conditional
    other = {**batch, "label": (batch["label"] + 1) % 10}
    assert jnp.abs(model.encode(state, batch) - model.encode(state, other)).max() > 1e-3
    z = jnp.zeros((12, 2))
    pictures = model.decode(state, z, label=batch["label"], thickness=batch["thickness"])
    assert jnp.abs(pictures - model.decode(state, z, label=other["label"], thickness=batch["thickness"])).max() > 1e-3
    assert jnp.abs(pictures - model.decode(state, z, label=batch["label"])).max() > 1e-3
    metrics = jax.jit(dataclasses.replace(model, num_importance_samples=3).evaluate)(state, batch, jax.random.key(0))
    assert metrics["nll"].shape == (12,)


def test_samples_without_a_condition_show_every_class_in_turn(conditional):
    model, _, state = conditional
    key = jax.random.key(0)
    pictures = model.sample(state, key, 12)
    assert pictures.shape == (12, 8, 8, 1)
    np.testing.assert_array_equal(pictures, model.sample(state, key, 12, label=jnp.arange(12) % 10))
    np.testing.assert_array_equal(
        model.sample(state, key, 3, label=7), model.sample(state, key, 3, label=jnp.full(3, 7))
    )


def test_importance_weights_repeat_the_condition_for_every_sample(conditional):
    model, batch, state = conditional
    params = state.params
    z = jax.random.normal(jax.random.key(0), (3, 12, 2))
    together = model.log_likelihood_given(params, batch, z)
    apart = jnp.stack([model.log_likelihood_given(params, batch, each[None])[0] for each in z])
    np.testing.assert_allclose(together, apart, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConditionalVAE(condition_keys=()), "must name an entry"),
        (lambda: IWAE(num_samples=0), "at least 1"),
        (lambda: IWAE(free_bits=0.1), "must be 0"),
        (lambda: BetaTCVAE(num_examples=1), "at least 2"),
        (lambda: CapacityVAE(kl_warmup_steps=5), "must be 0"),
    ],
)
def test_impossible_settings_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_or_unknown_condition_is_an_error(conditional, digits):
    model, _, state = conditional
    with pytest.raises(ValueError, match="'thickness', which is not among"):
        model.encode(state, digits)
    with pytest.raises(ValueError, match="colour is not a condition"):
        model.sample(state, jax.random.key(0), 2, colour=jnp.ones(2))
    with pytest.raises(ValueError, match="labels must lie between 0 and 9, not 3 and 10"):
        model.check_labels(np.array([3, 10]))


def test_every_variant_learns(digits):
    for model in (IWAE(**SMALL), BetaVAE(**SMALL), CapacityVAE(**SMALL), BetaTCVAE(**SMALL)):
        assert isinstance(model, VAE)
        state = model.init(jax.random.key(0), digits)
        step = jax.jit(model.train_step)
        state, first = step(state, digits, jax.random.key(0))
        for i in range(1, 60):
            state, last = step(state, digits, jax.random.key(i))
        assert last["loss"] < first["loss"], model
        evaluated = model.evaluate(state, digits, jax.random.key(0))
        assert all(value.shape == (12,) for value in evaluated.values())
