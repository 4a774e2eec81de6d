"""Decoders of the library transformers: GPT-2, and the Llama-like Llama, Mistral, Qwen2, Qwen3 and Gemma."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.language.networks import gpt2_network, llama_network
from genjax.interop.architecture import (
    THEIR_ACTIVATIONS,
    Architecture,
    Config,
    UnsupportedError,
    activation,
    layer_paths,
    number,
    read_rotary,
    require,
    token,
    tokens,
    write_rotary,
)
from genjax.interop.bindings import Binding, Bindings, embedding, linear, merge, norm

if TYPE_CHECKING:
    from genjax.families.language.gpt import GPT

# ----------------------------------------------------------------------------------------------------------------------
# GPT-2


def _read_gpt2(config: Config, names: Collection[str]) -> dict[str, Any]:
    require(config, "scale_attn_by_inverse_layer_idx", False, False)
    require(config, "scale_attn_weights", True, True)
    require(config, "add_cross_attention", False, False)
    return {
        "vocab_size": number(config, "vocab_size"),
        "start_token": token(config, "bos_token_id", 50256),
        "end_token": tokens(config, "eos_token_id", 50256),
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "network": gpt2_network(
            config.get("n_layer", 12),
            config.get("n_embd", 768),
            config.get("n_head", 12),
            mlp_dim=config.get("n_inner"),
            activation=activation(config.get("activation_function", "gelu_new")),
            norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
            max_length=config.get("n_positions", 1024),
            dropout=config.get("resid_pdrop", 0.1),
            attention_dropout=config.get("attn_pdrop", 0.1),
            init_std=config.get("initializer_range", 0.02),
        ),
    }


def _write_gpt2(model: GPT) -> dict[str, Any]:
    network = model.network
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": network.max_length,
        "n_embd": network.width,
        "n_layer": network.num_layers,
        "n_head": network.num_heads,
        "n_inner": network.mlp_dim,
        "activation_function": THEIR_ACTIVATIONS[network.activation],
        "resid_pdrop": network.dropout,
        "embd_pdrop": network.dropout,
        "attn_pdrop": network.attention_dropout,
        "layer_norm_epsilon": network.norm_epsilon,
        "initializer_range": network.init_std or 0.02,
        "bos_token_id": model.start_token,
        "eos_token_id": model.end_token,
        "tie_word_embeddings": model.tie_embeddings,
    }


def _gpt2_bindings(model: GPT) -> Bindings:
    body = "transformer."
    parts = [
        embedding("embedding/token", f"{body}wte"),
        embedding("embedding/position", f"{body}wpe"),
        norm("stack/final_norm", f"{body}ln_f"),
        {"head/kernel": Binding("lm_head.weight", (1, 0)), "heads/score/kernel": Binding("score.weight", (1, 0))},
    ]
    for i, layer in layer_paths(model.network):
        theirs = f"{body}h.{i}"
        # One map makes queries, keys and values; these maps are kept as [in, out].
        parts += [
            linear(f"{layer}/attention/{name}", f"{theirs}.attn.c_attn", transposed=False, part=(place, 3))
            for place, name in enumerate(("query", "key", "value"))
        ]
        parts += [
            norm(f"{layer}/attention_norm", f"{theirs}.ln_1"),
            linear(f"{layer}/attention/output", f"{theirs}.attn.c_proj", transposed=False),
            norm(f"{layer}/mlp_norm", f"{theirs}.ln_2"),
            linear(f"{layer}/mlp/up", f"{theirs}.mlp.c_fc", transposed=False),
            linear(f"{layer}/mlp/down", f"{theirs}.mlp.c_proj", transposed=False),
        ]
    return merge(*parts)


def _is_gpt2(model: GPT) -> bool:
    n = model.network
    plain = n.norm == "layer" and n.use_bias and n.qkv_bias is not False and n.output_bias is not False
    heads = n.num_kv_heads in (None, n.num_heads) and n.head_dim in (None, n.width // n.num_heads)
    rest = (
        n.norm_placement == "pre"
        and n.final_norm
        and n.window is None
        and n.experts is None
        and n.attention_scale is None
    )
    return n.positions == "learned" and plain and heads and rest and not n.gated and not n.qk_norm


# ----------------------------------------------------------------------------------------------------------------------
# Llama and those like it


def _window(config: Config, kind: str) -> int | None:
    """The sliding window, if all layers have it."""
    window = config.get("sliding_window", 4096 if kind == "mistral" else None)
    if kind == "mistral":
        return window
    if kind == "llama" or not config.get("use_sliding_window", False):
        return None
    layers = config.get("num_hidden_layers", 32)
    kinds = config.get("layer_types")
    if kinds is None:
        start = config.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= start else "full_attention" for i in range(layers)]
    if len(set(kinds)) > 1:
        raise UnsupportedError("config.json gives some layers a sliding window and others none, which cannot be read")
    return window if kinds[0] == "sliding_attention" else None


#: Features of a head where a configuration leaves them out and they do not follow from the width.
_HEAD_DIM = {"qwen3": 128, "gemma": 256}


def _activation(config: Config, kind: str) -> str:
    if kind != "gemma":
        return activation(config.get("hidden_act", "silu"))
    # Old files say gelu, and mean its approximation.
    name = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    return "gelu_tanh" if name == "gelu" else activation(name)


def _reader(kind: str, their_base: float = 10000.0):
    def read(config: Config, names: Collection[str]) -> dict[str, Any]:
        attention_bias = config.get("attention_bias", False)
        # Qwen2 always has biases on queries, keys and values, and none on the output.
        qkv_bias, output_bias = (True, False) if kind == "qwen2" else (attention_bias, attention_bias)
        heads = number(config, "num_attention_heads")
        network = llama_network(
            number(config, "num_hidden_layers"),
            number(config, "hidden_size"),
            heads,
            config.get("num_key_value_heads") or (8 if kind == "mistral" else heads),
            head_dim=config.get("head_dim") or _HEAD_DIM.get(kind) or number(config, "hidden_size") // heads,
            mlp_dim=number(config, "intermediate_size"),
            activation=_activation(config, kind),
            norm="rms_offset" if kind == "gemma" else "rms",
            norm_epsilon=config.get("rms_norm_eps", 1e-6),
            max_length=config.get("max_position_embeddings", 2048),
            use_bias=config.get("mlp_bias", False),
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            qk_norm=kind == "qwen3",
            window=_window(config, kind),
            attention_dropout=config.get("attention_dropout") or 0.0,
            init_std=config.get("initializer_range", 0.02),
            **read_rotary(config, their_base),
        )
        return {
            "vocab_size": number(config, "vocab_size"),
            "start_token": token(config, "bos_token_id", None),
            "end_token": tokens(config, "eos_token_id", None),
            "tie_embeddings": config.get("tie_word_embeddings", kind == "gemma"),
            "network": network,
            **({"embedding_scale": network.width**0.5} if kind == "gemma" else {}),
        }

    return read


def _kind(model: GPT) -> str | None:
    """Which of the Llama-like architectures a model is."""
    n = model.network
    common = n.norm_placement == "pre" and n.final_norm and n.gated and n.positions == "rotary"
    if not common or n.norm == "layer" or n.experts is not None or n.attention_scale is not None:
        return None
    qkv = n.use_bias if n.qkv_bias is None else n.qkv_bias
    output = n.use_bias if n.output_bias is None else n.output_bias
    if n.norm == "rms_offset":
        return "gemma" if qkv == output and not n.use_bias and not n.qk_norm and n.window is None else None
    if n.qk_norm:
        return "qwen3" if qkv == output and not n.use_bias else None
    if qkv and not output and not n.use_bias:
        return "qwen2"
    if n.window is not None:
        return None if qkv or output or n.use_bias else "mistral"
    return "llama" if qkv == output else None


def _writer(kind: str):
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma"}[kind]

    def write(model: GPT) -> dict[str, Any]:
        n = model.network
        config: dict[str, Any] = {
            "architectures": [f"{name}ForCausalLM"],
            "model_type": kind,
            "vocab_size": model.vocab_size,
            "hidden_size": n.width,
            "num_hidden_layers": n.num_layers,
            "num_attention_heads": n.num_heads,
            "num_key_value_heads": n.num_kv_heads or n.num_heads,
            "head_dim": n.size_of_head,
            "intermediate_size": n.size_of_mlp,
            "hidden_act": THEIR_ACTIVATIONS[n.activation],
            "rms_norm_eps": n.norm_epsilon,
            "max_position_embeddings": n.max_length,
            "initializer_range": n.init_std or 0.02,
            "attention_dropout": n.attention_dropout,
            "bos_token_id": model.start_token,
            "eos_token_id": model.end_token,
            "tie_word_embeddings": model.tie_embeddings,
            **write_rotary(n),
        }
        if kind in ("llama", "qwen3", "gemma"):
            config["attention_bias"] = bool(n.use_bias if n.qkv_bias is None else n.qkv_bias)
        if kind == "llama":
            config["mlp_bias"] = n.use_bias
        if kind == "gemma" and n.activation == "gelu_tanh":
            config["hidden_act"] = "gelu_pytorch_tanh"
        if kind == "mistral":
            config["sliding_window"] = n.window
        elif kind not in ("llama", "gemma"):
            config |= {"use_sliding_window": n.window is not None, "sliding_window": n.window, "max_window_layers": 0}
            config["layer_types"] = ["full_attention" if n.window is None else "sliding_attention"] * n.num_layers
        return config

    return write


def _llama_bindings(model: GPT) -> Bindings:
    n = model.network
    qkv = n.use_bias if n.qkv_bias is None else n.qkv_bias
    output = n.use_bias if n.output_bias is None else n.output_bias
    parts = [
        embedding("embedding/token", "model.embed_tokens"),
        norm("stack/final_norm", "model.norm", bias=False),
        {"head/kernel": Binding("lm_head.weight", (1, 0)), "heads/score/kernel": Binding("score.weight", (1, 0))},
    ]
    for i, layer in layer_paths(n):
        theirs = f"model.layers.{i}"
        parts += [
            *(
                linear(f"{layer}/attention/{ours}", f"{theirs}.self_attn.{name}_proj", bias=qkv)
                for ours, name in (("query", "q"), ("key", "k"), ("value", "v"))
            ),
            linear(f"{layer}/attention/output", f"{theirs}.self_attn.o_proj", bias=output),
            norm(f"{layer}/attention/query_norm", f"{theirs}.self_attn.q_norm", bias=False),
            norm(f"{layer}/attention/key_norm", f"{theirs}.self_attn.k_norm", bias=False),
            norm(f"{layer}/attention_norm", f"{theirs}.input_layernorm", bias=False),
            norm(f"{layer}/mlp_norm", f"{theirs}.post_attention_layernorm", bias=False),
            *(
                linear(f"{layer}/mlp/{name}", f"{theirs}.mlp.{name}_proj", bias=n.use_bias)
                for name in ("gate", "up", "down")
            ),
        ]
    return merge(*parts)


#: Heads of the classes for tasks in transformers.
_HEADS = r"score\.|classifier\.|qa_outputs\."

ARCHITECTURES = (
    Architecture(
        model_type="gpt2",
        read=_read_gpt2,
        write=_write_gpt2,
        bind=_gpt2_bindings,
        prefix="transformer.",
        # Older files have the causal mask and a copy of the tied embeddings.
        buffers=r"\.attn\.(masked_)?bias$",
        copies=("lm_head.weight",),
        heads=_HEADS,
        head_paths=("heads/",),
        writes=_is_gpt2,
    ),
    *(
        Architecture(
            model_type=kind,
            read=_reader(kind),
            write=_writer(kind),
            bind=_llama_bindings,
            prefix="model.",
            buffers=r"rotary_emb\.inv_freq$",
            copies=("lm_head.weight",),
            heads=_HEADS,
            head_paths=("heads/",),
            writes=lambda model, kind=kind: _kind(model) == kind,
        )
        for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma")
    ),
)
