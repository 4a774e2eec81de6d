"""The alias-free generator of StyleGAN3 (Karras et al. 2021, arXiv:2106.12423), configurations T and R.

Feature maps are samples of continuous signals with a bandwidth (cutoff) that grows geometrically from layer to layer.
The input is Fourier features, sin(2 pi (f . x + phase)), which a learned transform of w turns and shifts.  A layer is a
modulated convolution, then the leaky relu of the signal upsampled to at least twice its rate, then a low-pass filter
and downsampling; without noise, and with a margin around the picture that is cropped at the end.

    T   translation: 3 x 3 convolutions and separable filters
    R   rotation too: 1 x 1 convolutions, radial downsampling filters, and twice the channels
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from genjax.batch import Array, cross_device_mean
from genjax.families.gan.networks import Conditioning
from genjax.families.gan.style_gan import StyleGenerator, StyleNetwork
from genjax.families.gan.style_gan2 import Discriminator, check_resolution
from genjax.families.gan.style_layers import STATISTICS, EqualDense, leaky, modulated_convolution, unit_mean_square
from genjax.families.gan.upfirdn import low_pass, upfirdn


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleGAN3Network(StyleNetwork):
    """Alias-free generator and StyleGAN2's discriminator.

    Attributes:
      num_layers: number of layers of the generator, without the layer that makes colours.
      num_critical: number of last layers at the highest bandwidth, which is the pictures' bandwidth.
      first_cutoff: bandwidth of the input, in cycles per picture.
      first_stopband: frequency above which the input's filters pass nothing, in cycles per picture.
      last_stopband: frequency above which the last layer's filters pass nothing, as a multiple of its bandwidth.
      margin: number of pixels around the picture, cropped at the end.
      filter_size: number of taps of a low-pass filter for each doubling.
      rotation: configuration R instead of T; give it twice the channel_base and channel_max.
      group_size: number of examples in a group, over which the discriminator takes standard deviations.
    """

    num_mapping_layers: int = 2
    channel_base: int = 32768
    mixing: float = 0.0
    num_layers: int = 14
    num_critical: int = 2
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    last_stopband: float = 2**0.3
    margin: int = 10
    filter_size: int = 6
    rotation: bool = False
    group_size: int = 4

    def num_styles(self, data_shape: tuple[int, ...]) -> int:
        return self.num_layers + 2  # The input and the colours have one style each.

    def generator(self, data_shape: tuple[int, ...], dtype: Any) -> nn.Module:
        check_resolution(data_shape)
        return StyleGenerator(self, _Synthesis(self, data_shape, dtype), self.num_styles(data_shape))

    def discriminator(self, conditioning: Conditioning, dtype: Any) -> nn.Module:
        return Discriminator(self, conditioning, dtype)


@dataclasses.dataclass(frozen=True)
class Signal:
    """A feature map: its cutoff and half the width of its transition band in cycles per picture, rate, size and
    channels.
    """

    cutoff: float
    half_width: float
    rate: int
    size: int
    channels: int


@functools.cache
def signals(network: StyleGAN3Network, resolution: int) -> tuple[Signal, ...]:
    """The signals between layers (section 3.2): the input's signal first, the colours' signal last."""
    count = network.num_layers
    exponent = np.minimum(np.arange(count + 1) / (count - network.num_critical), 1.0)
    last_cutoff = resolution / 2
    cutoff = network.first_cutoff * (last_cutoff / network.first_cutoff) ** exponent
    last_stopband = last_cutoff * network.last_stopband
    stopband = network.first_stopband * (last_stopband / network.first_stopband) ** exponent
    rate = np.exp2(np.ceil(np.log2(np.minimum(2 * stopband, resolution)))).astype(int)
    half_width = np.maximum(stopband, rate / 2) - cutoff
    size = rate + 2 * network.margin
    size[-2:] = resolution
    channels = np.rint(np.minimum(network.channel_base / 2 / cutoff, network.channel_max)).astype(int)
    return tuple(
        Signal(float(c), float(w), int(r), int(s), max(int(n), 1))
        for c, w, r, s, n in zip(cutoff, half_width, rate, size, channels)
    )


def _transform_matrix(parameters: Array) -> Array:
    """Matrix [B, 3, 3] of rotation and shift, from (cos, sin, shift right, shift down) [B, 4]; cos,
    sin are normalised.
    """
    parameters = parameters / jnp.sqrt(jnp.sum(parameters[:, :2] ** 2, axis=1, keepdims=True) + 1e-12)
    cos, sin, right, down = parameters.T
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    turn = jnp.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], axis=1).reshape(-1, 3, 3)
    shift = jnp.stack([one, zero, -right, zero, one, -down, zero, zero, one], axis=1).reshape(-1, 3, 3)
    return jnp.matmul(turn, shift, precision="highest")


class _FourierInput(nn.Module):
    """Fourier features within a bandwidth, [B, size, size, channels]."""

    signal: Signal

    @nn.compact
    def __call__(self, style: Array, transform: Array) -> Array:
        signal, channels = self.signal, self.signal.channels

        def frequencies() -> Array:
            draw = jax.random.normal(self.make_rng("params"), (channels, 2))
            radius = jnp.sqrt(jnp.sum(draw**2, axis=1, keepdims=True))
            # Uniform in the disc of the cutoff.
            return draw / (radius * jnp.exp(radius**2) ** 0.25) * signal.cutoff

        constant = self.variable("constants", "frequencies", frequencies)
        phase = self.variable(
            "constants", "phases", lambda: jax.random.uniform(self.make_rng("params"), (channels,)) - 0.5
        )
        offset = self.param("offset", lambda key: jnp.array([1.0, 0.0, 0.0, 0.0]))
        affine = EqualDense(4, init_scale=0.0, use_bias=False, name="affine")(style) + offset[None]
        # At full precision: the fast products of GPUs have three digits, and moving details would jitter.
        product = functools.partial(jnp.einsum, precision="highest")
        matrix = product("bde,ef->bdf", _transform_matrix(affine), transform)  # [B, 3, 3]
        phases = phase.value[None] + product("cd,bd->bc", constant.value, matrix[:, :2, 2])
        turned = product("cd,bde->bce", constant.value, matrix[:, :2, :2])  # [B, C, 2]
        # Features that the transform moves out of the band fade out.
        norm = jnp.sqrt(jnp.sum(turned**2, axis=2) + 1e-12)
        amplitude = jnp.clip(1.0 - (norm - signal.cutoff) / (signal.rate / 2 - signal.cutoff), 0.0, 1.0)
        place = (jnp.arange(signal.size) + 0.5 - signal.size / 2) / signal.rate
        angle = turned[:, None, None, :, 0] * place[None, None, :, None]
        angle = angle + turned[:, None, None, :, 1] * place[None, :, None, None]
        features = jnp.sin(2.0 * jnp.pi * (angle + phases[:, None, None])) * amplitude[:, None, None]
        weight = self.param("kernel", nn.initializers.normal(1.0), (channels, channels)) / np.sqrt(channels)
        return features @ weight


class _AliasFreeLayer(nn.Module):
    """Modulated convolution and filtered activation from one signal to the next; `colors` for the last, which is
    linear.
    """

    network: StyleGAN3Network
    before: Signal
    after: Signal
    critical: bool
    colors: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, style: Array, training: bool) -> Array:
        network, after = self.network, self.after
        # Inputs are divided by a running average of their magnitude.
        magnitude = self.variable(STATISTICS, "magnitude", jnp.ones, ())
        if training and self.is_mutable_collection(STATISTICS) and not self.is_initializing():
            square = cross_device_mean(jnp.mean(jax.lax.stop_gradient(x).astype(jnp.float32) ** 2))
            magnitude.value = 0.999 * magnitude.value + 0.001 * square
        gain = jax.lax.rsqrt(magnitude.value)
        size, inputs = 1 if self.colors or network.rotation else 3, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (size, size, inputs, after.channels))
        scales = EqualDense(inputs, bias_init=1.0, name="style")(style)
        if self.colors:
            scales = scales / np.sqrt(inputs)
        else:
            # Demodulation cancels both factors; they keep small types within their range.
            kernel = kernel * jax.lax.rsqrt(jnp.mean(kernel**2, axis=(0, 1, 2), keepdims=True) + 1e-8)
            scales = unit_mean_square(scales)
        x = modulated_convolution(x, kernel, scales, demodulate=not self.colors, full=True) * gain.astype(self.dtype)
        x = x + self.param("bias", nn.initializers.zeros, (after.channels,)).astype(self.dtype)[None, None, None]
        return x if self.colors else self.filtered_activation(x, size)

    def filtered_activation(self, x: Array, kernel_size: int) -> Array:
        """Leaky relu at a higher sampling rate, between an upsampling and a downsampling filter."""
        network, before, after = self.network, self.before, self.after
        rate = max(before.rate, after.rate) * 2
        up, down = rate // before.rate, rate // after.rate
        up_taps, down_taps = network.filter_size * up, network.filter_size * down
        total = (after.size - 1) * down + 1 - (before.size + kernel_size - 1) * up + up_taps + down_taps - 2
        low = (total + up) // 2
        up_filter = low_pass(up_taps, before.cutoff, 2 * before.half_width, rate)
        radial = network.rotation and not self.critical
        down_filter = low_pass(down_taps, after.cutoff, 2 * after.half_width, rate, radial)
        x = upfirdn(x, tuple(t * up for t in up_filter), up=up, padding=(low, total - low))
        return upfirdn(leaky(x), down_filter, down=down)


class _Synthesis(nn.Module):
    network: StyleGAN3Network
    data_shape: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(
        self, styles: Array, keys: Any = None, training: bool = False, transform: Array | None = None
    ) -> Array:
        network, plan = self.network, signals(self.network, self.data_shape[0])
        transform = jnp.eye(3) if transform is None else transform
        x = _FourierInput(plan[0], name="input")(styles[:, 0], transform).astype(self.dtype)
        for i in range(network.num_layers):
            critical = i >= network.num_layers - network.num_critical
            before = plan[max(i - 1, 0)]
            layer = _AliasFreeLayer(network, before, plan[i], critical, False, self.dtype, name=f"layer_{i}")
            x = layer(x, styles[:, i + 1], training)
        colors = dataclasses.replace(plan[-1], channels=self.data_shape[-1])
        layer = _AliasFreeLayer(network, plan[-2], colors, True, True, self.dtype, name="colors")
        return 0.25 * layer(x, styles[:, -1], training).astype(jnp.float32)
