"""Whisper of the library transformers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.multimodal.audio_encoder import audio_network
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
    from genjax.families.multimodal.whisper import Whisper

_SIDES = ("encoder", "decoder")


def _read(config: Config, names: Collection[str]) -> dict[str, Any]:
    require(config, "scale_embedding", False, False)
    require(config, "tie_word_embeddings", True, True)
    length = config.get("max_target_positions", 448)

    def stack(side: str) -> Transformer:
        return audio_network(
            config.get(f"{side}_layers", 4),
            config.get("d_model", 384),
            config.get(f"{side}_attention_heads", 6),
            mlp_dim=config.get(f"{side}_ffn_dim", 1536),
            activation=activation(config.get("activation_function", "gelu")),
            max_length=length,
            dropout=config.get("dropout", 0.0),
            attention_dropout=config.get("attention_dropout", 0.0),
            mlp_dropout=config.get("activation_dropout", 0.0),
            init_std=config.get("init_std", 0.02),
        )

    return {
        "data_shape": (2 * config.get("max_source_positions", 1500), config.get("num_mel_bins", 80)),
        "vocab_size": number(config, "vocab_size"),
        "sequence_length": length,
        "start_token": token(config, "decoder_start_token_id", 50257),
        "end_token": tokens(config, "eos_token_id", 50256),
        "encoder": stack("encoder"),
        "decoder": stack("decoder"),
    }


def _write(model: Whisper) -> dict[str, Any]:
    encoder, decoder = model.encoder, model.decoder
    frames, mels = model.data_shape
    if frames % 2:
        raise UnsupportedError(f"transformers' Whisper hears an even number of frames, and data_shape has {frames}")
    end = model.end_token[0] if isinstance(model.end_token, tuple) else model.end_token
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": model.vocab_size,
        "num_mel_bins": mels,
        "max_source_positions": frames // 2,
        "max_target_positions": decoder.max_length,
        "d_model": encoder.width,
        "activation_function": THEIR_ACTIVATIONS[encoder.activation],
        "dropout": encoder.dropout,
        "attention_dropout": encoder.attention_dropout,
        "activation_dropout": encoder.mlp_dropout,
        "init_std": encoder.init_std or 0.02,
        "scale_embedding": False,
        "is_encoder_decoder": True,
        "decoder_start_token_id": model.start_token,
        "bos_token_id": end,
        "eos_token_id": model.end_token,
        "pad_token_id": end,
        "tie_word_embeddings": True,
    }
    for side, network in zip(_SIDES, (encoder, decoder)):
        config |= {
            f"{side}_layers": network.num_layers,
            f"{side}_attention_heads": network.num_heads,
            f"{side}_ffn_dim": network.size_of_mlp,
        }
    return config


def encoder_bindings(network: Transformer, ours: str = "audio_encoder", theirs: str = "model.encoder") -> Bindings:
    """Bindings of the encoder of sound."""
    convolutions = (("first", "conv1"), ("second", "conv2"))
    return merge(
        *({f"{ours}/{a}/kernel": Binding(f"{theirs}.{b}.weight", (2, 1, 0))} for a, b in convolutions),
        *(same(f"{ours}/{a}/bias", f"{theirs}.{b}.bias") for a, b in convolutions),
        same(f"{ours}/places", f"{theirs}.embed_positions.weight"),
        *_layers(f"{ours}/stack", theirs, network, (("attention", "self_attn"),)),
    )


def _layers(ours: str, theirs: str, network: Transformer, kinds: tuple[tuple[str, str], ...]) -> list[Bindings]:
    parts = [norm(f"{ours}/final_norm", f"{theirs}.layer_norm")]
    for i in range(network.num_layers):
        a, b = f"{ours}/layer_{i}", f"{theirs}.layers.{i}"
        for name, kind in kinds:
            parts.append(norm(f"{a}/{name}_norm", f"{b}.{kind}_layer_norm"))
            maps = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj"))
            parts += [linear(f"{a}/{name}/{x}", f"{b}.{kind}.{y}", bias=x != "key") for x, y in maps]
        parts += [
            linear(f"{a}/mlp/up", f"{b}.fc1"),
            linear(f"{a}/mlp/down", f"{b}.fc2"),
            norm(f"{a}/mlp_norm", f"{b}.final_layer_norm"),
        ]
    return parts


def _bindings(model: Whisper) -> Bindings:
    decoder = "model.decoder"
    return merge(
        encoder_bindings(model.encoder),
        embedding("embedding/token", f"{decoder}.embed_tokens", aliases=("proj_out.weight",)),
        embedding("embedding/position", f"{decoder}.embed_positions"),
        *_layers("stack", decoder, model.decoder, (("attention", "self_attn"), ("cross_attention", "encoder_attn"))),
    )


WHISPER_ARCHITECTURE = Architecture(
    model_type="whisper",
    read=_read,
    write=_write,
    bind=_bindings,
    prefix="model.",
    buffers=r"^proj_out\.weight$",
)
