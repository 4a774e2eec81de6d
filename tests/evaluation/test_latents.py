"""Paths between codes against their geometry."""

import numpy as np
import pytest

from genjax.evaluation import latents

RNG = np.random.default_rng(0)
START, END = RNG.standard_normal((6, 8)), RNG.standard_normal((6, 8))


@pytest.mark.parametrize("path", [latents.linear_interpolation, latents.spherical_interpolation])
def test_paths_begin_and_end_where_they_should(path):
    points = path(START, END, 7)
    assert points.shape == (6, 7, 8)
    np.testing.assert_allclose(points[:, 0], START, atol=1e-12)
    np.testing.assert_allclose(points[:, -1], END, atol=1e-12)


def test_arcs_divide_the_angle_evenly_and_the_norm_linearly():
    points = latents.spherical_interpolation(START, END, 5)
    norms = np.linalg.norm(points, axis=-1)
    np.testing.assert_allclose(np.diff(norms, 2), 0.0, atol=1e-12)
    unit = points / norms[..., None]
    angles = np.arccos((unit[:, :-1] * unit[:, 1:]).sum(-1))
    np.testing.assert_allclose(angles, angles[:, :1] * np.ones(4), rtol=1e-9)


def test_arcs_between_equal_or_opposite_directions_are_lines():
    ends = np.stack([2 * START[0], -START[1]])
    points = latents.spherical_interpolation(START[:2], ends, 3)
    np.testing.assert_allclose(points, latents.linear_interpolation(START[:2], ends, 3), atol=1e-6)


def test_codes_with_several_axes_are_one_vector():
    shaped = latents.spherical_interpolation(START.reshape(6, 2, 4), END.reshape(6, 2, 4), 5)
    np.testing.assert_allclose(shaped.reshape(6, 5, 8), latents.spherical_interpolation(START, END, 5))


def test_a_traversal_changes_one_dimension_at_a_time():
    codes = latents.traversal(START[0], np.array([5, 2]), np.array([-1.0, 1.0]))
    assert codes.shape == (2, 2, 8)
    np.testing.assert_array_equal(codes[1, :, 2], [-1.0, 1.0])
    np.testing.assert_array_equal(np.delete(codes[1, 0], 2), np.delete(START[0], 2))


def test_an_attribute_vector_is_the_difference_of_means():
    labels = np.array([0, 0, 0, 1, 1, 1])
    vector = latents.attribute_vector(START, labels, 0, 1)
    np.testing.assert_allclose(vector, START[3:].mean(0) - START[:3].mean(0))
    with pytest.raises(ValueError, match="no example has the class 4; there are 0, 1"):
        latents.attribute_vector(START, labels, 0, 4)


def test_partners_are_of_the_same_class_and_not_among_the_first():
    labels = np.array([0, 1, 1, 2, 1, 0])
    np.testing.assert_array_equal(latents.partners(labels, 2), [5, 2])
    with pytest.raises(ValueError, match="class 2 has no example after the first 4"):
        latents.partners(labels, 4)
