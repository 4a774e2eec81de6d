"""Processes, weightings, training times and likelihoods against the formulas of their papers, written out here
again.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

from genjax.families.diffusion import ode, samplers, targets
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.networks import DenoisingNetwork
from genjax.families.diffusion.processes import (
    Discrete,
    Karras,
    LatentNoise,
    LinearInterpolant,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from genjax.families.diffusion.samplers import Estimate
from genjax.families.diffusion.score_sde import ScoreSDE
from genjax.families.diffusion.times import LogitNormalTime, LogNormalNoise, UniformTime


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


BETA_MIN, BETA_MAX = 0.1, 20.0


def beta(t):
    return BETA_MIN + t * (BETA_MAX - BETA_MIN)


def integral(t):
    """That of beta from 0 to t."""
    return BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2


# f and g^2 of dz = f z dt + g dw (Song et al. 2021, eq. 9, 11 and 12; EDM, table 1; rectified flow as an SDE).
SDES = [
    (VariancePreserving(), lambda t: -beta(t) / 2, beta),
    (SubVariancePreserving(), lambda t: -beta(t) / 2, lambda t: beta(t) * (1 - np.exp(-2 * integral(t)))),
    (
        VarianceExploding(sigma_min=0.01, sigma_max=50.0),
        lambda t: 0.0 * t,
        lambda t: 2 * np.log(5000) * (0.01 * 5000**t) ** 2,
    ),
    (Karras(), lambda t: 0.0 * t, lambda t: 2 * t),
    (LinearInterpolant(), lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    (LatentNoise(scale=2.0), lambda t: -1 / (1 - t), lambda t: 2 / (1 - t)),
]


@pytest.mark.parametrize(("process", "f", "g_squared"), SDES, ids=lambda p: type(p).__name__)
def test_processes_are_the_solutions_of_their_equations(process, f, g_squared, float64):
    t, h = np.array([0.07, 0.31, 0.62, 0.9]), 1e-6
    ours = process.drift_and_diffusion(jnp.asarray(t))
    np.testing.assert_allclose(ours[0], f(t), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(ours[1], g_squared(t), rtol=1e-8)
    slope = lambda values: (values(jnp.asarray(t + h)) - values(jnp.asarray(t - h))) / (2 * h)
    mean, variance = process.alpha(jnp.asarray(t)), process.sigma(jnp.asarray(t)) ** 2
    # d E z = f E z dt,    d var z = (2 f var z + g^2) dt
    np.testing.assert_allclose(slope(process.alpha), f(t) * mean, rtol=1e-6, atol=1e-8)
    variances = lambda s: process.sigma(s) ** 2
    np.testing.assert_allclose(slope(variances), 2 * f(t) * variance + g_squared(t), rtol=1e-6)


def test_latent_noise_adds_its_variance_to_the_straight_path(float64):
    t = jnp.array([0.2, 0.7])
    process = LatentNoise(scale=0.5)
    np.testing.assert_allclose(process.sigma(t) ** 2, t**2 + 0.5 * t * (1 - t), rtol=1e-12)
    np.testing.assert_allclose(process.alpha(t), 1 - t)
    # With scale 2 the variance of unit data stays.
    preserving = LatentNoise(scale=2.0)
    np.testing.assert_allclose(preserving.alpha(t) ** 2 + preserving.sigma(t) ** 2, 1.0, rtol=1e-12)


def test_schedules_in_alpha_squared_are_those_of_their_papers():
    u = np.arange(1, 1000) / 1000
    cosine = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    logistic = lambda x: 1 / (1 + np.exp(-x))
    sigmoid = (logistic(3) - logistic(-3 + 6 * u)) / (logistic(3) - logistic(-3))
    for schedule, expected in (("cosine", cosine(u) / cosine(0)), ("sigmoid", sigmoid)):
        squares = Discrete(schedule=schedule).alpha(jnp.asarray(u, jnp.float32)) ** 2
        np.testing.assert_allclose(squares, expected, rtol=1e-3, atol=2e-6)
    linear = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(Discrete().alpha(jnp.asarray(u, jnp.float32)) ** 2, linear[:-1], rtol=1e-3)


def test_weightings_are_their_formulas(float64):
    process, t, h = VariancePreserving(), np.array([0.05, 0.15, 0.4, 0.8]), 1e-6
    snr = lambda t: 1 / np.expm1(integral(t))
    assert snr(t)[0] > 5 > snr(t)[1]
    expected = {
        "epsilon": snr(t),
        "v": snr(t) + 1,
        "edm": (0.25 * np.exp(-integral(t)) + 1 - np.exp(-integral(t))) / (0.25 * (1 - np.exp(-integral(t)))),
        "min_snr": np.minimum(snr(t), 5.0),
        "p2": snr(t) / (1 + snr(t)) ** 5,
        "likelihood": -(snr(t + h) - snr(t - h)) / (4 * h),
    }
    for name, value in expected.items():
        weight = targets.loss_weight(name, "x0", process, jnp.asarray(t), sigma_data=0.5)
        np.testing.assert_allclose(weight, value, rtol=1e-6, err_msg=name)
    # The straight path's velocity is epsilon - x = (z - x) / t.
    weight = targets.loss_weight("velocity", "x0", LinearInterpolant(), jnp.asarray(t))
    np.testing.assert_allclose(weight, 1 / t**2, rtol=1e-9)


class _Echo(nn.Module):
    """Gives back what it sees, and its time as one more channel."""

    def __call__(self, z, time, condition, dropout_keys=None):
        return jnp.concatenate([z, jnp.broadcast_to(time[:, None], (*z.shape[:-1], 1))], axis=-1)


class Echo(DenoisingNetwork):
    def build(self, num_outputs, num_classes, dtype):
        return _Echo()


class EchoEDM(EDM):
    def module(self):
        return _Echo()


def test_the_preconditioning_of_edm_is_its_table_1():
    model = EchoEDM(data_shape=(2,), network=Echo(), sigma_data=0.5)
    sigma = jnp.array([0.01, 0.7, 30.0])
    z = jnp.array([[1.0, -2.0], [0.3, 0.4], [20.0, -50.0]])
    seen = model.apply({}, z, sigma, {})
    c_in = 1 / np.sqrt(sigma**2 + 0.25)
    np.testing.assert_allclose(seen[:, :2], c_in[:, None] * z, rtol=1e-5)
    np.testing.assert_allclose(seen[:, 2] / 1000, np.log(sigma) / 4, rtol=1e-5, atol=1e-6)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / np.sqrt(sigma**2 + 0.25)
    f = jnp.array([[0.2, 0.1], [-1.0, 2.0], [0.5, 0.6]])
    x0 = targets.to_x0("edm", model.process, sigma, z, f, 0.5)
    np.testing.assert_allclose(x0, c_skip[:, None] * z + c_out[:, None] * f, rtol=1e-5, atol=1e-5)


def test_training_times_have_their_distributions():
    draw = lambda times, process: np.asarray(
        jax.vmap(lambda k: times.sample(k, process))(jax.random.split(jax.random.key(0), 20000)), float
    )
    for process, log_ratio in (
        (Karras(), np.log),
        (VariancePreserving(), lambda t: 0.5 * np.log(np.expm1(integral(t)))),
    ):
        levels = log_ratio(draw(LogNormalNoise(mean=-0.5, scale=0.8), process))
        assert abs(levels.mean() + 0.5) < 0.03 and abs(levels.std() - 0.8) < 0.03
    t = draw(LogitNormalTime(mean=0.3, scale=0.7), LinearInterpolant())
    logits = np.log(t / (1 - t))
    assert abs(logits.mean() - 0.3) < 0.02 and abs(logits.std() - 0.7) < 0.02
    steps = draw(UniformTime(), Discrete(num_timesteps=4))
    np.testing.assert_allclose(np.unique(steps), [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose([(steps == s).mean() for s in np.unique(steps)], 0.25, atol=0.02)


def test_spacings_are_their_formulas():
    grid = lambda process, spacing, n, **rest: samplers.times(process, spacing, n, **rest)[0]
    np.testing.assert_allclose(grid(LinearInterpolant(), "quadratic", 4), (1 - np.arange(5) / 4) ** 2, atol=1e-6)
    process = Karras(t_min=0.002, t_max=80.0)
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [*(high + np.arange(6) / 5 * (low - high)) ** 7, 0.0]
    np.testing.assert_allclose(grid(process, "karras", 6), expected, rtol=1e-4)
    levels = grid(process, "log_snr", 6, denoise_to_zero=False)
    np.testing.assert_allclose(levels, np.geomspace(80.0, 0.002, 7), rtol=1e-4)


# Gaussian data with correlated values, of mean 0: neither score nor Jacobian is diagonal.
COVARIANCE = np.array([[1.0, 0.5, -0.2], [0.5, 0.6, 0.1], [-0.2, 0.1, 0.8]])
POINTS = np.array([[0.3, -0.2, 0.5], [1.2, 0.9, -1.0], [-0.7, 0.2, 0.1]])


def correlated(process):
    def denoise(z, t, x0):
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = alpha * COVARIANCE @ jnp.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * jnp.eye(3))
        return Estimate(z @ gain.T)

    return denoise


def test_the_score_of_a_model_is_that_of_its_noisy_data():
    process = VariancePreserving()

    class Exact(ScoreSDE):
        def estimate(self, params, z, t, condition, x0_before=None):
            return correlated(process)(z, t[0], None)

    state = type("State", (), {"eval_params": {}})
    t = jnp.full((3,), 0.4)
    score = Exact(data_shape=(3,)).score(state, jnp.asarray(POINTS, jnp.float32), t)
    decay = np.exp(-integral(0.4))
    expected = -POINTS @ np.linalg.inv(decay * COVARIANCE + (1 - decay) * np.eye(3))
    np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "process", [VariancePreserving(), Karras(), LinearInterpolant()], ids=lambda p: type(p).__name__
)
def test_ode_likelihoods_of_correlated_data_are_the_truth(process, float64):
    truth = scipy.stats.multivariate_normal(np.zeros(3), COVARIANCE).logpdf(POINTS)
    x = jnp.asarray(POINTS)
    exact = jax.jit(lambda x: ode.log_likelihood(correlated(process), process, x))(x)
    assert np.abs(exact - truth).max() / (3 * np.log(2)) < 1e-3
    # Hutchinson's estimate errs by the off-diagonal of the Jacobian, and its mean over all signs does not.
    signs = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=3)))
    many, probes = jnp.repeat(x, 8, axis=0), jnp.tile(signs, (3, 1))
    estimates = jax.jit(lambda x, p: ode.log_likelihood(correlated(process), process, x, p))(many, probes).reshape(3, 8)
    assert estimates.std(1).min() > 0.1
    np.testing.assert_allclose(estimates.mean(1), exact, rtol=1e-9)
