"""The VAE against closed forms: probabilistic PCA is its optimum with a linear decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from genjax.families.vae.vae import VAE
from genjax.model import TrainState
from genjax.nn.distributions import Bernoulli, Categorical, DiagonalGaussian, DiscretizedLogistic, Gaussian
from genjax.nn.encoder_decoder import ConvNetwork, MLPNetwork
from genjax.optimizers import SGD, Adam, Cosine
from tests.compiled import OPTIMIZED

DIM, LATENT = 5, 2
LINEAR = VAE(
    data_shape=(DIM,),
    latent_dim=LATENT,
    network=MLPNetwork(hidden_dims=()),
    output=Gaussian(scale=0.5, learned_scale="shared", min_scale=1e-6),
)
SMALL = VAE(data_shape=(8, 8, 1), latent_dim=3, network=MLPNetwork(hidden_dims=(16,), activation="tanh"))


@pytest.fixture(scope="module")
def digits():
    return {"x": jnp.asarray(load_digits().images[:24, :, :, None] / 16.0, jnp.float32)}


@pytest.fixture(scope="module")
def ppca():
    """Data, the maximum-likelihood probabilistic PCA of them as VAE parameters, and its log-density of each example."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, LATENT)) @ rng.normal(size=(LATENT, DIM)) + 0.5 * rng.normal(size=(60, DIM)) + 1.0
    mean, covariance = x.mean(0), np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    variance = values[LATENT:].mean()
    # Tipping & Bishop 1999, eq. 7; with this rotation the posterior covariance variance M^-1 is diagonal.
    weights = vectors[:, :LATENT] * np.sqrt(values[:LATENT] - variance)  # [DIM, LATENT]
    m_inverse = np.linalg.inv(weights.T @ weights + variance * np.eye(LATENT))
    encoder = weights @ m_inverse  # [DIM, LATENT]
    log_scale = 0.5 * np.log(variance * np.diag(m_inverse))
    floor = np.log(LINEAR.output.min_scale)
    raw = np.log(np.expm1(0.5 * np.log(variance) - floor)) + floor - np.log(LINEAR.output.scale)
    dense = lambda kernel, bias: {"MLP_0": {"Dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}
    params = {
        "encoder": dense(
            np.concatenate([encoder, np.zeros_like(encoder)], 1), np.concatenate([-mean @ encoder, log_scale])
        ),
        "decoder": {"_MLPDecoder_0": dense(weights.T, mean), "shared_output": jnp.float32([raw])},
    }
    log_prob = stats.multivariate_normal(mean, weights @ weights.T + variance * np.eye(DIM)).logpdf(x)
    return {"x": jnp.asarray(x, jnp.float32)}, params, log_prob


def test_importance_weights_at_the_linear_optimum_are_the_ppca_likelihood(ppca):
    batch, params, expected = ppca
    state = LINEAR.init(jax.random.key(0), batch)
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    state = state.replace(params=params)
    # The posterior is exact, so a single weight is the likelihood.
    np.testing.assert_allclose(LINEAR.log_likelihood(state, batch, jax.random.key(1), 1), expected, atol=2e-4)
    np.testing.assert_allclose(LINEAR.log_likelihood(state, batch, jax.random.key(1), 7), expected, atol=2e-4)


def test_elbo_is_exact_for_a_linear_decoder(ppca):
    batch, params, expected = ppca
    evaluate = jax.jit(jax.vmap(lambda key: LINEAR.elbo_terms(params, batch, key)))
    log_likelihood, kl = evaluate(jax.random.split(jax.random.key(0), 4000))
    elbo = (log_likelihood - kl.sum(-1)).mean(1)
    assert abs(elbo.mean() - expected.mean()) < 4 * elbo.std() / np.sqrt(len(elbo))


def test_gradient_of_the_loss_vanishes_at_the_linear_optimum(ppca):
    batch, params, _ = ppca
    gradient = jax.jit(
        jax.vmap(
            jax.grad(lambda p, k: LINEAR.loss(p, batch, k, jnp.zeros(()))[0]),
            in_axes=(None, 0),
        )
    )(params, jax.random.split(jax.random.key(0), 4000))
    for leaf in jax.tree.leaves(gradient):
        error = leaf.std(0) / np.sqrt(len(leaf))
        assert (jnp.abs(leaf.mean(0)) < 5 * error + 1e-4).all()


def test_training_reaches_the_ppca_likelihood_of_the_digits():
    x = load_digits().images[::3].reshape(-1, 64) / 16.0
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    variance = values[8:].mean()
    log_det = np.log(values[:8]).sum() + 56 * np.log(variance)
    expected = -0.5 * (64 * np.log(2 * np.pi) + log_det + 64)  # Tipping & Bishop 1999, eq. 8, in nats an example
    num_steps = 4000
    model = VAE(
        data_shape=(64,),
        latent_dim=8,
        network=MLPNetwork(hidden_dims=()),
        output=Gaussian(scale=0.3, learned_scale="shared"),
        optimizer=Adam(learning_rate=3e-2, schedule=Cosine(num_steps=num_steps)),
    )
    batch = {"x": jnp.asarray(x, jnp.float32)}
    state = model.init(jax.random.key(0), batch)

    def step(state, _):
        return model.train_step(state, batch, jax.random.fold_in(jax.random.key(1), state.step))[0], None

    steps = lambda state: jax.lax.scan(step, state, None, length=num_steps)[0]
    state = jax.jit(steps, compiler_options=OPTIMIZED)(state)
    # Two bounds: the elbo is no estimate of more than the likelihood, which no parameters can pass.
    bound = jax.jit(jax.vmap(lambda key: model.log_prob_bound(state, batch, key).mean()))
    elbo = bound(jax.random.split(jax.random.key(0), 20))
    assert expected - 0.1 < elbo.mean() < expected + 4 * elbo.std() / np.sqrt(20)
    estimate = jax.jit(lambda key: model.log_likelihood(state, batch, key, 20).mean())(jax.random.key(0))
    assert expected - 0.1 < estimate < expected + 0.02, (elbo.mean(), estimate, expected)


def test_kl_closed_form_equals_monte_carlo():
    posterior = DiagonalGaussian(jnp.array([0.5, -1.0, 0.0]), jnp.array([-0.7, 0.3, 0.0]))
    z = posterior.with_sample_axis().sample(jax.random.normal(jax.random.key(0), (200_000, 3)))
    q = stats.norm(np.asarray(posterior.mean), np.exp(np.asarray(posterior.log_scale)))
    ratio = q.logpdf(np.asarray(z)) - stats.norm.logpdf(np.asarray(z))
    error = ratio.std(0) / np.sqrt(len(z))
    assert (np.abs(ratio.mean(0) - posterior.kl_to_standard_normal()) <= 4 * error + 1e-6).all()


def test_importance_weighted_bound_tightens_with_samples(digits):
    state = SMALL.init(jax.random.key(0), digits)
    # A broad posterior, so that the bound has something to gain.
    bound = jax.jit(SMALL.log_likelihood, static_argnums=3)
    values = [bound(state, digits, jax.random.key(1), n).mean() for n in (1, 10, 400)]
    assert values[0] < values[1] < values[2]
    elbo = jnp.stack([SMALL.log_prob_bound(state, digits, jax.random.key(i)).mean() for i in range(20)]).mean()
    assert abs(elbo - values[0]) < 1.0 and elbo < values[2]


def test_importance_weighted_estimate_sums_every_chunk_once(digits):
    state = SMALL.init(jax.random.key(0), digits)
    chunked = dataclasses.replace(SMALL, importance_chunk_size=4)
    key, total = jax.random.key(3), 10
    posterior = SMALL.posterior(state.params, digits)
    noise = [SMALL.noise(jax.random.fold_in(key, i), digits, 4) for i in range(3)]
    draws = [posterior.with_sample_axis().sample(each) for each in noise]
    weights = [SMALL.log_weights(state.params, digits, posterior, z) for z in draws]
    expected = jax.nn.logsumexp(jnp.concatenate(weights)[:total], axis=0) - jnp.log(float(total))
    np.testing.assert_allclose(chunked.log_likelihood(state, digits, key, total), expected, rtol=1e-5)


@pytest.mark.parametrize("free", [False, True])
def test_accumulation_equals_the_full_batch(free, digits):
    state = SMALL.init(jax.random.key(0), digits)
    # Half of the dimensions are free in the whole batch; in its parts others are.
    kl = SMALL.posterior(state.params, digits).kl_to_standard_normal()
    free_bits = float(jnp.median(kl.mean(0))) if free else 0.0
    model = dataclasses.replace(SMALL, kl_warmup_steps=10, free_bits=free_bits)
    step = lambda n: jax.jit(dataclasses.replace(model, optimizer=SGD(accumulation_steps=n)).train_step)(
        TrainState.create(state.params, SGD()), digits, jax.random.key(1)
    )
    (full, full_metrics), (parts, parts_metrics) = step(1), step(3)
    for name, value in full_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), full.params, parts.params)


