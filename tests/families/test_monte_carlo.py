"""Claims about Markov chain Monte Carlo: known moments, and arviz's diagnostics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.monte_carlo import diagnostics
from genjax.families.monte_carlo.sampler import run_chains, window_ends
from genjax.families.monte_carlo.targets import correlated_gaussian, eight_schools, funnel


def close(summary, mean, deviations=4.0):
    error = summary["standard_deviation"] / np.sqrt(summary["bulk_ess"])
    assert (np.abs(summary["mean"] - mean) < deviations * error).all(), (summary, mean)


@pytest.mark.parametrize(
    "kernel, options",
    [
        ("random_walk", {"num_draws": 2000}),
        ("mala", {"num_draws": 2000}),
        ("hmc", {"num_leapfrog": 8}),
        ("nuts", {"max_depth": 6}),
        ("slice", {"step_size": 1.0, "num_draws": 1000}),
    ],
)
def test_moments_of_a_correlated_gaussian(kernel, options):
    start = jax.random.normal(jax.random.key(0), (16, 2))
    options = {"num_draws": 500, **options}
    draws = run_chains(jax.random.key(1), correlated_gaussian(0.9), start, 300, kernel=kernel, **options)
    summary = draws.summary()
    assert (summary["r_hat"] < 1.03).all(), summary
    close(summary, np.zeros(2))
    x = np.asarray(draws.positions).reshape(-1, 2)
    np.testing.assert_allclose(np.cov(x.T), [[1.0, 0.9], [0.9, 1.0]], atol=0.15)


def test_eight_schools_has_the_known_posterior():
    start = {"mu": jnp.zeros(8), "log_tau": jnp.zeros(8), "z": jax.random.normal(jax.random.key(0), (8, 8))}
    draws = run_chains(jax.random.key(1), eight_schools, start, 300, 500, max_depth=7)
    summary = draws.summary()
    assert (summary["r_hat"] < 1.02).all(), summary
    tau = np.exp(np.asarray(draws.positions["log_tau"]))
    np.testing.assert_allclose(np.asarray(draws.positions["mu"]).mean(), 4.4, atol=0.4)
    np.testing.assert_allclose(tau.mean(), 3.6, atol=0.5)
    assert np.asarray(draws.diverging).mean() < 0.02
    groups = draws.to_arviz()
    assert groups["posterior"]["z"].shape == (8, 500, 8)


def test_a_dense_metric_finds_the_correlation_and_the_funnel_its_scale():
    start = jax.random.normal(jax.random.key(0), (16, 2))
    draws = run_chains(jax.random.key(1), correlated_gaussian(0.9), start, 300, 10, dense_mass=True, max_depth=6)
    np.testing.assert_allclose(draws.inverse_mass, [[1.0, 0.9], [0.9, 1.0]], atol=0.25)
    start = {"v": jnp.zeros(16), "x": jnp.zeros((16, 3))}
    draws = run_chains(jax.random.key(1), funnel, start, 300, 400, max_depth=6)
    np.testing.assert_allclose(np.asarray(draws.positions["v"]).std(), 3.0, rtol=0.1)


def test_diagnostics_equal_those_of_arviz():
    arviz = pytest.importorskip("arviz")
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4, 200)).cumsum(1) * 0.1 + rng.normal(size=(4, 200))
    np.testing.assert_allclose(diagnostics.r_hat(draws), arviz.rhat(draws), rtol=1e-6)
    np.testing.assert_allclose(diagnostics.bulk_ess(draws), arviz.ess(draws, method="bulk"), rtol=1e-6)
    np.testing.assert_allclose(diagnostics.tail_ess(draws), arviz.ess(draws, method="tail"), rtol=1e-6)


def test_bad_starts_and_kernels_are_named():
    with pytest.raises(ValueError, match="none of"):
        run_chains(jax.random.key(0), lambda x: 0.0, jnp.zeros((2, 1)), kernel="walk")
    with pytest.raises(ValueError, match="not finite"):
        run_chains(jax.random.key(0), lambda x: jnp.log(jnp.abs(x[0])) * jnp.inf, jnp.ones((2, 1)) * 0.5)
    assert window_ends(300).sum() == 3
