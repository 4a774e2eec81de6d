"""Models of pictures given degraded ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.diffusion import samplers
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.image_to_image import ImageToImage, hole_mask
from genjax.families.diffusion.networks import ResidualMLP

MLP = ResidualMLP(hidden_dim=16, num_blocks=1)


def test_degraded_pictures_are_the_conditions_of_image_to_image_models():
    x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
    model = ImageToImage(data_shape=(4, 4, 3), network=MLP, sampler=samplers.Heun(num_steps=2))
    small = model.degrade(x)
    np.testing.assert_allclose(small[0, 1, 1], x[0, :2, :2].mean((0, 1)), rtol=1e-6)
    hole = dataclasses.replace(model, degradation="hole")
    assert hole.image_shape() == (4, 4, 4)
    assert float(hole_mask(4, 4, 2).sum()) == 12 and np.all(hole.degrade(x)[:, 1:3, 1:3] == 0)
    grey = dataclasses.replace(model, degradation="grey")
    np.testing.assert_allclose(grey.degrade(x), x.mean(-1, keepdims=True))
    state = model.init(jax.random.key(1), {"x": x})
    assert model.reconstruct(state, {"x": x}, jax.random.key(2)).shape == x.shape
    assert model.sample(state, jax.random.key(2), 2).shape == x.shape
    with pytest.raises(ValueError, match="does not fit"):
        model.sample(state, jax.random.key(2), 2, image=jnp.ones((2, 5, 5, 3)))
    with pytest.raises(ValueError, match="does not fit"):
        model.sample(state, jax.random.key(2), 2, image=jnp.ones((2, 4, 4, 1)))
    with pytest.raises(ValueError, match="does not divide"):
        dataclasses.replace(model, factor=3).degrade(x)
    with pytest.raises(ValueError, match="factor=0 must be at least 1"):
        dataclasses.replace(model, factor=0).degrade(x)
    assert isinstance(model, EDM)
