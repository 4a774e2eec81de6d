"""SigLIP of the library transformers, with both encoders."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.multimodal.checkpoints import stack_layers
from genjax.families.multimodal.networks import siglip_network
from genjax.interop.architecture import THEIR_ACTIVATIONS, Architecture, Config, UnsupportedError, activation
from genjax.interop.bindings import Binding, Bindings, embedding, linear, merge, norm, same
from genjax.nn.transformer import Transformer

if TYPE_CHECKING:
    from genjax.families.multimodal.siglip import SigLIP

#: Default values of transformers, which files may leave out.
_PART = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


def stack(part: Config) -> Transformer:
    """The stack of one encoder."""
    return siglip_network(
        part.get("num_hidden_layers", 12),
        part["hidden_size"],
        part["num_attention_heads"],
        mlp_dim=part["intermediate_size"],
        activation=activation(part.get("hidden_act", "gelu_pytorch_tanh")),
        norm_epsilon=part.get("layer_norm_eps", 1e-6),
        attention_dropout=part.get("attention_dropout", 0.0),
        max_length=part.get("max_position_embeddings", 64),
    )


def _read(config: Config, names: Collection[str]) -> dict[str, Any]:
    text, vision = (_PART | dict(config.get(f"{name}_config") or {}) for name in ("text", "vision"))
    size, width = vision.get("image_size", 224), vision["hidden_size"]
    projection = text.get("projection_size", text["hidden_size"])
    if projection != width:
        raise UnsupportedError(
            f"config.json has projection_size={projection} of texts and hidden_size={width} of pictures; they must be "
            "equal"
        )
    if not vision.get("vision_use_head", True):
        raise UnsupportedError(
            "config.json has vision_use_head=False: a SigLIP without its pooling has no embeddings of pictures"
        )
    return {
        "data_shape": (size, size, vision.get("num_channels", 3)),
        "vocab_size": text.get("vocab_size", 32000),
        "text": stack(text),
        "vision": stack(vision),
        "patch_size": vision.get("patch_size", 16),
    }


def stack_config(network: Transformer) -> dict[str, Any]:
    """The settings of one encoder's stack."""
    return {
        "hidden_size": network.width,
        "num_hidden_layers": network.num_layers,
        "num_attention_heads": network.num_heads,
        "intermediate_size": network.size_of_mlp,
        "hidden_act": {**THEIR_ACTIVATIONS, "gelu_tanh": "gelu_pytorch_tanh"}[network.activation],
        "layer_norm_eps": network.norm_epsilon,
        "attention_dropout": network.attention_dropout,
    }


def _write(model: SigLIP) -> dict[str, Any]:
    words = {"vocab_size": model.vocab_size, "projection_size": model.vision.width}
    picture = {"image_size": model.data_shape[0], "num_channels": model.data_shape[2], "patch_size": model.patch_size}
    length = {"max_position_embeddings": model.text.max_length}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", **words, **length, **stack_config(model.text)},
        "vision_config": {"model_type": "siglip_vision_model", **picture, **stack_config(model.vision)},
    }


def _pooling(ours: str, theirs: str) -> Bindings:
    """The probe's attention, whose queries, keys and values are one tensor."""
    parts = [
        same(f"{ours}/probe", f"{theirs}.probe"),
        linear(f"{ours}/attention/output", f"{theirs}.attention.out_proj"),
        norm(f"{ours}/norm", f"{theirs}.layernorm"),
        linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    ]
    for i, name in enumerate(("query", "key", "value")):
        own = f"{ours}/attention/{name}"
        parts.append({
            f"{own}/kernel": Binding(f"{theirs}.attention.in_proj_weight", (1, 0), part=(i, 3)),
            f"{own}/bias": Binding(f"{theirs}.attention.in_proj_bias", part=(i, 3)),
        })  # fmt: skip
    return merge(*parts)


def vision_bindings(model: Any) -> Bindings:
    """Bindings of the encoder of pictures without its pooling, of a model with the field `vision`."""
    vision = "vision_model"
    return merge(
        {"vision_encoder/patch": Binding(f"{vision}.embeddings.patch_embedding.weight", (2, 3, 1, 0))},
        same("vision_encoder/patch_bias", f"{vision}.embeddings.patch_embedding.bias"),
        embedding("vision_encoder/position", f"{vision}.embeddings.position_embedding"),
        *stack_layers("vision_encoder/stack", vision, model.vision),
        norm("vision_encoder/stack/final_norm", f"{vision}.post_layernorm"),
    )


def _bindings(model: SigLIP) -> Bindings:
    text, vision = "text_model", "vision_model"
    return merge(
        embedding("text_embedding/token", f"{text}.embeddings.token_embedding"),
        embedding("text_embedding/position", f"{text}.embeddings.position_embedding"),
        *stack_layers("text_stack", text, model.text),
        norm("text_stack/final_norm", f"{text}.final_layer_norm"),
        linear("text_projection", f"{text}.head"),
        vision_bindings(model),
        _pooling("vision_pooling", f"{vision}.head"),
        same("logit_scale", "logit_scale", leading=1),
        same("logit_bias", "logit_bias", leading=1),
    )


SIGLIP_ARCHITECTURE = Architecture(
    model_type="siglip", read=_read, write=_write, bind=_bindings, buffers=r"position_ids$"
)
