"""CLIP of the library transformers, with both encoders, and its text encoder alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.multimodal.networks import clip_network
from genjax.interop.architecture import THEIR_ACTIVATIONS, Architecture, Config, activation, token
from genjax.interop.bindings import Binding, Bindings, embedding, linear, merge, norm, same
from genjax.nn.transformer import Transformer

if TYPE_CHECKING:
    from genjax.families.multimodal.clip import CLIP
    from genjax.families.multimodal.clip_text import TextEncoder

#: Default values of transformers, which older files leave out: text, vision.
_TEXT = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
_VISION = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


def stack(part: Config) -> Transformer:
    """The stack of one encoder."""
    return clip_network(
        part.get("num_hidden_layers", 12),
        part["hidden_size"],
        part["num_attention_heads"],
        mlp_dim=part["intermediate_size"],
        activation=activation(part.get("hidden_act", "quick_gelu")),
        norm_epsilon=part.get("layer_norm_eps", 1e-5),
        attention_dropout=part.get("attention_dropout", 0.0),
        max_length=part.get("max_position_embeddings", 77),
        init_std=part.get("initializer_range", 0.02),
    )


def stack_config(network: Transformer) -> dict[str, Any]:
    """The settings of one encoder's stack."""
    return {
        "hidden_size": network.width,
        "num_hidden_layers": network.num_layers,
        "num_attention_heads": network.num_heads,
        "intermediate_size": network.size_of_mlp,
        "hidden_act": THEIR_ACTIVATIONS[network.activation],
        "layer_norm_eps": network.norm_epsilon,
        "attention_dropout": network.attention_dropout,
        "initializer_range": network.init_std or 0.02,
    }


def _end_token(text: Config) -> int | None:
    end = token(text, "eos_token_id", 49407)
    # Old files have the wrong end token 2, and mean the largest token.
    return None if end == 2 else end


def _read(config: Config, names: Collection[str]) -> dict[str, Any]:
    text, vision = _TEXT | dict(config.get("text_config") or {}), _VISION | dict(config.get("vision_config") or {})
    size = vision.get("image_size", 224)
    return {
        "data_shape": (size, size, vision.get("num_channels", 3)),
        "vocab_size": text.get("vocab_size", 49408),
        "end_token": _end_token(text),
        "text": stack(text),
        "vision": stack(vision),
        "patch_size": vision.get("patch_size", 32),
        "embedding_dim": config.get("projection_dim", 512),
        "logit_scale": config.get("logit_scale_init_value", 2.6592),
    }


def _write(model: CLIP) -> dict[str, Any]:
    part = lambda network: {**stack_config(network), "projection_dim": model.embedding_dim}
    tokens = {"vocab_size": model.vocab_size, "eos_token_id": 2 if model.end_token is None else model.end_token}
    picture = {"image_size": model.data_shape[0], "num_channels": model.data_shape[2], "patch_size": model.patch_size}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model.embedding_dim,
        "logit_scale_init_value": model.logit_scale,
        "text_config": {
            "model_type": "clip_text_model",
            "max_position_embeddings": model.text.max_length,
            **tokens,
            **part(model.text),
        },
        "vision_config": {"model_type": "clip_vision_model", **picture, **part(model.vision)},
    }


def stack_layers(ours: str, theirs: str, network: Transformer) -> list[Bindings]:
    """Bindings of the blocks of a stack, as CLIP and SigLIP call them."""
    parts = []
    for i in range(network.num_layers):
        a, b = f"{ours}/layer_{i}", f"{theirs}.encoder.layers.{i}"
        names = (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out"))
        parts += [linear(f"{a}/attention/{x}", f"{b}.self_attn.{y}_proj") for x, y in names]
        parts += [
            norm(f"{a}/attention_norm", f"{b}.layer_norm1"),
            norm(f"{a}/mlp_norm", f"{b}.layer_norm2"),
            linear(f"{a}/mlp/up", f"{b}.mlp.fc1"),
            linear(f"{a}/mlp/down", f"{b}.mlp.fc2"),
        ]
    return parts


def text_bindings(network: Transformer, ours: str = "", theirs: str = "text_model") -> Bindings:
    """Bindings of the text encoder without its projection, whose paths begin with `ours`."""
    return merge(
        embedding(f"{ours}text_embedding/token", f"{theirs}.embeddings.token_embedding"),
        embedding(f"{ours}text_embedding/position", f"{theirs}.embeddings.position_embedding"),
        *stack_layers(f"{ours}text_stack", theirs, network),
        norm(f"{ours}text_stack/final_norm", f"{theirs}.final_layer_norm"),
    )


def vision_bindings(model: Any) -> Bindings:
    """Bindings of the encoder of pictures, of a model with the field `vision`."""
    vision = "vision_model"
    return merge(
        same("vision_encoder/class", f"{vision}.embeddings.class_embedding"),
        {"vision_encoder/patch": Binding(f"{vision}.embeddings.patch_embedding.weight", (2, 3, 1, 0))},
        embedding("vision_encoder/position", f"{vision}.embeddings.position_embedding"),
        norm("vision_encoder/input_norm", f"{vision}.pre_layrnorm"),
        *stack_layers("vision_encoder/stack", vision, model.vision),
        norm("vision_encoder/stack/final_norm", f"{vision}.post_layernorm"),
    )


def _bindings(model: CLIP) -> Bindings:
    return merge(
        text_bindings(model.text),
        linear("text_projection", "text_projection", bias=False),
        vision_bindings(model),
        linear("vision_projection", "visual_projection", bias=False),
        same("logit_scale", "logit_scale"),
    )


CLIP_ARCHITECTURE = Architecture(model_type="clip", read=_read, write=_write, bind=_bindings, buffers=r"position_ids$")


def _read_text(config: Config, names: Collection[str]) -> dict[str, Any]:
    text = _TEXT | dict(config)
    projected = "text_projection.weight" in names
    return {
        "vocab_size": text.get("vocab_size", 49408),
        "end_token": _end_token(text),
        "network": stack(text),
        "projection_dim": text.get("projection_dim", 512) if projected else None,
    }


def _write_text(model: TextEncoder) -> dict[str, Any]:
    projection = {} if model.projection_dim is None else {"projection_dim": model.projection_dim}
    return {
        "architectures": ["CLIPTextModel" if model.projection_dim is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": model.vocab_size,
        "eos_token_id": 2 if model.end_token is None else model.end_token,
        "max_position_embeddings": model.network.max_length,
        **stack_config(model.network),
        **projection,
    }


def text_encoder_bindings(model: TextEncoder, ours: str = "") -> Bindings:
    """Bindings of a text encoder, whose paths begin with `ours`, and its projection if it has one."""
    projection = linear(f"{ours}text_projection", "text_projection", bias=False)
    return merge(text_bindings(model.network, ours), {} if model.projection_dim is None else projection)


#: The encoder of texts in a folder of Stable Diffusion; newer files leave the prefix out.
CLIP_TEXT = Architecture(
    model_type="clip_text_model",
    read=_read_text,
    write=_write_text,
    bind=text_encoder_bindings,
    prefix="text_model.",
    buffers=r"position_ids$",
    own=("skipped", "final_norm"),
)
