"""Convolutions of pictures [B, H, W, C], written so that they are also fast on CPU.

XLA's gradients of convolutions are slow on CPU, and slowest with strides.  On CPU these modules are matrix
products of patches, with gradients that are matrix products too; elsewhere they are XLA's convolutions.  Both are the
same functions of the same parameters:

    Convolution   y[i] = sum_k w[k] x[i + k - (K - 1) // 2]         K x K, stride 1, zero padding
    Downsample    y[i] = sum_k w[k] x[2 i + k - 1]                  4 x 4, stride 2: halves height and width
    Halving       y[i] = sum_k w[k] x[2 i + k]                      3 x 3, stride 2: halves them, off the centre
    Upsample      y[o] = sum_i x[i] w[o - 2 i + 1]                  4 x 4, stride 2, transposed: doubles them
    Doubling      y[o] = sum_k w[k] x[(o + k - 1) // 2]             3 x 3, of every pixel repeated: doubles them

A strided convolution is computed as a 2 x 2 convolution of the picture's 2 x 2 blocks (space to depth).  A transposed
convolution computes the two rows of outputs between the centres of each two neighbouring rows (Shi et al. 2016,
arXiv:1609.05158), with four columns from each pixel, and adds overlapping columns.  No product with zeros is computed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array
from genjax.nn.mlp import Activation, activation_function
from genjax.nn.products import prefers_matrix_products, tall_product

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_AFTER_ONE_COLUMN = ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0))
_BEFORE_ONE_COLUMN = ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0))


def pad_picture(x: Array, margin: int) -> Array:
    """Zeros around pictures [B, H, W, C]."""
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def convolve_patches(x: Array, kernel: Array) -> Array:
    """Valid convolution with stride 1 of pictures [B, H, W, C] and a kernel [K, L, C, D], as one matrix product."""
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifted = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return tall_product(jnp.concatenate(shifted, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def space_to_depth(x: Array) -> Array:
    """Blocks of 2 x 2 pixels as channels, [B, H, W, C] to [B, H/2, W/2, 4C]."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def convolve(x: Array, kernel: Array, matrix_products: bool) -> Array:
    """`Convolution` without its bias: pictures [B, H, W, C], kernel [K, K, C, D], to [B, H, W, D].

    An even K gives [B, H - 1, W - 1, D], as the kernel has no middle.
    """
    if kernel.shape[0] == 1:
        return tall_product(x, kernel[0, 0])
    margin = (kernel.shape[0] - 1) // 2
    if matrix_products:
        return convolve_patches(pad_picture(x, margin), kernel)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(margin, margin)] * 2, dimension_numbers=_DIMENSIONS)


def downsample(x: Array, kernel: Array, matrix_products: bool) -> Array:
    """`Downsample` without its bias: pictures [B, H, W, C], kernel [4, 4, C, D], to [B, H/2, W/2, D]."""
    if not matrix_products:
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)
    inputs, outputs = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, inputs, outputs).transpose(0, 2, 1, 3, 4, 5)
    return convolve_patches(space_to_depth(pad_picture(x, 1)), blocks.reshape(2, 2, 4 * inputs, outputs))


def halve(x: Array, kernel: Array, matrix_products: bool) -> Array:
    """`Halving` without its bias: pictures [B, H, W, C], kernel [3, 3, C, D], to [B, H/2, W/2, D]."""
    if not matrix_products:
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((0, 1), (0, 1)), dimension_numbers=_DIMENSIONS)
    return downsample(x, jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))), matrix_products)


