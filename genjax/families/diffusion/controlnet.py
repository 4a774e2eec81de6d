"""ControlNet: a picture that steers a U-Net which is not trained (Zhang et al. 2023, arXiv:2302.05543, section 3).

    y = U(z, t, c; skips + s Z_i(h_i), middle + s Z(h)),    h = a copy of the U-Net's way down, of z + Z(E(hint))

The copy starts at the U-Net's parameters, and the maps Z of every place at zero, so that the start is the U-Net itself.
The hint is a picture in [0, 1] of the size of the pictures, such as edges, which E brings to the size of the codes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, PyTree
from genjax.errors import UserError
from genjax.families.diffusion.checkpoints import unet_bindings
from genjax.families.diffusion.networks import Condition, ConditionEmbedding
from genjax.families.diffusion.unet import Paths, UNet, convolution
from genjax.interop.bindings import Bindings, linear, merge
from genjax.interop.bindings import convolution as bound_convolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlledUNet(UNet):
    """A U-Net with a control network; both have the same sizes.

    Attributes:
      hint_channels: channels of the hint at each size; height and width are halved between two.
      control_scale: factor s on what the control network adds.
    """

    flag_name: ClassVar[str] = "controlled_unet"

    hint_channels: tuple[int, ...] = (16, 32, 96, 256)
    control_scale: float = 1.0

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that the network understands."""
        return (*super().conditions, "hint")

    @property
    def plain(self) -> UNet:
        """The U-Net without its control network."""
        return UNet(**{field.name: getattr(self, field.name) for field in dataclasses.fields(UNet)})

    def build(self, num_outputs: int, num_classes: int | None, dtype: Any) -> nn.Module:
        return _Controlled(self, num_outputs, num_classes, dtype)


def controlled(network: UNet, hint_channels: tuple[int, ...], control_scale: float = 1.0) -> ControlledUNet:
    """A U-Net's configuration with a control network."""
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(UNet)}
    return ControlledUNet(**fields, hint_channels=hint_channels, control_scale=control_scale)


class _Controlled(nn.Module):
    config: ControlledUNet
    num_outputs: int
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, time: Array, condition: Condition, dropout_keys: Array | None = None) -> Array:
        if "hint" not in condition:
            raise UserError(
                "a control network needs a hint, a picture in [0, 1]; give condition_on=...,hint and `hint`"
            )
        control = _ControlNetwork(self.config, self.num_classes, self.dtype, name="control")(z, time, condition)
        rest = {name: value for name, value in condition.items() if name != "hint"}
        rest["control"] = tuple(self.config.control_scale * part for part in control)
        unet = self.config.plain.build(self.num_outputs, self.num_classes, self.dtype)
        return unet.clone(name="unet", parent=self)(z, time, rest, dropout_keys)


class _ControlNetwork(nn.Module):
    """z [B, h, w, D], times and conditions to what is added to each skip and, last, to the middle."""

    config: ControlledUNet
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, time: Array, condition: Condition) -> list[Array]:
        config, dtype = self.config, self.dtype
        embed = ConditionEmbedding(4 * config.channels, self.num_classes, dtype, config.size_channels)
        embedding = jax.nn.silu(embed(time, {name: v for name, v in condition.items() if name != "image"}))
        h = convolution(config.channels, z.astype(dtype), dtype, "input") + self._hint(condition["hint"], z)
        paths = Paths(config, dtype, embedding, condition.get("context"), condition.get("context_mask"))
        h, skips = paths.down(h)
        h = paths.middle(h)
        zero = lambda name, h: nn.Dense(h.shape[-1], dtype=dtype, kernel_init=nn.initializers.zeros, name=name)(h)
        return [*(zero(f"control_{i}", skip) for i, skip in enumerate(skips)), zero("control_middle", h)]

    def _hint(self, hint: Array, z: Array) -> Array:
        """The hint [B, H, W, C] at the size of the code."""
        config, dtype, channels = self.config, self.dtype, self.config.hint_channels
        factor = 2 ** (len(channels) - 1)
        if hint.shape[1:3] != tuple(factor * n for n in z.shape[1:3]):
            raise UserError(
                f"a hint of {hint.shape[1]} x {hint.shape[2]} pixels does not fit codes of {z.shape[1]} x "
                f"{z.shape[2]}; with {len(channels)} hint_channels it must be {factor} times as large"
            )
        h = jax.nn.silu(convolution(channels[0], hint.astype(dtype), dtype, "hint_input"))
        for i, (width, wider) in enumerate(zip(channels, channels[1:])):
            h = jax.nn.silu(convolution(width, h, dtype, f"hint_{2 * i}"))
            h = jax.nn.silu(convolution(wider, h, dtype, f"hint_{2 * i + 1}", halves="CENTRED"))
        return convolution(config.channels, h, dtype, "hint_output", zeros=True)


def edges(x: Array) -> Array:
    """A hint of pictures [B, H, W, C] in [-1, 1]: the slope of their mean over channels, in [0, 1], [B, H, W, 3]."""
    grey = jnp.pad(x.mean(-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    down, right = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1], grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    slope = jnp.clip(0.5 * jnp.sqrt(jnp.square(down) + jnp.square(right)), 0.0, 1.0)
    return jnp.repeat(slope[..., None], 3, axis=-1)


def started_from_unet(params: PyTree) -> PyTree:
    """Parameters {unet, control} whose control network has the U-Net's way down, and otherwise its own."""
    shared = {name: part for name, part in params["unet"].items() if name in params["control"]}
    return {**params, "control": {**params["control"], **jax.tree.map(jnp.copy, shared)}}


def control_bindings(network: ControlledUNet, ours: str) -> Bindings:
    """Bindings of a ControlNetModel of the library diffusers, whose paths begin with `ours`."""
    hint, count = "controlnet_cond_embedding", len(network.hint_channels)
    skips = len(network.widths) * (network.num_blocks + 1)
    return merge(
        unet_bindings(network, ours, control=True),
        bound_convolution(f"{ours}hint_input", f"{hint}.conv_in"),
        *(bound_convolution(f"{ours}hint_{i}", f"{hint}.blocks.{i}") for i in range(2 * (count - 1))),
        bound_convolution(f"{ours}hint_output", f"{hint}.conv_out"),
        *(linear(f"{ours}control_{i}", f"controlnet_down_blocks.{i}", trailing=2) for i in range(skips)),
        linear(f"{ours}control_middle", "controlnet_mid_block", trailing=2),
    )
