"""GIT of the library transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.language.networks import bert_network
from genjax.families.multimodal import checkpoints as clip
from genjax.interop.architecture import THEIR_ACTIVATIONS, Architecture, Config, activation, require, token
from genjax.interop.bindings import Binding, Bindings, embedding, linear, merge, norm, same

if TYPE_CHECKING:
    from genjax.families.multimodal.git import GIT

_VISION = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


def _read(config: Config, names: Collection[str]) -> dict[str, Any]:
    require(config, "num_image_with_embedding", None, None)
    require(config, "tie_word_embeddings", False, False)
    vision = _VISION | dict(config.get("vision_config") or {})
    size = vision.get("image_size", 224)
    return {
        "data_shape": (size, size, vision.get("num_channels", 3)),
        "vocab_size": config.get("vocab_size", 30522),
        "start_token": token(config, "bos_token_id", 101),
        "end_token": token(config, "eos_token_id", 102),
        "vision": clip.stack(vision),
        "decoder": bert_network(
            config.get("num_hidden_layers", 6),
            config.get("hidden_size", 768),
            config.get("num_attention_heads", 12),
            mlp_dim=config.get("intermediate_size", 3072),
            activation=activation(config.get("hidden_act", "gelu")),
            norm_epsilon=config.get("layer_norm_eps", 1e-12),
            max_length=config.get("max_position_embeddings", 1024),
            dropout=config.get("hidden_dropout_prob", 0.1),
            attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
            init_std=config.get("initializer_range", 0.02),
        ),
        "patch_size": vision.get("patch_size", 16),
    }


def _write(model: GIT) -> dict[str, Any]:
    network = model.decoder
    return {
        "architectures": ["GitForCausalLM"],
        "model_type": "git",
        "vocab_size": model.vocab_size,
        "hidden_size": network.width,
        "num_hidden_layers": network.num_layers,
        "num_attention_heads": network.num_heads,
        "intermediate_size": network.size_of_mlp,
        "hidden_act": THEIR_ACTIVATIONS[network.activation],
        "layer_norm_eps": network.norm_epsilon,
        "max_position_embeddings": network.max_length,
        "hidden_dropout_prob": network.dropout,
        "attention_probs_dropout_prob": network.attention_dropout,
        "initializer_range": network.init_std or 0.02,
        "bos_token_id": model.start_token,
        "eos_token_id": model.end_token,
        "tie_word_embeddings": False,
        "vision_config": {
            "model_type": "git_vision_model",
            "image_size": model.data_shape[0],
            "num_channels": model.data_shape[2],
            "patch_size": model.patch_size,
            **clip.stack_config(model.vision),
        },
    }


def _bind(model: GIT) -> Bindings:
    table = "git.embeddings"
    parts = [
        {n: dataclasses.replace(b, name=f"git.image_encoder.{b.name}") for n, b in clip.vision_bindings(model).items()},
        linear("feature_map", "git.visual_projection.visual_projection.0"),
        norm("feature_norm", "git.visual_projection.visual_projection.1"),
        embedding("embedding/token", f"{table}.word_embeddings"),
        embedding("embedding/position", f"{table}.position_embeddings"),
        norm("embedding/embedding_norm", f"{table}.LayerNorm"),
        {"head/kernel": Binding("output.weight", (1, 0))},
        same("head_bias", "output.bias"),
    ]
    for i in range(model.decoder.num_layers):
        layer, theirs = f"stack/layer_{i}", f"git.encoder.layer.{i}"
        maps = ("query", "key", "value")
        parts += [linear(f"{layer}/attention/{n}", f"{theirs}.attention.self.{n}") for n in maps]
        parts += [
            linear(f"{layer}/attention/output", f"{theirs}.attention.output.dense"),
            norm(f"{layer}/attention_norm", f"{theirs}.attention.output.LayerNorm"),
            linear(f"{layer}/mlp/up", f"{theirs}.intermediate.dense"),
            linear(f"{layer}/mlp/down", f"{theirs}.output.dense"),
            norm(f"{layer}/mlp_norm", f"{theirs}.output.LayerNorm"),
        ]
    return merge(*parts)


GIT_ARCHITECTURE = Architecture(model_type="git", read=_read, write=_write, bind=_bind, buffers=r"position_ids$")
