"""The gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328), conditional on a class where asked.

Two stacks, so that there is no blind spot: v sees all rows above, h the pixels to the left and v.  In layer k

    a = W_v * v + V_v y,                    v <- tanh(a_1) sigmoid(a_2)
    b = W_h * h + W_vh a + V_h y,           h <- h + W_r (tanh(b_1) sigmoid(b_2))                  (eq. 4, figure 2)

where W_v is n // 2 + 1 rows of n pixels, W_h n // 2 + 1 pixels of the row, and y the one-hot class.  The first layer
leaves out the present row (v) and pixel (h).

To sample, v is computed a row at a time when the row above is complete, and h a pixel at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.families.autoregressive.images import ImageModel
from genjax.nn.causal_conv import CausalConv, Mode, horizontal_taps, vertical_taps


@jax.custom_vjp
def gate(x: Array) -> Array:
    """tanh(x_1) sigmoid(x_2) of the two halves of the features."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


def _gate_forward(x: Array) -> tuple[Array, Array]:
    return gate(x), x


def _gate_backward(x: Array, cotangent: Array) -> tuple[Array]:
    # The two halves side by side; the gradient of a split would pad both and add them, 4 times as slow on CPU.
    a, b = jnp.split(x, 2, axis=-1)
    t, s = jnp.tanh(a), jax.nn.sigmoid(b)
    return (jnp.concatenate([cotangent * s * (1.0 - t * t), cotangent * t * s * (1.0 - s)], axis=-1),)


gate.defvjp(_gate_forward, _gate_backward)


class Link(nn.Module):
    """Kernel [F, F] and bias [F] of a `Dense`, not applied.

    Attributes:
      features: number F of its inputs and outputs.
    """

    features: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.features, self.features))
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


class VerticalStack(nn.Module):
    """x [B, H, W, C] -> the input for each layer of h, a tuple of [B, H, W, 2F]."""

    config: GatedPixelCNN
    mode: Mode

    @nn.compact
    def __call__(self, x: Array, condition: Array | None, place: Any) -> tuple[Array, ...]:
        config, dtype, v, links = self.config, jnp.dtype(self.config.compute_dtype), x, []
        width = 2 * config.hidden_dim
        for n in range(config.num_layers):
            first, size = n == 0, config.first_size if n == 0 else config.kernel_size
            taps = vertical_taps(size // 2 + (not first), size, exclude_self=first)
            conv = CausalConv(width, taps, config.shape()[1], self.mode, first, dtype=dtype, name=f"conv_{n}")
            if n == config.num_layers - 1:
                # The last v is not read, so that its two maps are merged into one.
                links.append(conv(v, place, then=Link(width, name=f"link_{n}")()))
                break
            a = conv(v, place)
            links.append(nn.Dense(width, dtype=dtype, name=f"link_{n}")(a))
            if condition is not None:
                a = a + nn.Dense(width, use_bias=False, dtype=dtype, name=f"condition_{n}")(condition)[:, None, None]
            v = gate(a)
        return tuple(links)


class HorizontalStack(nn.Module):
    """x [B, H, W, C] and the vertical stack's links -> features [B, H, W, F]."""

    config: GatedPixelCNN
    mode: Mode

    @nn.compact
    def __call__(self, x: Array, links: tuple[Array, ...], condition: Array | None, place: Any) -> Array:
        config, dtype, h = self.config, jnp.dtype(self.config.compute_dtype), x
        width = 2 * config.hidden_dim
        for n in range(config.num_layers):
            first, size = n == 0, config.first_size if n == 0 else config.kernel_size
            taps = horizontal_taps(size // 2 + (not first), exclude_self=first)
            conv = CausalConv(width, taps, config.shape()[1], self.mode, first, False, dtype=dtype, name=f"conv_{n}")
            b = conv(h, place) + links[n]
            if condition is not None:
                b = b + nn.Dense(width, use_bias=False, dtype=dtype, name=f"condition_{n}")(condition)[:, None, None]
            residual = nn.Dense(config.hidden_dim, dtype=dtype, name=f"out_{n}")(gate(b))
            h = residual if first else h + residual
        return nn.Dense(config.output_dim, dtype=dtype, name="last")(nn.relu(h))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedPixelCNN(ImageModel):
    """Vertical and horizontal stacks of gated convolutions.

    Attributes:
      hidden_dim: features F of each stack.
      num_layers: number of layers, the first included.
      first_size: kernel size n of the first layer.
      kernel_size: kernel size n of the other layers.
      output_dim: number of features of the last hidden layer.
    """

    hidden_dim: int = 128
    num_layers: int = 10
    first_size: int = 7
    kernel_size: int = 3
    output_dim: int = 128

    def networks(self, mode: Mode | None = None) -> tuple[nn.Module, nn.Module]:
        if mode in (None, "full"):
            return VerticalStack(self, "full"), HorizontalStack(self, "full")
        return VerticalStack(self, "row"), HorizontalStack(self, "pixel")
