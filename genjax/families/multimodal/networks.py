"""Stacks of the published models of pictures and texts, as settings of one `Transformer`."""

from __future__ import annotations

from typing import Any

from genjax.nn.transformer import Transformer


def clip_network(num_layers: int = 12, width: int = 512, num_heads: int = 8, **changes: Any) -> Transformer:
    """A stack of CLIP, by default the base text stack: pre-norm, x sigmoid(1.702 x)."""
    settings = {"activation": "quick_gelu", "max_length": 77, **changes}
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, **settings)


def siglip_network(num_layers: int = 12, width: int = 768, num_heads: int = 12, **changes: Any) -> Transformer:
    """A stack of SigLIP, by default the base one: pre-norm, not causal, GELU by tanh."""
    settings = {"activation": "gelu_tanh", "max_length": 64, "norm_epsilon": 1e-6, "causal": False, **changes}
    return Transformer(num_layers=num_layers, width=width, num_heads=num_heads, **settings)
