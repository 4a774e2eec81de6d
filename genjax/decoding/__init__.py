"""Generation of tokens for every token model: a compiled loop of fixed shapes around a model's `Decoder`."""

from genjax.decoding.answers import joined, of_answers
from genjax.decoding.base import (
    Decoder,
    Generation,
    Step,
    compiled,
    end_tokens,
    num_bytes,
    of_weights,
    prefill,
    repeat_rows,
    take_rows,
)
from genjax.decoding.beam import Beams, beam_search, length_penalty
from genjax.decoding.constraint import Automaton, from_regular_expression, stop_strings
from genjax.decoding.context import context_decoder, likeliest
from genjax.decoding.contrastive import contrastive_search
from genjax.decoding.generate import generate, stream
from genjax.decoding.sampling import Sampling
from genjax.decoding.speculative import speculative
from genjax.decoding.token_model import TokenModel, check_tokens
from genjax.decoding.watermark import Watermark

__all__ = [
    "Automaton",
    "Beams",
    "Decoder",
    "Generation",
    "Sampling",
    "Step",
    "TokenModel",
    "Watermark",
    "beam_search",
    "check_tokens",
    "compiled",
    "context_decoder",
    "contrastive_search",
    "end_tokens",
    "from_regular_expression",
    "generate",
    "joined",
    "length_penalty",
    "likeliest",
    "num_bytes",
    "of_weights",
    "of_answers",
    "prefill",
    "repeat_rows",
    "speculative",
    "stop_strings",
    "stream",
    "take_rows",
]
