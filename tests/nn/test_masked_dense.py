"""Claims about masked dense networks, the core of MADE and of autoregressive flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.masked_dense import MADE, made_masks, natural_order, random_degrees, sequential_degrees

DIM = 5


def dependencies(network, order=None, degrees=None, condition=None, dim=DIM):
    """[D, D] booleans: whether output i depends on input j, for randomly drawn weights."""
    x = jax.random.normal(jax.random.key(0), (1, dim))
    params = network.init(jax.random.key(1), x, condition, order, degrees)
    apply = lambda v: network.apply(params, v[None], condition, order, degrees)[0]
    return np.abs(np.asarray(jax.jacobian(apply)(x[0]))).sum(1) > 0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_outputs_see_exactly_the_inputs_before_them(reverse, direct):
    network = MADE(dim=DIM, hidden_dims=(16, 16), num_outputs=2, reverse=reverse, direct=direct, activation=jnp.tanh)
    expected = np.tril(np.ones((DIM, DIM), bool), -1)
    np.testing.assert_array_equal(dependencies(network), expected.T if reverse else expected)


def test_a_condition_reaches_every_output_and_leaves_the_masks():
    network = MADE(dim=DIM, hidden_dims=(16, 16), activation=jnp.tanh)
    condition = jnp.ones((1, 3))
    np.testing.assert_array_equal(dependencies(network, condition=condition), np.tril(np.ones((DIM, DIM), bool), -1))
    x = jnp.zeros((1, DIM))
    params = network.init(jax.random.key(1), x, condition)
    jacobian = jax.jacobian(lambda c: network.apply(params, x, c)[0, :, 0])(condition)
    assert (np.abs(np.asarray(jacobian)[:, 0]) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_drawn_orders_and_degrees_never_look_ahead(seed):
    key_order, key_degrees = jax.random.split(jax.random.key(seed))
    order = jax.random.permutation(key_order, DIM) + 1
    degrees = random_degrees(key_degrees, DIM, (16, 12))
    seen = dependencies(MADE(dim=DIM, hidden_dims=(16, 12), activation=jnp.tanh), order, degrees)
    before = np.asarray(order)[None, :] < np.asarray(order)[:, None]
    assert not (seen & ~before).any()


def test_drawn_masks_work_inside_one_compiled_function():
    network = MADE(dim=DIM, hidden_dims=(8,))
    x = jnp.ones((2, DIM))
    params = network.init(jax.random.key(0), x)

    @jax.jit
    def apply(key):
        order = jax.random.permutation(key, DIM) + 1
        return network.apply(params, x, None, order, random_degrees(key, DIM, (8,)))

    assert not np.allclose(apply(jax.random.key(0)), apply(jax.random.key(1)))
    assert apply._cache_size() == 1


def test_one_input_and_no_hidden_layer_are_the_smallest_cases():
    assert not dependencies(MADE(dim=1, hidden_dims=(4,)), dim=1).any()
    np.testing.assert_array_equal(dependencies(MADE(dim=3, hidden_dims=()), dim=3), np.tril(np.ones((3, 3), bool), -1))


def test_degrees_are_spread_and_masks_have_the_shapes_of_the_layers():
    degrees = sequential_degrees(DIM, (8, 6))
    assert np.bincount(degrees[0])[1:].min() >= 8 // (DIM - 1)
    assert [m.shape for m in made_masks(natural_order(DIM), degrees)] == [(DIM, 8), (8, 6), (6, DIM)]


def test_every_input_but_the_last_is_seen_by_layers_of_few_units():
    degrees = sequential_degrees(9, (3, 20, 5))
    np.testing.assert_array_equal(degrees[0], [2, 5, 8])
    assert degrees[1].max() == degrees[2].max() == 8 and min(map(min, degrees)) >= 1
    seen = dependencies(MADE(dim=9, hidden_dims=(3, 5), activation=jnp.tanh), dim=9)
    assert seen[:, :-1].any(0).all() and not np.triu(seen).any()


def test_computing_in_bfloat16_keeps_float32_parameters():
    network = MADE(dim=DIM, hidden_dims=(8,), dtype=jnp.bfloat16)
    params = network.init(jax.random.key(0), jnp.ones((2, DIM)))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert network.apply(params, jnp.ones((2, DIM))).dtype == jnp.bfloat16


def test_a_wrong_number_of_inputs_is_named():
    with pytest.raises(ValueError, match="built for 5 inputs, got 4"):
        MADE(dim=DIM, hidden_dims=(8,)).init(jax.random.key(0), jnp.ones((2, 4)))
