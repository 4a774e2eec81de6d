"""The networks of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958), for square pictures of 8, 16, 32, ... pixels.

    generator    constant 4 x 4 -> [modulated convolution, noise, leaky relu]*, doubling; at each size a modulated 1 x 1
                   convolution gives colours, which are added up (skip generator)
    discriminator  residual blocks that halve -> standard deviation over groups of examples -> convolution -> dense

Doubling and halving go through the filter [1, 3, 3, 1].  With adaptive augmentation in
genjax/families/gan/augmentation.py this is also StyleGAN2-ADA (arXiv:2006.06676).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from genjax.batch import Array, PyTree, cross_device_gather, own_part
from genjax.errors import UserError
from genjax.families.gan.networks import Conditioning, Head, with_label_maps
from genjax.families.gan.style_gan import StyleGenerator, StyleNetwork
from genjax.families.gan.style_layers import NOISE, EqualConvolution, EqualDense, leaky, modulated_convolution
from genjax.families.gan.upfirdn import binomial, upfirdn
from genjax.nn.convolution import convolve_patches, space_to_depth
from genjax.nn.products import prefers_matrix_products


def check_resolution(data_shape: tuple[int, ...]) -> int:
    """The exponent n of pictures of 2^n x 2^n pixels.

    Raises:
      UserError: the data are no such pictures, or smaller than 8 x 8.
    """
    size = data_shape[0]
    if len(data_shape) != 3 or data_shape[1] != size or size < 8 or size & (size - 1):
        raise UserError(
            f"StyleGAN needs square pictures (H, W, C) whose size is a power of two from 8, not {tuple(data_shape)}; "
            "pad them with data.pad_to, or crop a folder's with data.image_size"
        )
    return size.bit_length() - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleGAN2Network(StyleNetwork):
    """Skip generator and residual discriminator.

    Attributes:
      group_size: number of examples in a group, over which the discriminator takes standard deviations; groups have a
        few more if it does not divide the batch.
    """

    group_size: int = 4

    def num_styles(self, data_shape: tuple[int, ...]) -> int:
        # Two convolutions at each size, except one at the first size; and the last colours.
        return 2 * check_resolution(data_shape) - 2

    def noise_maps(self, data_shape: tuple[int, ...], key: Array, count: int) -> PyTree:
        # Two layers at each size, except one at the first size.
        sizes = [2 ** (2 + (i + 1) // 2) for i in range(2 * check_resolution(data_shape) - 3)]
        draw = lambda i, n: jax.random.normal(jax.random.fold_in(key, i), (count, n, n))
        return {"synthesis": {f"block_{i}": {"map": draw(i, n)} for i, n in enumerate(sizes)}}

    def generator(self, data_shape: tuple[int, ...], dtype: Any) -> nn.Module:
        return StyleGenerator(self, _Synthesis(self, data_shape, dtype), self.num_styles(data_shape))

    def discriminator(self, conditioning: Conditioning, dtype: Any) -> nn.Module:
        return Discriminator(self, conditioning, dtype)


class _StyleBlock(nn.Module):
    """Modulated convolution, noise and activation; doubles the size first where `up`."""

    features: int
    up: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, style: Array, keys: Array | None) -> Array:
        if self.up:
            x = upfirdn(x, binomial(2.0), up=2, padding=(2, 1))
        inputs = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (3, 3, inputs, self.features))
        scales = EqualDense(inputs, bias_init=1.0, name="style")(style)
        x = modulated_convolution(x, kernel / (3.0 * np.sqrt(inputs)), scales)
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        if self.has_variable(NOISE, "map"):
            noise = self.get_variable(NOISE, "map")
        elif keys is not None:
            noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:3]))(keys)
        else:
            noise = jnp.zeros(x.shape[:3])
        x = x + (strength * noise)[..., None].astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return leaky(x + bias.astype(self.dtype)[None, None, None])


class _ToColors(nn.Module):
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, style: Array) -> Array:
        inputs = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (1, 1, inputs, self.features))
        scales = EqualDense(inputs, bias_init=1.0, name="style")(style) / np.sqrt(inputs)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = modulated_convolution(x, kernel, scales, demodulate=False)
        return y + bias.astype(self.dtype)[None, None, None]


class _Synthesis(nn.Module):
    network: StyleGAN2Network
    data_shape: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, styles: Array, keys: Array | None = None, training: bool = False) -> Array:
        network, exponent = self.network, check_resolution(self.data_shape)
        place = iter(range(styles.shape[1]))

        def block(x: Array, features: int, up: bool) -> Array:
            i = next(place)
            layer_keys = None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
            return _StyleBlock(features, up, self.dtype, name=f"block_{i}")(x, styles[:, i], layer_keys)

        first = self.param("constant", nn.initializers.normal(1.0), (4, 4, network.channels(4)))
        x = jnp.broadcast_to(first.astype(self.dtype)[None], (styles.shape[0], *first.shape))
        x = block(x, network.channels(4), False)
        colors = None
        for n in range(2, exponent + 1):
            if n > 2:
                x = block(x, network.channels(2**n), True)
                x = block(x, network.channels(2**n), False)
                colors = upfirdn(colors, binomial(2.0), up=2, padding=(2, 1))
            # Colours share their style with the next size's first convolution.
            style = styles[:, 2 * n - 3]
            added = _ToColors(self.data_shape[-1], self.dtype, name=f"colors_{2**n}")(x, style).astype(jnp.float32)
            colors = added if colors is None else colors + added
        return colors


def convolve_and_halve(x: Array, kernel: Array, matrix_products: bool) -> Array:
    """Filters by [1, 3, 3, 1], convolves by a kernel [K, K, C, D], K 1 or 3, and keeps every other pixel."""
    size = kernel.shape[0]
    if size == 1:
        return upfirdn(x, binomial(), down=2, padding=(1, 1)) @ kernel[0, 0]
    if not matrix_products:
        x = upfirdn(x, binomial(), padding=(2, 2))
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    # A 3 x 3 kernel with stride 2 is a 2 x 2 kernel over 2 x 2 blocks, with zeros in a fourth row and column.
    x = upfirdn(x, binomial(), padding=(2, 3))
    inputs, outputs = kernel.shape[2:]
    blocks = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(2, 2, 2, 2, inputs, outputs)
    return convolve_patches(space_to_depth(x), blocks.transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * inputs, outputs))


class _Halve(nn.Module):
    features: int
    kernel_size: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, inputs = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (size, size, inputs, self.features))
        kernel = (kernel / (size * np.sqrt(inputs))).astype(self.dtype)
        y = convolve_and_halve(x, kernel, prefers_matrix_products())
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None, None, None]
        return y


def group_deviation(x: Array, group_size: int, counted: Array | None = None) -> Array:
    """A channel with the mean standard deviation within an example's group, [B, H, W, C] to [B, H, W, C + 1].

    n examples form m = max(n // g, 1) groups.  Examples i, i + m, i + 2 m, ... are a group; it has g examples if g
    divides n, otherwise some groups have a few more.  Groups are made of the examples of all devices, because a single
    device may have too few examples for a group.

    Args:
      x: features, [B, H, W, C].
      group_size: examples g of a group.
      counted: bool [B], True at the first examples and False at the padding after them, which is in no group;
        None if there is no padding.
    """
    everyone = cross_device_gather(x.astype(jnp.float32))
    batch = everyone.shape[0]
    counted = jnp.ones(batch, bool) if counted is None else cross_device_gather(counted)
    most = max(batch // group_size, 1)
    group = jnp.arange(batch) % jnp.maximum(counted.sum() // group_size, 1)
    group = jnp.where(counted, group, most)  # which is none
    total = lambda values: jax.ops.segment_sum(values, group, most)
    size = jnp.maximum(total(jnp.ones(batch)), 1.0)[:, None]
    flat = everyone.reshape(batch, -1)
    centred = flat - (total(flat) / size)[jnp.minimum(group, most - 1)]
    deviation = jnp.sqrt(total(centred**2) / size + 1e-8).mean(-1)  # [most]
    channel = own_part(deviation[jnp.minimum(group, most - 1)], x.shape[0]).astype(x.dtype)[:, None, None, None]
    return jnp.concatenate([x, jnp.broadcast_to(channel, (*x.shape[:3], 1))], axis=-1)


class Discriminator(nn.Module):
    """The residual discriminator of StyleGAN2 and StyleGAN3."""

    network: StyleNetwork
    conditioning: Conditioning
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array | None = None,
        training: bool = False,
        keys: Array | None = None,
        counted: Array | None = None,
    ) -> Array:
        network, exponent = self.network, check_resolution(x.shape[1:])
        x = with_label_maps(x, condition if self.conditioning == "concatenation" else None)
        x = leaky(EqualConvolution(network.channels(2**exponent), 1, dtype=self.dtype, name="colors")(x))
        for n in range(exponent, 2, -1):
            features, after = network.channels(2**n), network.channels(2 ** (n - 1))
            y = leaky(EqualConvolution(features, dtype=self.dtype, name=f"convolve_{2**n}")(x))
            y = leaky(_Halve(after, 3, True, self.dtype, name=f"halve_{2**n}")(y))
            skip = _Halve(after, 1, False, self.dtype, name=f"skip_{2**n}")(x)
            x = (y + skip) * np.sqrt(0.5).astype(self.dtype)
        x = group_deviation(x, network.group_size, counted).astype(jnp.float32)
        x = leaky(EqualConvolution(network.channels(4), name="last")(x))
        x = leaky(EqualDense(network.channels(4), name="dense")(x.reshape(x.shape[0], -1)))
        return Head(self.conditioning, EqualDense)(x, condition)
