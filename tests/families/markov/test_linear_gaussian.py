"""Claims about linear Gaussian state-space models, against the joint normal of all frames and states in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from genjax.data import TimeSeries
from genjax.families.markov.linear_gaussian import LinearGaussianModel, kalman_smoother

B, T, N, D = 3, 6, 2, 3
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    covariance = lambda n: (lambda a: a @ a.T + 0.5 * np.eye(n))(0.5 * rng.normal(size=(n, n)))
    values = {
        "initial_mean": rng.normal(size=N),
        "initial_covariance": covariance(N),
        "transition": np.array([[0.8, -0.5], [0.4, 0.7]]),
        "transition_noise": covariance(N),
        "emission": rng.normal(size=(D, N)),
        "emission_noise": covariance(D),
    }
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), values)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)


def joint(params):
    """Mean and covariance of all states, [T N] and [T N, T N]."""
    p = jax.tree.map(np.float64, params)
    mean, covariance = np.zeros((T, N)), np.zeros((T, N, T, N))
    mean[0], covariance[0, :, 0] = p["initial_mean"], p["initial_covariance"]
    for t in range(1, T):
        mean[t] = p["transition"] @ mean[t - 1]
        for s in range(t):
            covariance[t, :, s] = p["transition"] @ covariance[t - 1, :, s]
            covariance[s, :, t] = covariance[t, :, s].T
        covariance[t, :, t] = p["transition"] @ covariance[t - 1, :, t - 1] @ p["transition"].T + p["transition_noise"]
    return mean.reshape(-1), covariance.reshape(T * N, T * N)


@pytest.mark.parametrize("parallel", [False, True])
def test_filter_and_smoother_are_conditioning_of_the_joint_normal(params, x, parallel):
    smoother = jax.jit(jax.vmap(lambda x, m: kalman_smoother(params, x, m, parallel)))
    posterior = smoother(jnp.asarray(x), jnp.asarray(MASK))
    mean, covariance = joint(params)
    h, r = (np.float64(params[name]) for name in ("emission", "emission_noise"))
    for b in range(B):
        seen = np.flatnonzero(MASK[b])
        select = np.kron(np.eye(T)[seen], h)  # frames from states
        frames = x[b][seen].reshape(-1)
        if len(seen):
            marginal = select @ covariance @ select.T + np.kron(np.eye(len(seen)), r)
            expected = multivariate_normal(select @ mean, marginal).logpdf(frames)
            gain = covariance @ select.T @ np.linalg.inv(marginal)
        else:
            expected, gain = 0.0, np.zeros((T * N, 0))
        np.testing.assert_allclose(posterior.log_prob[b], expected, rtol=1e-5, atol=1e-5)
        smoothed = (mean + gain @ (frames - select @ mean)).reshape(T, N)
        np.testing.assert_allclose(posterior.mean[b], smoothed, atol=1e-4)
        rest = (covariance - gain @ select @ covariance).reshape(T, N, T, N)
        for t in range(T):
            np.testing.assert_allclose(posterior.covariance[b, t], rest[t, :, t], atol=1e-4)
            if t:
                np.testing.assert_allclose(posterior.cross[b, t - 1], rest[t, :, t - 1], atol=1e-4)


def test_the_parallel_form_equals_the_sequential_one_on_long_sequences(params):
    frames = jax.random.normal(jax.random.key(0), (200, D))
    both = [jax.jit(lambda x, p=p: kalman_smoother(params, x, jnp.ones(200, bool), p))(frames) for p in (False, True)]
    np.testing.assert_allclose(both[0].log_prob, both[1].log_prob, rtol=1e-5)
    np.testing.assert_allclose(both[0].mean, both[1].mean, atol=1e-4)
    np.testing.assert_allclose(both[0].covariance, both[1].covariance, atol=1e-5)


def test_em_never_lowers_the_likelihood_and_finds_the_dynamics(params):
    truth = LinearGaussianModel(state_dim=N, data_shape=(40, D))
    state = truth.init(jax.random.key(0), {"x": jnp.ones((2, 40, D))}).replace(params=params)
    batch = {
        "x": truth.sample(state, jax.random.key(1), 32),
        "mask": jnp.arange(40)[None] < jnp.arange(32)[:, None] + 9,
    }
    best = -truth.log_prob(state, batch).sum() / batch["mask"].sum()
    model = LinearGaussianModel(state_dim=N, diagonal_noise=False, ridge=0.0)
    state, losses = model.init(jax.random.key(2), batch), []
    step = jax.jit(model.train_step)
    for _ in range(60):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(metrics["loss"].value())
    assert (np.diff(losses) < 1e-4).all(), losses
    assert losses[-1] < best + 0.02
    found = np.sort_complex(np.linalg.eigvals(state.params["transition"]))
    np.testing.assert_allclose(found, np.sort_complex(np.linalg.eigvals(params["transition"])), atol=0.1)


def test_em_starts_from_the_periods_of_the_data_though_frames_are_hidden():
    x = TimeSeries(name="waves").load("train").arrays()["x"][:64]
    mask = np.random.default_rng(0).random(x.shape[:2]) < 0.9
    model = LinearGaussianModel(state_dim=4)
    state = model.init(jax.random.key(0), {"x": jnp.asarray(x), "mask": jnp.asarray(mask)})
    modulus, period = model.modes(state).T
    np.testing.assert_allclose(period, [12, 12, 5, 5], rtol=0.05)
    assert (modulus <= 1.0).all()
    np.testing.assert_allclose(model.modes(state.replace(params={"transition": 0.5 * jnp.eye(4)})), [[0.5, np.inf]] * 4)
    for hopeless in (jnp.zeros((2, 6, 1)), jnp.ones((2, 1, 1)), 1e4 * jnp.ones((2, 8, 1))):
        state = model.init(jax.random.key(0), {"x": hopeless})
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.params))


def test_an_em_step_equals_that_of_a_peer(params, x):
    peer = pytest.importorskip("pykalman")
    p = jax.tree.map(np.float64, params)
    filtered = peer.KalmanFilter(
        p["transition"], p["emission"], p["transition_noise"], p["emission_noise"],
        initial_state_mean=p["initial_mean"], initial_state_covariance=p["initial_covariance"],
        em_vars=["transition_matrices", "observation_matrices", "transition_covariance", "observation_covariance",
                 "initial_state_mean", "initial_state_covariance"],
    ).em(x[0], n_iter=1)  # fmt: skip
    model = LinearGaussianModel(state_dim=N, diagonal_noise=False, ridge=0.0)
    state = model.init(jax.random.key(0), {"x": x[:1]}).replace(params=params)
    new = model.train_step(state, {"x": x[:1]}, jax.random.key(0))[0].params
    for name, value in {
        "transition": filtered.transition_matrices,
        "transition_noise": filtered.transition_covariance,
        "emission": filtered.observation_matrices,
        "emission_noise": filtered.observation_covariance,
        "initial_mean": filtered.initial_state_mean,
    }.items():
        np.testing.assert_allclose(new[name], value, atol=2e-4, err_msg=name)


def test_gaps_are_filled_and_a_batch_without_frames_changes_nothing(params, x):
    model = LinearGaussianModel(state_dim=N)
    state = model.init(jax.random.key(0), {"x": jnp.asarray(x)}).replace(params=params)
    filled = model.impute(state, {"x": jnp.asarray(x), "mask": jnp.asarray(MASK)})
    np.testing.assert_array_equal(np.asarray(filled)[MASK], x[MASK])
    assert np.isfinite(filled).all()
    nothing = {"x": jnp.asarray(x), "mask": jnp.zeros((B, T), bool)}
    after, metrics = model.train_step(state, nothing, jax.random.key(0))
    assert "hides everything" in model.warnings(metrics)[0] and not model.warnings({"frames": 1.0})
    after = after.params
    for name, value in params.items():
        np.testing.assert_array_equal(after[name], value)
    with pytest.raises(ValueError, match="state_dim"):
        LinearGaussianModel(state_dim=0)


@pytest.mark.parametrize("diagonal", [True, False])
def test_em_of_a_constant_series_never_raises_the_loss(diagonal):
    model = LinearGaussianModel(state_dim=2, diagonal_noise=diagonal)
    batch = {"x": jnp.full((1, 20, 2), 3.0)}
    state, metrics = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: model.train_step(s, batch, None), state, None, length=100)
    )(model.init(jax.random.key(0), batch))
    loss = metrics["loss"].value()
    assert (np.diff(loss) < 1e-4).all() and loss[-1] < loss[0] - 10
    for name in ("transition_noise", "emission_noise", "initial_covariance"):
        assert np.linalg.eigvalsh(np.asarray(state.params[name], np.float64)).min() > 0.99e-5
