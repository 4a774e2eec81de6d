"""Samplers and schedules, step for step, against diffusers.

Noise is 1 wherever either side draws some, so that its deviation is compared too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.diffusion import samplers, targets
from genjax.families.diffusion.processes import Discrete, Karras, LinearInterpolant
from genjax.families.diffusion.samplers import Estimate

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

MEAN, SCALE = 0.7, 0.5
Z = jnp.array([[1.3, -0.4]])
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02}
TRAILING = {**LINEAR, "timestep_spacing": "trailing"}


@pytest.fixture(autouse=True)
def noise_is_one(monkeypatch):
    monkeypatch.setattr(samplers, "_noise", lambda key, z: jnp.ones_like(z))
    ones = lambda shape, **options: torch.ones(shape)
    for module in ("scheduling_ddpm", "scheduling_ddim", "scheduling_dpmsolver_multistep"):
        monkeypatch.setattr(getattr(diffusers.schedulers, module), "randn_tensor", ones)


def x0_of(process, z, t):
    """E[x | z] for x ~ N(MEAN, SCALE^2)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return (SCALE**2 * alpha * z + sigma**2 * MEAN) / (alpha**2 * SCALE**2 + sigma**2)


def epsilon_of(process, z, t):
    return (z - process.alpha(t) * x0_of(process, z, t)) / process.sigma(t)


def ours(sampler, process, z=Z):
    denoise = lambda z, t, x0: Estimate(x0_of(process, z, t))
    return jax.jit(lambda z: sampler.run(denoise, process, z, jax.random.key(0), trajectory=True))(z)


def theirs(scheduler, output, z=Z, **options):
    """All states of a scheduler's loop; `output(z, timestep, index)` is the model's answer in numpy."""
    sample, path = torch.from_numpy(np.array(z)), [np.array(z)]
    for index, timestep in enumerate(scheduler.timesteps):
        answer = np.asarray(output(sample.numpy(), timestep, index), np.float32)
        sample = scheduler.step(torch.from_numpy(answer), timestep, sample, **options).prev_sample
        path.append(sample.numpy())
    return np.stack(path)


CHAINS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, samplers.DDIM(num_steps=20), {}),
    "DDIM, eta": ("DDIMScheduler", {"clip_sample": False}, samplers.DDIM(num_steps=20, eta=0.5), {"eta": 0.5}),
    "ancestral": ("DDPMScheduler", {"clip_sample": False}, samplers.Ancestral(num_steps=20), {}),
    "DPM-Solver++ 1": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 1},
        samplers.DPMSolver(num_steps=20, spacing="uniform", method="first"),
        {},
    ),
    "DPM-Solver++ 2M": (
        "DPMSolverMultistepScheduler",
        {"lower_order_final": True},
        samplers.DPMSolver(num_steps=20, spacing="uniform"),
        {},
    ),
    "SDE-DPM-Solver++ 2M": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
        samplers.DPMSolver(num_steps=20, spacing="uniform", stochastic=True),
        {},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_steps_of_a_chain_equal_those_of_diffusers(name):
    scheduler, options, sampler, call = CHAINS[name]
    scheduler = getattr(diffusers, scheduler)(**TRAILING, **options)
    scheduler.set_timesteps(20)
    process = Discrete()
    # Their index 0 is step 1.
    answer = lambda z, timestep, index: epsilon_of(process, z, jnp.array((float(timestep) + 1.0) / 1000))
    expected = theirs(scheduler, answer, **call)
    np.testing.assert_allclose(ours(sampler, process), expected, atol=3e-4)


def test_single_steps_of_the_second_order_equal_those_of_diffusers():
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **LINEAR, use_exponential_sigmas=True, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(11)
    scheduler.set_begin_index(0)
    # Levels in geometric progression: every other one is the middle of one of our steps; then comes a step of no
    # length.
    scheduler.timesteps = scheduler.timesteps[:-1]
    process, levels = Discrete(), scheduler.sigmas.numpy()
    at = lambda index: process.time_of_noise_ratio(jnp.array(levels[index]))
    expected = theirs(scheduler, lambda z, timestep, index: epsilon_of(process, z, at(index)))[::2]
    found = ours(samplers.DPMSolver(num_steps=5, method="singlestep", denoise_to_zero=False), process)
    np.testing.assert_allclose(found, expected, atol=3e-4)


def test_steps_of_heun_equal_those_of_diffusers():
    scheduler = diffusers.HeunDiscreteScheduler(**LINEAR, use_karras_sigmas=True)
    scheduler.set_timesteps(8)
    levels = scheduler.sigmas.numpy()
    process = Karras(t_max=float(levels[0]), t_min=float(levels[-2]))
    z = levels[0] * Z
    # Two evaluations a step, but one in the last; the levels stand twice.
    expected = theirs(scheduler, lambda z, timestep, index: epsilon_of(process, z, jnp.array(levels[index])), z)
    expected = np.concatenate([expected[::2], expected[-1:]])
    np.testing.assert_allclose(ours(samplers.Heun(num_steps=8), process, z), expected, rtol=1e-3, atol=1e-3)


def test_steps_of_euler_on_karras_noise_equal_those_of_diffusers():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(8)
    process, levels = Karras(), scheduler.sigmas.numpy()

    def output(z, timestep, index):
        sigma = float(levels[index])
        scheduler.scale_model_input(torch.from_numpy(z), timestep)
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        return (x0_of(process, z, jnp.array(sigma)) - c_skip * z) / c_out

    expected = theirs(scheduler, output, 80.0 * Z)
    found = ours(samplers.Euler(num_steps=8, spacing="karras"), process, 80.0 * Z)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_steps_of_flow_matching_equal_those_of_diffusers():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / 8, 8))
    process, levels = LinearInterpolant(), scheduler.sigmas.numpy()

    def velocity(z, timestep, index):
        # epsilon - x at z = (1 - t) x + t epsilon
        return (z - x0_of(process, z, jnp.array(levels[index]))) / levels[index]

    found = ours(samplers.Euler(num_steps=8, variable="time"), process)
    np.testing.assert_allclose(found, theirs(scheduler, velocity), atol=1e-5)


def test_schedules_equal_those_of_diffusers():
    for schedule, name in (
        ("linear", "linear"),
        ("scaled_linear", "scaled_linear"),
        ("cosine", "squaredcos_cap_v2"),
    ):
        for zero in (False, True):
            scheduler = diffusers.DDIMScheduler(**LINEAR, beta_schedule=name, rescale_betas_zero_snr=zero)
            betas = Discrete(schedule=schedule, zero_terminal_snr=zero).betas
            # Theirs are differences of float32 numbers close to 1.
            np.testing.assert_allclose(betas, scheduler.betas.numpy(), rtol=2e-3, atol=3e-7, err_msg=f"{name} {zero}")


def test_targets_are_those_that_diffusers_trains_on():
    scheduler = diffusers.DDIMScheduler(**LINEAR)
    x, epsilon = np.float32([[0.3, -1.0]]), np.float32([[0.5, 2.0]])
    expected = scheduler.get_velocity(torch.from_numpy(x), torch.from_numpy(epsilon), torch.tensor([399]))
    found = targets.make_target("v", Discrete(), jnp.array([0.4]), jnp.asarray(x), jnp.asarray(epsilon))
    np.testing.assert_allclose(found, expected, atol=1e-5)
