"""The tensors of a checkpoint, whatever format its folder holds."""

from __future__ import annotations

from pathlib import Path

from genjax.interop import gguf, safetensors
from genjax.interop.safetensors import Tensor


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a folder: safetensors, or a GGUF file that the folder describes.

    Raises:
      CheckpointFileError: there is no checkpoint, or one of its files is missing, truncated or damaged.
    """
    folder = gguf.folder_of(folder)
    return gguf.read_tensors(folder) if (folder / gguf.LINK).exists() else safetensors.read_folder(folder)
