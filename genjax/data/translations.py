"""Pictures of two domains, `source` and `x`, for models that translate one into the other."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from genjax.data.base import ArrayExamples, DataError, Examples
from genjax.data.images import Images


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translations(Images):
    """Pictures `x` of a set, and `source` [B, H, W, C'] of another domain, which is made of pictures of the same set.

    Attributes:
      domain: what the other domain shows: outline, the edges of the pictures, grey; grey, the mean of their channels;
        negative, the pictures with light and dark exchanged.
      paired: whether a training picture comes with its own source.  If not, sources are made of the first half of the
        training pictures, in another order, and x are the second half, so that no picture is seen in both domains.
        Validation and test examples are always pairs, so that a translation can be held against the truth.
    """

    name: str = "shapes"
    preprocessing: Literal["unit", "signed"] = "signed"
    domain: Literal["outline", "grey", "negative"] = "outline"
    paired: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flatten or self.horizontal_flip:
            raise DataError("pictures of two domains are neither flattened nor mirrored")

    def load_split(self, split: str) -> Examples:
        arrays = super().load_split(split).arrays()
        if arrays is None:
            raise DataError(f"pictures of two domains must fit into memory; {self.name} does not")
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
        order = np.random.default_rng(0).permutation(half)
        rest = {name: a[half : 2 * half] for name, a in arrays.items()}
        return ArrayExamples({**rest, "source": source[order]})

    def spec(self) -> dict[str, Any]:
        """That of the pictures, and source_shape (H, W, C')."""
        example = self.load("train").gather(np.zeros(1, np.int64))
        return {**super().spec(), "source_shape": tuple(example["source"].shape[1:])}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        source = super().transform({**batch, "x": batch["source"]}, key)["x"]
        return {**super().transform(batch, key), "source": source}

    def protocol(self) -> str:
        return f"{super().protocol()}, {'paired' if self.paired else 'unpaired'} with {self.domain}"
