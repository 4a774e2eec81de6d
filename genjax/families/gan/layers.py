"""Layers of adversarial networks: normal initial weights, spectral normalisation, batch norm with or without classes.

Spectral normalisation (Miyato et al. 2018, arXiv:1802.05957, algorithm 1) divides a weight W, as a
matrix [inputs, outputs], by an estimate of its largest singular value that one step of power iteration
improves at every use in training:

    v = W u / |W u|      u' = W^T v / |W^T v|      W / (v^T W u')

Batch norm takes the moments over all devices; with a condition, every class has its own scale and offset (de Vries et
al. 2017, arXiv:1707.00683).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, cross_device_mean
from genjax.nn.convolution import convolve, downsample, upsample
from genjax.nn.products import prefers_matrix_products

#: Collection of the vectors u of power iteration.
SPECTRAL = "spectral"
#: Collection of the running moments of batch norm.
BATCH_STATISTICS = "batch_stats"

Normalization = Literal["batch", "layer", "spectral", "none"]


def scales_near_one(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initial scales of norms from N(1, .02^2)."""
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def _unit(vector: Array) -> Array:
    return vector / jnp.sqrt(jnp.sum(vector**2) + 1e-12)


def largest_singular_value(matrix: Array, u: Array) -> tuple[Array, Array]:
    """One step of power iteration.

    Args:
      matrix: W, [inputs, outputs].
      u: direction in the space of outputs, [outputs].

    Returns:
      v^T W u', whose gradient goes to W only, and u'.
    """
    constant = jax.lax.stop_gradient(matrix)
    v = _unit(constant @ u)
    u = _unit(constant.T @ v)
    return v @ matrix @ u, u


class _Weighted(nn.Module):
    """Base of layers with one weight.

    Attributes:
      features: number of outputs.
      kernel_init: initial weights.
      use_bias: whether an offset is added.
      spectral: divide the weight by its largest singular value.
      dtype: type to compute in; parameters stay float32.
    """

    features: int
    kernel_init: Callable[..., Array] = nn.initializers.normal(0.02)
    use_bias: bool = True
    spectral: bool = False
    dtype: Any = jnp.float32

    def weight(self, shape: tuple[int, ...]) -> Array:
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.spectral:
            start = lambda: _unit(jax.random.normal(self.make_rng("params"), (shape[-1],)))
            u = self.variable(SPECTRAL, "u", start)
            sigma, new_u = largest_singular_value(kernel.reshape(-1, shape[-1]), u.value)
            if self.is_mutable_collection(SPECTRAL) and not self.is_initializing():
                u.value = new_u
            kernel = kernel / sigma
        return kernel.astype(self.dtype)

    def offset(self, y: Array) -> Array:
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias.astype(self.dtype).reshape(*[1] * (y.ndim - 1), -1)


class Dense(_Weighted):
    """Affine layer, [..., D] to [..., features]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.offset(x.astype(self.dtype) @ self.weight((x.shape[-1], self.features)))


class Convolution(_Weighted):
    """Convolution with stride 1, [B, H, W, C] to [B, H, W, features].

    Attributes:
      kernel_size: height and width of the kernel; with an even kernel, which has no middle, the result
        is a row and a column smaller.
    """

    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.weight((self.kernel_size, self.kernel_size, x.shape[-1], self.features))
        return self.offset(convolve(x.astype(self.dtype), kernel, prefers_matrix_products()))


class Downsample(_Weighted):
    """4 x 4 convolution with stride 2, [B, H, W, C] to [B, H/2, W/2, features]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.weight((4, 4, x.shape[-1], self.features))
        return self.offset(downsample(x.astype(self.dtype), kernel, prefers_matrix_products()))


class Upsample(_Weighted):
    """Transposed 4 x 4 convolution with stride 2, [B, H, W, C] to [B, 2H, 2W, features]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.weight((4, 4, x.shape[-1], self.features))
        return self.offset(upsample(x.astype(self.dtype), kernel, prefers_matrix_products()))


class BatchNorm(nn.Module):
    """Batch norm of [B, ..., C]; in training by the moments of the batch, otherwise by their running averages.

    Attributes:
      momentum: weight of the old running averages.
      epsilon: added to the variance.
      scale_init: initial scales; with classes they are 1.
      dtype: type of the result; moments are float32.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Callable[..., Array] = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, training: bool, condition: Array | None = None) -> Array:
        features = x.shape[-1]
        running_mean = self.variable(BATCH_STATISTICS, "mean", jnp.zeros, (features,))
        running_variance = self.variable(BATCH_STATISTICS, "variance", jnp.ones, (features,))
        mean, variance = running_mean.value, running_variance.value
        if training:
            axes, full = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
            mean, square = cross_device_mean((full.mean(axes), (full**2).mean(axes)))
            variance = jnp.maximum(square - mean**2, 0.0)
            if self.is_mutable_collection(BATCH_STATISTICS) and not self.is_initializing():
                for running, value in ((running_mean, mean), (running_variance, variance)):
                    running.value = self.momentum * running.value + (1.0 - self.momentum) * value
        if condition is None:
            scale = self.param("scale", self.scale_init, (features,))[None]
            offset = self.param("bias", nn.initializers.zeros, (features,))[None]
        else:
            shape = (condition.shape[-1], features)
            scale = condition @ self.param("class_scale", nn.initializers.ones, shape)
            offset = condition @ self.param("class_bias", nn.initializers.zeros, shape)
        scale = scale * jax.lax.rsqrt(variance + self.epsilon)[None]
        offset = offset - mean[None] * scale
        shape = (-1, *[1] * (x.ndim - 2), features)
        return (x.astype(jnp.float32) * scale.reshape(shape) + offset.reshape(shape)).astype(self.dtype)


class Normalize(nn.Module):
    """The norm of a given name after a layer: batch norm, layer norm over features and places of an
    example, or none.
    """

    kind: Normalization
    scale_init: Callable[..., Array] = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, training: bool) -> Array:
        if self.kind == "batch":
            return BatchNorm(scale_init=self.scale_init, dtype=self.dtype)(x, training)
        if self.kind == "layer":
            axes = tuple(range(1, x.ndim))
            return nn.LayerNorm(reduction_axes=axes, feature_axes=-1, dtype=self.dtype)(x)
        return x
