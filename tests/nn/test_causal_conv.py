"""Convolutions over earlier pixels: fewer products for the same numbers, and two linear maps in one."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax import devices
from genjax.nn.causal_conv import CausalConv, allows_minimal_filtering, minimal_filtering, shifted, vertical_taps


def test_minimal_filtering_is_the_convolution_and_has_its_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 3, 6, 16)), jax.random.normal(keys[1], (6 * 16, 5))
    weight, taps = jax.random.normal(keys[2], (2, 3, 6, 5)), vertical_taps(2, 3)

    @jax.jit
    def both(x, kernel):
        plain = lambda x, kernel: shifted(x, taps) @ kernel
        sides = [jax.value_and_grad(lambda *a, f=f: (f(*a) * weight).sum(), (0, 1)) for f in (plain, minimal_filtering)]
        return plain(x, kernel), minimal_filtering(x, kernel), [side(x, kernel)[1] for side in sides]

    expected, got, gradients = both(x, kernel)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), *gradients)
    assert allows_minimal_filtering(x, taps) == (devices.platform() == "cpu")
    assert not allows_minimal_filtering(x[:, :, :5], taps)
    assert not allows_minimal_filtering(x, vertical_taps(2, 3, exclude_self=True))


def test_a_linear_map_after_a_convolution_is_multiplied_into_its_kernel():
    x, keys = jax.random.normal(jax.random.key(0), (2, 3, 4, 2)), jax.random.split(jax.random.key(1), 3)
    conv = CausalConv(3, vertical_taps(1, 3), 4)
    params = conv.init(keys[0], x)["params"] | {"bias": jax.random.normal(keys[1], (3,))}
    matrix, vector = jax.random.normal(keys[2], (3, 5)), jnp.arange(5.0)
    expected = conv.apply({"params": params}, x) @ matrix + vector[None, None, None]
    np.testing.assert_allclose(conv.apply({"params": params}, x, None, (matrix, vector)), expected, atol=1e-5)
