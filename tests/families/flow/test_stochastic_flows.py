"""Claims about residual and continuous flows, whose log-determinants are exact or estimated without bias."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import DEVICE_AXIS
from genjax.families.flow.dequantization import Uniform
from genjax.families.flow.ffjord import FFJORD, Continuous, Dynamics
from genjax.families.flow.residual import ContractiveMLP, Residual, ResidualFlow, limit_spectral_norm

DIM = 3


def has_diffrax():
    try:
        import diffrax  # noqa: F401
    except ImportError:
        return False
    return True


needs_diffrax = pytest.mark.skipif(not has_diffrax(), reason="diffrax is not installed")
CASES = [
    pytest.param(Residual(network=ContractiveMLP(hidden_dims=(8,), lipschitz=0.7), exact_dim=0), id="residual"),
    pytest.param(
        Continuous(network=Dynamics(hidden_dims=(8,)), exact_dim=0, tolerance=1e-6),
        id="continuous",
        marks=needs_diffrax,
    ),
]


def prepared(bijection):
    x = jax.random.normal(jax.random.key(0), (4, DIM))
    condition = jax.random.normal(jax.random.key(1), (4, 2))
    params = bijection.init(jax.random.key(2), x, condition)
    leaves, tree = jax.tree.flatten(params)
    noise = [0.5 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)]
    return tree.unflatten([p + n for p, n in zip(leaves, noise)]), x, condition


@pytest.mark.parametrize("bijection", CASES)
def test_exact_log_determinant_is_that_of_the_jacobian_and_the_inverse_undoes(bijection):
    params, x, condition = prepared(bijection)
    with jax.enable_x64(True):
        params, x, condition = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, x, condition))
        # One example and its neighbours along each axis, for the Jacobian by central differences.
        step = 1e-4 * np.eye(DIM)
        x = x[:1] + np.concatenate([np.zeros((1, DIM)), step, -step])
        condition = jnp.tile(condition[:1], (len(x), 1))
        z, log_det = jax.jit(bijection.forward)(params, x, condition)
        jacobian = (z[1 : DIM + 1] - z[DIM + 1 :]) / 2e-4
        np.testing.assert_allclose(log_det[0], np.linalg.slogdet(jacobian)[1], atol=1e-5)
        back, inverse_log_det = jax.jit(bijection.inverse)(params, z, condition)
        np.testing.assert_allclose(back, x, atol=1e-5)
        np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-5)


@pytest.mark.parametrize("bijection", CASES)
def test_estimated_log_determinant_has_the_exact_one_as_its_mean(bijection):
    params, x, condition = prepared(bijection)
    exact = bijection.forward(params, x, condition)[1][0]
    count = 2000
    repeat = lambda a: jnp.broadcast_to(a[:1], (count, a.shape[1]))
    keys = jax.random.split(jax.random.key(3), count)
    draws = np.asarray(jax.jit(bijection.forward)(params, repeat(x), repeat(condition), keys)[1])
    assert draws.std() > 1e-3
    assert abs(draws.mean() - exact) < 4.0 * draws.std() / np.sqrt(count) + 1e-3


def test_a_block_near_the_bound_is_inverted_and_estimated_without_bias():
    # g(x) = -.98 x: the fixed point converges as slowly as it can, and the series of the log-determinant too.
    bijection = Residual(network=ContractiveMLP(hidden_dims=(), lipschitz=0.98), exact_dim=0)
    x = jax.random.normal(jax.random.key(0), (4, DIM))
    params = {"kernel_0": -0.98 * jnp.eye(DIM), "bias_0": jnp.zeros(DIM)}
    z, exact = jax.jit(bijection.forward)(params, x)
    np.testing.assert_allclose(exact, np.full(4, DIM * np.log(0.02)), rtol=1e-4)
    np.testing.assert_allclose(jax.jit(bijection.inverse)(params, z)[0], x, atol=1e-4)

    def estimate(params):
        count = 20000
        keys = jax.random.split(jax.random.key(3), count)
        draws = bijection.forward(params, jnp.broadcast_to(x[:1], (count, DIM)), None, keys)[1]
        return draws.mean(), draws

    mean, draws = jax.jit(estimate)(params)
    assert abs(mean - exact[0]) < 4.0 * draws.std() / len(draws) ** 0.5


def test_the_gradient_of_the_estimate_has_that_of_the_exact_log_determinant_as_its_mean():
    bijection = Residual(network=ContractiveMLP(hidden_dims=(8,), lipschitz=0.7), exact_dim=0)
    params, x, condition = prepared(bijection)

    def gradient(count, keys):
        repeat = lambda a: jnp.broadcast_to(a[:1], (count, a.shape[1]))
        mean = lambda p, x: bijection.forward(p, repeat(x), repeat(condition), keys)[1].mean()
        return jax.jit(jax.grad(mean, argnums=(0, 1)))(params, x)

    exact, estimated = gradient(1, None), gradient(20000, jax.random.split(jax.random.key(3), 20000))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), exact, estimated)
    assert all(jnp.abs(g).max() > 0.02 for g in (exact[0]["kernel_0"], exact[1]))


def test_the_bound_of_many_draws_takes_no_exponentials_of_estimated_determinants():
    model = ResidualFlow(
        num_blocks=1, hidden_dims=(8,), data_shape=(DIM,), dequantization=Uniform(num_levels=4), exact_dim=0
    )
    batch = {"x": jnp.tile(jnp.float32([[0.0, 1 / 3, 1.0]]), (8, 1))}
    state = model.init(jax.random.key(0), batch)
    bound = lambda model: model.log_prob_bound(state, batch, jax.random.key(1), 4)
    np.testing.assert_allclose(bound(model), bound(dataclasses.replace(model, exact_dim=DIM)), atol=1e-5)


def test_kernels_are_limited_exactly_and_small_ones_left_alone():
    kernel = jax.random.normal(jax.random.key(0), (6, 4))
    for k in (kernel, kernel.T):
        assert np.linalg.svd(limit_spectral_norm(k, 0.9), compute_uv=False)[0] == pytest.approx(0.9, rel=1e-5)
        np.testing.assert_array_equal(limit_spectral_norm(0.01 * k, 0.9), 0.01 * k)
    # The gradient is that of the quotient, singular vectors included.
    value = lambda k: limit_spectral_norm(k, 0.9)[0, 0]
    direction = jax.random.normal(jax.random.key(1), kernel.shape)
    slope = jax.jvp(value, (kernel,), (direction,))[1]
    difference = (value(kernel + 1e-2 * direction) - value(kernel - 1e-2 * direction)) / 2e-2
    assert slope == pytest.approx(float(difference), abs=1e-3)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(ResidualFlow(num_blocks=2, hidden_dims=(16,), data_shape=(2,)), id="residual"),
        pytest.param(
            FFJORD(hidden_dims=(16,), tolerance=1e-4, data_shape=(2,)),
            id="ffjord",
            marks=needs_diffrax,
        ),
    ],
)
def test_density_integrates_to_one(model):
    state = jax.jit(model.init)(jax.random.key(0), {"x": jax.random.normal(jax.random.key(1), (64, 2))})
    leaves, tree = jax.tree.flatten(state.params)
    noise = [0.2 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)]
    state = state.replace(params=tree.unflatten([p + n for p, n in zip(leaves, noise)]))
    edges = np.linspace(-9.0, 9.0, 101)
    grid = jnp.asarray(np.stack(np.meshgrid(edges, edges, indexing="ij"), -1).reshape(-1, 2), jnp.float32)
    total = float(jnp.exp(jax.jit(model.log_prob)(state, {"x": grid})).sum()) * (edges[1] - edges[0]) ** 2
    assert abs(total - 1.0) < 1e-3
    assert jax.jit(lambda k: model.sample(state, k, 3))(jax.random.key(0)).shape == (3, 2)


@needs_diffrax
def test_a_continuous_flow_can_be_trained_under_pmap():
    model, batch = FFJORD(hidden_dims=(4,), data_shape=(2,)), {"x": jnp.zeros((2, 4, 2))}
    state = jax.jit(model.init)(jax.random.key(0), {"x": batch["x"][0]})
    step = jax.pmap(model.train_step, DEVICE_AXIS, in_axes=(None, 0, None), devices=jax.devices()[:2])
    # Traced, not compiled, which would take long.
    step.lower(state, batch, jax.random.key(1))


def test_metrics_say_where_the_density_is_an_estimate():
    batch = {"x": jax.random.normal(jax.random.key(0), (4, 2)), "log_abs_det": jnp.zeros(4)}
    for exact_dim, names in ((2, {"nll", "bits_per_dim"}), (0, {"nll_estimate", "bits_per_dim_estimate"})):
        model = ResidualFlow(num_blocks=1, hidden_dims=(4,), data_shape=(2,), exact_dim=exact_dim)
        state = jax.eval_shape(model.init, jax.random.key(0), batch)
        assert set(jax.eval_shape(model.evaluate, state, batch, jax.random.key(0))) == names


def test_bad_settings_are_one_clear_error():
    with pytest.raises(ValueError, match="between 0 and 1"):
        ResidualFlow(data_shape=(2,), lipschitz=1.5).layers()
    with pytest.raises(ValueError, match="must be positive"):
        FFJORD(data_shape=(2,), tolerance=0.0).layers()
