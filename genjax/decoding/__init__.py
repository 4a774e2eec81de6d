"""Generation of tokens, for every token model: one compiled loop of fixed shapes around a model's `Decoder`."""

from genjax.decoding.base import Decoder, Generation, Step, prefill, repeat_rows, take_rows
from genjax.decoding.sampling import Sampling

__all__ = ["Decoder", "Generation", "Sampling", "Step", "prefill", "repeat_rows", "take_rows"]
