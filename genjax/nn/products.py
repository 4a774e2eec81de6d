"""Matrix products of many rows with a small matrix, whose gradients are fast on CPU too.

The gradient of y = x W with respect to W is x^T dy.  Where x has thousands of rows (the patches of a convolution), XLA
on CPU reads it column by column, which takes up to four times as long as to transpose it first.  `tall_product` does
that; on other platforms it is the plain product.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from genjax import devices
from genjax.batch import Array


def prefers_matrix_products() -> bool:
    """Whether convolutions are best written as products of patches: on CPU."""
    return devices.platform() == "cpu"


@jax.custom_jvp
def _tall_product(x: Array, matrix: Array) -> Array:
    return x @ matrix


@_tall_product.defjvp
def _tall_product_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, matrix), (x_tangent, matrix_tangent) = primals, tangents
    # The inner barrier keeps XLA from computing x once more, column by column; the outer one from folding the
    # transposition into the product.
    transposed = jax.lax.optimization_barrier(jax.lax.optimization_barrier(x).T)
    along_matrix = jax.lax.dot_general(transposed, matrix_tangent, (((0,), (0,)), ((), ())))
    return x @ matrix, x_tangent @ matrix + along_matrix


def tall_product(x: Array, matrix: Array) -> Array:
    """x @ matrix for x [..., K] with many rows and a matrix [K, N], shape [..., N]."""
    if not prefers_matrix_products():
        return x @ matrix
    return _tall_product(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def dense_product(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """The `dot_general` of an `nn.Dense`, x [..., K] and a kernel [K, N] to [..., N], as a `tall_product`."""
    if devices.is_divided() or x.dtype != jnp.float32 or not prefers_matrix_products():
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    return tall_product(x, kernel)
