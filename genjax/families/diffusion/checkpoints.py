"""UNet2DConditionModel and ControlNetModel of the library diffusers: their settings, and the names of their tensors.

The library calls the number of heads `attention_head_dim`.
"""

from __future__ import annotations

from typing import Any

from genjax.families.diffusion.unet import UNet
from genjax.interop.architecture import Config, UnsupportedError, number, require
from genjax.interop.bindings import Bindings, convolution, linear, merge, norm

_DOWN, _DOWN_ATTENTION = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _UP_ATTENTION = "UpBlock2D", "CrossAttnUpBlock2D"
#: Settings that must have one value, by name: their default in the library, and the values that are read.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "silu", "swish"),
    "attention_type": ("default", "default"),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "downsample_padding": (1, 1),
    "dual_cross_attention": (False, False, None),
    "encoder_hid_dim": (None, None),
    "encoder_hid_dim_type": (None, None),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_only_cross_attention": (None, None, False),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn"),
    "num_class_embeds": (None, None),
    "only_cross_attention": (False, False),
    "resnet_out_scale_factor": (1.0, 1.0),
    "resnet_time_scale_shift": ("default", "default"),
    "reverse_transformer_layers_per_block": (None, None),
    "time_cond_proj_dim": (None, None),
    "time_embedding_act_fn": (None, None),
    "time_embedding_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "timestep_post_act": (None, None),
}


def per_level(config: Config, name: str, default: Any, count: int) -> tuple[int, ...]:
    value = config.get(name)
    value = default if value is None else value
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * count


