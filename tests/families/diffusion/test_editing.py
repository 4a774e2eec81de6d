"""Inpainting and image-to-image of a diffusion model, against a Gaussian whose conditional is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.diffusion import samplers
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.editing import image_to_image, inpaint, resampling_steps
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.processes import Karras, VariancePreserving
from genjax.families.diffusion.samplers import Estimate

MLP = ResidualMLP(hidden_dim=16, num_blocks=1)


class ExactGaussian(Diffusion):
    """Two correlated values: N(0, [[1, .8], [.8, 1]])."""

    def estimate(self, params, z, t, condition, x0_before=None):
        covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
        alpha, sigma = self.process.alpha(t[0]), self.process.sigma(t[0])
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(2))
        return Estimate(z @ gain.T)


def paper_schedule(num_steps, jump_length, num_resamples):
    """Algorithm of Lugmayr et al., figure 9: times from num_steps down to -1, which are the data."""
    jumps = dict.fromkeys(range(0, num_steps - jump_length, jump_length), num_resamples - 1)
    times, t = [], num_steps
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize(("num_steps", "num_resamples", "jump_length"), [(5, 3, 1), (20, 2, 5), (23, 3, 10), (4, 2, 6)])
def test_repaint_goes_back_and_forth_as_its_paper_does(num_steps, num_resamples, jump_length):
    nodes = [0]
    for before, back in resampling_steps(num_steps, num_resamples, jump_length):
        assert before == nodes[-1]
        nodes += range(before + 1, back - 1, -1) if back <= before else [back]
    assert [num_steps - 1 - t for t in paper_schedule(num_steps, jump_length, num_resamples)] == nodes


@pytest.fixture(scope="module")
def correlated():
    model = ExactGaussian(
        data_shape=(2,), network=MLP, process=VariancePreserving(), sampler=samplers.DPMSolver(num_steps=20)
    )
    return model, model.init(jax.random.key(0), {"x": jnp.zeros((1, 2))})


def test_repaint_samples_the_conditional_of_a_gaussian(correlated):
    model, state = correlated
    x = jnp.broadcast_to(jnp.array([1.5, 99.0]), (2000, 2))
    fill = jax.jit(lambda k: inpaint(model, state, k, x, jnp.array([[1, 0]]), num_steps=200, num_resamples=10))
    samples = fill(jax.random.key(1))
    np.testing.assert_array_equal(samples[:, 0], 1.5)
    assert abs(float(samples[:, 1].mean()) - 1.2) < 0.1
    assert abs(float(samples[:, 1].std()) - 0.6) < 0.1
    with pytest.raises(ValueError, match="the mask has shape"):
        inpaint(model, state, jax.random.key(1), x, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="examples have the shape"):
        inpaint(model, state, jax.random.key(1), jnp.ones((1, 3)), jnp.ones((1, 3)))


def test_repaint_takes_the_spacing_of_the_sampler(correlated):
    model = dataclasses.replace(correlated[0], process=Karras(), sampler=samplers.Heun())
    state = correlated[1]
    x = jnp.broadcast_to(jnp.array([1.5, 99.0]), (2000, 2))
    arguments = (model, state, jax.random.key(1), x, jnp.array([[1, 0]]), 40, 10, 4)
    fill = jax.jit(lambda spacing: inpaint(*arguments, spacing=spacing)[:, 1], static_argnums=0)
    samples = fill(None)
    assert abs(float(samples.mean()) - 1.2) < 0.1 and abs(float(samples.std()) - 0.6) < 0.1
    assert abs(float(fill("uniform").mean()) - 1.2) > 0.2
    with pytest.raises(ValueError, match="jump_length=0"):
        inpaint(model, state, jax.random.key(1), x, jnp.array([[1, 0]]), jump_length=0)


def test_image_to_image_stays_close_for_little_noise(correlated):
    model, state = correlated
    x = jax.random.normal(jax.random.key(0), (50, 2))
    near = image_to_image(model, state, jax.random.key(1), x, strength=0.1)
    far = image_to_image(model, state, jax.random.key(1), x, strength=1.0)
    assert float(jnp.abs(near - x).mean()) < 0.2 < float(jnp.abs(far - x).mean())
    with pytest.raises(ValueError, match="strength"):
        image_to_image(model, state, jax.random.key(1), x, strength=0.0)
