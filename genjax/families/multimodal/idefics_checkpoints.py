"""Idefics of the library transformers: Flamingo with a Llama, read and not written."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.language.networks import llama_network
from genjax.families.multimodal.checkpoints import stack_layers
from genjax.families.multimodal.flamingo_layers import Resampler
from genjax.families.multimodal.networks import clip_network
from genjax.interop.architecture import (
    Architecture,
    Config,
    UnsupportedError,
    activation,
    number,
    read_rotary,
    require,
    token,
    tokens,
)
from genjax.interop.bindings import Binding, Bindings, embedding, linear, merge, norm, same

if TYPE_CHECKING:
    from genjax.families.multimodal.flamingo import Flamingo

_MAPS = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))


def _read(config: Config, names: Collection[str]) -> dict[str, Any]:
    require(config, "use_resampler", False, True)
    require(config, "alpha_type", "float", "float")
    require(config, "qk_layer_norms", False, False)
    # Their tokens of pictures lie in a table of their own.
    require(config, "additional_vocab_size", 0, 0)
    perceiver, vision = dict(config.get("perceiver_config") or {}), dict(config.get("vision_config") or {})
    require(perceiver, "qk_layer_norms_perceiver", False, False)
    size, width = vision.get("image_size", 224), vision.get("embed_dim", 768)
    language = llama_network(
        config.get("num_hidden_layers", 32),
        config.get("hidden_size", 4096),
        config.get("num_attention_heads", 32),
        mlp_dim=config.get("intermediate_size", 11008),
        activation=activation(config.get("hidden_act", "silu")),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        max_length=config.get("max_position_embeddings", 2048),
        init_std=config.get("initializer_range", 0.02),
        **read_rotary(config, 10000.0),
    )
    return {
        "data_shape": (1, size, size, vision.get("num_channels", 3)),
        "vocab_size": number(config, "vocab_size"),
        "start_token": token(config, "bos_token_id", 1),
        "end_token": tokens(config, "eos_token_id", 2),
        "decoder": language,
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "vision": clip_network(
            vision.get("num_hidden_layers", 32),
            width,
            vision.get("num_attention_heads", 16),
            mlp_dim=vision.get("intermediate_size", 5120),
            activation=activation(vision.get("hidden_act", "gelu")),
            norm_epsilon=vision.get("layer_norm_eps", 1e-5),
            # The resampler reads features before the last norm.
            final_norm=False,
        ),
        "patch_size": vision.get("patch_size", 14),
        "input_norm": True,
        "resampler": Resampler(
            num_latents=perceiver.get("resampler_n_latents", 64),
            num_layers=perceiver.get("resampler_depth", 6),
            num_heads=perceiver.get("resampler_n_heads", 16),
            head_dim=perceiver.get("resampler_head_dim", 96),
            mlp_dim=4 * width,
            activation="relu",
        ),
        "every": config.get("cross_layer_interval", 1),
    }


def _write(model: Flamingo) -> dict[str, Any]:
    raise UnsupportedError("Flamingo is not written in the form of Idefics, which has tokens of pictures of its own")


def _bindings(model: Flamingo) -> Bindings:
    vision, resampler = "model.vision_model", "model.perceiver_resampler"
    parts = [
        embedding("embedding/token", "model.embed_tokens"),
        norm("stack/final_norm", "model.norm", bias=False),
        {"head/kernel": Binding("lm_head.weight", (1, 0))},
        same("vision_encoder/class", f"{vision}.embeddings.class_embedding"),
        {"vision_encoder/patch": Binding(f"{vision}.embeddings.patch_embedding.weight", (2, 3, 1, 0))},
        embedding("vision_encoder/position", f"{vision}.embeddings.position_embedding"),
        norm("vision_encoder/input_norm", f"{vision}.pre_layrnorm"),
        *stack_layers("vision_encoder/stack", vision, model.vision),
        same("resampler/latents", f"{resampler}.latents"),
        norm("resampler/final_norm", f"{resampler}.layer_norm"),
    ]
    for i in range(model.resampler.num_layers):
        attention, hidden = f"{resampler}.blocks.{i}.0", f"{resampler}.blocks.{i}.1"
        maps = (*_MAPS, ("output", "output_proj"))
        parts += [linear(f"resampler/attention_{i}/{a}", f"{attention}.{b}", bias=False) for a, b in maps]
        parts += [
            norm(f"resampler/features_norm_{i}", f"{attention}.context_layer_norm"),
            norm(f"resampler/latents_norm_{i}", f"{attention}.latents_layer_norm"),
            norm(f"resampler/mlp_norm_{i}", f"{hidden}.ln"),
            linear(f"resampler/mlp_{i}/up", f"{hidden}.fc", bias=False),
            linear(f"resampler/mlp_{i}/down", f"{hidden}.c_proj", bias=False),
        ]
    for i in range(model.decoder.num_layers):
        parts += _block(f"stack/layer_{i}", f"model.layers.{i}", "attention", "self_attn")
    for i, place in enumerate(range(model.first, model.decoder.num_layers, model.every)):
        ours, theirs = f"gated_{place}", f"model.gated_cross_attn_layers.{i}"
        parts += _block(ours, theirs, "cross_attention", "cross_attn")
        parts += [
            same(f"{ours}/cross_attention_gate", f"{theirs}.alpha_cross_attn"),
            same(f"{ours}/mlp_gate", f"{theirs}.alpha_dense"),
        ]
    return merge(*parts)


def _block(ours: str, theirs: str, name: str, kind: str) -> list[Bindings]:
    """A block of Llama's form: attention and gated hidden layer."""
    maps = (*_MAPS, ("output", "o_proj"))
    hidden = (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj"))
    return [
        *(linear(f"{ours}/{name}/{a}", f"{theirs}.{kind}.{b}", bias=False) for a, b in maps),
        norm(f"{ours}/{name}_norm", f"{theirs}.input_layernorm", bias=False),
        norm(f"{ours}/mlp_norm", f"{theirs}.post_attention_layernorm", bias=False),
        *(linear(f"{ours}/mlp/{a}", f"{theirs}.mlp.{b}", bias=False) for a, b in hidden),
    ]


IDEFICS_ARCHITECTURE = Architecture(
    model_type="idefics",
    read=_read,
    write=_write,
    bind=_bindings,
    buffers=r"post_layernorm|position_ids$|inv_freq$",
    # The number of pictures of a text is the data's.
    own=("data_shape",),
    writes=lambda model: False,
)
