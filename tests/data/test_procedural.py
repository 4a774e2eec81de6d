"""Embedded sets have the factors and the densities that they claim."""

import numpy as np
import pytest

from genjax.data import Points, procedural


def test_every_combination_of_sprite_factors_is_there_once_and_looks_its_own():
    pictures, factors = procedural.sprites()
    assert len(np.unique(factors, axis=0)) == len(pictures) == np.prod(list(procedural.SPRITE_FACTORS.values()))
    # A square turned by its steps is another picture, and so is every change of a factor.
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) > 0.98 * len(pictures)
    columns = np.array([np.average(np.arange(32), weights=p[..., 0].sum(0) + 1e-9) for p in pictures])
    means = [columns[factors[:, 3] == value].mean() for value in range(8)]
    assert (np.diff(means) > 1).all()
    mass = [pictures[factors[:, 1] == value].mean() for value in range(4)]
    assert (np.diff(mass) > 0).all()


def test_shapes_are_fixed_and_have_every_class():
    pictures, labels = procedural.shapes(200)
    assert pictures.shape == (200, 32, 32, 3) and set(labels) == set(range(5))
    np.testing.assert_array_equal(pictures, procedural.shapes.__wrapped__(200)[0])


@pytest.mark.parametrize("name", procedural.DENSITIES)
def test_densities_are_finite_and_differ_between_splits(name):
    data = Points(name=name, num_train=1000, num_held_out=500)
    train, test = (data.load(split).arrays()["x"] for split in ("train", "test"))
    assert train.shape == (1000, 2) and test.shape == (500, 2) and np.isfinite(train).all()
    assert not np.array_equal(train[:500], test)
    assert np.abs(train).max() < 6


def test_the_mixture_of_eight_gaussians_has_its_means_and_scale():
    x = procedural.DENSITIES["eight_gaussians"](np.random.default_rng(0), 80000)
    means = procedural.eight_gaussians_means()
    nearest = ((x[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    for i, mean in enumerate(means):
        part = x[nearest == i]
        assert abs(len(part) - 10000) < 500
        np.testing.assert_allclose(part.mean(0), mean, atol=0.02)
        np.testing.assert_allclose(part.std(0), 0.2, atol=0.01)
