"""Captioned pictures of emoji, read from emoji64.npz."""

from __future__ import annotations

import numpy as np

from genjax.data.base import ArrayExamples, DataError, check_split
from genjax.data.files import archive


def emoji_categories(directory: str | None) -> tuple[str, ...]:
    """Names of the categories of emoji, or their numbers where the file has no names."""
    with np.load(archive(directory, "emoji64.npz")) as content:
        if "category_names" in content:
            return tuple(map(str, content["category_names"]))
        return tuple(map(str, range(int(content["category"].max()) + 1)))


def read_emoji(directory: str | None, split: str, size: tuple[int, int] | None, channels: int) -> ArrayExamples:
    """The captioned emoji of emoji64.npz, with their category as class; both drawings of an emoji are in the same
    split.

    Args:
      directory: the file, or where it lies.
      split: train, validation (a tenth) or test (the file's own).
      size: height and width to scale to, each a divisor of 64; None leaves 64 x 64.
      channels: 4 as they are, 3 on white, 1 grey on white.
    """
    with np.load(archive(directory, "emoji64.npz")) as content:
        pictures, label, number = content["images"], content["category"], content["emoji_id"]
        rows = _rows_of(split, content["is_test"], number)
    pictures = pictures[rows].astype(np.float32) / 255.0
    height, width = size or (64, 64)
    if 64 % height or 64 % width:
        raise DataError(f"data.image_size={height},{width} must divide the 64 x 64 pixels of emoji")
    # Colours are weighted by their opacity.
    colour, cover = pictures[..., :3] * pictures[..., 3:], pictures[..., 3:]
    blocks = lambda a: a.reshape(len(a), height, 64 // height, width, 64 // width, -1).mean((2, 4))
    colour, cover = blocks(colour), blocks(cover)
    if channels == 4:
        pictures = np.concatenate([colour / np.maximum(cover, 1e-6), cover], -1)
    else:
        pictures = colour + 1.0 - cover
        if channels == 1:
            pictures = pictures @ np.array([[0.299], [0.587], [0.114]], np.float32)
    levels = np.round(np.clip(pictures, 0.0, 1.0) * 255).astype(np.uint8)
    return ArrayExamples({"x": levels, "label": label[rows].astype(np.int32)})


def emoji_captions(directory: str | None, split: str) -> list[str]:
    """The caption of each of the pictures of `read_emoji`; both drawings of an emoji have the same."""
    with np.load(archive(directory, "emoji64.npz")) as content:
        rows = _rows_of(split, content["is_test"], content["emoji_id"])
        return [str(caption) for caption in content["caption"][rows]]


def _rows_of(split: str, is_test: np.ndarray, number: np.ndarray) -> np.ndarray:
    """True at the pictures of a split, bool [N]."""
    check_split(split, ("train", "validation", "test"), "emoji")
    is_validation = ~is_test & (number % 10 == 8)
    return {"test": is_test, "validation": is_validation, "train": ~is_test & ~is_validation}[split]
