"""Claims about rational-quadratic splines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.splines import rational_quadratic_spline

BOUND = 3.0


@pytest.fixture(scope="module")
def parameters():
    return jax.random.normal(jax.random.key(0), (200, 3 * 6 - 1))


@pytest.fixture(scope="module")
def points():
    return jnp.linspace(-4.0, 4.0, 200)


def test_the_inverse_undoes_the_spline(points, parameters):
    y, forward = rational_quadratic_spline(points, parameters, BOUND)
    x, backward = rational_quadratic_spline(y, parameters, BOUND, inverse=True)
    # Steep bins bound what float32 can give back.
    np.testing.assert_allclose(x, points, atol=2e-4)
    np.testing.assert_allclose(forward, -backward, atol=2e-2)


def test_the_inverse_is_exact_in_float64(points, parameters):
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(points), jnp.float64)
        p = jnp.asarray(np.asarray(parameters), jnp.float64)
        y, forward = rational_quadratic_spline(x, p, BOUND)
        back, backward = rational_quadratic_spline(y, p, BOUND, inverse=True)
        np.testing.assert_allclose(back, x, atol=1e-11)
        np.testing.assert_allclose(forward, -backward, atol=1e-9)


def test_steep_and_flat_bins_are_exact_in_float32_too():
    p = 8.0 * jax.random.normal(jax.random.key(0), (40_000, 23))
    y = jax.random.uniform(jax.random.key(1), (40_000,), minval=-BOUND, maxval=BOUND)
    log_derivative = rational_quadratic_spline(y, p, BOUND, inverse=True)[1]
    with jax.enable_x64(True):
        y, p = jnp.asarray(np.asarray(y), jnp.float64), jnp.asarray(np.asarray(p), jnp.float64)
        x, _ = rational_quadratic_spline(y, p, BOUND, inverse=True)
        expected = -rational_quadratic_spline(x, p, BOUND)[1]
    assert np.abs(np.asarray(log_derivative) - np.asarray(expected)).max() < 0.05


def test_log_derivatives_are_those_of_autodiff(points, parameters):
    for inverse in (False, True):
        value = lambda x, p: rational_quadratic_spline(x, p, BOUND, inverse)[0]  # noqa: B023
        slope = jax.vmap(jax.grad(value))(points, parameters)
        expected = rational_quadratic_spline(points, parameters, BOUND, inverse)[1]
        np.testing.assert_allclose(jnp.log(slope), expected, atol=2e-3)


def test_zero_parameters_and_the_tails_are_the_identity(points, parameters):
    y, log_derivative = rational_quadratic_spline(points, jnp.zeros_like(parameters), BOUND)
    np.testing.assert_allclose(y, points, atol=1e-6)
    np.testing.assert_allclose(log_derivative, np.zeros(200), atol=1e-6)
    y, log_derivative = rational_quadratic_spline(points, parameters, BOUND)
    outside = np.abs(points) >= BOUND
    np.testing.assert_array_equal(y[outside], points[outside])
    assert not log_derivative[outside].any()


def test_splines_rise_and_stay_in_their_square(parameters):
    x = jnp.linspace(-3.0, 3.0, 500)
    p = jnp.broadcast_to(parameters[0], (500, parameters.shape[1]))
    y, _ = rational_quadratic_spline(x, p, BOUND)
    assert (np.diff(y) > 0).all() and np.abs(y).max() <= BOUND


def test_gradients_are_finite_on_knots_and_far_outside(parameters):
    x = jnp.asarray([-BOUND, BOUND, 0.0, 1e4, -1e4])
    total = lambda x, p: sum(r.sum() for r in rational_quadratic_spline(x, p, BOUND))
    assert all(jnp.isfinite(g).all() for g in jax.grad(total, argnums=(0, 1))(x, parameters[:5]))


def test_a_number_of_parameters_that_fits_no_spline_is_an_error():
    with pytest.raises(ValueError, match="3 K - 1"):
        rational_quadratic_spline(jnp.zeros(2), jnp.zeros((2, 6)), BOUND)
