"""PixelCNN with masked residual blocks (van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759).

A 7 x 7 convolution with mask A (not the present pixel), then residual blocks with mask B (with it), whose width is 2h:

    x <- x + conv_1x1(relu(conv_3x3^B(relu(conv_1x1(relu(x))))))                            (figure 5, left)

and two 1 x 1 convolutions.  The receptive field has the blind spot to the right that the gated PixelCNN removes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from genjax.batch import Array
from genjax.families.autoregressive.images import ImageModel
from genjax.nn.causal_conv import CausalConv, Mode, raster_taps


class PixelCNNTrunk(nn.Module):
    """x [B, H, W, C] -> features [B, H, W, F] from earlier pixels, whole or stepwise."""

    config: PixelCNN
    mode: Mode

    @nn.compact
    def __call__(self, x: Array, context: None, condition: Array | None, place: Any) -> Array:
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        common = {"width": config.shape()[1], "mode": self.mode, "dtype": dtype}
        taps = raster_taps(config.first_size, exclude_self=True)
        h = CausalConv(2 * config.hidden_dim, taps, exclude_self=True, name="first", **common)(x, place)
        if config.learned_positions:
            height, width, _ = config.shape()
            std = nn.initializers.normal(0.02)
            table = self.param("position", std, (height, width, 2 * config.hidden_dim)).astype(dtype)
            h = h + (table if self.mode == "full" else table[place][None, None])[None]
        for n in range(config.num_blocks):
            r = nn.Dense(config.hidden_dim, dtype=dtype, name=f"in_{n}")(nn.relu(h))
            if condition is not None:
                shift = nn.Dense(config.hidden_dim, use_bias=False, dtype=dtype, name=f"condition_{n}")(condition)
                r = r + shift[:, None, None]
            taps = raster_taps(config.kernel_size, exclude_self=False)
            r = CausalConv(config.hidden_dim, taps, name=f"conv_{n}", **common)(nn.relu(r), place)
            h = h + nn.Dense(2 * config.hidden_dim, dtype=dtype, name=f"out_{n}")(nn.relu(r))
        if condition is not None:
            h = (
                h
                + nn.Dense(2 * config.hidden_dim, use_bias=False, dtype=dtype, name="condition")(condition)[
                    :, None, None
                ]
            )
        return nn.Dense(config.output_dim, dtype=dtype, name="last")(nn.relu(h))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelCNN(ImageModel):
    """Masked residual convolutions.

    Attributes:
      hidden_dim: h above; the residual stream has 2h features.
      num_blocks: number of residual blocks.
      first_size: height and width of the first convolution.
      kernel_size: height and width of the blocks' convolutions.
      learned_positions: add a learned vector for each place after the first convolution (not in the paper), as pixels
        far from the borders cannot tell where they are.
      output_dim: number of features of the last hidden layer.
    """

    hidden_dim: int = 16
    num_blocks: int = 15
    first_size: int = 7
    kernel_size: int = 3
    learned_positions: bool = False
    output_dim: int = 64

    def networks(self, mode: Mode | None = None) -> tuple[None, nn.Module]:
        return None, PixelCNNTrunk(self, mode or "full")
