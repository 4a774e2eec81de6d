"""Adversarial networks that also encode."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.gan.adversarial_autoencoder import AdversarialAutoencoder, CodeMatching, NormalPrior, RingPrior
from genjax.families.gan.bigan import BiGAN
from genjax.families.gan.info_gan import InfoGAN
from genjax.families.gan.vae_gan import VAEGAN, normal_latents
from genjax.nn.distributions import Bernoulli, DiscretizedLogistic
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import SGD, Adam
from genjax.tools.latents import traversals

NETWORK = MLPNetwork(hidden_dims=(6,), activation="tanh")
BATCH = {"x": jax.random.uniform(jax.random.key(0), (5, 3))}


def test_the_parts_of_a_vae_gan_learn_from_their_own_losses():
    model = VAEGAN(data_shape=(3,), latent_dim=2, network=NETWORK, num_features=4, feature_weight=2.0)
    state = model.init(jax.random.key(1), BATCH)
    x, discriminator = BATCH["x"], state.params["discriminator"]
    assert float(model.feature_error(discriminator, x, x).max()) == 0.0
    hidden = [model.discriminate(discriminator, y)[0] for y in (x, x**2)]
    expected = 0.5 * np.sum((np.asarray(hidden[0]) - np.asarray(hidden[1])) ** 2, -1)
    np.testing.assert_allclose(model.feature_error(discriminator, x, x**2), expected, rtol=1e-5)
    new, metrics = jax.jit(model.train_step)(state, BATCH, jax.random.key(2))
    np.testing.assert_allclose(metrics["loss"], metrics["kl"] + metrics["feature_error"], rtol=1e-5)
    for name in state.params:
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state.params[name], new.params[name]))))
    posterior = model.posterior(state.params["encoder"], x)
    kl = -0.5 * (1 + 2 * posterior.log_scale - posterior.mean**2 - jnp.exp(2 * posterior.log_scale)).sum(-1)
    np.testing.assert_allclose(model.evaluate(state, BATCH, jax.random.key(3))["kl"], kl, rtol=1e-4, atol=1e-6)


def descended(params, loss, rate):
    """Parameters after a step of gradient descent."""
    return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))


def assert_alike(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


def minus_log_sigmoid(scores):
    return jnp.log1p(jnp.exp(-scores)).mean()


def test_a_step_of_a_vae_gan_descends_its_three_losses_in_turn():
    names = ("encoder", "decoder", "discriminator")
    weights = {"kl_weight": 0.3, "feature_weight": 2.0, "penalty_weight": 0.4}
    model = VAEGAN(data_shape=(3,), latent_dim=2, network=NETWORK, num_features=4, **weights)
    optimizers = {f"{name}_optimizer": SGD(learning_rate=0.1 * (i + 1)) for i, name in enumerate(names)}
    model = dataclasses.replace(model, **optimizers)
    state, x, key = model.init(jax.random.key(1), BATCH), BATCH["x"], jax.random.key(2)
    noise, prior = (normal_latents(k, BATCH, 2) for k in jax.random.split(key))

    @jax.jit
    def by_hand(encoder, decoder, discriminator):
        def pictures(encoder, decoder):
            posterior = model.posterior(encoder, x)
            codes = posterior.mean + jnp.exp(posterior.log_scale) * noise
            return posterior, model.generate(decoder, codes), model.generate(decoder, prior)

        def error(again):
            hidden = [model.discriminate(discriminator, y)[0] for y in (x, again)]
            return 0.5 * ((hidden[0] - hidden[1]) ** 2).sum(-1).mean()

        def encoder_loss(encoder):
            posterior, again, _ = pictures(encoder, decoder)
            variance = jnp.exp(2 * posterior.log_scale)
            kl = 0.5 * (variance + posterior.mean**2 - 1.0 - jnp.log(variance)).sum(-1).mean()
            return 0.3 * kl + error(again)

        encoder = descended(encoder, encoder_loss, 0.1)

        def decoder_loss(decoder):
            _, again, drawn = pictures(encoder, decoder)
            scores = [model.discriminate(discriminator, y)[1] for y in (again, drawn)]
            return 2.0 * error(again) + minus_log_sigmoid(scores[0]) + minus_log_sigmoid(scores[1])

        decoder = descended(decoder, decoder_loss, 0.2)

        def discriminator_loss(discriminator):
            _, again, drawn = pictures(encoder, decoder)
            real, *fake = (model.discriminate(discriminator, y)[1] for y in (x, again, drawn))
            slope = jax.vmap(jax.grad(lambda y: model.discriminate(discriminator, y[None])[1][0]))(x)
            penalty = 0.5 * 0.4 * (slope**2).sum(-1).mean()
            return minus_log_sigmoid(real) + minus_log_sigmoid(-fake[0]) + minus_log_sigmoid(-fake[1]) + penalty

        return encoder, decoder, descended(discriminator, discriminator_loss, 0.3)

    new, _ = jax.jit(model.train_step)(state, BATCH, key)
    expected = by_hand(*(state.params[name] for name in names))
    assert_alike(new.params, dict(zip(names, expected)))


def test_a_step_of_a_bigan_descends_both_losses_in_turn():
    optimizers = {"discriminator_optimizer": SGD(learning_rate=0.1), "generator_optimizer": SGD(learning_rate=0.2)}
    model = BiGAN(data_shape=(3,), latent_dim=2, network=NETWORK, num_features=4, **optimizers)
    state, x = model.init(jax.random.key(1), BATCH), BATCH["x"]

    @jax.jit
    def by_hand(nets, discriminator, discriminator_key, generator_key):
        def scores(nets, discriminator, key):
            latents = normal_latents(jax.random.split(key)[0], BATCH, 2)
            data = model.score(discriminator, x, model.codes(nets["encoder"], x))
            return data, model.score(discriminator, model.generate(nets["generator"], latents), latents)

        def discriminator_loss(discriminator):
            data, samples = scores(nets, discriminator, discriminator_key)
            return minus_log_sigmoid(data) + minus_log_sigmoid(-samples)

        discriminator = descended(discriminator, discriminator_loss, 0.1)

        def generator_loss(nets):
            data, samples = scores(nets, discriminator, generator_key)
            return minus_log_sigmoid(-data) + minus_log_sigmoid(samples)

        return descended(nets, generator_loss, 0.2), discriminator

    key = jax.random.key(2)
    new, _ = jax.jit(model.train_step)(state, BATCH, key)
    nets, discriminator = by_hand(
        state.params["generator_and_encoder"], state.params["discriminator"], *jax.random.split(key)
    )
    assert_alike(new.params, {"generator_and_encoder": nets, "discriminator": discriminator})


def test_priors_of_codes_have_their_moments():
    index = {"example_index": jnp.arange(4000)}
    ring = np.asarray(RingPrior(num_modes=5, radius=3.0, scale=0.1).draw(jax.random.key(0), index, 3))
    np.testing.assert_allclose(np.hypot(ring[:, 0], ring[:, 1]).mean(), 3.0, atol=0.02)
    np.testing.assert_allclose(ring[:, 2].std(), 0.1, rtol=0.1)
    modes = np.bincount(np.round(np.arctan2(ring[:, 1], ring[:, 0]) / (2 * np.pi / 5)).astype(int) % 5)
    assert modes.min() > 700
    normal = NormalPrior(scale=2.0).draw(jax.random.key(0), index, 2)
    np.testing.assert_allclose(np.cov(np.asarray(normal).T), 4 * np.eye(2), atol=0.3)
    with pytest.raises(ValueError, match="at least two dimensions"):
        RingPrior().draw(jax.random.key(0), index, 1)


def test_the_encoder_of_an_adversarial_autoencoder_takes_two_updates_in_turn():
    model = AdversarialAutoencoder(
        data_shape=(3,),
        latent_dim=2,
        network=NETWORK,
        matching=CodeMatching(hidden_dims=(4,)),
        reconstruction_optimizer=SGD(learning_rate=0.1, ema_decay=0.9),
        encoder_optimizer=SGD(learning_rate=0.2),
        discriminator_optimizer=SGD(learning_rate=0.0),
    )
    state = model.init(jax.random.key(1), BATCH)
    new, _ = jax.jit(model.train_step)(state, BATCH, jax.random.key(2))
    nets, x = state.params["autoencoder"], BATCH["x"]

    def reconstruction(nets):
        return model.reconstruction_error(nets["decoder"], model.codes(nets["encoder"], x), x).mean()

    def deceived(encoder):
        return jax.nn.softplus(-model.matching.score(state.params["discriminator"], model.codes(encoder, x))).mean()

    nets = descended(nets, reconstruction, 0.1)
    encoder = descended(nets["encoder"], deceived, 0.2)
    assert_alike(new.params["autoencoder"], {"encoder": encoder, "decoder": nets["decoder"]})
    assert set(new.params) == set(state.params) and model.sample(new, jax.random.key(3), 4).shape == (4, 3)
    with pytest.raises(ValueError, match="reconstruction_optimizer.ema_decay"):
        dataclasses.replace(model, encoder_optimizer=SGD(ema_decay=0.9))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (Bernoulli(), "Bernoulli declares 0 to 1"),
        (DiscretizedLogistic(num_levels=3), "DiscretizedLogistic declares 0 to 1"),
    ],
)
def test_an_adversarial_autoencoder_does_not_score_values_without_a_likelihood(output, message):
    model = AdversarialAutoencoder(data_shape=(3,), latent_dim=2, network=NETWORK, output=output)
    batch = {"x": jnp.array([[0.0, 0.5, 1.0], [-1.0, 0.0, 1.0]])}
    state = model.init(jax.random.key(1), batch)
    with jax.debug_nans(False):
        scores = model.evaluate(state, batch, jax.random.key(2))["reconstruction"]
    np.testing.assert_array_equal(np.isnan(scores), [False, True])
    model.diagnose(state, {"x": batch["x"][:1]}, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        model.diagnose(state, batch, jax.random.key(0))


def test_gradient_penalties_of_codes_and_pictures_are_those_of_each_example():
    codes, prior = BATCH["x"], NormalPrior().draw(jax.random.key(2), BATCH, 3)
    plain, penalized = (CodeMatching(hidden_dims=(4,), activation="tanh", penalty_weight=w) for w in (0.0, 3.0))
    params = plain.init(jax.random.key(1), 3)
    loss, more = (m.discriminator_loss(params, codes, BATCH, jax.random.key(2))[0] for m in (plain, penalized))
    # By central differences.
    moved = 1e-2 * jnp.eye(3)[:, None]
    score = lambda points: plain.score(params, points)
    slopes = [sum(((score(x + d) - score(x - d)) / 2e-2) ** 2 for d in moved).mean() for x in (codes, prior)]
    np.testing.assert_allclose(more - loss, 1.5 * sum(slopes), rtol=1e-3)

    plain, penalized = (
        InfoGAN(data_shape=(3,), noise_dim=2, network=NETWORK, penalty_weight=weight) for weight in (0.0, 3.0)
    )
    state = plain.init(jax.random.key(1), BATCH)
    loss, more = (
        jax.jit(m.train_step)(state, BATCH, jax.random.key(2))[1]["discriminator_loss"] for m in (plain, penalized)
    )
    score = lambda x: plain.discriminate(state.params["discriminator"], x[None])[0][0]
    gradients = jax.vmap(jax.grad(score))(BATCH["x"])
    np.testing.assert_allclose(more - loss, 1.5 * (gradients**2).sum(-1).mean(), rtol=1e-3)


@pytest.mark.parametrize("stochastic", [False, True])
def test_bigan_scores_pairs_of_data_and_codes(stochastic):
    model = BiGAN(data_shape=(3,), latent_dim=2, network=NETWORK, num_features=4, stochastic_encoder=stochastic)
    state = model.init(jax.random.key(1), BATCH)
    nets, discriminator = state.params["generator_and_encoder"], state.params["discriminator"]
    data, samples = model.pair_scores(nets, discriminator, BATCH, jax.random.key(2))
    assert data.shape == samples.shape == (5,)
    mean = model.codes(nets["encoder"], BATCH["x"])
    at_mean = model.score(discriminator, BATCH["x"], mean)
    assert np.allclose(at_mean, data) is (not stochastic)
    assert np.abs(model.score(discriminator, BATCH["x"], mean + 1.0) - at_mean).min() > 1e-4
    assert model.reconstruct(state, BATCH, jax.random.key(3)).shape == (5, 3)


def test_log_probability_of_a_code_is_that_of_its_parts():
    model = InfoGAN(data_shape=(3,), noise_dim=2, categories=(3, 2), num_continuous=2, network=NETWORK)
    codes = np.asarray(model.draw_codes(jax.random.key(0), {"x": np.zeros((4000, 1))}))
    assert codes.shape == (4000, 7) and (codes[:, :3].sum(1) == 1).all() and (codes[:, 3:5].sum(1) == 1).all()
    np.testing.assert_allclose(codes.mean(0), [1 / 3] * 3 + [1 / 2] * 2 + [0, 0], atol=0.03)
    assert np.abs(codes[:, 5:]).max() <= 1 and codes[:, 5:].std(0) == pytest.approx(3**-0.5, abs=0.02)
    parameters = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    chosen = codes[:6]
    expected = np.zeros(6)
    for start, stop in ((0, 3), (3, 5)):
        p = np.exp(parameters[:, start:stop])
        expected += np.log((p / p.sum(1, keepdims=True) * chosen[:, start:stop]).sum(1))
    mean, scale = parameters[:, 5:7], np.exp(parameters[:, 7:])
    expected += (-0.5 * ((chosen[:, 5:] - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)).sum(1)
    np.testing.assert_allclose(sum(model.code_log_prob(parameters, chosen)), expected, rtol=1e-4, atol=1e-5)
    # Q that is certain and right reaches the entropy of categorical codes.
    certain = InfoGAN(data_shape=(3,), categories=(3, 2), num_continuous=0, network=NETWORK)
    bound = certain.information_bound(100.0 * chosen[:, :5], chosen[:, :5])
    np.testing.assert_allclose(bound, math.log(6), rtol=1e-5)
    with pytest.raises(ValueError, match="at least two values"):
        InfoGAN(categories=(1,))


def test_a_traversal_of_a_code_changes_one_variable():
    model = InfoGAN(data_shape=(3,), noise_dim=2, categories=(4,), num_continuous=1, network=MLPNetwork(hidden_dims=()))
    state = model.init(jax.random.key(1), BATCH)
    kernel = jax.tree.leaves(state.params["generator"])[-1]
    assert kernel.shape == (7, 3)
    rows = np.asarray(model.traverse(state, jax.random.key(2), 1, num_rows=2, num_values=5))
    assert rows.shape == (2, 5, 3)
    # The generator is affine: along a row, steps are those of the continuous variable.
    np.testing.assert_allclose(np.diff(rows, axis=1), np.broadcast_to(0.5 * kernel[6], (2, 4, 3)), rtol=1e-3, atol=1e-5)
    rows = np.asarray(model.traverse(state, jax.random.key(2), 0, num_rows=2))
    np.testing.assert_allclose(
        rows[:, 1] - rows[:, 0], np.broadcast_to(kernel[3] - kernel[2], (2, 3)), rtol=1e-3, atol=1e-5
    )
    # The tool draws all variables, and codes of one category alone.
    sheets = list(traversals(types.SimpleNamespace(model=model, state=state), jax.random.key(2), 2, 5))
    assert [sheet.shape for sheet in sheets] == [(2, 4, 3), (2, 5, 3)]
    np.testing.assert_allclose(sheets[0], rows, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="variables 0 to 1, not 2"):
        model.traverse(state, jax.random.key(2), 2, 1)
    optimizer = Adam(ema_decay=0.9)
    learned = InfoGAN(data_shape=(3,), noise_dim=2, network=NETWORK, generator_optimizer=optimizer)
    state, metrics = jax.jit(learned.train_step)(learned.init(jax.random.key(1), BATCH), BATCH, jax.random.key(2))
    assert set(state.ema_params) == {"generator"} and np.isfinite(metrics["information_bound"])
    assert learned.encode(state, BATCH).shape == (5, 12)
