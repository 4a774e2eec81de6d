"""T5 and BART of the library transformers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.language.corruption import Pairs
from genjax.families.language.networks import bart_network, t5_network
from genjax.interop.architecture import (
    THEIR_ACTIVATIONS,
    Architecture,
    Config,
    UnsupportedError,
    activation,
    number,
    require,
    token,
    tokens,
)
from genjax.interop.bindings import Binding, Bindings, embedding, linear, merge, norm, same
from genjax.nn.transformer import Transformer

if TYPE_CHECKING:
    from genjax.families.language.bart import BART
    from genjax.families.language.t5 import T5

_QKV = (("query", "q"), ("key", "k"), ("value", "v"))

# ----------------------------------------------------------------------------------------------------------------------
# T5


def _read_t5(config: Config, names: Collection[str]) -> dict[str, Any]:
    words = config.get("feed_forward_proj", "relu").split("-")
    # For compatibility with old files, gated-gelu means the approximation by tanh.
    kind = "gelu_tanh" if words == ["gated", "gelu"] else activation(words[-1])
    heads, width, dropout = config.get("num_heads", 8), config.get("d_model", 512), config.get("dropout_rate", 0.1)
    encoder = t5_network(
        config.get("num_layers", 6),
        width,
        heads,
        head_dim=config.get("d_kv", 64),
        mlp_dim=config.get("d_ff", 2048),
        activation=kind,
        gated=words[0] == "gated",
        norm_epsilon=config.get("layer_norm_epsilon", 1e-6),
        relative_buckets=config.get("relative_attention_num_buckets", 32),
        relative_max_distance=config.get("relative_attention_max_distance", 128),
        dropout=dropout,
        attention_dropout=dropout,
        mlp_dropout=dropout,
    )
    layers = config.get("num_decoder_layers") or encoder.num_layers
    # Files of the first T5 scale, and repeat or leave out the tied output map; files of T5 1.1 have an output map of
    # their own.
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    vocab = number(config, "vocab_size")
    padding = token(config, "pad_token_id", 0)
    start = token(config, "decoder_start_token_id", padding)
    return {
        "vocab_size": vocab,
        "extra_tokens": 0,
        # The published vocabulary has 28 tokens of padding above its sentinels.
        "first_sentinel": 32099 if vocab == 32128 else None,
        "start_token": padding if start is None else start,
        "end_token": tokens(config, "eos_token_id", 1),
        "padding_token": padding,
        "encoder": encoder,
        "decoder": t5_network(**{**_settings(encoder), "num_layers": layers}),
        "objective": Pairs(),
        "tie_embeddings": scaled or "lm_head.weight" not in names,
        "scale_logits": scaled,
        "embedding_scale": 1.0,
        "embedding_norm": False,
        "position_offset": 0,
        "logit_bias": False,
    }


def _settings(network: Transformer) -> dict[str, Any]:
    return {name: getattr(network, name) for name in network.__dataclass_fields__}


def _write_t5(model: T5) -> dict[str, Any]:
    encoder, decoder = model.encoder, model.decoder
    if _settings(decoder) | {"num_layers": 0} != _settings(encoder) | {"num_layers": 0}:
        raise UnsupportedError(
            "transformers' T5 has an encoder and a decoder that differ in their number of layers alone"
        )
    name = {"gelu_tanh": "gelu" if encoder.gated else "gelu_new"}.get(encoder.activation, encoder.activation)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": model.num_tokens,
        "d_model": encoder.width,
        "d_kv": encoder.size_of_head,
        "d_ff": encoder.size_of_mlp,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": decoder.num_layers,
        "num_heads": encoder.num_heads,
        "relative_attention_num_buckets": encoder.relative_buckets,
        "relative_attention_max_distance": encoder.relative_max_distance,
        "dropout_rate": encoder.dropout,
        "layer_norm_epsilon": encoder.norm_epsilon,
        "feed_forward_proj": f"gated-{name}" if encoder.gated else name,
        "is_encoder_decoder": True,
        "pad_token_id": model.padding_token,
        "eos_token_id": model.end_token,
        "decoder_start_token_id": model.start_token,
        "tie_word_embeddings": model.scale_logits,
        "scale_decoder_outputs": model.scale_logits,
    }


def _t5_bindings(model: T5) -> Bindings:
    tables = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    copies = (*tables, "lm_head.weight") if model.tie_embeddings else tables
    parts = [embedding("token", "shared", aliases=copies), {"head/kernel": Binding("lm_head.weight", (1, 0))}]
    for side, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        parts += [
            embedding(f"{side}/relative_bias", bias),
            norm(f"{side}/final_norm", f"{side}.final_layer_norm", False),
        ]
        for i in range(network.num_layers):
            ours, theirs = f"{side}/layer_{i}", f"{side}.block.{i}.layer"
            kinds = [("attention", "SelfAttention"), ("cross_attention", "EncDecAttention")]
            for place, (name, kind) in enumerate(kinds[: 1 if side == "encoder" else 2]):
                parts.append(norm(f"{ours}/{name}_norm", f"{theirs}.{place}.layer_norm", False))
                parts += [
                    linear(f"{ours}/{name}/{a}", f"{theirs}.{place}.{kind}.{b}", bias=False)
                    for a, b in (*_QKV, ("output", "o"))
                ]
            last = f"{theirs}.{1 if side == 'encoder' else 2}"
            maps = (("gate", "wi_0"), ("up", "wi_1")) if network.gated else (("up", "wi"),)
            parts.append(norm(f"{ours}/mlp_norm", f"{last}.layer_norm", False))
            parts += [
                linear(f"{ours}/mlp/{a}", f"{last}.DenseReluDense.{b}", False) for a, b in (*maps, ("down", "wo"))
            ]
    return merge(*parts)


# ----------------------------------------------------------------------------------------------------------------------
# BART


def _read_bart(config: Config, names: Collection[str]) -> dict[str, Any]:
    require(config, "normalize_before", False, False)
    require(config, "tie_word_embeddings", True, True)
    width = config.get("d_model", 1024)

    def stack(side: str) -> Transformer:
        return bart_network(
            config.get(f"{side}_layers", 12),
            width,
            config.get(f"{side}_attention_heads", 16),
            mlp_dim=config.get(f"{side}_ffn_dim", 4096),
            activation=activation(config.get("activation_function", "gelu")),
            max_length=config.get("max_position_embeddings", 1024),
            dropout=config.get("dropout", 0.1),
            attention_dropout=config.get("attention_dropout", 0.0),
            mlp_dropout=config.get("activation_dropout", 0.0),
            init_std=config.get("init_std", 0.02),
        )

    return {
        "vocab_size": number(config, "vocab_size"),
        "start_token": token(config, "decoder_start_token_id", 2),
        "end_token": tokens(config, "eos_token_id", 2),
        "padding_token": token(config, "pad_token_id", 1),
        "extra_tokens": 0,
        "first_sentinel": None,
        "mask_token": config.get("mask_token_id"),
        "encoder": stack("encoder"),
        "decoder": stack("decoder"),
        "objective": Pairs(),
        "embedding_scale": width**0.5 if config.get("scale_embedding", False) else 1.0,
        "embedding_norm": True,
        "position_offset": 2,
        "logit_bias": True,
        "tie_embeddings": True,
        "scale_logits": False,
    }


def _write_bart(model: BART) -> dict[str, Any]:
    encoder, decoder = model.encoder, model.decoder
    config: dict[str, Any] = {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "vocab_size": model.num_tokens,
        "max_position_embeddings": encoder.max_length,
        "activation_function": THEIR_ACTIVATIONS[encoder.activation],
        "d_model": encoder.width,
        "dropout": encoder.dropout,
        "attention_dropout": encoder.attention_dropout,
        "activation_dropout": encoder.mlp_dropout,
        "init_std": encoder.init_std or 0.02,
        "scale_embedding": model.embedding_scale != 1.0,
        "pad_token_id": model.padding_token,
        "bos_token_id": 0,
        "eos_token_id": model.end_token,
        "decoder_start_token_id": model.start_token,
        "forced_eos_token_id": None,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
    }
    for side, network in (("encoder", encoder), ("decoder", decoder)):
        config |= {
            f"{side}_layers": network.num_layers,
            f"{side}_attention_heads": network.num_heads,
            f"{side}_ffn_dim": network.size_of_mlp,
        }
    return config


def _bart_bindings(model: BART) -> Bindings:
    tables = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    parts = [
        embedding("token", "model.shared", aliases=tables),
        same("logit_bias", "final_logits_bias", leading=True),
    ]
    for side, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        body = f"model.{side}"
        parts += [
            embedding(f"{side}_embedding/position", f"{body}.embed_positions"),
            norm(f"{side}_embedding/embedding_norm", f"{body}.layernorm_embedding"),
        ]
        for i in range(network.num_layers):
            ours, theirs = f"{side}/layer_{i}", f"{body}.layers.{i}"
            kinds = [("attention", "self_attn"), ("cross_attention", "encoder_attn")]
            for name, kind in kinds[: 1 if side == "encoder" else 2]:
                parts.append(norm(f"{ours}/{name}_norm", f"{theirs}.{kind}_layer_norm"))
                parts += [
                    linear(f"{ours}/{name}/{a}", f"{theirs}.{kind}.{b}_proj") for a, b in (*_QKV, ("output", "out"))
                ]
            parts += [
                linear(f"{ours}/mlp/up", f"{theirs}.fc1"),
                linear(f"{ours}/mlp/down", f"{theirs}.fc2"),
                norm(f"{ours}/mlp_norm", f"{theirs}.final_layer_norm"),
            ]
    return merge(*parts)


T5_ARCHITECTURE = Architecture(
    model_type="t5",
    read=_read_t5,
    write=_write_t5,
    bind=_t5_bindings,
    buffers=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
    own=("objective",),
)
BART_ARCHITECTURE = Architecture(
    model_type="bart",
    read=_read_bart,
    write=_write_bart,
    bind=_bart_bindings,
    prefix="model.",
    own=("objective", "mask_token"),
)
