"""Pictures of two domains, `source` and `x`, for models that translate one into the other."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, DataError, Examples
from genjax.data.files import with_ending
from genjax.data.folders import folder_files, picture_files
from genjax.data.images import Images, write_grid
from genjax.data.pipeline import shuffled_indices


def outlines(pictures: np.ndarray) -> np.ndarray:
    """Largest minus smallest value around each pixel (3 x 3, all channels), the morphological gradient.

    Args:
      pictures: integers [N, H, W, C].

    Returns:
      [N, H, W, 1], of the same type.
    """
    height, width = pictures.shape[1:3]
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    around = np.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])
    return (around.max(0).astype(int) - around.min(0)).max(-1, keepdims=True).astype(pictures.dtype)


class UnpairedExamples:
    """Pictures x and sources that do not belong together.

    A training batch takes x and sources from shuffled epochs of their own, so that each picture is seen as often as the
    others of its domain, and pairs are drawn anew.  The example of an index below the length has pictures in fixed
    orders, where the smaller domain starts again from its first picture; the index length + M i + j means x number i
    and source number j of M.

    Args:
      arrays: arrays of the examples x, with `x`.
      source: sources [M, H, W, C].
    """

    def __init__(self, arrays: dict[str, np.ndarray], source: np.ndarray) -> None:
        self._arrays, self._source = arrays, source
        self._order = np.random.default_rng(0).permutation(len(source))

    def __len__(self) -> int:
        return max(len(self._arrays["x"]), len(self._source))

    def batch_indices(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        """Pairs of a training step, [batch_size]."""
        rows = shuffled_indices(seed, step, batch_size, len(self._arrays["x"]))
        sources = shuffled_indices(seed, step, batch_size, len(self._source), stream=1)
        return len(self) + len(self._source) * rows + sources

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices, count = np.asarray(indices, np.int64), len(self._source)
        pair = indices - len(self)
        rows = np.where(pair < 0, indices % len(self._arrays["x"]), pair // count)
        sources = np.where(pair < 0, self._order[indices % count], pair % count)
        return {**{name: a[rows] for name, a in self._arrays.items()}, "source": self._source[sources]}

    def arrays(self) -> None:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translations(Images):
    """Pictures `x` of a set, and `source` [B, H, W, C'] of another domain: made of the same set, or a folder of its
    own.

    Attributes:
      source_dir: folder of the sources, if data.name=folder; data.dir is then the folder of x.  Paired pictures have
        the same name in both folders, up to the suffix.  Unpaired pictures are drawn from both folders at random, each
        as often as the others of its folder, and no split has pairs.
      domain: the other domain, if there is no source_dir: outline, the edges of the pictures in grey; grey, the mean of
        their channels; or negative, the pictures with light and dark exchanged.
      paired: whether a training picture comes with its own source.  If not, and
        the other domain is made, sources are made of the first half of the training pictures in another order, and x
        are the second half, so that no picture is seen in both domains.  Validation and test examples are always pairs
        then, so that a translation can be compared with the truth.
    """

    name: str = "shapes"
    preprocessing: Literal["unit", "signed"] = "signed"
    source_dir: str | None = None
    domain: Literal["outline", "grey", "negative"] = "outline"
    paired: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flatten or self.horizontal_flip:
            raise DataError("pictures of two domains are neither flattened nor mirrored")
        if self.skip_corrupt and self.source_dir is not None and self.paired:
            raise DataError("data.skip_corrupt would tear pairs of two folders apart; repair or remove damaged pairs")

    def load_split(self, split: str) -> Examples:
        arrays = self._arrays(self, split)
        if self.source_dir is not None:
            return self._with_folder(arrays, split)
        x = arrays["x"]
        match self.domain:
            case "outline":
                source = outlines(x)
            case "grey":
                source = np.round(x.mean(-1, keepdims=True)).astype(x.dtype)
            case "negative":
                source = (self.levels - 1 - x).astype(x.dtype)
        if self.paired or split.partition("[")[0] != "train":
            return ArrayExamples({**arrays, "source": source})
        half = len(x) // 2
        return UnpairedExamples({name: a[half : 2 * half] for name, a in arrays.items()}, source[:half])

    @staticmethod
    def _arrays(data: Images, split: str) -> dict[str, np.ndarray]:
        """The pictures of one domain."""
        arrays = Images.load_split(data, split).arrays()
        if arrays is None:
            raise DataError(f"pictures of two domains must fit into memory; {data.dir or data.name} does not")
        return arrays

    def _with_folder(self, arrays: dict[str, np.ndarray], split: str) -> Examples:
        """Pictures x with the pictures of the folder of sources."""
        if self.name != "folder":
            raise DataError(
                f"data.source_dir is the second of two folders, but x is {self.name}; "
                "give the first as --data.name=folder --data.dir=FOLDER"
            )
        # Its subfolders are no classes.
        source = self._arrays(dataclasses.replace(self, dir=self.source_dir, class_names=(), classes=()), split)["x"]
        if self.paired:
            self._check_pairs()
            return ArrayExamples({**arrays, "source": source})
        return UnpairedExamples(arrays, source)

    def _check_pairs(self) -> None:
        """Raises DataError unless the two folders hold pictures of the same names."""
        roots = [buckets.folder(folder) for folder in (self.dir, self.source_dir)]
        names = [[p.relative_to(root).with_suffix("") for p in picture_files(root)] for root in roots]
        alone = sorted(set(names[0]) ^ set(names[1]))
        if names[0] != names[1]:
            raise DataError(
                f"paired pictures have one name in {roots[0]} and {roots[1]}, "
                f"but {(alone or names[0])[0]} is not once in each; of pictures without pairs say --data.paired=false"
            )

    def _training_files(self) -> dict[Path, list[Path]]:
        files = super()._training_files()
        if self.source_dir is None:
            return files
        # Both domains may have the same folder.
        return {**files, **dict([folder_files(self.source_dir, "train")])}

    def spec(self) -> dict[str, Any]:
        """The spec of the pictures, source_shape (H, W, C'), and paired."""
        example = self.load("train").gather(np.zeros(1, np.int64))
        return {**super().spec(), "source_shape": tuple(example["source"].shape[1:]), "paired": self.paired}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        source = super().transform({**batch, "x": batch["source"]}, key)["x"]
        return {**super().transform(batch, key), "source": source}

    def write_answers(self, batch: dict[str, np.ndarray], answers: np.ndarray, stem: Path) -> list[Path]:
        """Writes one PNG: the source of each example of a batch, its translation [B, H, W, C], and its picture x."""
        columns = [self.to_unit(pictures) for pictures in (batch["source"], answers, batch["x"])]
        channels = max(column.shape[-1] for column in columns)
        columns = [np.broadcast_to(column, (*column.shape[:-1], channels)) for column in columns]
        path = with_ending(stem, ".png")
        together = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
        write_grid(together, path, 3 * math.ceil((len(answers) / 3) ** 0.5))
        return [path]

    def protocol(self) -> str:
        other = self.domain if self.source_dir is None else f"the pictures of {self.source_dir}"
        return f"{super().protocol()}, {'paired' if self.paired else 'unpaired'} with {other}"