def test_free_bits_leave_small_dimensions_without_gradient():
    kl = jnp.array([[0.1, 2.0], [0.3, 4.0]])
    model = dataclasses.replace(SMALL, free_bits=0.5)
    penalty, gradient = jax.value_and_grad(lambda k: model.kl_penalty(k, jnp.zeros(())))(kl)
    assert penalty == pytest.approx(0.5 + 3.0)
    np.testing.assert_array_equal(gradient, [[0.0, 0.5], [0.0, 0.5]])


def test_kl_warm_up_is_linear():
    model = dataclasses.replace(SMALL, kl_warmup_steps=4)
    penalties = [model.kl_penalty(jnp.ones((2, 1)), jnp.int32(step)) for step in (0, 1, 3, 50)]
    np.testing.assert_allclose(penalties, [0.25, 0.5, 1.0, 1.0])


def test_a_few_steps_raise_the_bound_and_samples_have_the_shape_of_data(digits):
    state = SMALL.init(jax.random.key(0), digits)
    step = jax.jit(SMALL.train_step)
    first = None
    for i in range(40):
        state, metrics = step(state, digits, jax.random.key(i))
        first = metrics["elbo"] if first is None else first
    assert metrics["elbo"] > first + 5.0
    assert SMALL.sample(state, jax.random.key(0), 5).shape == (5, 8, 8, 1)
    assert SMALL.decode(state, SMALL.encode(state, digits)).shape == digits["x"].shape


