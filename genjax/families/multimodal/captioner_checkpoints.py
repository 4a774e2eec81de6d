"""BLIP and VisionEncoderDecoderModel of the library transformers: an encoder of pictures, and a decoder of text."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.language.networks import bert_network, gpt2_network
from genjax.families.multimodal.networks import siglip_network
from genjax.interop.architecture import (
    THEIR_ACTIVATIONS,
    Architecture,
    Config,
    UnsupportedError,
    activation,
    number,
    require,
    token,
)
from genjax.interop.bindings import Binding, Bindings, embedding, linear, merge, norm, same
from genjax.nn.transformer import Transformer

if TYPE_CHECKING:
    from genjax.families.multimodal.captioner import Captioner


def _layers(network: Transformer, ours: str) -> list[tuple[int, str]]:
    return [(i, f"{ours}/layer_{i}") for i in range(network.num_layers)]


def _square(part: Config) -> tuple[int, int, int]:
    size = part.get("image_size", 224)
    return (size, size, part.get("num_channels", 3))


# ----------------------------------------------------------------------------------------------------------------------
# BLIP (Li et al. 2022, arXiv:2201.12086)

_CAPTIONS, _QUESTIONS = "BlipForConditionalGeneration", "BlipForQuestionAnswering"
_BLIP_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def _read_blip(config: Config, names: Collection[str]) -> dict[str, Any]:
    written = (config.get("architectures") or [_CAPTIONS])[0]
    if written not in (_CAPTIONS, _QUESTIONS):
        raise UnsupportedError(f"config.json was written by {written}; known are {_CAPTIONS} and {_QUESTIONS}")
    text, vision = dict(config.get("text_config") or {}), _BLIP_VISION | dict(config.get("vision_config") or {})
    stack = bert_network(
        text.get("num_hidden_layers", 12),
        text.get("hidden_size", 768),
        text.get("num_attention_heads", 8),
        mlp_dim=text.get("intermediate_size", 3072),
        activation=activation(text.get("hidden_act", "gelu")),
        norm_epsilon=text.get("layer_norm_eps", 1e-12),
        max_length=text.get("max_position_embeddings", 512),
        dropout=text.get("hidden_dropout_prob", 0.0),
        attention_dropout=text.get("attention_probs_dropout_prob", 0.0),
        init_std=text.get("initializer_range", 0.02),
    )
    return {
        "data_shape": _square(vision),
        "vocab_size": text.get("vocab_size", 30524),
        "start_token": token(text, "bos_token_id", 30522),
        "end_token": token(text, "sep_token_id", 102),
        "vision": siglip_network(
            vision["num_hidden_layers"],
            vision["hidden_size"],
            vision["num_attention_heads"],
            mlp_dim=vision["intermediate_size"],
            activation=activation(vision.get("hidden_act", "gelu")),
            norm_epsilon=vision.get("layer_norm_eps", 1e-5),
            attention_dropout=vision.get("attention_dropout", 0.0),
        ),
        "decoder": stack,
        "questions": stack if written == _QUESTIONS else None,
        "patch_size": vision.get("patch_size", 16),
        "patch_bias": True,
        "embedding_norm": True,
        "head_transform": True,
        "project_features": False,
        "label_smoothing": text.get("label_smoothing", 0.0),
    }


def _write_blip(model: Captioner) -> dict[str, Any]:
    stack, vision = model.decoder, model.vision
    text = {
        "model_type": "blip_text_model",
        "vocab_size": model.vocab_size,
        "hidden_size": stack.width,
        "encoder_hidden_size": vision.width,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.num_heads,
        "intermediate_size": stack.size_of_mlp,
        "hidden_act": THEIR_ACTIVATIONS[stack.activation],
        "layer_norm_eps": stack.norm_epsilon,
        "max_position_embeddings": stack.max_length,
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention_dropout,
        "initializer_range": stack.init_std or 0.02,
        "bos_token_id": model.start_token,
        "sep_token_id": model.end_token,
        "is_decoder": True,
        "tie_word_embeddings": True,
        "label_smoothing": model.label_smoothing,
    }
    picture = {
        "model_type": "blip_vision_model",
        "hidden_size": vision.width,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "intermediate_size": vision.size_of_mlp,
        "hidden_act": THEIR_ACTIVATIONS[vision.activation],
        "layer_norm_eps": vision.norm_epsilon,
        "attention_dropout": vision.attention_dropout,
        "image_size": model.data_shape[0],
        "patch_size": model.patch_size,
    }
    return {
        "architectures": [_CAPTIONS if model.questions is None else _QUESTIONS],
        "model_type": "blip",
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": picture,
    }


def _blip_text(network: Transformer, embeddings: str, stack: str, theirs: str) -> list[Bindings]:
    """Bindings of token embeddings and of a stack with cross-attention."""
    table = f"{theirs}.embeddings"
    parts = [
        embedding(f"{embeddings}/token", f"{table}.word_embeddings"),
        embedding(f"{embeddings}/position", f"{table}.position_embeddings"),
        norm(f"{embeddings}/embedding_norm", f"{table}.LayerNorm"),
    ]
    for i, layer in _layers(network, stack):
        block = f"{theirs}.encoder.layer.{i}"
        for ours, name in (("attention", "attention"), ("cross_attention", "crossattention")):
            maps = ("query", "key", "value")
            parts += [linear(f"{layer}/{ours}/{n}", f"{block}.{name}.self.{n}") for n in maps]
            parts += [
                linear(f"{layer}/{ours}/output", f"{block}.{name}.output.dense"),
                norm(f"{layer}/{ours}_norm", f"{block}.{name}.output.LayerNorm"),
            ]
        parts += [
            linear(f"{layer}/mlp/up", f"{block}.intermediate.dense"),
            linear(f"{layer}/mlp/down", f"{block}.output.dense"),
            norm(f"{layer}/mlp_norm", f"{block}.output.LayerNorm"),
        ]
    return parts


def _bind_blip(model: Captioner) -> Bindings:
    table, head = "vision_model.embeddings", "text_decoder.cls.predictions"
    parts = [
        same("vision_encoder/class", f"{table}.class_embedding", leading=2),
        {"vision_encoder/patch": Binding(f"{table}.patch_embedding.weight", (2, 3, 1, 0))},
        same("vision_encoder/patch_bias", f"{table}.patch_embedding.bias"),
        same("vision_encoder/position/embedding", f"{table}.position_embedding", leading=1),
        norm("vision_encoder/stack/final_norm", "vision_model.post_layernorm"),
    ]
    for i, layer in _layers(model.vision, "vision_encoder/stack"):
        theirs = f"vision_model.encoder.layers.{i}"
        # One map makes queries, keys and values.
        maps = enumerate(("query", "key", "value"))
        parts += [linear(f"{layer}/attention/{n}", f"{theirs}.self_attn.qkv", part=(j, 3)) for j, n in maps]
        parts += [
            linear(f"{layer}/attention/output", f"{theirs}.self_attn.projection"),
            norm(f"{layer}/attention_norm", f"{theirs}.layer_norm1"),
            norm(f"{layer}/mlp_norm", f"{theirs}.layer_norm2"),
            linear(f"{layer}/mlp/up", f"{theirs}.mlp.fc1"),
            linear(f"{layer}/mlp/down", f"{theirs}.mlp.fc2"),
        ]
    parts += _blip_text(model.decoder, "embedding", "stack", "text_decoder.bert")
    if model.questions is not None:
        parts += _blip_text(model.questions, "question_embedding", "question_stack", "text_encoder")
    return merge(
        *parts,
        linear("head/transform", f"{head}.transform.dense"),
        norm("head/norm", f"{head}.transform.LayerNorm"),
        same("head/bias", f"{head}.bias", aliases=(f"{head}.decoder.bias",)),
    )


BLIP_ARCHITECTURE = Architecture(
    model_type="blip",
    read=_read_blip,
    write=_write_blip,
    bind=_bind_blip,
    buffers=r"position_ids$",
    copies=("text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias"),
    writes=lambda model: model.head_transform and model.embedding_norm and model.questions in (None, model.decoder),
)

# ----------------------------------------------------------------------------------------------------------------------
# VisionEncoderDecoderModel: ViT before a GPT-2 with cross-attention


def _read_pair(config: Config, names: Collection[str]) -> dict[str, Any]:
    vision, text = dict(config.get("encoder") or {}), dict(config.get("decoder") or {})
    kinds = (vision.get("model_type"), text.get("model_type"))
    if kinds != ("vit", "gpt2"):
        raise UnsupportedError(
            f"config.json has an encoder {kinds[0]!r} and a decoder {kinds[1]!r}; a vit before a gpt2 can be read"
        )
    require(text, "add_cross_attention", True, True)
    require(text, "tie_word_embeddings", True, True)
    require(text, "scale_attn_by_inverse_layer_idx", False, False)
    require(vision, "qkv_bias", True, True)
    width = vision.get("hidden_size", 768)
    decoder = gpt2_network(
        text.get("n_layer", 12),
        text.get("n_embd", 768),
        text.get("n_head", 12),
        mlp_dim=text.get("n_inner"),
        activation=activation(text.get("activation_function", "gelu_new")),
        norm_epsilon=text.get("layer_norm_epsilon", 1e-5),
        max_length=text.get("n_positions", 1024),
        dropout=text.get("resid_pdrop", 0.1),
        attention_dropout=text.get("attn_pdrop", 0.1),
        init_std=text.get("initializer_range", 0.02),
    )
    start = config.get("decoder_start_token_id")
    end = config.get("eos_token_id")
    return {
        "data_shape": _square(vision),
        "vocab_size": number(text, "vocab_size"),
        "start_token": token(text, "bos_token_id", None) if start is None else start,
        "end_token": token(text, "eos_token_id", None) if end is None else end,
        "vision": siglip_network(
            vision.get("num_hidden_layers", 12),
            width,
            vision.get("num_attention_heads", 12),
            mlp_dim=vision.get("intermediate_size", 3072),
            activation=activation(vision.get("hidden_act", "gelu")),
            norm_epsilon=vision.get("layer_norm_eps", 1e-12),
            dropout=vision.get("hidden_dropout_prob", 0.0),
            attention_dropout=vision.get("attention_probs_dropout_prob", 0.0),
        ),
        "decoder": decoder,
        "questions": None,
        "patch_size": vision.get("patch_size", 16),
        "patch_bias": True,
        "embedding_norm": False,
        "head_transform": False,
        "project_features": width != decoder.width,
    }


def _write_pair(model: Captioner) -> dict[str, Any]:
    vision, text = model.vision, model.decoder
    tokens = {"bos_token_id": model.start_token, "eos_token_id": model.end_token}
    encoder = {
        "model_type": "vit",
        "hidden_size": vision.width,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "intermediate_size": vision.size_of_mlp,
        "hidden_act": THEIR_ACTIVATIONS[vision.activation],
        "layer_norm_eps": vision.norm_epsilon,
        "hidden_dropout_prob": vision.dropout,
        "attention_probs_dropout_prob": vision.attention_dropout,
        "image_size": model.data_shape[0],
        "num_channels": model.data_shape[2],
        "patch_size": model.patch_size,
        "qkv_bias": True,
    }
    decoder = {
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": text.max_length,
        "n_embd": text.width,
        "n_layer": text.num_layers,
        "n_head": text.num_heads,
        "n_inner": text.mlp_dim,
        "activation_function": THEIR_ACTIVATIONS[text.activation],
        "layer_norm_epsilon": text.norm_epsilon,
        "resid_pdrop": text.dropout,
        "embd_pdrop": text.dropout,
        "attn_pdrop": text.attention_dropout,
        "initializer_range": text.init_std or 0.02,
        "add_cross_attention": True,
        "is_decoder": True,
        "tie_word_embeddings": True,
        **tokens,
    }
    return {
        "architectures": ["VisionEncoderDecoderModel"],
        "model_type": "vision-encoder-decoder",
        "is_encoder_decoder": True,
        "decoder_start_token_id": model.start_token,
        "eos_token_id": model.end_token,
        "pad_token_id": model.end_token,
        "encoder": encoder,
        "decoder": decoder,
    }


def _bind_pair(model: Captioner) -> Bindings:
    table, body = "encoder.embeddings", "decoder.transformer"
    parts = [
        same("vision_encoder/class", f"{table}.cls_token", leading=2),
        {"vision_encoder/patch": Binding(f"{table}.patch_embeddings.projection.weight", (2, 3, 1, 0))},
        same("vision_encoder/patch_bias", f"{table}.patch_embeddings.projection.bias"),
        same("vision_encoder/position/embedding", f"{table}.position_embeddings", leading=1),
        norm("vision_encoder/stack/final_norm", "encoder.layernorm"),
        linear("feature_map", "enc_to_dec_proj"),
        embedding("embedding/token", f"{body}.wte"),
        embedding("embedding/position", f"{body}.wpe"),
        norm("stack/final_norm", f"{body}.ln_f"),
    ]
    for i, layer in _layers(model.vision, "vision_encoder/stack"):
        theirs = f"encoder.encoder.layer.{i}"
        maps = ("query", "key", "value")
        parts += [linear(f"{layer}/attention/{n}", f"{theirs}.attention.attention.{n}") for n in maps]
        parts += [
            linear(f"{layer}/attention/output", f"{theirs}.attention.output.dense"),
            norm(f"{layer}/attention_norm", f"{theirs}.layernorm_before"),
            norm(f"{layer}/mlp_norm", f"{theirs}.layernorm_after"),
            linear(f"{layer}/mlp/up", f"{theirs}.intermediate.dense"),
            linear(f"{layer}/mlp/down", f"{theirs}.output.dense"),
        ]
    for i, layer in _layers(model.decoder, "stack"):
        theirs = f"{body}.h.{i}"
        # These maps are kept as [in, out], and one makes several.
        kept = {"transposed": False}
        maps = enumerate(("query", "key", "value"))
        parts += [linear(f"{layer}/attention/{n}", f"{theirs}.attn.c_attn", part=(j, 3), **kept) for j, n in maps]
        maps = enumerate(("key", "value"))
        cross = f"{layer}/cross_attention"
        parts += [linear(f"{cross}/{n}", f"{theirs}.crossattention.c_attn", part=(j, 2), **kept) for j, n in maps]
        parts += [
            linear(f"{layer}/attention/output", f"{theirs}.attn.c_proj", **kept),
            linear(f"{cross}/query", f"{theirs}.crossattention.q_attn", **kept),
            linear(f"{cross}/output", f"{theirs}.crossattention.c_proj", **kept),
            norm(f"{layer}/attention_norm", f"{theirs}.ln_1"),
            norm(f"{layer}/cross_attention_norm", f"{theirs}.ln_cross_attn"),
            norm(f"{layer}/mlp_norm", f"{theirs}.ln_2"),
            linear(f"{layer}/mlp/up", f"{theirs}.mlp.c_fc", **kept),
            linear(f"{layer}/mlp/down", f"{theirs}.mlp.c_proj", **kept),
        ]
    return merge(*parts)


VISION_ENCODER_DECODER_ARCHITECTURE = Architecture(
    model_type="vision-encoder-decoder",
    read=_read_pair,
    write=_write_pair,
    bind=_bind_pair,
    # The encoder's pooling is not used, and masks of older files are no parameters.
    buffers=r"^encoder\.pooler\.|\.(attn|crossattention)\.(masked_)?bias$",
    copies=("decoder.lm_head.weight",),
    writes=lambda model: not model.head_transform and not model.embedding_norm and model.questions is None,
)
