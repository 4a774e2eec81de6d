"""Exact claims about every bijection: round trips, log-determinants against the full Jacobian, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.flow.bijections import (
    ActNorm,
    Additive,
    Affine,
    Chain,
    Coupling,
    Flatten,
    Invert,
    InvertibleLinear,
    Logit,
    MaskedAutoregressive,
    MultiScale,
    Permute,
    Planar,
    Radial,
    Repeat,
    Scale,
    Spline,
    Squeeze,
)
from genjax.families.flow.glow import Glow
from genjax.families.flow.networks import MLP, ConvNet, ConvResNet

MLP8 = MLP(hidden_dims=(8,), activation=jnp.tanh)
VECTOR, IMAGE = (5,), (4, 4, 2)

CASES = {
    "actnorm": (ActNorm(), VECTOR),
    "actnorm_image": (ActNorm(), IMAGE),
    "linear": (InvertibleLinear(seed=1), VECTOR),
    "conv_1x1": (InvertibleLinear(seed=2), IMAGE),
    "permute": (Permute(seed=3), VECTOR),
    "reverse": (Permute(), IMAGE),
    "squeeze": (Squeeze(), IMAGE),
    "flatten": (Flatten(shape=IMAGE), IMAGE),
    "logit": (Logit(), IMAGE),
    "additive": (Coupling(network=MLP8, transform=Additive()), VECTOR),
    "affine": (Coupling(network=MLP8, flip=True), VECTOR),
    "alternate": (Coupling(network=MLP8, transform=Affine(scale="sigmoid"), partition="alternate"), VECTOR),
    "alternate_flip": (Coupling(network=MLP8, transform=Affine(scale="exp"), partition="alternate", flip=True), VECTOR),
    "spline": (Coupling(network=MLP8, transform=Spline(num_bins=4)), VECTOR),
    "channel": (Coupling(network=ConvNet(width=4)), IMAGE),
    "checkerboard": (Coupling(network=ConvResNet(width=4, num_blocks=1), partition="checkerboard", flip=True), IMAGE),
    "maf": (MaskedAutoregressive(hidden_dims=(8,)), VECTOR),
    "maf_reverse": (MaskedAutoregressive(hidden_dims=(8, 8), reverse=True), VECTOR),
    "maf_spline": (MaskedAutoregressive(hidden_dims=(8,), transform=Spline(num_bins=4)), VECTOR),
    "iaf": (Invert(bijection=MaskedAutoregressive(hidden_dims=(8,))), VECTOR),
    "planar": (Planar(), VECTOR),
    "planar_affine": (Planar(), VECTOR),
    "radial": (Radial(), VECTOR),
    "radial_affine": (Radial(), VECTOR),
    "scale": (Scale(), IMAGE),
    "repeat": (Repeat(bijection=Chain(layers=(ActNorm(), Coupling(network=MLP8), Permute())), count=3), VECTOR),
    "chain": (Chain(layers=(ActNorm(), Coupling(network=MLP8), Permute(), Coupling(network=MLP8))), VECTOR),
    "multi_scale": (
        MultiScale(
            shape=IMAGE,
            levels=(
                Chain(layers=(Squeeze(), ActNorm(), InvertibleLinear(seed=1), Coupling(network=ConvNet(width=4)))),
                Chain(layers=(Squeeze(), Coupling(network=ConvNet(width=4), flip=True))),
            ),
        ),
        IMAGE,
    ),
}


@functools.cache
def prepared(name):
    """The bijection, parameters moved away from their start, a batch, and a condition where a network takes one."""
    bijection, shape = CASES[name]
    x = jax.random.uniform(jax.random.key(0), (3, *shape), minval=0.02, maxval=0.98)
    takes_condition = any(word in name for word in ("affine", "channel", "checkerboard", "maf", "iaf"))
    condition = jax.random.normal(jax.random.key(1), (3, 2)) if takes_condition else None
    params = bijection.init(jax.random.key(2), x, condition)
    leaves, tree = jax.tree.flatten(params)
    noise = [0.3 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)]
    return bijection, tree.unflatten([p + n for p, n in zip(leaves, noise)]), x, condition


def to_float64(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)


@pytest.mark.parametrize("name", CASES)
def test_log_determinant_is_that_of_the_jacobian_and_the_inverse_undoes(name):
    bijection, params, x, condition = prepared(name)

    @jax.jit
    def round_trip(params, x, condition):
        z, log_det = bijection.forward(params, x, condition)
        return z, log_det, *bijection.inverse(params, z, condition)

    @jax.jit
    def jacobian(params, x, condition):
        row = lambda v, c: bijection.forward(params, v[None], None if c is None else c[None])[0].reshape(-1)
        return jax.vmap(jax.jacfwd(row))(x, condition).reshape(x.shape[0], -1, x[0].size)

    z, log_det, back, inverse_log_det = round_trip(params, x, condition)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=2e-4)
    with jax.enable_x64(True):
        params, x, condition = map(to_float64, (params, x, condition))
        z, log_det, back, inverse_log_det = round_trip(params, x, condition)
        assert z.shape == (3, *bijection.output_shape(x.shape[1:])) and log_det.shape == (3,)
        assert log_det.dtype == jnp.float64
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian(params, x, condition))[1], atol=1e-10)
        np.testing.assert_allclose(back, x, atol=1e-10)
        np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-10)


def test_actnorm_starts_with_normalised_channels_and_survives_constant_ones():
    x = 5.0 + 3.0 * jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
    x = x.at[..., 2].set(1.0)
    params = ActNorm().init(jax.random.key(0), x)
    z, log_det = ActNorm().forward(params, x)
    np.testing.assert_allclose(z.mean((0, 1, 2)), np.zeros(3), atol=1e-3)
    np.testing.assert_allclose(z.std((0, 1, 2)), [1.0, 1.0, 0.0], atol=1e-3)
    assert np.isfinite(log_det).all()
    # What is constant says nothing of the scale, and neither does a single vector.
    one = ActNorm().init(jax.random.key(0), x[:1, 0, 0])
    assert params["log_scale"][2] == 0.0 and not one["log_scale"].any()
    np.testing.assert_array_equal(one["shift"], -x[0, 0, 0])


def test_couplings_and_autoregressive_maps_start_as_the_identity():
    for name in ("affine", "spline", "maf", "maf_spline", "checkerboard"):
        bijection, _, x, condition = prepared(name)
        z, log_det = bijection.forward(bijection.init(jax.random.key(0), x, condition), x, condition)
        np.testing.assert_allclose(z, x, atol=1e-6)
        np.testing.assert_allclose(log_det, np.zeros(3), atol=1e-5)


def test_squeeze_moves_each_block_of_pixels_into_channels():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(Squeeze().forward({}, x)[0][0, 0, 1], [2.0, 3.0, 6.0, 7.0])


def deep(num_layers, recompute):
    layers = tuple(Coupling(network=MLP(hidden_dims=(64,)), flip=i % 2 == 1) for i in range(num_layers))
    return Chain(layers=layers, recompute=recompute)


def chain_gradient(chain, condition=None):
    def loss(params, x):
        z, log_det = chain.forward(params, x, condition)
        return (z**2).sum() - log_det.sum()

    return jax.grad(loss, argnums=(0, 1))


def test_recomputation_through_the_inverse_gives_the_same_gradient():
    x, condition = jax.random.normal(jax.random.key(0), (4, 6)), jnp.ones((4, 2))
    params = deep(4, False).init(jax.random.key(1), x, condition)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    stored, recomputed = (chain_gradient(deep(4, r), condition)(params, x) for r in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), stored, recomputed)


def test_a_scan_over_depth_recomputes_to_the_same_gradient_too():
    x = jax.random.normal(jax.random.key(0), (4, 6))
    step = Chain(layers=(ActNorm(), Coupling(network=MLP8, flip=True), Permute()))
    stored, recomputed = (Repeat(bijection=step, count=3, recompute=r) for r in (False, True))
    params = stored.init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    gradients = [jax.jit(chain_gradient(r))(params, x) for r in (stored, recomputed)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *gradients)


def test_memory_does_not_grow_with_depth_where_activations_are_recomputed():
    x = jnp.ones((4096, 8))

    def temporary_bytes(depth, recompute):
        chain = deep(depth, recompute)
        params = chain.init(jax.random.key(0), x)
        return jax.jit(chain_gradient(chain)).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(12, False) > 1.8 * temporary_bytes(4, False)
    assert temporary_bytes(12, True) < 1.1 * temporary_bytes(4, True)


def test_memory_of_a_picture_flow_does_not_grow_with_its_steps_either():
    def temporary_bytes(num_steps):
        sizes = {"num_levels": 1, "num_steps_per_level": num_steps, "width": 4}
        bijection = Glow(data_shape=(4, 4, 1), scan=True, recompute=True, **sizes).bijection()
        x = jnp.ones((512, 4, 4, 1))
        params = jax.eval_shape(bijection.init, jax.random.key(0), x)
        return jax.jit(chain_gradient(bijection)).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(6) < 1.1 * temporary_bytes(2)


def test_products_of_an_invertible_matrix_are_not_rounded_where_others_are():
    layer, x = InvertibleLinear(), jnp.ones((2, 3))
    params = layer.init(jax.random.key(0), x)
    for call in (layer.forward, layer.inverse):
        operations = jax.make_jaxpr(call)(params, x).eqns
        products = [eqn.params["precision"] for eqn in operations if eqn.primitive.name == "dot_general"]
        assert products == [(jax.lax.Precision.HIGHEST,) * 2] * (3 if call == layer.forward else 1)


def test_rotations_of_repeated_steps_differ_at_the_start():
    x = jnp.ones((2, 4))
    repeat = Repeat(bijection=InvertibleLinear(seed=1), count=2)
    params = repeat.init(jax.random.key(0), x)
    first, second = (jax.tree.map(lambda a, i=i: a[i], params) for i in range(2))
    matrices = [InvertibleLinear(seed=1).forward(p, jnp.eye(4))[0].T for p in (first, second)]
    for matrix in matrices:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-5)
    assert np.abs(matrices[0] - matrices[1]).max() > 0.1


def test_bad_input_is_one_clear_error():
    with pytest.raises(ValueError, match=r"even height and width, got shape \(7, 7, 1\)"):
        Squeeze().forward({}, jnp.zeros((1, 7, 7, 1)))
    with pytest.raises(ValueError, match=r"\[0, 1\], but reach from -1 to 2"):
        Logit().forward({}, jnp.asarray([[-1.0, 2.0]]))
    with pytest.raises(ValueError, match="cannot part 1 number"):
        Coupling(network=MLP8).init(jax.random.key(0), jnp.zeros((2, 1)))
    three = MultiScale(shape=(2, 2, 3), levels=(Chain(layers=()), Chain(layers=())))
    with pytest.raises(ValueError, match="ends in 3 channels"):
        three.forward({"level_0": {}, "level_1": {}}, jnp.zeros((1, 2, 2, 3)))


def test_a_log_determinant_that_is_not_finite_names_its_layer():
    chain = Chain(layers=(Permute(), ActNorm()))
    params = chain.init(jax.random.key(0), jnp.ones((2, 3)))
    params["01_actnorm"]["log_scale"] = jnp.full(3, jnp.inf)
    with pytest.raises(ValueError, match="layer 01_actnorm is not finite for 2 of 2 examples"):
        chain.forward(params, jnp.full((2, 3), 2.0))
