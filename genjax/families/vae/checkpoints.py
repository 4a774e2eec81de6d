"""AutoencoderKL of the library diffusers: its settings, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.vae.picture_autoencoder import PictureNetwork
from genjax.interop.architecture import Architecture, Config, UnsupportedError, number, require
from genjax.interop.bindings import Bindings, convolution, linear, merge, norm

if TYPE_CHECKING:
    from genjax.families.vae.autoencoder_kl import AutoencoderKL

_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def _read(config: Config, names: Collection[str]) -> dict[str, Any]:
    del names
    require(config, "act_fn", "silu", "silu", "swish")
    for name, block in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        found = set(config.get(name, [block])) - {block}
        if found:
            raise UnsupportedError(
                f"config.json of an AutoencoderKL has {name} {', '.join(sorted(found))}; only {block} can be read"
            )
    for name in ("latents_mean", "latents_std"):
        require(config, name, None, None)
    quant = config.get("use_quant_conv", True)
    require(config, "use_post_quant_conv", quant, quant)
    require(config, "out_channels", 3, config.get("in_channels", 3))
    size = number(config, "sample_size")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return {
        "data_shape": (height, width, config.get("in_channels", 3)),
        "network": PictureNetwork(
            channels=tuple(config.get("block_out_channels", (64,))),
            num_blocks=config.get("layers_per_block", 1),
            num_groups=config.get("norm_num_groups", 32),
            middle_attention=config.get("mid_block_add_attention", True),
            quant_convolution=quant,
        ),
        "latent_channels": config.get("latent_channels", 4),
        "scaling_factor": config.get("scaling_factor", 0.18215),
        "shift_factor": config.get("shift_factor") or 0.0,
    }


def _write(model: AutoencoderKL) -> dict[str, Any]:
    network = model.network
    height, width, channels = model.data_shape
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(network.channels),
        "down_block_types": [_DOWN] * len(network.channels),
        "force_upcast": True,
        "in_channels": channels,
        "latent_channels": model.latent_channels,
        "layers_per_block": network.num_blocks,
        "mid_block_add_attention": network.middle_attention,
        "norm_num_groups": network.num_groups,
        "out_channels": channels,
        "sample_size": height if height == width else [height, width],
        "scaling_factor": 0.18215 if model.scaling_factor is None else model.scaling_factor,
        "shift_factor": model.shift_factor or None,
        "up_block_types": [_UP] * len(network.channels),
        "use_post_quant_conv": network.quant_convolution,
        "use_quant_conv": network.quant_convolution,
    }


def _bindings(model: AutoencoderKL) -> Bindings:
    return autoencoder_bindings(model.network, "autoencoder/")


def autoencoder_bindings(network: PictureNetwork, ours: str) -> Bindings:
    """Bindings of encoder and decoder whose parameters' paths begin with `ours`."""
    last = len(network.channels) - 1

    def block(path: str, name: str, inputs: int, outputs: int) -> Bindings:
        parts = [
            norm(f"{path}/norm_{i}/norm", f"{name}.norm{i}") | convolution(f"{path}/conv_{i}", f"{name}.conv{i}")
            for i in (1, 2)
        ]
        skip = convolution(f"{path}/skip", f"{name}.conv_shortcut") if inputs != outputs else {}
        return merge(*parts, skip)

    def side(body: str, name: str, widths: list[int], blocks: int, path: str, theirs: str, resample: str) -> Bindings:
        middle, width = f"{body}/middle", network.channels[-1]
        parts = [
            convolution(f"{body}/input", f"{name}.conv_in"),
            norm(f"{body}/output_norm/norm", f"{name}.conv_norm_out"),
            *(block(f"{middle}/block_{i}", f"{name}.mid_block.resnets.{i}", width, width) for i in (0, 1)),
        ]
        if network.middle_attention:
            attention = f"{name}.mid_block.attentions.0"
            parts.append(norm(f"{middle}/attention_norm", f"{attention}.group_norm"))
            # The second name is the one before version 0.17.
            for map_name, new, old in (
                ("query", "to_q", "query"),
                ("key", "to_k", "key"),
                ("value", "to_v", "value"),
                ("output", "to_out.0", "proj_attn"),
            ):
                ours_map = f"{middle}/attention/{map_name}"
                parts.append(linear(ours_map, f"{attention}.{new}", others=(f"{attention}.{old}",)))
        inputs = widths[0]
        for place, outputs in enumerate(widths):
            level = place if path == "down" else last - place
            for i in range(blocks):
                ours_block, theirs_block = f"{body}/{path}_{level}_{i}", f"{name}.{theirs}.{place}.resnets.{i}"
                parts.append(block(ours_block, theirs_block, inputs, outputs))
                inputs = outputs
            if place < last:
                sampler = f"{name}.{theirs}.{place}.{resample}.0.conv"
                parts.append(convolution(f"{body}/{'halve' if path == 'down' else 'double'}_{level}", sampler))
        return merge(*parts)

    widths = list(network.channels)
    encoder, decoder = f"{ours}encoder", f"{ours}decoder"
    quant = network.quant_convolution
    return merge(
        side(encoder, "encoder", widths, network.num_blocks, "down", "down_blocks", "downsamplers"),
        convolution(f"{encoder}/output", "encoder.conv_out"),
        convolution(f"{encoder}/quant", "quant_conv") if quant else {},
        side(f"{decoder}/body", "decoder", widths[::-1], network.num_blocks + 1, "up", "up_blocks", "upsamplers"),
        convolution(f"{decoder}/output", "decoder.conv_out"),
        convolution(f"{decoder}/body/quant", "post_quant_conv") if quant else {},
    )


AUTOENCODER_KL = Architecture(
    model_type="AutoencoderKL", read=_read, write=_write, bind=_bindings, library="diffusers", own=("data_shape",)
)
