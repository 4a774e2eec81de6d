"""The matrix products of patches are the convolutions that they replace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import convolution
from genjax.nn.encoder_decoder import ConvNetwork


@pytest.mark.parametrize(
    ("function", "kernel_size"),
    [
        (convolution.convolve, 3),
        (convolution.convolve, 1),
        (convolution.convolve, 4),
        (convolution.downsample, 4),
        (convolution.upsample, 4),
    ],
    ids=["convolve3", "convolve1", "convolve4", "downsample", "upsample"],
)
def test_matrix_products_equal_xla_convolutions_and_their_gradients(function, kernel_size):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 6, 4, 3))
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, 3, 5))
    ours, ours_vjp = jax.vjp(lambda x, k: function(x, k, True), x, kernel)
    theirs, theirs_vjp = jax.vjp(lambda x, k: function(x, k, False), x, kernel)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    cotangent = jax.random.normal(keys[2], ours.shape)
    for a, b in zip(ours_vjp(cotangent), theirs_vjp(cotangent)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_upsample_is_the_transpose_of_downsample():
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = jax.random.normal(keys[0], (1, 6, 8, 2)), jax.random.normal(keys[1], (1, 3, 4, 5))
    kernel = jax.random.normal(keys[2], (4, 4, 2, 5))
    down = (convolution.downsample(x, kernel, True) * y).sum()
    up = (convolution.upsample(y, kernel.swapaxes(2, 3), True) * x).sum()
    np.testing.assert_allclose(down, up, atol=1e-4)


@pytest.mark.parametrize("matrix_products", [True, False])
def test_repeated_pixels_are_convolved_without_being_repeated(matrix_products):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 4, 3, 2)), jax.random.normal(keys[1], (3, 3, 2, 5))
    plain = lambda x, k: convolution.convolve(x.repeat(2, 1).repeat(2, 2), k, False)
    ours, ours_vjp = jax.vjp(lambda x, k: convolution.repeat_and_convolve(x, k, matrix_products), x, kernel)
    theirs, theirs_vjp = jax.vjp(plain, x, kernel)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    cotangent = jax.random.normal(keys[2], ours.shape)
    for a, b in zip(ours_vjp(cotangent), theirs_vjp(cotangent)):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("num_residual_blocks", [0, 1])
def test_convolutional_networks_have_the_shapes_they_promise(num_residual_blocks):
    network = ConvNetwork(channels=(2, 3), num_residual_blocks=num_residual_blocks, hidden_dims=(4,))
    x, condition = jnp.ones((2, 8, 12, 1)), jnp.ones((2, 3))
    code, params = network.encoder(5).init_with_output(jax.random.key(0), x, condition)
    assert code.shape == (2, 5)
    assert params["params"]["MLP_0"]["Dense_0"]["kernel"].shape == (2 * 3 * 3 + 3, 4)
    again, _ = network.decoder((8, 12, 1, 2)).init_with_output(jax.random.key(0), code, condition)
    assert again.shape == (2, 8, 12, 1, 2)


def test_pictures_that_cannot_be_halved_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"multiples of 8, not \(28, 28, 1\).*data\.pad_to"):
        ConvNetwork(channels=(2, 2, 2)).encoder(5).init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))
