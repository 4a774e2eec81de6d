"""Stacks of the published language models, as settings of one `Transformer`."""

from __future__ import annotations

from typing import Any

from genjax.nn.transformer import Transformer


def translation_network(num_layers: int = 6, width: int = 512, num_heads: int = 8, **changes: Any) -> Transformer:
    """A stack of the original transformer, by default the base one: post-norm, ReLU, sinusoidal positions."""
    settings = {
        "activation": "relu",
        "norm_placement": "post",
        "positions": "sinusoidal",
        "max_length": 512,
        "causal": False,
        "dropout": 0.1,
        "init_std": None,
        **changes,
    }
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, **settings)


def gpt2_network(num_layers: int = 12, width: int = 768, num_heads: int = 12, **changes: Any) -> Transformer:
    """The stack of GPT-2, by default with 124M parameters: pre-norm, learned positions, tanh-approximated GELU."""
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, **changes)


def llama_network(
    num_layers: int, width: int, num_heads: int, num_kv_heads: int | None = None, **changes: Any
) -> Transformer:
    """The stack of Llama: RMSNorm, rotary positions, SwiGLU, no biases, grouped-query attention with num_kv_heads."""
    settings = {
        "norm": "rms",
        "positions": "rotary",
        "activation": "silu",
        "gated": True,
        "use_bias": False,
        "scale_residual_init": False,
        "max_length": 4096,
        **changes,
    }
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, num_kv_heads=num_kv_heads, **settings)


def bert_network(num_layers: int = 12, width: int = 768, num_heads: int = 12, **changes: Any) -> Transformer:
    """The stack of BERT, by default the base one: post-norm, exact GELU, learned positions."""
    settings = {
        "activation": "gelu",
        "norm_placement": "post",
        "norm_epsilon": 1e-12,
        "max_length": 512,
        "causal": False,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "scale_residual_init": False,
        **changes,
    }
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, **settings)


def t5_network(num_layers: int = 6, width: int = 512, num_heads: int = 8, **changes: Any) -> Transformer:
    """A stack of T5, by default the small one; activation="gelu_tanh" and gated=True give T5 1.1."""
    settings = {
        "head_dim": 64,
        "activation": "relu",
        "norm": "rms",
        "norm_epsilon": 1e-6,
        "use_bias": False,
        "positions": "t5",
        "causal": False,
        "attention_scale": 1.0,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "mlp_dropout": 0.1,
        # Logits are not divided by sqrt(head_dim), so queries must start small.
        "init_std": 0.05,
        "scale_residual_init": False,
        **changes,
    }
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, **settings)


def bart_network(num_layers: int = 6, width: int = 768, num_heads: int = 12, **changes: Any) -> Transformer:
    """A stack of BART, by default the base one."""
    settings = {
        "activation": "gelu",
        "norm_placement": "post",
        "norm_epsilon": 1e-5,
        "max_length": 1024,
        "causal": False,
        "dropout": 0.1,
        "scale_residual_init": False,
        **changes,
    }
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, **settings)
