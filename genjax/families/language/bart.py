"""BART: denoising sequence-to-sequence pre-training (Lewis et al. 2020, arXiv:1910.13461).

An encoder-decoder with norms after the sublayers and after the embeddings, exact GELU, and learned positions that begin
at 2.  It learns to restore a whole text from a corrupted text: spans (30% of the tokens, lengths from Poisson(3)) are
each replaced by a mask, and sentences are permuted; rotation of the document is another setting.  Fine-tuned on pairs,
it summarises and translates.
"""

from __future__ import annotations

import dataclasses

from genjax.families.language.checkpoints.encoder_decoder import BART_ARCHITECTURE
from genjax.families.language.corruption import Denoising, Objective
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.networks import bart_network
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW, Linear, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BART(EncoderDecoder):
    """BART.

    Attributes: see `EncoderDecoder`.
    """

    architectures = (BART_ARCHITECTURE,)

    encoder: Transformer = bart_network()
    decoder: Transformer = bart_network()
    objective: Objective = Denoising()
    embedding_scale: float | None = 1.0
    embedding_norm: bool = True
    position_offset: int = 2
    logit_bias: bool = True
    optimizer: Optimizer = AdamW(
        learning_rate=5e-4, b2=0.98, eps=1e-6, weight_decay=0.01, clip_norm=0.1, schedule=Linear(warmup_steps=500)
    )
