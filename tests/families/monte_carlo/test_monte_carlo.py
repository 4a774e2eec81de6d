"""Claims about Markov chain Monte Carlo: known moments, and arviz's diagnostics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import Evidence
from genjax.families.monte_carlo import diagnostics, gibbs
from genjax.families.monte_carlo.adaptation import window_ends
from genjax.families.monte_carlo.kernels import Hmc, Mala, Nuts, RandomWalk, Slice, Tempering, uniform_at
from genjax.families.monte_carlo.monte_carlo import MonteCarlo, StochasticGradientLangevin
from genjax.families.monte_carlo.sampler import run_chains
from genjax.families.monte_carlo.targets import CorrelatedGaussian, EightSchools, Funnel, LogisticRegression, Target
from genjax.families.monte_carlo.transforms import Interval, Ordered, Positive, Simplex, constrain, unconstrained

GAUSSIAN = CorrelatedGaussian()
SCHOOLS = {name: jnp.asarray(a) for name, a in Evidence(name="eight_schools").load("train").arrays().items()}


def close(summary, mean, deviations=4.0):
    error = summary["standard_deviation"] / np.sqrt(summary["bulk_ess"])
    assert (np.abs(summary["mean"] - mean) < deviations * error).all(), (summary, mean)


@pytest.mark.parametrize(
    "kernel, options",
    [
        (RandomWalk(), {"num_draws": 2000}),
        (Mala(), {"num_draws": 2000}),
        (Hmc(num_leapfrog=8), {}),
        (Nuts(max_depth=6), {}),
        (Slice(), {"step_size": 1.0, "num_draws": 1000}),
    ],
)
def test_moments_of_a_correlated_gaussian(kernel, options):
    start = {"x": jax.random.normal(jax.random.key(0), (16, 2))}
    draws = run_chains(
        jax.random.key(1), GAUSSIAN.log_prior, start, 300, kernel=kernel, **{"num_draws": 500, **options}
    )
    summary = draws.summary()
    assert (summary["r_hat"] < 1.03).all(), summary
    close(summary, np.zeros(2))
    x = np.asarray(draws.positions["x"]).reshape(-1, 2)
    np.testing.assert_allclose(np.cov(x.T), GAUSSIAN.covariance, atol=0.15)


def test_parallel_tempering_finds_both_modes_where_one_chain_stays():
    def log_density(x):
        modes = jnp.array([-6.0, 6.0])
        return jax.nn.logsumexp(-0.5 * (x[0] - modes) ** 2 + jnp.log(jnp.array([0.25, 0.75])))

    start = jnp.full((32, 1), -6.0)
    plain = run_chains(jax.random.key(0), log_density, start, 0, 100, Hmc(num_leapfrog=4), step_size=0.4)
    assert (np.asarray(plain.positions) < 0).all()
    kernel = Tempering(kernel=Hmc(num_leapfrog=4), temperatures=(1.0, 4.0, 16.0))
    draws = run_chains(jax.random.key(0), log_density, start, 200, 1000, kernel, step_size=0.4)
    assert draws.positions.shape == (32, 1000, 1)
    np.testing.assert_allclose((np.asarray(draws.positions) > 0).mean(), 0.75, atol=0.06)


def test_eight_schools_as_a_model_has_the_known_posterior():
    model = MonteCarlo(
        target=EightSchools(), kernel=Nuts(max_depth=7), num_chains=8, num_warmup=200, num_draws=400, data_shape=(1,)
    )
    state = model.init(jax.random.key(0), SCHOOLS)

    @jax.jit
    def run(state, key):
        return jax.lax.scan(lambda s, k: model.train_step(s, SCHOOLS, k), state, jax.random.split(key, 600))

    state, metrics = run(state, jax.random.key(1))
    draws = model.draws(state)
    means = {name: np.asarray(a).mean() for name, a in draws.positions.items()}
    np.testing.assert_allclose(means["mu"], 4.4, atol=0.4)
    np.testing.assert_allclose(means["tau"], 3.6, atol=0.5)
    values = jax.jit(model.evaluate)(state, SCHOOLS, jax.random.key(0))
    assert values["max_r_hat"][0] < 1.02 and values["min_bulk_ess"][0] > 400, values
    assert values["divergences"][0] < 0.02 and (np.abs(values["nll"] - 4.0) < 1.0).all()
    # The step size stays as the warm-up left it.
    assert len(np.unique(metrics["step_size"][200:])) == 1
    # What the state keeps are the last draws, oldest first.
    np.testing.assert_array_equal(model._ordered(state, "draws")[:, -1], state.params["position"])
    assert model.sample(state, jax.random.key(2), 5).shape == (5, 10)
    groups = draws.to_arviz()
    assert groups["posterior"]["theta"].shape == (8, 400, 8)
    arviz = pytest.importorskip("arviz")
    table = arviz.from_dict(**groups)
    np.testing.assert_allclose(float(arviz.rhat(table)["mu"]), diagnostics.r_hat(draws.positions["mu"]), rtol=1e-3)


def test_a_dense_metric_finds_the_correlation_and_the_funnel_its_scale():
    start = {"x": jax.random.normal(jax.random.key(0), (16, 2))}
    options = {"kernel": Nuts(max_depth=6)}
    draws = run_chains(jax.random.key(1), GAUSSIAN.log_prior, start, 300, 10, dense_mass=True, **options)
    np.testing.assert_allclose(draws.inverse_mass, GAUSSIAN.covariance, atol=0.25)
    start = {"v": jnp.zeros(16), "x": jnp.zeros((16, 3))}
    draws = run_chains(jax.random.key(1), Funnel(dim=3).log_prior, start, 300, 400, **options)
    np.testing.assert_allclose(np.asarray(draws.positions["v"]).std(), 3.0, rtol=0.1)


def test_the_gradient_of_the_logistic_posterior_is_that_of_the_closed_form():
    rng = np.random.default_rng(0)
    x, label, weights = rng.normal(size=(20, 3)), rng.integers(0, 2, 20), rng.normal(size=3)
    batch = {"x": jnp.asarray(x, jnp.float32), "label": jnp.asarray(label)}
    gradient = jax.grad(LogisticRegression().log_density)({"weights": jnp.asarray(weights, jnp.float32)}, batch)
    expected = x.T @ (label - 1 / (1 + np.exp(-x @ weights))) - weights / 2.5**2
    np.testing.assert_allclose(gradient["weights"], expected, rtol=1e-4)


class Mean(Target):
    """x ~ N(mean, 1), mean ~ N(0, 10)."""

    def shapes(self, data_shape):
        return {"mean": ()}

    def log_prior(self, position):
        return -0.5 * (position["mean"] / 10.0) ** 2

    def log_likelihood(self, position, batch):
        return -0.5 * (batch["x"][:, 0] - position["mean"]) ** 2


def test_stochastic_gradients_of_parts_of_the_data_have_the_posterior_of_all():
    x = 2.0 + np.random.default_rng(0).normal(size=(1024, 1)).astype(np.float32)
    model = StochasticGradientLangevin(
        target=Mean(), num_chains=64, num_draws=200, num_warmup=0, num_examples=1024, step_size=2e-4, decay_exponent=0.0
    )
    state = model.init(jax.random.key(0), {"x": jnp.asarray(x)})

    @jax.jit
    def run(state, key):
        def step(state, key):
            chosen = jax.random.permutation(jax.random.fold_in(key, 1), 1024)[:128]
            return model.train_step(state, {"x": jnp.asarray(x)[chosen]}, key)

        return jax.lax.scan(step, state, jax.random.split(key, 400))[0]

    draws = np.asarray(model.draws(run(state, jax.random.key(1))).positions["mean"])
    precision = 1024 + 0.01
    np.testing.assert_allclose(draws.mean(), x.sum() / precision, atol=0.01)
    # The noise of the gradients adds to that of the dynamics.
    np.testing.assert_allclose(draws.std(), precision**-0.5, rtol=0.4)


def test_the_unrolled_generator_gives_the_words_of_the_random_library():
    random123 = pytest.importorskip("jax.extend.random")
    seed = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)
    counter = jnp.array([0x243F6A88, 1], jnp.uint32)
    expected = random123.threefry_2x32(seed, counter)[0]
    got = uniform_at(seed, counter[0], 1)
    np.testing.assert_allclose(got, (int(expected) >> 8) / 2**24, atol=1e-7)
    many = jax.vmap(lambda i: uniform_at(seed, i, 0))(jnp.arange(10000))
    np.testing.assert_allclose([many.mean(), many.var()], [0.5, 1 / 12], atol=0.01)


def test_diagnostics_equal_those_of_arviz():
    arviz = pytest.importorskip("arviz")
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4, 200)).cumsum(1) * 0.1 + rng.normal(size=(4, 200))
    draws[:, 50:60] = draws[:, 50:51]  # ties, as refused proposals make them
    np.testing.assert_allclose(diagnostics.r_hat(draws), arviz.rhat(draws), rtol=1e-4)
    np.testing.assert_allclose(diagnostics.bulk_ess(draws), arviz.ess(draws, method="bulk"), rtol=1e-3)
    np.testing.assert_allclose(diagnostics.tail_ess(draws), arviz.ess(draws, method="tail"), rtol=1e-3)
    # Nothing is told of chains with NaN; what never changes has no R-hat; where only chains differ, it has no bound.
    broken = [draws.copy() for _ in range(3)]
    broken[0][:], broken[1][2], broken[2][:, 100:] = np.nan, np.nan, np.nan
    still, apart = np.full((4, 200), 3.0), np.repeat([[1.0], [2.0], [3.0], [5.0]], 200, axis=1)
    with jax.debug_nans(False), np.errstate(divide="ignore", invalid="ignore"):
        for case in (*broken, still, apart):
            found = [jax.jit(f)(case) for f in (diagnostics.r_hat, diagnostics.bulk_ess, diagnostics.tail_ess)]
            theirs = [arviz.rhat(case), arviz.ess(case, method="bulk"), arviz.ess(case, method="tail")]
            np.testing.assert_allclose(np.minimum(found, 1e6), np.minimum(theirs, 1e6), rtol=1e-3)


def test_draws_are_those_that_were_made_after_the_warm_up():
    model = MonteCarlo(target=EightSchools(), num_chains=2, num_warmup=3, num_draws=5, data_shape=(1,))
    state = model.init(jax.random.key(0), SCHOOLS)
    rows = jnp.arange(5.0)[:, None, None] + jnp.arange(2.0)[None, :, None] / 2 + jnp.zeros((5, 2, 10))
    state = state.replace(extra={**state.extra, "draws": rows})
    for step, kept in ((4, [3]), (6, [3, 4, 0]), (9, [4, 0, 1, 2, 3])):
        now = state.replace(step=jnp.int32(step))
        np.testing.assert_array_equal(model._draws(now, len(kept)).acceptance.shape, (2, len(kept)))
        places = model._chosen(now, jnp.arange(2 * len(kept)) / (2 * len(kept)))[:, 0]
        np.testing.assert_array_equal(places, np.add.outer(kept, [0.0, 0.5]).reshape(-1))
        assert model.draws(now).positions["mu"].shape[1] == len(kept)
    with pytest.raises(ValueError, match="no draws at step 3"):
        model.draws(state.replace(step=jnp.int32(3)))
    with pytest.raises(ValueError, match="num_steps=7 is less than the model.num_warmup=3 .* take 8 steps"):
        model.check_steps(7)
    model.check_steps(8)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="not finite"):
        run_chains(jax.random.key(0), lambda x: jnp.log(jnp.abs(x[0])) * jnp.inf, jnp.ones((2, 1)) * 0.5)
    with pytest.raises(ValueError, match="rise from 1"):
        Tempering(temperatures=(2.0, 1.0))
    with pytest.raises(ValueError, match="num_draws"):
        MonteCarlo(num_draws=1)
    assert window_ends(300).sum() == 3


@pytest.mark.parametrize(
    "transform, u",
    [(Positive(), [0.3]), (Interval(-1.0, 3.0), [0.3]), (Ordered(), [0.3, -1.0, 0.5]), (Simplex(), [0.3, -1.0, 0.5])],
)
def test_transforms_are_bijections_with_the_determinant_of_their_jacobian(transform, u):
    u = jnp.asarray(u)
    x, log_det = transform.forward(u)
    np.testing.assert_allclose(transform.inverse(x), u, atol=1e-5)
    # Probabilities are one number more than is free.
    jacobian = np.asarray(jax.jacobian(lambda u: transform.forward(u)[0][: len(u)])(u))
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-5)


def test_conjugate_blocks_agree_with_nuts_on_constrained_parameters():
    y = 1.0 + 2.0 * np.random.default_rng(0).normal(size=12).astype(np.float32)

    def mean(key, position):
        return {"mean": gibbs.normal_mean(key, y.sum(), len(y), position["variance"], 0.0, 4.0)}

    def variance(key, position):
        return {"variance": gibbs.normal_variance(key, ((y - position["mean"]) ** 2).sum(), len(y), 3.0, 5.0)}

    start = {"mean": jnp.zeros(64), "variance": jnp.ones(64)}
    draws = gibbs.run_gibbs(jax.random.key(0), [mean, variance], start, 50, 500)

    def log_density(position):
        m, v = position["mean"], position["variance"]
        likelihood = -0.5 * (jnp.log(v) + (y - m) ** 2 / v).sum()
        return likelihood - m**2 / 8.0 - 4.0 * jnp.log(v) - 5.0 / v

    kinds = {"variance": Positive()}
    start = {"mean": jnp.zeros(16), "variance": jnp.zeros(16)}
    other = run_chains(jax.random.key(1), unconstrained(log_density, kinds), start, 200, 500, Nuts(max_depth=5))
    other = constrain(other.positions, kinds)
    for name in draws:
        one, two = np.asarray(draws[name]), np.asarray(other[name])
        np.testing.assert_allclose(one.mean(), two.mean(), atol=0.06 * two.std(), err_msg=name)
        np.testing.assert_allclose(one.std(), two.std(), rtol=0.08, err_msg=name)
    with pytest.raises(ValueError, match="variance"):
        gibbs.run_gibbs(jax.random.key(0), [mean], start)
    # A block by a kernel has the conditional of the exact draw.
    fixed = gibbs.within(["mean"], lambda p: log_density({**p, "variance": 4.0}), Hmc(num_leapfrog=8), 0.3)
    moved = gibbs.run_gibbs(jax.random.key(2), [fixed], {"mean": jnp.zeros(64)}, 50, 200)["mean"]
    precision = 1 / 4 + 12 / 4
    np.testing.assert_allclose(np.asarray(moved).mean(), y.sum() / 4 / precision, atol=0.05)
    np.testing.assert_allclose(np.asarray(moved).std(), precision**-0.5, rtol=0.08)


def test_draws_of_conjugate_blocks_have_their_closed_moments():
    keys = jax.random.split(jax.random.key(0), 4000)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=s).astype(np.float32) for s in ((10, 2), (10,)))
    weights = np.asarray(jax.vmap(lambda k: gibbs.regression_weights(k, x, y, 0.5, 2.0))(keys))
    covariance = np.linalg.inv(np.eye(2) / 2.0 + x.T @ x / 0.5)
    np.testing.assert_allclose(weights.mean(0), covariance @ x.T @ y / 0.5, atol=0.02)
    np.testing.assert_allclose(np.cov(weights.T), covariance, atol=0.01)
    p = np.asarray(jax.vmap(lambda k: gibbs.dirichlet(k, jnp.array([3.0, 0.0, 1.0]), 1.0))(keys))
    np.testing.assert_allclose(p.mean(0), np.array([4, 1, 2]) / 7, atol=0.01)
