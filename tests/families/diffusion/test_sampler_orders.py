"""How fast each sampler converges, measured on Gaussian data, whose denoiser is known.

Stochastic samplers are measured without drawing anything: where data are Gaussian, every sampler is affine in its
noise, so a random variable is written as the vector of its mean and of its coefficients on independent standard
normals.  Its deviation is the length of those coefficients, and the sampler's own code computes them.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.diffusion import ode, samplers
from genjax.families.diffusion.processes import VariancePreserving
from genjax.families.diffusion.samplers import Estimate

MEAN, SCALE = 0.7, 0.5
PROCESS = VariancePreserving(t_min=0.01)
START, END = PROCESS.t_max, PROCESS.t_min


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def marginal(t):
    """Mean and deviation of z_t."""
    alpha, sigma = PROCESS.alpha(jnp.array(t)), PROCESS.sigma(jnp.array(t))
    return alpha * MEAN, jnp.sqrt(alpha**2 * SCALE**2 + sigma**2)


def denoiser(ones):
    """E[x | z] for x ~ N(MEAN, SCALE^2); a constant is a multiple of `ones`."""

    def denoise(z, t, x0):
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        return Estimate((SCALE**2 * alpha * z + sigma**2 * MEAN * ones) / (alpha**2 * SCALE**2 + sigma**2))

    return denoise


def order(counts, errors):
    return -np.polyfit(np.log(counts), np.log(np.asarray(errors)), 1)[0]


def moments(monkeypatch, sampler):
    """Mean and deviation of what the sampler makes of the exact marginal at START."""
    # Noises are numbered by the keys that they are drawn from: 2 + step, and for the corrector's behind all of those.
    size = 2 * sampler.num_steps + 2
    monkeypatch.setattr(jax.random, "fold_in", lambda key, index: key + index)
    monkeypatch.setattr(jax.random, "split", lambda key: (key, key + sampler.num_steps))
    monkeypatch.setattr(samplers, "_noise", lambda key, z: jax.nn.one_hot(key, size, dtype=z.dtype)[None])
    start = jnp.zeros((1, size)).at[0, :2].set(jnp.stack(marginal(START)))
    z = sampler.run(denoiser(jax.nn.one_hot(0, size)[None]), PROCESS, start, jnp.array(2))[0]
    return float(z[0]), float(jnp.linalg.norm(z[1:]))


STOCHASTIC = [
    (samplers.Ancestral(spacing="log_snr"), 1),
    (samplers.Ancestral(spacing="log_snr", variance="large"), 1),
    (samplers.DDIM(spacing="log_snr", eta=0.5), 1),
    (samplers.DPMSolver(method="first", stochastic=True), 1),
    (samplers.DPMSolver(method="multistep", stochastic=True), 2),
    (samplers.Euler(spacing="log_snr", churn=4.0), 1),
    (samplers.Heun(spacing="log_snr", churn=4.0), 2),
    (samplers.PredictorCorrector(num_corrections=0), 1),
    (samplers.PredictorCorrector(spacing="log_snr"), 1),
]


@pytest.mark.parametrize(("sampler", "expected"), STOCHASTIC)
def test_stochastic_samplers_reach_the_gaussian_at_their_weak_order(sampler, expected, monkeypatch):
    counts = np.array([32, 64, 128])
    mean, deviation = map(float, marginal(END))
    errors = []
    for count in counts:
        finer = dataclasses.replace(sampler, num_steps=int(count), denoise_to_zero=False)
        if isinstance(finer, samplers.PredictorCorrector):
            # Langevin steps are biased by their size, 2 r^2, which must shrink like the predictor's.
            finer = dataclasses.replace(finer, signal_to_noise=1.6 / count**0.5)
        found = moments(monkeypatch, finer)
        errors.append(abs(found[1] - deviation))
    assert abs(order(counts, errors) - expected) < 0.2, errors
    assert abs(found[0] - mean) < 0.005


def solve(slope, y, end, tolerance, max_steps=5000):
    """The solution of y' = slope(y, t) from time 0 to `end`, and how many steps were tried."""
    y, count = jax.jit(lambda tol: ode.solve_adaptive(slope, jnp.array(y), 0.0, end, tol, tol, max_steps))(tolerance)
    return np.asarray(y), int(count) / 7


def test_the_error_of_adaptive_steps_is_proportional_to_the_tolerance_and_their_number_to_its_fifth_root():
    turn = lambda y, t: jnp.stack([y[:, 1], -y[:, 0]], 1)
    tolerances = 10.0 ** -np.arange(4, 11)
    found = [solve(turn, [[1.0, 0.0]], 20.0, tolerance) for tolerance in tolerances]
    errors = [np.abs(y - [[np.cos(20.0), -np.sin(20.0)]]).max() for y, _ in found]
    assert abs(order(1 / tolerances, errors) - 1) < 0.2, errors
    assert abs(order(tolerances, [count for _, count in found]) - 1 / 5) < 0.04


def test_adaptive_steps_that_err_too_much_are_taken_again():
    # The first step, of a hundredth of the way, passes over all of this; what it misses could not be made good later.
    bump = lambda y, t: jnp.full_like(y, jnp.exp(-(((t - 0.012) / 0.003) ** 2)))
    area = 0.003 * np.pi**0.5 * (1 + math.erf(4.0)) / 2
    assert abs(solve(bump, [[0.0]], 3.0, 1e-7)[0].item() - area) < 1e-6
    assert np.isinf(solve(bump, [[0.0]], 3.0, 1e-7, max_steps=10)[0]).all()
