"""The product with a gradient of its own has the plain product's derivatives of every order and kind."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.nn.products import tall_product


def test_derivatives_are_those_of_the_plain_product():
    keys = jax.random.split(jax.random.key(0), 4)
    x, matrix = jax.random.normal(keys[0], (2, 6, 3)), jax.random.normal(keys[1], (3, 4))
    tangents = jax.random.normal(keys[2], x.shape), jax.random.normal(keys[3], matrix.shape)

    def penalty(product):  # a gradient inside a loss, as in a gradient penalty
        def norm(x, matrix):
            gradients = jax.grad(lambda x, matrix: jnp.sin(product(x, matrix)).sum(), argnums=(0, 1))(x, matrix)
            return sum((g**2).sum() for g in gradients)

        return norm

    def everything(product):
        return {
            "value": product(x, matrix),
            "reverse": jax.grad(lambda *a: jnp.sin(product(*a)).sum(), argnums=(0, 1))(x, matrix),
            "forward": jax.jvp(lambda *a: jnp.sin(product(*a)), (x, matrix), tangents)[1],
            "reverse over reverse": jax.grad(penalty(product), argnums=(0, 1))(x, matrix),
            "forward over reverse": jax.jvp(penalty(product), (x, matrix), tangents)[1],
            "an example at a time": jax.vmap(jax.grad(lambda x: jnp.sin(product(x, matrix)).sum()))(x),
        }

    ours, plain = jax.jit(lambda: (everything(tall_product), everything(jnp.matmul)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, plain)
