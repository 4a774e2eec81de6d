"""T5: text-to-text transfer transformer (Raffel et al. 2020, arXiv:1910.10683), in its first and its 1.1 form.

An encoder-decoder with norms before the sublayers that only scale (x / sqrt(mean x^2 + e) * g), no biases, no factor on
the attention logits, and learned biases by distance instead of positions.  The first form has a ReLU and logits that are
products of d / sqrt(width) with the token embeddings; form 1.1 has a gated GELU (Shazeer 2020) and an output map of its own.

It is trained by span corruption (section 3.3.4), and fine-tuned on any task as text to text: `objective` is then `pairs`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from genjax.families.language.corruption import Objective, SpanCorruption
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.nn.transformer import Transformer
from genjax.optimizers import Adafactor, InverseSquareRoot, Optimizer


def t5_network(num_layers: int = 6, width: int = 512, num_heads: int = 8, **changes: Any) -> Transformer:
    """A stack of T5 (the small one unless told); with activation="gelu_tanh" and gated=True that of form 1.1."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5(EncoderDecoder):
    """T5 in its first form; form 1.1 has gated stacks, tie_embeddings=False and scale_logits=False.

    Attributes: see `EncoderDecoder`.
    """

    extra_tokens: int = 100
    encoder: Transformer = t5_network()
    decoder: Transformer = t5_network()
    objective: Objective = SpanCorruption()
    embedding_scale: float | None = 1.0
    scale_logits: bool = True
    label_smoothing: float = 0.0
    optimizer: Optimizer = Adafactor(learning_rate=1e-2, clip_norm=1.0, schedule=InverseSquareRoot(warmup_steps=1000))
