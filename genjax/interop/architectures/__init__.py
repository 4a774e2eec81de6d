"""Architectures of the library transformers as models of ours: configuration and names of tensors, both ways."""

from genjax.interop.architectures import bert, clip, encoder_decoder, gpt
from genjax.interop.architectures.base import Architecture

#: All that can be read, by the `model_type` of config.json.
ARCHITECTURES: dict[str, Architecture] = {
    a.model_type: a
    for a in (*bert.ARCHITECTURES, *gpt.ARCHITECTURES, *encoder_decoder.ARCHITECTURES, *clip.ARCHITECTURES)
}
