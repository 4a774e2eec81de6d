"""Samplers of ours beside the schedulers of the library diffusers, step by step, from the same noise and denoiser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.diffusion import targets
from genjax.families.diffusion.processes import expand
from genjax.families.diffusion.samplers import Estimate
from genjax.families.diffusion.schedulers import read_scheduler, write_scheduler
from tests.interop.diffusers_parts import diffusers, torch

# The library itself makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SHAPE = (2, 3, 3, 2)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def network(z, time, xp):
    """A stand-in for a network, the same in torch and in jax; with guidance 7.5, as two of its outputs."""
    time = time / 1000.0
    conditional = xp.tanh(0.7 * z + time) + 0.3 * z
    unconditional = xp.tanh(0.5 * z - time) + 0.2 * z
    return unconditional + 7.5 * (conditional - unconditional)


def ours(config, count, z):
    """All nodes of our sampler."""
    found = read_scheduler(config, count)
    process = found.sampler.on_grid(found.process)
    found.sampler.check(process)

    def denoise(z, t, x0_before):
        times = jnp.broadcast_to(t, z.shape[:1])
        output = network(z, expand(process.network_time(times), z), jnp)
        x0 = targets.to_x0(found.target, process, times, z, output, 1.0)
        return Estimate(jnp.clip(x0, -1.0, 1.0) if found.clip_x0 else x0)

    z = process.prior_scale * jnp.asarray(z)
    run = jax.jit(lambda z: found.sampler.run(denoise, process, z, jax.random.key(0), trajectory=True))
    return np.asarray(run(z)), process


def theirs(scheduler, count, z):
    """The samples of their scheduler after each evaluation, in our scale: z and not z / alpha."""
    scheduler.set_timesteps(count)
    sample, path = torch.tensor(z) * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, t)
        path.append(scaled.numpy())
        sample = scheduler.step(network(scaled, t, torch), t, sample).prev_sample
    return np.stack([*path, sample.numpy()])


CASES = {
    "DDIMScheduler": [
        {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
        {"timestep_spacing": "trailing", "clip_sample": False},
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "clip_sample": False,
        },
        {"prediction_type": "sample", "clip_sample": False},
    ],
    "PNDMScheduler": [{"skip_prk_steps": True, "steps_offset": 1}, {"skip_prk_steps": True, "set_alpha_to_one": True}],
    "EulerDiscreteScheduler": [
        {"timestep_spacing": "leading", "steps_offset": 1},
        {},
        {"use_karras_sigmas": True},
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"final_sigmas_type": "sigma_min"},
    ],
    "HeunDiscreteScheduler": [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "leading", "steps_offset": 1}],
    "LMSDiscreteScheduler": [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "leading", "steps_offset": 1}],
    "DPMSolverMultistepScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"solver_order": 1},
    ],
    "UniPCMultistepScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"solver_type": "bh1", "prediction_type": "v_prediction"},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    ],
}


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(("name", "options"), [(name, options) for name, rows in CASES.items() for options in rows])
def test_every_step(name, options, count):
    scheduler = getattr(diffusers, name)(**{**BETAS, **options})
    config = {"_class_name": name, **scheduler.config}
    z = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    path, process = ours(config, count, z)
    expected = theirs(scheduler, count, z)
    if name == "PNDMScheduler" and count > 1:
        expected = np.delete(expected, 1, axis=0)  # the second evaluation of the first step
    if name == "HeunDiscreteScheduler":
        expected = np.concatenate([expected[:-1:2], expected[-1:]])
    # What their last sample is: z where the grid ends at the data, and z / alpha in the variable s.
    last = path[-1] / (process.alphas[-1] if hasattr(scheduler, "is_scale_input_called") else 1.0)
    for node, (own, other) in enumerate(zip([*path[:-1], last], expected, strict=True)):
        scale = np.abs(other).max()
        np.testing.assert_allclose(own / scale, other / scale, atol=1e-3, err_msg=f"node {node}")
    again = read_scheduler(write_scheduler(**read_scheduler(config, count).fields()), count)
    assert again == read_scheduler(config, count)


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "DDPMScheduler"])
def test_ancestral_steps_have_the_mean_and_the_deviation_of_theirs(name, monkeypatch):
    """With all noise replaced by one, which gives mean plus deviation."""
    from genjax.families.diffusion import samplers

    options = {"clip_sample": False} if name == "DDPMScheduler" else {}
    scheduler = getattr(diffusers, name)(**BETAS, **options)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.ones(shape))
    monkeypatch.setattr(samplers, "_noise", lambda key, z: jnp.ones_like(z))
    z = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    path, _ = ours({"_class_name": name, **scheduler.config}, 6, z)
    for own, other in zip(path, theirs(scheduler, 6, z), strict=True):
        np.testing.assert_allclose(own / np.abs(other).max(), other / np.abs(other).max(), atol=1e-3)


def test_ddim_on_linspace_steps_to_the_next_time_of_the_grid():
    """The library goes back by 1000 // n steps there, to times that are not on its grid (its issue 12633)."""
    scheduler = diffusers.DDIMScheduler(**BETAS, timestep_spacing="linspace", clip_sample=False)
    z = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    path, _ = ours({"_class_name": "DDIMScheduler", **scheduler.config}, 5, z)
    scheduler.set_timesteps(5)
    squares = scheduler.alphas_cumprod.numpy()
    steps = scheduler.timesteps.tolist()
    for node, (k, after) in enumerate(zip(steps, [*steps[1:], None])):
        epsilon = network(z, np.float32(k), np)
        x0 = (z - np.sqrt(1 - squares[k]) * epsilon) / np.sqrt(squares[k])
        square = 1.0 if after is None else squares[after]
        z = np.sqrt(square) * x0 + np.sqrt(1 - square) * epsilon
        np.testing.assert_allclose(path[node + 1] / np.abs(z).max(), z / np.abs(z).max(), atol=1e-3)
    theirs_next = steps[0] - 1000 // 5
    assert theirs_next != steps[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "DEISMultistepScheduler"}, "'DEISMultistepScheduler'; known are DDIMScheduler"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'; known are linear, scaled_linear"),
        ({"prediction_type": "flow"}, "prediction_type='flow'; known are epsilon"),
        ({"rescale_betas_zero_snr": True}, "needs v_prediction"),
        ({"clip_sample": True}, "clip_sample=True, and only False"),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps=False"),
        ({"use_lu_lambdas": True}, "use_lu_lambdas=True, and only"),
    ],
)
def test_what_cannot_be_read(change, words):
    with pytest.raises(ValueError, match=words):
        read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False, **BETAS, **change})


