"""Pairs of pictures and texts with a hint beside each picture, which a control network learns to follow
(genjax/families/diffusion/controlnet.py): its edges, a depth map, a pose, or whatever the user drew.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, DataError, Examples
from genjax.data.captioned import CaptionedImages
from genjax.data.fitting import PictureFile, read_given
from genjax.data.folders import FolderImages, decoded_files, files_of_same_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class HintedImages(CaptionedImages):
    """As `CaptionedImages`; with `hints` a batch also has `hint` [B, H, W, 3] in [0, 1].

    Attributes:
      hints: folder of a hint for each picture of a folder, under the same name below it as the picture has below
        data.dir (a.png for a.jpg); None leaves hints to the model, which takes the edges of the pictures.
    """

    flag_name: ClassVar[str] = "hinted_pairs"

    hints: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hints is None:
            return
        if self.name != "folder":
            raise DataError(f"data.hints belong to pictures of a folder, and data.name={self.name} is none")
        if self.pad_to is not None:
            raise DataError("data.pad_to pads pictures and not their hints; scale both with data.image_size")

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def folder_pictures(self, split: str) -> tuple[Examples, list[Path]]:
        pictures, paths = super().folder_pictures(split)
        if self.hints is None:
            return pictures, paths
        files = self._hint_files(paths)
        shape = pictures.gather(np.zeros(1, np.int64))["x"].shape[1:]
        images = FolderImages(files, None, self.image_size, 3)
        if images.shape[:2] != shape[:2]:
            raise DataError(
                f"the hints in {self.hints} have {images.shape[0]} x {images.shape[1]} pixels and their pictures "
                f"{shape[0]} x {shape[1]}; bring both to one size with --data.image_size={shape[0]},{shape[1]}"
            )
        hints, _ = decoded_files(images, self._hints_folder)
        own, theirs = pictures.arrays(), hints.arrays()
        if own is None or theirs is None:
            return _WithHints(pictures, hints), paths
        return ArrayExamples({**own, "hint": theirs["x"]}), paths

    @property
    def _hints_folder(self) -> Path:
        """The folder of hints.

        Raises:
          DataError: there is none, or it lies among the pictures.
        """
        folder, root = buckets.folder(self.hints), buckets.folder(self.dir)
        if not folder.is_dir():
            raise DataError(f"--data.hints={self.hints} is not a folder")
        if folder.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"the hints in {folder} would be read as pictures, as they lie below data.dir={self.dir}; put them "
                "beside it"
            )
        return folder

    def _hint_files(self, paths: list[Path]) -> list[Path]:
        return files_of_same_names(self._hints_folder, paths, buckets.folder(self.dir), "hint")

    def _training_files(self) -> dict[Path, list[Path]]:
        found = super()._training_files()
        if self.hints is None:
            return found
        return {**found, self._hints_folder: self._hint_files([path for paths in found.values() for path in paths])}

    def read_hint(self, file: PictureFile) -> jax.Array | None:
        """A hint of a file as a batch has it, float32 [1, H, W, 3]; None if hints are left to the model.

        Raises:
          DataError: the file is not a readable picture; the message names it.
        """
        if self.hints is None:
            return None
        height, width, _ = self.spec()["data_shape"]
        return _unit(jnp.asarray(read_given(file, (height, width), 3))[None])

    # ------------------------------------------------------------------------------------------------------------------
    # On the device

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        found = super().augment(batch, key)
        if "hint" not in batch:
            return found
        # By the same key, so that a hint is mirrored with its picture.
        return {**found, "hint": super().augment({**batch, "x": batch["hint"]}, key)["x"]}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        hint = {"hint": _unit(batch["hint"])} if "hint" in batch else {}
        return {**super().transform(batch, key), **hint}


def _unit(levels: jax.Array) -> jax.Array:
    """Levels of 8 bits in [0, 1]."""
    return levels.astype(jnp.float32) / 255.0


class _WithHints:
    """Pictures with their hints, one of which is read when it is asked for."""

    def __init__(self, pictures: Examples, hints: Examples) -> None:
        self._pictures, self._hints = pictures, hints

    def __len__(self) -> int:
        return len(self._pictures)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {**self._pictures.gather(indices), "hint": self._hints.gather(indices)["x"]}

    def arrays(self) -> None:
        return None