def upsample(x: Array, kernel: Array, matrix_products: bool) -> Array:
    """`Upsample` without its bias: pictures [B, H, W, C], kernel [4, 4, C, D], to [B, 2H, 2W, D]."""
    if not matrix_products:
        return jax.lax.conv_general_dilated(
            x, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_DIMENSIONS
        )
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[-1]
    # Of the two rows between the centres of rows i - 1 and i, row p takes w[2 + p] x[i - 1] and w[p] x[i].
    rows = kernel.reshape(2, 2, 4, inputs, outputs)[::-1].transpose(0, 3, 1, 2, 4)
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    taps = convolve_patches(padded, rows.reshape(2, 1, inputs, 8 * outputs))
    # Column tap k of pixel j falls on column 2 j + k - 1.
    taps = jnp.moveaxis(taps.reshape(batch, height + 1, width, 2, 4, outputs), 4, 0)
    even = taps[1] + jnp.pad(taps[3], _AFTER_ONE_COLUMN)[:, :, :-1]
    odd = taps[2] + jnp.pad(taps[0], _BEFORE_ONE_COLUMN)[:, :, 1:]
    y = jnp.stack([even, odd], axis=3).transpose(0, 1, 4, 2, 3, 5)  # [B, H + 1, 2 rows, W, 2 columns, D]
    return y.reshape(batch, 2 * height + 2, 2 * width, outputs)[:, 1:-1]


def repeat_and_convolve(x: Array, kernel: Array, matrix_products: bool) -> Array:
    """3 x 3 convolution of pictures whose every pixel is repeated 2 x 2: [B, H, W, C], kernel [3, 3, C, D], to [B, 2H,
    2W, D].

    Weights that meet the same pixel are added first: 16 products a pixel of x instead of 36.
    """
    padded = jnp.pad(kernel, ((1, 1), (1, 1), (0, 0), (0, 0)))
    met = padded[1:, 1:] + padded[:-1, 1:] + padded[1:, :-1] + padded[:-1, :-1]
    return upsample(x, met[::-1, ::-1], matrix_products)


class _Layer(nn.Module):
    """Base of the three layers.

    Attributes:
      features: number of output channels.
      dtype: type to compute in; parameters stay float32.
    """

    features: int
    dtype: Any = jnp.float32

    def apply_kernel(self, function: Any, x: Array, size: int, gain: float) -> Array:
        init = nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (size, size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = function(x.astype(self.dtype), kernel.astype(self.dtype), prefers_matrix_products())
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class Doubling(nn.Module):
    """A 3 x 3 convolution of pictures with every place repeated, [B, H, W, C] to [B, 2H, 2W, C].

    Attributes:
      dtype: type to compute in; parameters stay float32.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = repeat_and_convolve(x.astype(self.dtype), kernel.astype(self.dtype), prefers_matrix_products())
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class Convolution(_Layer):
    """Convolution with stride 1 and an odd kernel, [B, H, W, C] to [B, H, W, features].

    Attributes:
      kernel_size: height and width of the kernel.
    """

    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.apply_kernel(convolve, x, self.kernel_size, 1.0)


class Halving(_Layer):
    """3 x 3 convolution with stride 2, y[i] = sum_k w[k] x[2 i + k], [B, H, W, C] to [B, H/2, W/2, features].

    Zeros are added behind the last row and column alone, as autoencoders of latent diffusion have it.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.apply_kernel(halve, x, 3, 1.0)


class Downsample(_Layer):
    """4 x 4 convolution with stride 2, [B, H, W, C] to [B, H/2, W/2, features]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.apply_kernel(downsample, x, 4, 1.0)


class Upsample(_Layer):
    """Transposed 4 x 4 convolution with stride 2, [B, H, W, C] to [B, 2H, 2W, features]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Each output sees a quarter of the kernel.
        return self.apply_kernel(upsample, x, 4, 4.0)


class ResidualBlock(nn.Module):
    """x + conv1x1(act(conv3x3(act(x)))), the block of van den Oord et al. 2017 (arXiv:1711.00937, section 4.1).

    Attributes:
      activation: activation between the layers.
      dtype: type to compute in.
    """

    activation: Activation = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_function(self.activation)
        y = Convolution(x.shape[-1], self.dtype)(activation(x))
        return x + Convolution(x.shape[-1], self.dtype, kernel_size=1)(activation(y))
