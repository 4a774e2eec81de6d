"""Pairs of videos and texts: moving Scenes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from genjax.data.base import ArrayExamples, DataError, Examples
from genjax.data.captioned import CaptionedImages
from genjax.data.files import with_ending
from genjax.data.fitting import fit_pictures
from genjax.data.scenes.moving import lexicon, make_moving_scene, render_videos
from genjax.data.videos import write_gif


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedVideos(CaptionedImages):
    """Videos `x` [B, T, H, W, 3] with captions: `tokens` int32 [B, S] and `mask`.

    Attributes:
      name: moving_scenes, a thing that moves (genjax/data/scenes/moving.py).
      num_frames: length T.
      frames_per_second: speed of the GIF.
    """

    flag_name: ClassVar[str] = "video_pairs"
    names: ClassVar[tuple[str, ...]] = ("moving_scenes",)
    what: ClassVar[str] = "videos"

    name: str = "moving_scenes"
    sequence_length: int = 8
    num_frames: int = 4
    frames_per_second: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frames < 2:
            raise DataError(f"data.num_frames={self.num_frames} must be at least 2")
        if self.horizontal_flip:
            raise DataError("data.horizontal_flip would show left for right, which captions tell apart; leave it out")

    def read(self, split: str) -> tuple[Examples, list[tuple[str, ...]]]:
        scenes = [make_moving_scene(split, 0, i) for i in range(self.num_examples(split))]
        x = render_videos(scenes, self.num_frames)
        frames = fit_pictures(x.reshape(-1, *x.shape[2:]), self.image_size, self.channels, 255)
        return ArrayExamples({"x": frames.reshape(*x.shape[:2], *frames.shape[1:])}), [
            (scene.motion.caption(),) for scene in scenes
        ]

    def documents(self, split: str) -> list[str]:
        return lexicon()

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes one GIF that shows all videos side by side."""
        path = with_ending(stem, ".gif")
        write_gif(self.to_unit(samples), path, self.frames_per_second)
        return [path]

    def protocol(self) -> str:
        return f"{super().protocol()}, {self.num_frames} frames"
