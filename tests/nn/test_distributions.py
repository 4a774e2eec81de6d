"""Output distributions: they are normalised, and their samples and means agree with their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.nn.distributions import Bernoulli, Categorical, DiscretizedLogistic, Gaussian

LATTICE = jnp.linspace(-1.0, 1.0, 9)
OPTIONS = {"low": -1.0, "high": 1.0, "num_levels": 9}
DISCRETE = [
    (Bernoulli(), jnp.array([0.3]), jnp.array([0.0, 1.0])),
    (DiscretizedLogistic(**OPTIONS, scale=0.2), jnp.array([0.4, 0.1]), LATTICE),
    (DiscretizedLogistic(**OPTIONS, scale=0.002), jnp.array([-5.0, 0.0]), LATTICE),
    (DiscretizedLogistic(**OPTIONS, learned_scale="fixed", scale=0.5), jnp.array([1.3]), LATTICE),
    (Categorical(**OPTIONS), jnp.linspace(-1.0, 0.5, 9) ** 2, LATTICE),
]


@pytest.mark.parametrize(("output", "parameters", "values"), DISCRETE)
def test_probabilities_sum_to_one(output, parameters, values):
    log_prob = output.log_prob(jnp.broadcast_to(parameters, (len(values), len(parameters))), values)
    np.testing.assert_allclose(jnp.exp(log_prob).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(("output", "parameters", "values"), DISCRETE)
def test_samples_have_the_probabilities_and_lie_on_the_lattice(output, parameters, values):
    parameters = jnp.broadcast_to(parameters, (20_000, len(parameters)))
    draws = np.asarray(output.sample(parameters, jax.random.key(0)))
    expected = np.exp(output.log_prob(parameters[: len(values)], values))
    frequency = np.isclose(draws[:, None], np.asarray(values)[None], atol=1e-5).mean(0)
    assert frequency.sum() == pytest.approx(1.0)
    assert (np.abs(frequency - expected) < 4 * np.sqrt(expected / len(draws)) + 1e-3).all()
    if not isinstance(output, DiscretizedLogistic):
        assert abs(draws.mean() - output.mean(parameters)[0]) < 4 * draws.std() / np.sqrt(len(draws))


def test_discretized_logistic_is_exact_far_in_the_tail_and_has_finite_gradients():
    output = DiscretizedLogistic(learned_scale="fixed", scale=0.05, num_levels=256)
    x, location = jnp.float32(10 / 255), jnp.array([3.0])
    half, x64 = 0.5 / 255, 10 / 255
    expected = np.log(stats.logistic.cdf(x64 + half, 3.0, 0.05) - stats.logistic.cdf(x64 - half, 3.0, 0.05))
    value, gradient = jax.value_and_grad(lambda p: output.log_prob(p, x))(location)
    assert value == pytest.approx(expected, rel=1e-4)
    assert jnp.isfinite(gradient).all() and (gradient != 0).all()


@pytest.mark.parametrize(("learned", "raw"), [("fixed", []), ("shared", [0.4]), ("per_value", [0.4])])
def test_gaussian_matches_scipy(learned, raw):
    output = Gaussian(scale=0.7, learned_scale=learned, min_scale=1e-8)
    parameters = jnp.array([0.3, *raw])
    scale = 0.7 * np.exp(sum(raw))
    assert output.log_prob(parameters, jnp.float32(1.1)) == pytest.approx(stats.norm(0.3, scale).logpdf(1.1), rel=1e-5)
    assert output.num_parameters + output.num_shared_parameters == len(parameters)
    draws = output.sample(jnp.broadcast_to(parameters, (20_000, len(parameters))), jax.random.key(0))
    assert draws.std() == pytest.approx(scale, rel=0.03)


def test_likelihoods_are_float32_whatever_the_network_computes_in():
    assert Bernoulli().log_prob(jnp.zeros((3, 1), jnp.bfloat16), jnp.zeros(3)).dtype == jnp.float32
