"""Piano rolls: which of 88 notes sound in each time step; JSB chorales, or embedded chords that are put together.

Samples are written as MIDI files, and as one picture.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data.base import ArrayExamples, Data, DataError, Examples, check_split
from genjax.data.images import write_grid
from genjax.model import example_keys

NUM_NOTES = 88
LOWEST_NOTE = 21  # MIDI number of column 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PianoRolls(Data):
    """Rolls `x` float32 [B, T, 88] of zeros and ones, padded at the end, with `mask` bool [B, T].

    Attributes:
      name: chords, which is embedded; or jsb_chorales, the file jsb_chorales.npz at data.dir.
      max_frames: longer pieces are cut into parts of this length; None pads all to the longest.
      transpose: shift training pieces by up to so many semitones up or down at random; 0 for none.
    """

    name: str = "chords"
    max_frames: int | None = None
    transpose: int = 0

    def rolls(self, split: str) -> list[np.ndarray]:
        """Pieces of a split, each uint8 [T, 88]."""
        check_split(split, ("train", "validation", "test"), self.name)
        if self.name == "chords":
            return _chords(split)
        if self.name != "jsb_chorales":
            raise DataError(f"data.name={self.name} is not a set of piano rolls: chords, jsb_chorales")
        path = Path(self.dir or ".").expanduser()
        path = path if path.is_file() else path / "jsb_chorales.npz"
        if not path.is_file():
            raise DataError(f"there is no file {path}; say with --data.dir where jsb_chorales.npz lies")
        name = {"validation": "valid"}.get(split, split)
        with np.load(path) as content:
            roll, lengths = content[f"{name}_roll"], content[f"{name}_lengths"]
        if roll.shape[1] != NUM_NOTES or not np.isin(roll, (0, 1)).all():
            raise DataError(f"{path} does not hold rolls of {NUM_NOTES} notes of zeros and ones")
        return np.split(roll, np.cumsum(lengths)[:-1])

    @property
    def _num_frames(self) -> int:
        if self.max_frames is not None:
            return self.max_frames
        return max(len(roll) for split in ("train", "validation", "test") for roll in self.rolls(split))

    def load_split(self, split: str) -> Examples:
        size = self._num_frames
        parts = [roll[i : i + size] for roll in self.rolls(split) for i in range(0, len(roll), size)]
        x = np.zeros((len(parts), size, NUM_NOTES), np.uint8)
        for row, part in zip(x, parts):
            row[: len(part)] = part
        return ArrayExamples({"x": x, "num_frames": np.array([len(p) for p in parts], np.int32)})

    def spec(self) -> dict[str, Any]:
        """data_shape (T, 88)."""
        return {"data_shape": (self._num_frames, NUM_NOTES)}

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        if not self.transpose:
            return batch
        keys = example_keys(key, batch)

        def shifted(roll: jax.Array, key: jax.Array) -> jax.Array:
            shift = jax.random.randint(key, (), -self.transpose, self.transpose + 1)
            sounding = roll.any(0)
            low, high = sounding.argmax(), NUM_NOTES - 1 - sounding[::-1].argmax()
            # Nothing leaves the keyboard.
            shift = jnp.clip(shift, -low, NUM_NOTES - 1 - high)
            return jnp.roll(roll, shift, axis=1)

        return {**batch, "x": jax.vmap(shifted)(batch["x"], keys)}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        x = batch["x"].astype(jnp.float32)
        return {**batch, "x": x, "mask": jnp.arange(x.shape[1])[None] < batch["num_frames"][:, None]}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes a picture of all rolls, and a MIDI file of each of the first eight."""
        rolls = np.asarray(samples) > 0.5
        picture = Path(stem).with_suffix(".png")
        write_grid(rolls.swapaxes(1, 2)[:, ::-1, :, None].astype(np.float32), picture, num_columns=4)
        paths = [picture]
        for i, roll in enumerate(rolls[:8]):
            paths.append(Path(f"{stem}_{i}.mid"))
            paths[-1].write_bytes(midi(roll))
        return paths

    def protocol(self) -> str:
        return f"piano rolls of {NUM_NOTES} notes, nats summed over notes, every frame from the first on"


def _chords(split: str) -> list[np.ndarray]:
    """Cadences in major and minor keys with one chord for one to three frames."""
    rng = np.random.default_rng({"train": 0, "validation": 1, "test": 2}[split])
    rolls = []
    for _ in range(64 if split == "train" else 16):
        root, minor, frames = rng.integers(24, 36), rng.random() < 0.5, []
        for degree in (0, *rng.choice([5, 7, 9, 2], 3), 7, 0):
            frame = np.zeros(NUM_NOTES, np.uint8)
            frame[[root + degree - 12, root + degree, root + degree + (3 if minor else 4), root + degree + 7]] = 1
            frames += [frame] * int(rng.integers(1, 4))
        rolls.append(np.stack(frames))
    return rolls


def midi(roll: np.ndarray, ticks_per_frame: int = 480) -> bytes:
    """A MIDI file of one track, in which a note that sounds on is held.

    Args:
      roll: bool [T, 88].
      ticks_per_frame: length of a frame; 480 are a quarter note.

    Raises:
      ValueError: the roll has another number of notes.
    """
    if roll.ndim != 2 or roll.shape[1] != NUM_NOTES:
        raise ValueError(f"a roll has the shape (frames, {NUM_NOTES}), and this one {roll.shape}")
    padded = np.concatenate([np.zeros((1, NUM_NOTES), bool), roll.astype(bool), np.zeros((1, NUM_NOTES), bool)])
    track, waiting = bytearray(), 0
    for frame in range(1, len(padded)):
        for status, notes in ((0x80, padded[frame - 1] & ~padded[frame]), (0x90, padded[frame] & ~padded[frame - 1])):
            for note in np.flatnonzero(notes):
                track += _variable_length(waiting) + bytes([status, LOWEST_NOTE + int(note), 80])
                waiting = 0
        waiting += ticks_per_frame
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def _variable_length(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(0x80 | (value & 0x7F))
    return bytes(reversed(parts))
