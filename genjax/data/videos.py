"""Videos: handwritten digits that move and bounce, after Moving MNIST (Srivastava et al. 2015, arXiv:1502.04681).

Each digit of the embedded set goes straight at a constant speed and is reflected at the borders; where two lie on each
other the brighter pixel shows.  Samples are written as one animated GIF.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from genjax.batch import example_keys
from genjax.data import transforms
from genjax.data.base import ArrayExamples, Data, DataError
from genjax.data.digits import read_digits
from genjax.data.files import with_ending
from genjax.data.images import tile

_LEVELS = 17
_LOGIT_ALPHA = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Videos(Data):
    """Videos `x` [B, T, H, W, 1], with the class `label` [B] of the first digit in them.

    Attributes:
      name: moving_digits, which is embedded.
      preprocessing: how integer levels become the model's input; see genjax/data/transforms.py.
      num_frames: length T.
      frame_size: height and width of a frame, at least 8.
      num_digits: digits in a video.
      max_speed: largest number of pixels that a digit goes along an axis between two frames.
      num_train: number of videos in the training set; validation and test have a tenth as many.
      frames_per_second: speed of the GIF.
    """

    name: str = "moving_digits"
    preprocessing: transforms.Preprocessing = "signed"
    num_frames: int = 8
    frame_size: int = 16
    num_digits: int = 1
    max_speed: float = 2.0
    num_train: int = 5000
    frames_per_second: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name != "moving_digits":
            raise DataError(f"data.name={self.name} is not a set of videos: moving_digits")
        for field, least in (("num_frames", 1), ("frame_size", 8), ("num_digits", 1), ("num_train", 10)):
            if getattr(self, field) < least:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least {least}")

    def load_split(self, split: str) -> ArrayExamples:
        digits = read_digits(split).arrays()
        count = self.num_train if split == "train" else self.num_train // 10
        rng = np.random.default_rng(sum(split.encode()))
        chosen = rng.integers(0, len(digits["x"]), (count, self.num_digits))
        videos = moving_pictures(rng, digits["x"][chosen, :, :, 0], self.num_frames, self.frame_size, self.max_speed)
        return ArrayExamples({"x": videos[..., None], "label": digits["label"][chosen[:, 0]]})

    def spec(self) -> dict[str, Any]:
        """data_shape (T, H, W, 1), range and num_levels of what models see, and num_classes."""
        shape = (self.num_frames, self.frame_size, self.frame_size, 1)
        return {
            "data_shape": shape,
            **transforms.values_of(self.preprocessing, _LEVELS, _LOGIT_ALPHA),
            "num_classes": len(self.label_names()),
        }

    def label_names(self) -> tuple[str, ...]:
        return tuple(map(str, range(10)))

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        x, log_abs_det = transforms.apply(
            self.preprocessing, batch["x"], example_keys(key, batch), _LEVELS, _LOGIT_ALPHA
        )
        return {**batch, "x": x} if log_abs_det is None else {**batch, "x": x, "log_abs_det": log_abs_det}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes one GIF that shows all videos side by side."""
        path = with_ending(stem, ".gif")
        videos = transforms.to_unit(self.preprocessing, np.asarray(samples), _LEVELS, _LOGIT_ALPHA)
        write_gif(videos, path, self.frames_per_second)
        return [path]

    def protocol(self) -> str:
        return (
            f"{self.num_digits} digit(s) in {self.num_frames} frames, preprocessing {self.preprocessing}, "
            f"{_LEVELS} levels"
        )


def moving_pictures(
    rng: np.random.Generator, pictures: np.ndarray, num_frames: int, frame_size: int, max_speed: float
) -> np.ndarray:
    """Lets pictures move through frames and bounce off the borders.

    Args:
      rng: generator of first places and speeds.
      pictures: [N, K, h, w], K that share a video.
      num_frames: T.
      frame_size: height and width S of a frame.
      max_speed: largest number of pixels along an axis between two frames.

    Returns:
      Videos [N, T, S, S] of the type of the pictures.
    """
    count, digits, height, width = pictures.shape
    room = np.array([frame_size - height, frame_size - width])
    start = rng.random((count, digits, 1, 2)) * room
    speed = rng.uniform(-max_speed, max_speed, (count, digits, 1, 2))
    place = start + speed * np.arange(num_frames)[:, None]
    # A reflected path is a triangle wave of the straight one.
    wave = np.mod(place, np.maximum(2 * room, 1))
    corner = np.round(np.where(wave > room, 2 * room - wave, wave)).astype(int)  # [N, K, T, 2]
    corner = np.clip(corner, 0, room)
    videos = np.zeros((count, num_frames, frame_size, frame_size), pictures.dtype)
    for k in range(digits):
        rows = corner[:, k, :, 0, None, None] + np.arange(height)[:, None]  # [N, T, h, 1]
        columns = corner[:, k, :, 1, None, None] + np.arange(width)  # [N, T, 1, w]
        place = (np.arange(count)[:, None, None, None], np.arange(num_frames)[:, None, None], rows, columns)
        videos[place] = np.maximum(videos[place], pictures[:, k, None])
    return videos


def write_gif(videos: np.ndarray, path: Path, frames_per_second: int = 8) -> None:
    """Writes videos [N, T, H, W, C] with brightness in [0, 1] as one animated GIF, arranged as `write_grid` does."""
    frames = [tile(videos[:, t]) for t in range(videos.shape[1])]
    images = [Image.fromarray(frame) for frame in frames]
    if images[0].mode != "L":
        # One palette for all frames, because separate palettes would flicker; 256 greys need no palette.
        palette = Image.fromarray(np.concatenate(frames)).convert("RGB").quantize(256)
        images = [image.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=round(1000 / frames_per_second), loop=0, optimize=False
    )