@pytest.mark.parametrize(
    "output",
    [
        Bernoulli(),
        Gaussian(scale=0.3),
        Gaussian(scale=0.3, learned_scale="per_value"),
        DiscretizedLogistic(num_levels=17),
        DiscretizedLogistic(num_levels=17, learned_scale="shared"),
        Categorical(num_levels=17),
    ],
    ids=lambda o: f"{type(o).__name__}-{getattr(o, 'learned_scale', '')}",
)
def test_every_output_distribution_evaluates_and_samples(output, digits):
    model = dataclasses.replace(SMALL, output=output, num_importance_samples=2, sample_output="draw")
    state = model.init(jax.random.key(0), digits)
    density = output.support().density
    shift = 2.0 if density else 0.0
    batch = {**digits, "log_abs_det": jnp.full(24, shift)} if density else digits
    metrics = jax.jit(model.evaluate)(state, batch, jax.random.key(1))
    assert set(metrics) == {"elbo", "nll_bound", "kl", "reconstruction", "nll"}
    assert all(value.shape == (24,) for value in metrics.values())
    np.testing.assert_allclose(metrics["nll_bound"], -metrics["elbo"] - shift, rtol=1e-5)
    assert model.sample(state, jax.random.key(0), 3).shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (Bernoulli(), "Bernoulli declares 0 to 1"),
        (DiscretizedLogistic(num_levels=17), "DiscretizedLogistic declares 0 to 1"),
        (Categorical(num_levels=17), "Categorical declares 0 to 1"),
    ],
    ids=lambda a: type(a).__name__,
)
def test_values_that_an_output_gives_no_likelihood_are_not_scored(output, message, digits):
    model = dataclasses.replace(SMALL, output=output)
    state = model.init(jax.random.key(0), digits)
    # As data.preprocessing=signed would give them.
    signed = {"x": digits["x"].at[1].set(2.0 * digits["x"][1] - 1.0)}
    with jax.debug_nans(False):
        terms = model.elbo_terms(state.params, signed, jax.random.key(1))[0]
        np.testing.assert_array_equal(np.isnan(terms), np.arange(24) == 1)
    model.diagnose(state, digits, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        model.diagnose(state, signed, jax.random.key(0))


@pytest.mark.parametrize("network", [SMALL.network, ConvNetwork(channels=(4,), hidden_dims=(8,))])
def test_parameters_of_the_output_are_float32_where_the_networks_compute_in_bfloat16(network, digits):
    model = dataclasses.replace(SMALL, network=network, compute_dtype="bfloat16")
    state = model.init(jax.random.key(0), digits)
    parameters = model.output_parameters(state.params, jax.random.normal(jax.random.key(1), (4, 3)))
    assert (parameters != parameters.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9


def test_a_missing_data_shape_is_an_error_that_names_it(digits):
    with pytest.raises(ValueError, match=r"VAE\.data_shape is None"):
        VAE().init(jax.random.key(0), digits)
