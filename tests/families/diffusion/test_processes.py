"""Schedules, targets and samplers against closed forms: data that are Gaussian have a known denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.diffusion import ode, samplers, targets
from genjax.families.diffusion.processes import (
    Discrete,
    Karras,
    LinearInterpolant,
    SubVariancePreserving,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
    posterior,
)
from genjax.families.diffusion.samplers import Estimate

MEAN, SCALE = 0.7, 0.5
PROCESSES = [
    Discrete(),
    Discrete(schedule="cosine"),
    VariancePreserving(),
    SubVariancePreserving(),
    VarianceExploding(),
    Karras(),
    LinearInterpolant(),
    Trigonometric(),
]
SMOOTH = VariancePreserving(t_min=0.01)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def gaussian_denoiser(process):
    """E[x | z] for x ~ N(MEAN, SCALE^2)."""

    def denoise(z, t, x0):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return Estimate((SCALE**2 * alpha * z + sigma**2 * MEAN) / (alpha**2 * SCALE**2 + sigma**2))

    return denoise


def marginal_scale(process, t):
    return jnp.sqrt(process.alpha(t) ** 2 * SCALE**2 + process.sigma(t) ** 2)


def exact_flow(process, z, t, s):
    """Where the probability-flow ODE carries z from time t to time s."""
    standard = (z - process.alpha(t) * MEAN) / marginal_scale(process, t)
    return process.alpha(s) * MEAN + marginal_scale(process, s) * standard


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_discrete_schedules_preserve_variance_and_destroy_the_signal(schedule):
    process = Discrete(schedule=schedule)
    t = jnp.arange(1001) / 1000
    alpha, sigma = process.alpha(t), process.sigma(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=1e-5)
    assert alpha[0] == 1.0 and sigma[0] == 0.0 and alpha[-1] < 0.07
    assert np.all(np.diff(alpha) < 0)
    np.testing.assert_allclose(alpha[1:] ** 2, np.cumprod(1 - process.betas), rtol=2e-3, atol=1e-6)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step():
    plain, shifted = Discrete(), Discrete(zero_terminal_snr=True)
    assert shifted.alpha(jnp.array(1.0)) == 0.0 and shifted.sigma(jnp.array(1.0)) == 1.0
    np.testing.assert_allclose(shifted.betas[0], plain.betas[0], rtol=1e-6)


def test_posterior_is_the_product_of_two_gaussians():
    process, t, s = Discrete(), jnp.array(0.5), jnp.array(0.3)
    a, b, variance = posterior(process, t, s)
    ratio = process.alpha(t) / process.alpha(s)
    likelihood_precision = ratio**2 / (process.sigma(t) ** 2 - ratio**2 * process.sigma(s) ** 2)
    prior_precision = 1 / process.sigma(s) ** 2
    np.testing.assert_allclose(variance, 1 / (likelihood_precision + prior_precision), rtol=1e-4)
    np.testing.assert_allclose(a, variance * likelihood_precision / ratio, rtol=1e-4)
    np.testing.assert_allclose(b, variance * prior_precision * process.alpha(s), rtol=1e-4)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_drift_and_diffusion_give_back_the_marginal_variance(process, float64):
    t = jnp.array(0.437 * process.t_max)
    f, g_squared = process.drift_and_diffusion(t)
    d_alpha, d_sigma = process.derivatives(t)
    np.testing.assert_allclose(d_alpha, f * process.alpha(t), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(2 * process.sigma(t) * d_sigma, 2 * f * process.sigma(t) ** 2 + g_squared, rtol=1e-6)
    np.testing.assert_allclose(process.time_of_noise_ratio(process.noise_ratio(t)), t, rtol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("target", targets.Target.__args__)
def test_every_target_converts_to_the_data_it_was_made_of(process, target, float64):
    keys = jax.random.split(jax.random.key(0), 2)
    x, epsilon = (jax.random.normal(k, (5, 3)) for k in keys)
    t = jnp.linspace(max(process.t_min, 0.1), 0.9, 5) * process.t_max
    z = process.alpha(t)[:, None] * x + process.sigma(t)[:, None] * epsilon
    value = targets.make_target(target, process, t, x, epsilon, 0.5)
    np.testing.assert_allclose(targets.to_x0(target, process, t, z, value, 0.5), x, atol=1e-8)
    of_z, of_x = targets.coefficients(target, process, t, 0.5)
    np.testing.assert_allclose(of_z[:, None] * z + of_x[:, None] * x, value, rtol=1e-6, atol=1e-8)


def test_edm_target_for_unit_data_is_minus_v_on_variance_preserving_processes(float64):
    t = jnp.array([0.2, 0.6])
    x, epsilon = jnp.ones((2, 3)), jnp.full((2, 3), -0.3)
    edm = targets.make_target("edm", SMOOTH, t, x, epsilon, 1.0)
    np.testing.assert_allclose(edm, -targets.make_target("v", SMOOTH, t, x, epsilon), atol=1e-12)


def test_weightings_turn_the_loss_of_one_target_into_that_of_another(float64):
    t = jnp.array([0.2, 0.6])
    x, epsilon, guess = jnp.ones((2, 3)), jnp.full((2, 3), -0.3), jnp.full((2, 3), 0.8)
    z = SMOOTH.alpha(t)[:, None] * x + SMOOTH.sigma(t)[:, None] * epsilon

    def squared_error(target, weighting):
        of_z, of_x = targets.coefficients(target, SMOOTH, t)
        error = of_z[:, None] * z + of_x[:, None] * guess - targets.make_target(target, SMOOTH, t, x, epsilon)
        return targets.loss_weight(weighting, target, SMOOTH, t) * jnp.square(error).mean(1)

    for weighting in ("epsilon", "x0", "v", "velocity", "edm", "min_snr", "p2", "likelihood"):
        values = [squared_error(target, weighting) for target in ("epsilon", "x0", "v", "velocity", "edm")]
        np.testing.assert_allclose(values, np.broadcast_to(values[0], (5, 2)), rtol=1e-9)
    for target in ("epsilon", "x0", "v"):
        np.testing.assert_allclose(squared_error("x0", target), squared_error(target, "simple"), rtol=1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# Samplers


ORDERS = [
    (samplers.DDIM(spacing="log_snr"), 1),
    (samplers.Euler(spacing="log_snr"), 1),
    (samplers.Euler(spacing="uniform", variable="time"), 1),
    (samplers.Heun(spacing="log_snr"), 2),
    (samplers.Heun(spacing="log_snr", variable="time"), 2),
    (samplers.RungeKutta4(spacing="log_snr"), 4),
    (samplers.DPMSolver(method="first"), 1),
    (samplers.DPMSolver(method="singlestep"), 2),
    (samplers.DPMSolver(method="multistep"), 2),
]


@pytest.mark.parametrize(("sampler", "order"), ORDERS)
def test_deterministic_samplers_converge_at_their_order(sampler, order, float64):
    z = jnp.array([[1.3, -0.4]])
    exact = exact_flow(SMOOTH, z, jnp.array(SMOOTH.t_max), jnp.array(SMOOTH.t_min))
    errors, counts = [], np.array([32, 64, 128])
    for count in counts:
        replaced = type(sampler)(**{**sampler.__dict__, "num_steps": int(count), "denoise_to_zero": False})
        error = replaced.run(gaussian_denoiser(SMOOTH), SMOOTH, z, jax.random.key(0)) - exact
        errors.append(float(jnp.abs(error).max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2, (slope, errors)


def test_adaptive_solver_reaches_its_tolerance(float64):
    z = jnp.array([[1.3, -0.4]])
    exact = exact_flow(SMOOTH, z, jnp.array(1.0), jnp.array(0.01))
    sampler = ode.AdaptiveODE(rtol=1e-8, atol=1e-8, denoise_to_zero=False)
    np.testing.assert_allclose(sampler.run(gaussian_denoiser(SMOOTH), SMOOTH, z, jax.random.key(0)), exact, atol=1e-6)


@pytest.mark.parametrize("sampler", [samplers.DDIM(), samplers.Euler(), samplers.RungeKutta4(), samplers.DPMSolver()])
def test_samplers_of_edms_process_take_its_spacing_by_default(sampler):
    process = Karras()
    z = MEAN + jnp.hypot(process.t_max, SCALE) * jnp.array([[1.0], [-1.0]])
    end = sampler.run(gaussian_denoiser(process), process, z, jax.random.key(0))[:, 0]
    # The map is affine, so that two points say its deviation; uniform steps end at .15 and .96.
    assert abs(float(end[0] - end[1]) / 2 - SCALE) < 0.03


STOCHASTIC = [
    (samplers.Ancestral(num_steps=400, spacing="log_snr"), SMOOTH),
    (samplers.Ancestral(num_steps=1000), Discrete()),
    (samplers.DDIM(num_steps=200, eta=0.5, spacing="log_snr"), SMOOTH),
    (samplers.Heun(num_steps=100, churn=40.0), Karras()),
    (samplers.Euler(num_steps=200, churn=40.0, spacing="log_snr"), SMOOTH),
    (samplers.DPMSolver(num_steps=100, stochastic=True), SMOOTH),
    (samplers.PredictorCorrector(num_steps=400), SMOOTH),
    (samplers.PredictorCorrector(num_steps=400, signal_to_noise=0.05), VarianceExploding(sigma_max=10.0)),
    (samplers.Euler(num_steps=200, spacing="uniform", variable="time"), LinearInterpolant()),
    (samplers.DDIM(num_steps=200), Trigonometric()),
    (samplers.DPMSolver(num_steps=50), Discrete(zero_terminal_snr=True)),
]


@pytest.mark.parametrize(("sampler", "process"), STOCHASTIC)
def test_every_sampler_draws_from_the_gaussian_it_denoises(sampler, process):
    z = process.prior_scale * jax.random.normal(jax.random.key(1), (4096, 1))
    samples = jax.jit(lambda z, key: sampler.run(gaussian_denoiser(process), process, z, key))(z, jax.random.key(2))
    # The Langevin corrector has a bias of the order of its step.
    tolerance = 0.05 if isinstance(sampler, samplers.PredictorCorrector) else 0.03
    assert abs(float(samples.mean()) - MEAN) < tolerance
    assert abs(float(samples.std()) - SCALE) < tolerance


def test_euler_in_sigma_is_ddim_and_ddim_of_eta_1_is_ancestral(float64):
    z, key = jnp.array([[1.3, -0.4]]), jax.random.key(3)
    denoise = gaussian_denoiser(SMOOTH)
    a = samplers.Euler(num_steps=7).run(denoise, SMOOTH, z, key)
    b = samplers.DDIM(num_steps=7).run(denoise, SMOOTH, z, key)
    np.testing.assert_allclose(a, b, rtol=1e-10)
    a = samplers.DDIM(num_steps=7, eta=1.0).run(denoise, SMOOTH, z, key)
    b = samplers.Ancestral(num_steps=7).run(denoise, SMOOTH, z, key)
    np.testing.assert_allclose(a, b, rtol=1e-10)


LOOPS = [
    samplers.DPMSolver(num_steps=5),
    samplers.Heun(num_steps=5),
    samplers.Ancestral(num_steps=5),
    samplers.DDIM(num_steps=5, eta=0.5),
    samplers.Euler(num_steps=5, churn=2.0),
    samplers.DPMSolver(num_steps=5, stochastic=True),
    samplers.PredictorCorrector(num_steps=5),
]


@pytest.mark.parametrize("sampler", LOOPS)
def test_the_compiled_loop_equals_a_python_loop(sampler, float64):
    process, z, key = SMOOTH, jnp.array([[1.3, -0.4]]), jax.random.key(0)
    denoise = gaussian_denoiser(process)
    path = jax.jit(lambda z: sampler.run(denoise, process, z, key, trajectory=True))(z)
    grid = list(zip(*sampler.grid(process), strict=True))
    carry = samplers.Carry(z, jnp.zeros_like(z), samplers.Node(*grid[0]))
    for i in range(5):
        now, then = samplers.Node(*grid[i]), samplers.Node(*grid[i + 1])
        carry = sampler.step(denoise, process, carry, now, then, jax.random.fold_in(key, i))
        np.testing.assert_allclose(path[i + 1], carry.z, rtol=1e-10)


@pytest.mark.parametrize("process", [VariancePreserving(), SubVariancePreserving(), VarianceExploding()])
def test_the_langevin_step_is_that_of_algorithms_4_and_5(process, monkeypatch):
    monkeypatch.setattr(samplers, "_noise", lambda key, z: jnp.ones_like(z))
    t, s = jnp.array([0.8, 0.799])
    now, then = (samplers.Node(a, process.alpha(a), process.sigma(a)) for a in (t, s))
    z = process.prior_scale * jax.random.normal(jax.random.key(0), (5, 7))
    denoise, carry = gaussian_denoiser(process), samplers.Carry(z, jnp.zeros_like(z), now)
    step = lambda sampler: sampler.step(denoise, process, carry, now, then, jax.random.key(1)).z
    predicted = step(samplers.PredictorCorrector(num_corrections=0))
    score = -(predicted - then.alpha * MEAN) / marginal_scale(process, s) ** 2
    norm = float(jnp.linalg.norm(score, axis=1).mean())
    # 1 - beta of this step, which is close to 1 at every time.
    kept = 1.0 if isinstance(process, VarianceExploding) else float(jnp.exp(-0.001 * (0.1 + 0.7995 * 19.9)))
    size = 2.0 * kept * (0.16 * 7**0.5 / norm) ** 2
    corrected = step(samplers.PredictorCorrector())
    np.testing.assert_allclose(corrected, predicted + size * score + (2.0 * size) ** 0.5, rtol=1e-3, atol=1e-4)


def test_steps_are_spent_where_there_is_something_of_the_data():
    def log_ratios(process, **changes):
        grid = samplers.DPMSolver(num_steps=20, **changes).grid(process)
        assert grid.t[0] == process.t_max and grid.sigma[-1] == 0.0
        return np.log(grid.alpha[:-1] / grid.sigma[:-1])

    cosine, exploding = Discrete(schedule="cosine"), VarianceExploding(sigma_max=1000.0)
    found = log_ratios(cosine)
    assert found[0] < -9.0
    np.testing.assert_allclose(found[1:], np.linspace(-5.1, found[-1], 20)[1:], atol=0.01)
    whole = log_ratios(cosine, min_log_ratio=None)
    np.testing.assert_allclose(whole, np.linspace(found[0], found[-1], 20), atol=0.01)
    # Where the noise is larger than the data by nature, nothing is left out.
    np.testing.assert_array_equal(log_ratios(exploding), log_ratios(exploding, min_log_ratio=None))


@pytest.mark.parametrize("num_steps", [1, 2])
def test_one_and_two_steps_give_finite_samples(num_steps):
    z = jnp.ones((2, 2))
    for sampler in (samplers.DDIM, samplers.Heun, samplers.DPMSolver, samplers.Ancestral, samplers.RungeKutta4):
        samples = sampler(num_steps=num_steps).run(gaussian_denoiser(SMOOTH), SMOOTH, z, jax.random.key(0))
        assert np.isfinite(samples).all()


def test_unsuitable_samplers_are_refused():
    arguments = (gaussian_denoiser(LinearInterpolant()), LinearInterpolant(), jnp.ones((1, 2)), jax.random.key(0))
    with pytest.raises(ValueError, match="variable=time"):
        samplers.Heun().run(*arguments)
    with pytest.raises(ValueError, match="infinite"):
        samplers.PredictorCorrector().run(*arguments)
    with pytest.raises(ValueError, match="multistep"):
        samplers.DPMSolver(method="singlestep").run(*arguments)
    with pytest.raises(ValueError, match="at least one step"):
        samplers.DDIM(num_steps=0).run(*arguments)
    with pytest.raises(ValueError, match="learns variances"):
        samplers.Ancestral(num_steps=2, variance="learned").run(
            gaussian_denoiser(SMOOTH), SMOOTH, jnp.ones((1, 2)), jax.random.key(0)
        )


# ----------------------------------------------------------------------------------------------------------------------
# Likelihood


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("process", [SMOOTH, Karras(t_max=200.0), LinearInterpolant()], ids=lambda p: type(p).__name__)
def test_ode_likelihood_of_a_gaussian_is_exact(process, trace, float64):
    x = MEAN + SCALE * jax.random.normal(jax.random.key(0), (6, 4))
    probes = None if trace == "exact" else jax.random.rademacher(jax.random.key(1), x.shape, x.dtype)
    value = ode.log_likelihood(gaussian_denoiser(process), process, x, probes)
    # Exact for the distribution that the ODE makes of the prior, which at t_max is not quite that of the data.
    t, end = jnp.array(process.earliest_time), jnp.array(process.t_max)
    z = exact_flow(process, process.alpha(t) * x, t, end)
    growth = jnp.log(process.alpha(t) * marginal_scale(process, end) / marginal_scale(process, t))
    scale = process.prior_scale
    exact = (-0.5 * (z / scale) ** 2 - 0.5 * np.log(2 * np.pi * scale**2) + growth).sum(1)
    if isinstance(process, LinearInterpolant):
        true = (-0.5 * ((x - MEAN) / SCALE) ** 2 - 0.5 * np.log(2 * np.pi * SCALE**2)).sum(1)
        assert np.abs(np.asarray(value - true)).max() / (4 * np.log(2)) < 1e-3
    assert np.abs(np.asarray(value - exact)).max() / (4 * np.log(2)) < 1e-3
    if trace == "exact":
        adaptive = ode.log_likelihood(gaussian_denoiser(process), process, x, rtol=1e-6)
        np.testing.assert_allclose(adaptive, exact, atol=3e-3)


def test_probes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="probes have shape"):
        ode.log_likelihood(gaussian_denoiser(SMOOTH), SMOOTH, jnp.ones((1, 2)), jnp.ones((2, 2)))