def read_unet(config: Config) -> UNet:
    """The network that a config.json of a U-Net or of a control network describes.

    Raises:
      UnsupportedError: a setting is not known here.
    """
    for name, (default, *allowed) in _FIXED.items():
        require(config, name, default, *allowed)
    require(config, "addition_embed_type", None, None, "text_time")
    widths = tuple(number(config, "block_out_channels"))
    count = len(widths)
    down = tuple(config.get("down_block_types", (_DOWN_ATTENTION,) * (count - 1) + (_DOWN,)))
    levels = tuple(i for i, kind in enumerate(down) if kind == _DOWN_ATTENTION)
    up = [_UP_ATTENTION if i in levels else _UP for i in reversed(range(count))]
    wrong = set(down) - {_DOWN, _DOWN_ATTENTION}
    if wrong or list(config.get("up_block_types", up)) != up:
        raise UnsupportedError(
            f"config.json has the blocks {', '.join(down)} and {', '.join(config.get('up_block_types', up))}; only "
            f"{_DOWN_ATTENTION} and {_DOWN} can be read, and the same on the way up"
        )
    heads = per_level(config, "num_attention_heads", config.get("attention_head_dim", 8), count)
    head_widths = {width // n for width, n in zip(widths, heads)}
    if len(set(heads)) > 1 and len(head_widths) > 1:
        raise UnsupportedError(f"config.json has {heads} heads of attention for {widths} channels")
    if any(width % widths[0] for width in widths):
        raise UnsupportedError(f"config.json has channels {widths}, which are no multiples of the first")
    blocks = per_level(config, "layers_per_block", 2, count)
    if len(set(blocks)) > 1:
        raise UnsupportedError(f"config.json has different layers_per_block {blocks}")
    if len(set(per_level(config, "cross_attention_dim", 1280, count))) > 1:
        raise UnsupportedError("config.json has different cross_attention_dim of its levels")
    text_time = config.get("addition_embed_type") == "text_time"
    return UNet(
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_blocks=blocks[0],
        attention_levels=levels,
        num_heads=heads[0],
        head_channels=None if len(set(heads)) == 1 else head_widths.pop(),
        num_groups=config.get("norm_num_groups", 32),
        scale_shift_norm=False,
        dropout_rate=config.get("dropout", 0.0),
        transformer_depths=per_level(config, "transformer_layers_per_block", 1, count),
        exact_groups=True,
        norm_epsilon=config.get("norm_eps", 1e-5),
        centred_halving=True,
        size_channels=config.get("addition_time_embed_dim") if text_time else None,
        linear_projection=config.get("use_linear_projection", False),
    )


def write_unet(network: UNet, in_channels: int, context_dim: int, vector_dim: int | None) -> dict[str, Any]:
    """The settings of config.json that a U-Net and a control network share.

    Args:
      network: the U-Net.
      in_channels: channels of its input.
      context_dim: channels of the context.
      vector_dim: length of the vector that `add_embedding` sees (SDXL), or None.

    Raises:
      UnsupportedError: the library has no such network.
    """
    needed = {
        "scale_shift_norm": False,
        "resample_convolution": True,
        "resample_blocks": False,
        "video": False,
        "patch_size": 1,
        "centred_halving": True,
    }
    for name, value in needed.items():
        if getattr(network, name) != value:
            raise UnsupportedError(f"the library diffusers has no U-Net with {name}={getattr(network, name)}")
    if not network.transformer_depths or not network.exact_groups:
        raise UnsupportedError("the library diffusers has no U-Net without transformer_depths and exact_groups")
    widths, levels = network.widths, network.attention_levels
    heads = [network.heads_for(width) for width in widths]
    depths = list(network.transformer_depths)
    return {
        "act_fn": "silu",
        "addition_embed_type": None if vector_dim is None else "text_time",
        "addition_time_embed_dim": network.size_channels,
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "block_out_channels": list(widths),
        "cross_attention_dim": context_dim,
        "down_block_types": [_DOWN_ATTENTION if i in levels else _DOWN for i in range(len(widths))],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": in_channels,
        "layers_per_block": network.num_blocks,
        "norm_eps": network.norm_epsilon,
        "norm_num_groups": network.num_groups,
        "projection_class_embeddings_input_dim": vector_dim,
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "use_linear_projection": network.linear_projection,
    }


def unet_bindings(network: UNet, ours: str = "", control: bool = False) -> Bindings:
    """Bindings of a U-Net's parameters, whose paths begin with `ours`; of a control network, without the way up."""
    count = len(network.widths)
    outer = {} if network.linear_projection else {"trailing": 2}

    def residual(path: str, name: str) -> Bindings:
        return merge(
            norm(f"{path}/norm_1", f"{name}.norm1"),
            convolution(f"{path}/conv_1", f"{name}.conv1"),
            linear(f"{path}/adapt", f"{name}.time_emb_proj"),
            norm(f"{path}/norm_2", f"{name}.norm2"),
            convolution(f"{path}/conv_2", f"{name}.conv2"),
            linear(f"{path}/skip", f"{name}.conv_shortcut", trailing=2),
        )

    def transformer(path: str, name: str, depth: int) -> Bindings:
        parts = [
            norm(f"{path}/norm", f"{name}.norm"),
            linear(f"{path}/input", f"{name}.proj_in", **outer),
            linear(f"{path}/output", f"{name}.proj_out", **outer),
        ]
        for i in range(depth):
            a, b = f"{path}/stack/layer_{i}", f"{name}.transformer_blocks.{i}"
            for ours_part, theirs_part in (("attention", "attn1"), ("cross_attention", "attn2")):
                for x in ("query", "key", "value"):
                    parts.append(linear(f"{a}/{ours_part}/{x}", f"{b}.{theirs_part}.to_{x[0]}", bias=False))
                parts.append(linear(f"{a}/{ours_part}/output", f"{b}.{theirs_part}.to_out.0"))
            parts += [
                norm(f"{a}/attention_norm", f"{b}.norm1"),
                norm(f"{a}/cross_attention_norm", f"{b}.norm2"),
                norm(f"{a}/mlp_norm", f"{b}.norm3"),
                linear(f"{a}/mlp/up", f"{b}.ff.net.0.proj", part=(0, 2)),
                linear(f"{a}/mlp/gate", f"{b}.ff.net.0.proj", part=(1, 2)),
                linear(f"{a}/mlp/down", f"{b}.ff.net.2"),
            ]
        return merge(*parts)

    def block(path: str, name: str, place: int, level: int, attends: bool) -> list[Bindings]:
        parts = [residual(f"{ours}{path}", f"{name}.resnets.{place}")]
        if attends:
            depth = network.transformer_depths[level]
            parts.append(transformer(f"{ours}{path}_attention", f"{name}.attentions.{place}", depth))
        return parts

    embedding = f"{ours}ConditionEmbedding_0"
    parts = [
        convolution(f"{ours}input", "conv_in"),
        linear(f"{embedding}/Dense_0", "time_embedding.linear_1"),
        linear(f"{embedding}/Dense_1", "time_embedding.linear_2"),
        linear(f"{embedding}/vector_hidden", "add_embedding.linear_1"),
        linear(f"{embedding}/vector", "add_embedding.linear_2"),
        *block("middle_0", "mid_block", 0, count - 1, bool(network.attention_levels)),
        *block("middle_1", "mid_block", 1, count - 1, False),
    ]
    for level in range(count):
        attends = level in network.attention_levels
        for i in range(network.num_blocks):
            parts += block(f"down_{level}_{i}", f"down_blocks.{level}", i, level, attends)
        parts.append(convolution(f"{ours}halve_{level}", f"down_blocks.{level}.downsamplers.0.conv"))
        place = count - 1 - level
        for i in range(0 if control else network.num_blocks + 1):
            parts += block(f"up_{level}_{i}", f"up_blocks.{place}", i, level, attends)
        if not control:
            parts.append(convolution(f"{ours}double_{level}", f"up_blocks.{place}.upsamplers.0.conv"))
    if not control:
        parts += [norm(f"{ours}output_norm", "conv_norm_out"), convolution(f"{ours}output", "conv_out")]
    return merge(*parts)


def write_conditional_unet(
    network: UNet, in_channels: int, out_channels: int, size: Any, context_dim: int, vector_dim: int | None
) -> dict[str, Any]:
    """config.json of a UNet2DConditionModel; see `write_unet`.

    Args:
      network, in_channels, context_dim, vector_dim: as for `write_unet`.
      out_channels: channels of the output.
      size: height of the codes, or (height, width).
    """
    return {
        "_class_name": "UNet2DConditionModel",
        **write_unet(network, in_channels, context_dim, vector_dim),
        "dropout": network.dropout_rate,
        "out_channels": out_channels,
        "sample_size": size,
        "up_block_types": [
            _UP_ATTENTION if i in network.attention_levels else _UP for i in reversed(range(len(network.widths)))
        ],
    }
