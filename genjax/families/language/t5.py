"""T5: text-to-text transfer transformer (Raffel et al. 2020, arXiv:1910.10683), and T5 1.1.

An encoder-decoder with norms before the sublayers that only scale (x / sqrt(mean x^2 + e) * g), no biases, no factor on
the attention logits, and learned biases by distance instead of positions.  T5 has a ReLU, and its logits are products
of d / sqrt(width) with the token embeddings; T5 1.1 has a gated GELU (Shazeer 2020) and an output map of its own.  T5
is trained by span corruption (section 3.3.4) and fine-tuned on any task as text to text, with objective=pairs.
"""

from __future__ import annotations

import dataclasses

from genjax.families.language.checkpoints.encoder_decoder import T5_ARCHITECTURE
from genjax.families.language.corruption import Objective, SpanCorruption
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.networks import t5_network
from genjax.nn.transformer import Transformer
from genjax.optimizers import Adafactor, InverseSquareRoot, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5(EncoderDecoder):
    """T5; T5 1.1 has gated stacks, tie_embeddings=False and scale_logits=False.

    Attributes: see `EncoderDecoder`.
    """

    architectures = (T5_ARCHITECTURE,)

    extra_tokens: int = 100
    encoder: Transformer = t5_network()
    decoder: Transformer = t5_network()
    objective: Objective = SpanCorruption()
    embedding_scale: float | None = 1.0
    scale_logits: bool = True
    label_smoothing: float = 0.0
    optimizer: Optimizer = Adafactor(learning_rate=1e-2, clip_norm=1.0, schedule=InverseSquareRoot(warmup_steps=1000))
