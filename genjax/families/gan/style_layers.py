"""Layers of StyleGAN2 and StyleGAN3: weights scaled at run time, the mapping network, and modulated convolution.

Equalised learning rate (Karras et al. 2018, arXiv:1710.10196, section 4.1): a weight is stored as N(0, 1) / m and used
times m / sqrt(inputs), where m is the layer's factor on the learning rate.

Modulated convolution (Karras et al. 2020, arXiv:1912.04958, eq. 1 and 3), with styles s of each example's inputs i:

    w'[k, i, o] = s[i] w[k, i, o]         w''[k, i, o] = w'[k, i, o] / sqrt(sum_{k, i} w'[k, i, o]^2 + 1e-8)

which equals one convolution with w for all examples, with inputs times s[i] and outputs times the inverse root.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from genjax.batch import Array, cross_device_mean
from genjax.nn.convolution import convolve, pad_picture
from genjax.nn.products import prefers_matrix_products

#: Collection of running averages: the mean of w, magnitudes of activations, the mean path length.
STATISTICS = "statistics"
#: Collection of noise maps that are given instead of drawn.
NOISE = "noise"


def leaky(x: Array) -> Array:
    """Leaky relu of slope .2, times sqrt(2), which keeps the variance."""
    return jax.nn.leaky_relu(x, 0.2) * np.sqrt(2.0).astype(x.dtype)


def unit_mean_square(x: Array) -> Array:
    """Vectors [..., D] scaled to a mean square of 1."""
    return x * jax.lax.rsqrt(jnp.mean(x.astype(jnp.float32) ** 2, axis=-1, keepdims=True) + 1e-8).astype(x.dtype)


class EqualDense(nn.Module):
    """Affine layer with equalised learning rate, [..., D] to [..., features].

    Attributes:
      features: number of outputs.
      use_bias: whether an offset is added.
      bias_init: the initial offset.
      learning_rate_factor: factor m on the learning rate.
      init_scale: standard deviation of the initial weights, in units of the deviation that keeps the variance of the
        input.
      dtype: type to compute in.
    """

    features: int
    use_bias: bool = True
    bias_init: float = 0.0
    learning_rate_factor: float = 1.0
    init_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        m = self.learning_rate_factor
        init = nn.initializers.normal(self.init_scale / m)
        kernel = self.param("kernel", init, (x.shape[-1], self.features)) * (m / np.sqrt(x.shape[-1]))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.constant(self.bias_init / m), (self.features,)) * m
            y = y + bias.astype(self.dtype).reshape(*[1] * (y.ndim - 1), -1)
        return y


class EqualConvolution(nn.Module):
    """Convolution with equalised learning rate, stride 1 and an odd kernel, [B, H, W, C] to [B, H, W, features]."""

    features: int
    kernel_size: int = 3
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, inputs = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (size, size, inputs, self.features))
        kernel = (kernel / (size * np.sqrt(inputs))).astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel, prefers_matrix_products())
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)[None, None, None]
        return y


class Mapping(nn.Module):
    """z [B, L] and a class [B, K] or None to w [B, style_dim]; keeps the running mean of w.

    Attributes:
      style_dim: width of w and of the layers.
      num_layers: number of layers.
      learning_rate_factor: factor on the learning rate of the layers.
    """

    style_dim: int
    num_layers: int
    learning_rate_factor: float = 0.01

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None, training: bool = False) -> Array:
        x = unit_mean_square(z)
        if condition is not None:
            embedded = EqualDense(z.shape[-1], name="embedding")(condition)
            x = jnp.concatenate([x, unit_mean_square(embedded)], axis=-1)
        for _ in range(self.num_layers):
            x = leaky(EqualDense(self.style_dim, learning_rate_factor=self.learning_rate_factor)(x))
        mean = self.variable(STATISTICS, "mean_style", jnp.zeros, (self.style_dim,))
        if training and self.is_mutable_collection(STATISTICS) and not self.is_initializing():
            mean.value = 0.998 * mean.value + 0.002 * jax.lax.stop_gradient(cross_device_mean(x.mean(0)))
        return x


def truncate(styles: Array, mean: Array, truncation: Array | float, num_layers: int | None = None) -> Array:
    """Styles [B, layers, W] pulled towards the mean [W]: mean + truncation (w - mean), of the first `num_layers`, or
    all.
    """
    truncation = jnp.asarray(truncation, styles.dtype)
    mean = mean[None, None]
    pulled = mean + truncation * (styles - mean)
    if num_layers is None:
        return pulled
    return jnp.where(jnp.arange(styles.shape[1])[None, :, None] < num_layers, pulled, styles)


def modulated_convolution(x: Array, kernel: Array, styles: Array, demodulate: bool = True, full: bool = False) -> Array:
    """Convolution whose weights each example scales.

    Args:
      x: pictures, [B, H, W, C].
      kernel: w, [K, K, C, D], K odd.
      styles: s, [B, C].
      demodulate: divide every output's weights by their norm.
      full: pad by K - 1 instead of (K - 1) / 2, so that pictures grow by K - 1.

    Returns:
      Pictures [B, H, W, D].
    """
    x = x * styles[:, None, None].astype(x.dtype)
    if full:
        x = pad_picture(x, kernel.shape[0] // 2)
    y = convolve(x, kernel.astype(x.dtype), prefers_matrix_products())
    if demodulate:
        squares = styles.astype(jnp.float32) ** 2 @ jnp.sum(kernel.astype(jnp.float32) ** 2, axis=(0, 1))  # [B, D]
        y = y * jax.lax.rsqrt(squares + 1e-8)[:, None, None].astype(x.dtype)
    return y