def test_a_grid_beyond_the_chain_is_refused():
    found = read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False, **BETAS, "steps_offset": 1}, 1000)
    with pytest.raises(ValueError, match="asks for step 1000"):
        found.sampler.on_grid(found.process)
    with pytest.raises(ValueError, match="no scheduler of a DDIM"):
        write_scheduler(found.process, "epsilon", dataclasses.replace(found.sampler, published=None), False)


@pytest.mark.parametrize(
    ("settings", "last", "options"),
    [
        ({"shift": 3.0}, "shifted_step", {}),
        ({"shift": 3.0}, "step", {"sigmas": np.linspace(1.0, 1e-3, 6)}),
        ({"use_dynamic_shifting": True}, "even", {"sigmas": np.linspace(1.0, 1 / 6, 6), "mu": 0.5 + 0.65 * 768 / 3840}),
    ],
)
def test_flow_matching(settings, last, options):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    found = read_scheduler({**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}, 6, num_patches=1024)
    grid = dataclasses.replace(found.sampler.published, last=last)
    sampler = dataclasses.replace(found.sampler, published=grid)
    process = sampler.on_grid(found.process)
    rng = np.random.default_rng(0)
    z = rng.normal(size=SHAPE).astype(np.float32)
    count = {} if "sigmas" in options else {"num_inference_steps": 6}
    scheduler.set_timesteps(**count, **options)
    np.testing.assert_allclose(process.times[:-1], scheduler.timesteps, rtol=1e-5)
    sample, path = torch.tensor(z), [z]
    for t in scheduler.timesteps:
        sample = scheduler.step(network(sample, t, torch), t, sample).prev_sample
        path.append(sample.numpy())

    def denoise(z, t, x0_before):
        times = jnp.broadcast_to(t, z.shape[:1])
        output = network(z, expand(process.network_time(times), z), jnp)
        return Estimate(targets.to_x0(found.target, process, times, z, output, 1.0))

    own = sampler.run(denoise, process, jnp.asarray(z), jax.random.key(0), trajectory=True)
    for ours_at, theirs_at in zip(own, path, strict=True):
        np.testing.assert_allclose(ours_at, theirs_at, rtol=1e-3, atol=1e-3 * np.abs(theirs_at).max())
    if last == "shifted_step":
        config = write_scheduler(found.process, found.target, found.sampler, False)
        assert read_scheduler(config, 6) == found
        with pytest.raises(ValueError, match="whose times depend on the picture; say of how many patches"):
            read_scheduler({**config, "use_dynamic_shifting": True}, 6)
    else:
        with pytest.raises(ValueError, match=f"end at published.last={last}"):
            write_scheduler(found.process, found.target, sampler, False)
