"""SD3Transformer2DModel and FluxTransformer2DModel of the library diffusers: their settings, and the names of their
tensors.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from genjax.families.diffusion.flux import Flux
from genjax.families.diffusion.mmdit import MMDiT
from genjax.interop.architecture import Architecture, Config, UnsupportedError, number, require
from genjax.interop.bindings import Bindings, convolution, linear, merge, norm

if TYPE_CHECKING:
    from genjax.families.diffusion.flow_matching import FlowMatching

_PLACES = "pos_embed.pos_embed"
#: Flux' patches are made before its network, which sees `in_channels` numbers of each.
_FLUX_PATCH = 2


def _model(network: Any, channels: int, size: int) -> dict[str, Any]:
    return {"data_shape": (size, size, channels), "network": network, "condition_on": ("context", "vector")}


def _known_widths(network: MMDiT | Flux) -> tuple[int, int]:
    """Channels of the context and of the pooled text.

    Raises:
      UnsupportedError: the network has no pooled text, or does not know them.
    """
    if not network.pooled or network.mlp_ratio != 4.0:
        raise UnsupportedError(
            f"the library diffusers has no {type(network).__name__} with pooled={network.pooled} and "
            f"mlp_ratio={network.mlp_ratio}; it has them with a pooled text and mlp_ratio=4"
        )
    if network.context_dim is None or network.vector_dim is None:
        raise UnsupportedError(
            "the settings of a transformer of diffusers name the widths of its texts; give network.context_dim and "
            "network.vector_dim"
        )
    return network.context_dim, network.vector_dim


def _square(model: FlowMatching) -> tuple[int, int]:
    """Side and channels of the data.

    Raises:
      UnsupportedError: the data are no square pictures, or there are conditions that the library does not know.
    """
    shape = model.data_shape
    if len(shape) != 3 or shape[0] != shape[1] or set(model.condition_on) - {"context", "vector", "text"}:
        raise UnsupportedError(
            f"the library diffusers has no such transformer of data of shape {shape} with "
            f"condition_on={','.join(model.condition_on)}; it has them of square pictures with texts"
        )
    return shape[0], shape[2]


def _embedded(ours: str, theirs: str) -> Bindings:
    return linear(f"{ours}/hidden", f"{theirs}.linear_1") | linear(f"{ours}/output", f"{theirs}.linear_2")


def _heads(ours: str, maps: tuple[str, str, str], output: str | None, norms: tuple[str, str] | None) -> Bindings:
    names = ("query", "key", "value")
    parts = [linear(f"{ours}/{name}", theirs) for name, theirs in zip(names, maps, strict=True)]
    if output is not None:
        parts.append(linear(f"{ours}/output", output))
    for name, theirs in zip(names, norms or ()):
        parts.append(norm(f"{ours}/{name}_norm", theirs, bias=False))
    return merge(*parts)


def _own_heads(ours: str, theirs: str, normed: bool, output: bool = True) -> Bindings:
    norms = (f"{theirs}.norm_q", f"{theirs}.norm_k") if normed else None
    maps = (f"{theirs}.to_q", f"{theirs}.to_k", f"{theirs}.to_v")
    return _heads(ours, maps, f"{theirs}.to_out.0" if output else None, norms)


def _joint_block(ours: str, theirs: str, normed: bool, dual: bool, ends: bool) -> Bindings:
    attention, text = f"{theirs}.attn", f"{ours}/text"
    added = (f"{attention}.add_q_proj", f"{attention}.add_k_proj", f"{attention}.add_v_proj")
    norms = (f"{attention}.norm_added_q", f"{attention}.norm_added_k") if normed else None
    parts = [
        linear(f"{ours}/picture/adapt", f"{theirs}.norm1.linear"),
        linear(f"{ours}/picture/up", f"{theirs}.ff.net.0.proj"),
        linear(f"{ours}/picture/down", f"{theirs}.ff.net.2"),
        _own_heads(f"{ours}/picture/attention", attention, normed),
        linear(f"{text}/adapt", f"{theirs}.norm1_context.linear"),
        _heads(f"{text}/attention", added, None if ends else f"{attention}.to_add_out", norms),
    ]
    if dual:
        parts.append(_own_heads(f"{ours}/picture/own_attention", f"{theirs}.attn2", normed))
    if not ends:
        parts.append(linear(f"{text}/up", f"{theirs}.ff_context.net.0.proj"))
        parts.append(linear(f"{text}/down", f"{theirs}.ff_context.net.2"))
    return merge(*parts)


def _ends() -> Bindings:
    """What both networks have before and behind their blocks."""
    return merge(
        linear("context", "context_embedder"),
        _embedded("modulation/time", "time_text_embed.timestep_embedder"),
        _embedded("modulation/vector", "time_text_embed.text_embedder"),
        linear("last/adapt", "norm_out.linear"),
        linear("last/output", "proj_out"),
    )


# ----------------------------------------------------------------------------------------------------------------------
# Stable Diffusion 3


def _read_sd3(config: Config, names: Collection[str]) -> dict[str, Any]:
    del names
    size, patch = config.get("sample_size", 128), config.get("patch_size", 2)
    channels, heads = config.get("in_channels", 16), config.get("num_attention_heads", 18)
    width = heads * config.get("attention_head_dim", 64)
    require(config, "caption_projection_dim", 1152, width)
    require(config, "out_channels", 16, channels)
    require(config, "qk_norm", None, None, "rms_norm")
    network = MMDiT(
        patch_size=patch,
        hidden_dim=width,
        num_layers=config.get("num_layers", 18),
        num_heads=heads,
        qk_norm=config.get("qk_norm") is not None,
        dual_layers=tuple(config.get("dual_attention_layers", ())),
        max_grid=number({"pos_embed_max_size": 96, **config}, "pos_embed_max_size"),
        base_grid=size // patch,
        context_dim=config.get("joint_attention_dim", 4096),
        vector_dim=config.get("pooled_projection_dim", 2048),
    )
    return _model(network, channels, size)


def _write_sd3(model: FlowMatching) -> dict[str, Any]:
    network = model.network
    context, vector = _known_widths(network)
    size, channels = _square(model)
    grid = size // network.patch_size
    if network.max_grid is not None and (network.base_grid or network.max_grid) != grid:
        raise UnsupportedError(
            f"the library diffusers has its places over the grid of {grid} patches of its own pictures, and "
            f"network.base_grid is {network.base_grid or network.max_grid}"
        )
    return {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": network.hidden_dim // network.num_heads,
        "caption_projection_dim": network.hidden_dim,
        "dual_attention_layers": list(network.dual_layers),
        "in_channels": channels,
        "joint_attention_dim": context,
        "num_attention_heads": network.num_heads,
        "num_layers": network.num_layers,
        "out_channels": channels,
        "patch_size": network.patch_size,
        "pooled_projection_dim": vector,
        "pos_embed_max_size": network.max_grid or grid,
        "qk_norm": "rms_norm" if network.qk_norm else None,
        "sample_size": size,
    }


def _bind_sd3(model: FlowMatching) -> Bindings:
    network, last = model.network, model.network.num_layers - 1
    return merge(
        convolution("patches", "pos_embed.proj"),
        _ends(),
        *(
            _joint_block(
                f"block_{i}", f"transformer_blocks.{i}", network.qk_norm, i in network.dual_layers, ends=i == last
            )
            for i in range(network.num_layers)
        ),
    )


def _sd3_places(model: FlowMatching) -> dict[str, np.ndarray]:
    side = model.network.max_grid or model.data_shape[0] // model.network.patch_size
    return {_PLACES: model.network.places((side, side))[None]}


SD3 = Architecture(
    model_type="SD3Transformer2DModel",
    read=_read_sd3,
    write=_write_sd3,
    bind=_bind_sd3,
    buffers=r"^pos_embed\.pos_embed$",
    constants=_sd3_places,
    writes=lambda model: isinstance(model.network, MMDiT),
    library="diffusers",
)


# ----------------------------------------------------------------------------------------------------------------------
# Flux


def _read_flux(config: Config, names: Collection[str]) -> dict[str, Any]:
    del names
    require(config, "patch_size", 1, 1)
    channels, heads = config.get("in_channels", 64), config.get("num_attention_heads", 24)
    require(config, "out_channels", None, None, channels)
    if channels % _FLUX_PATCH**2:
        raise UnsupportedError(f"config.json has in_channels={channels}, which are no patches of 2 x 2")
    network = Flux(
        patch_size=_FLUX_PATCH,
        hidden_dim=heads * config.get("attention_head_dim", 128),
        num_layers=config.get("num_layers", 19),
        num_single_layers=config.get("num_single_layers", 38),
        num_heads=heads,
        rotary_axes=tuple(config.get("axes_dims_rope", (16, 56, 56))),
        told_guidance=3.5 if config.get("guidance_embeds", False) else None,
        context_dim=config.get("joint_attention_dim", 4096),
        vector_dim=config.get("pooled_projection_dim", 768),
    )
    # The library's settings name no size; its pipeline draws 1024 pixels, 128 codes.
    return _model(network, channels // _FLUX_PATCH**2, 128)


def _write_flux(model: FlowMatching) -> dict[str, Any]:
    network = model.network
    context, vector = _known_widths(network)
    _, channels = _square(model)
    if network.patch_size != _FLUX_PATCH:
        raise UnsupportedError(f"the library diffusers has no Flux with patches of {network.patch_size}, but of 2")
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": network.hidden_dim // network.num_heads,
        "axes_dims_rope": list(network.rotary_axes),
        "guidance_embeds": network.told_guidance is not None,
        "in_channels": channels * _FLUX_PATCH**2,
        "joint_attention_dim": context,
        "num_attention_heads": network.num_heads,
        "num_layers": network.num_layers,
        "num_single_layers": network.num_single_layers,
        "out_channels": None,
        "patch_size": 1,
        "pooled_projection_dim": vector,
    }


def _single_block(ours: str, theirs: str) -> Bindings:
    return merge(
        linear(f"{ours}/adapt", f"{theirs}.norm.linear"),
        linear(f"{ours}/up", f"{theirs}.proj_mlp"),
        linear(f"{ours}/down", f"{theirs}.proj_out"),
        _own_heads(f"{ours}/attention", f"{theirs}.attn", normed=True, output=False),
    )


def _bind_flux(model: FlowMatching) -> Bindings:
    network = model.network
    double = range(network.num_layers)
    single = range(network.num_single_layers)
    return merge(
        linear("patches", "x_embedder"),
        _ends(),
        _embedded("modulation/guidance", "time_text_embed.guidance_embedder"),
        *(_joint_block(f"block_{i}", f"transformer_blocks.{i}", True, dual=False, ends=False) for i in double),
        *(_single_block(f"block_{network.num_layers + i}", f"single_transformer_blocks.{i}") for i in single),
    )


FLUX = Architecture(
    model_type="FluxTransformer2DModel",
    read=_read_flux,
    write=_write_flux,
    bind=_bind_flux,
    writes=lambda model: isinstance(model.network, Flux),
    own=("data_shape",),
    library="diffusers",
)
