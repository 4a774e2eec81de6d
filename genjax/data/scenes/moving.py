"""Scenes that move: one thing goes straight through the frames of a video, as the caption says.

    a SIZE COLOUR SHAPE moves left | right | up | down

The judge reads each frame as a picture (judge.py).  The thing is right if every frame shows it and nothing else; the
direction is right if the way from the first frame to the last is along it, and no step is against it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from genjax.data.base import DataError, check_split
from genjax.data.scenes import judge
from genjax.data.scenes.grammar import COLOURS, HELD_OUT_PAIRS, SHAPES, SIZES, Kind, Scene, Thing, parse
from genjax.data.scenes.making import EDGE, draw_kind
from genjax.data.scenes.pictures import SIDE, extent, render

#: Each direction as steps to the right and down.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPLITS = ("train", "validation", "test", "held_out_pairs")
#: Pixels that a thing goes from the first frame to the last.
DISTANCE = 12
_WORD = "moves"


@dataclasses.dataclass(frozen=True)
class Motion:
    """What a caption of a video says.

    Attributes:
      kind: the thing.
      direction: one of DIRECTIONS.
    """

    kind: Kind
    direction: str

    def caption(self) -> str:
        """The motion in words."""
        return f"{self.kind} {_WORD} {self.direction}"


@dataclasses.dataclass(frozen=True)
class MovingScene:
    """A video.

    Attributes:
      motion: what moves, and where to.
      start: the thing in the first frame.
      ground: brightness of the ground.
    """

    motion: Motion
    start: Thing
    ground: float

    def frames(self, num_frames: int) -> list[Scene]:
        """The scene of each frame."""
        right, down = DIRECTIONS[self.motion.direction]
        ways = [round(DISTANCE * i / max(num_frames - 1, 1)) for i in range(num_frames)]
        moved = [self.start._replace(x=self.start.x + right * way, y=self.start.y + down * way) for way in ways]
        return [Scene((thing,), self.ground) for thing in moved]


def make_moving_scene(split: str, seed: int, index: int) -> MovingScene:
    """The video of a split with this seed and index; directions take turns.

    Raises:
      DataError: there is no such split.
    """
    check_split(split, SPLITS, "moving scenes")
    rng = np.random.default_rng([2000 + SPLITS.index(split), seed, index])
    kind = draw_kind(rng)
    if split == "held_out_pairs":
        kind = Kind(kind.size, *HELD_OUT_PAIRS[rng.integers(len(HELD_OUT_PAIRS))])
    direction = tuple(DIRECTIONS)[index % len(DIRECTIONS)]
    side, up, down = extent(kind)
    centre = []
    for before, behind, step in zip((side, up), (side, down), DIRECTIONS[direction]):
        # Room for the whole way, wherever it leads.
        first = math.ceil(before + EDGE - 0.5) + (DISTANCE if step < 0 else 0)
        last = math.floor(SIDE - behind - EDGE - 0.5) - (DISTANCE if step > 0 else 0)
        centre.append(float(rng.integers(first, last + 1)) + 0.5)
    return MovingScene(Motion(kind, direction), Thing(kind, *centre), round(float(rng.uniform(0.0, 0.25)), 4))


def render_videos(scenes: Sequence[MovingScene], num_frames: int) -> np.ndarray:
    """Videos uint8 [N, T, SIDE, SIDE, 3]."""
    pictures = render([frame for scene in scenes for frame in scene.frames(num_frames)])
    return pictures.reshape(len(scenes), num_frames, *pictures.shape[1:])


def lexicon() -> list[str]:
    """Captions that together have every word."""
    kinds = [Kind(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES]
    return [Motion(kind, direction).caption() for kind in kinds for direction in DIRECTIONS]


def parse_motion(text: str) -> Motion:
    """What a caption of a video says.

    Raises:
      DataError: it is no such caption.
    """
    before, word, direction = text.partition(f" {_WORD} ")
    if not word or direction not in DIRECTIONS:
        raise DataError(f"{text!r} is no caption of moving scenes, such as 'a small red circle moves left'")
    return Motion(parse(before).kinds[0], direction)


def rates(videos: np.ndarray, motions: Sequence[Motion]) -> dict[str, float]:
    """Shares of videos [N, T, SIDE, SIDE, 3] of brightness in [0, 1] that are as described.

    Returns:
      `parsed`, every frame shows a scene; `things`, every frame shows the right thing and no other; `direction`, every
      frame shows one thing, which goes as described; and `all` of these.
    """
    count, num_frames = videos.shape[:2]
    read = list(judge.things_of(judge.analyse(videos.reshape(-1, *videos.shape[2:]))))
    rows = []
    for i, motion in enumerate(motions):
        frames = read[i * num_frames : (i + 1) * num_frames]
        parsed = all(things is not None for things in frames)
        alone = parsed and all(len(things) == 1 for things in frames)
        right_thing = alone and all(things[0].kind == motion.kind for things in frames)
        places = np.array([(things[0].x, things[0].y) for things in frames]) if alone else np.zeros((num_frames, 2))
        right_way = alone and goes(places, motion.direction)
        rows.append((parsed, right_thing, right_way, right_thing and right_way))
    means = np.array(rows, float).reshape(count, 4).mean(0)
    return dict(zip(("parsed", "things", "direction", "all"), map(float, means)))


def goes(places: np.ndarray, direction: str) -> bool:
    """Whether places [T, 2], right and down in pixels, go in a direction.

    They go half of DISTANCE or more along it and less across it, and no step is more than a pixel back.
    """
    along = places @ np.array(DIRECTIONS[direction], float)
    way = places[-1] - places[0]
    across = np.abs(way).sum() - np.abs(along[-1] - along[0])
    return bool(along[-1] - along[0] >= DISTANCE / 2 > across and (np.diff(along) > -1.0).all())
