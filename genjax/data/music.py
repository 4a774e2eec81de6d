"""Piano rolls: which of 88 notes sound in each time step; JSB chorales, MIDI files, or embedded chords that are put
together.

Samples are written as MIDI and WAV files, and as one picture.  `NoteEvents` are the same pieces as token sequences.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.batch import example_keys
from genjax.data.base import ArrayExamples, Data, DataError, Examples, check_split, split_files
from genjax.data.files import files_below, with_ending
from genjax.data.images import write_grid
from genjax.data.midi import NUM_NOTES, midi, read_midi, synthesize, wav

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PianoRolls(Data):
    """Rolls `x` float32 [B, T, 88] of zeros and ones, padded at the end, with `mask` bool [B, T].

    Attributes:
      name: chords, which is embedded; jsb_chorales, the file jsb_chorales.npz at data.dir; or midi, the MIDI files
        under the folder data.dir.
      max_frames: pieces longer than this are cut into parts of this length; None pads all pieces to the longest.
      transpose: largest random shift of training pieces, up or down, in semitones; 0 for none.
      frames_per_quarter: frames of a quarter note of MIDI files.
      skip_unreadable: leave out MIDI files that cannot be read or have no notes, and count and name them in the log.
    """

    name: str = "chords"
    max_frames: int | None = None
    transpose: int = 0
    frames_per_quarter: int = 1
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transpose < 0:
            raise DataError(f"data.transpose={self.transpose} must not be negative; pieces are shifted both ways")
        for field in ("max_frames", "frames_per_quarter"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least 1")

    def rolls(self, split: str) -> list[np.ndarray]:
        """Pieces of a split, each uint8 [T, 88]."""
        check_split(split, ("train", "validation", "test"), self.name)
        if self.name == "chords":
            return _chords(split)
        if self.name == "midi":
            return list(_read_folder(self.dir, split, self.frames_per_quarter, self.skip_unreadable))
        if self.name != "jsb_chorales":
            raise DataError(f"data.name={self.name} is not a set of piano rolls: chords, jsb_chorales, midi")
        path = buckets.folder(self.dir or ".")
        path = path if path.is_file() else path / "jsb_chorales.npz"
        if not path.is_file():
            raise DataError(f"there is no file {path}; say with --data.dir where jsb_chorales.npz lies")
        name = {"validation": "valid"}.get(split, split)
        try:
            with np.load(path) as content:
                roll, lengths = content[f"{name}_roll"], content[f"{name}_lengths"]
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not the file jsb_chorales.npz, or it is damaged ({error})") from None
        if roll.shape[1] != NUM_NOTES or not np.isin(roll, (0, 1)).all():
            raise DataError(f"{path} does not hold rolls of {NUM_NOTES} notes of zeros and ones")
        return np.split(roll, np.cumsum(lengths)[:-1])

    @property
    def _num_frames(self) -> int:
        if self.max_frames is not None:
            return self.max_frames
        return max(len(roll) for split in ("train", "validation", "test") for roll in self.rolls(split))

    def _parts(self, split: str) -> list[np.ndarray]:
        size = self._num_frames
        return [roll[i : i + size] for roll in self.rolls(split) for i in range(0, len(roll), size)]

    def load_split(self, split: str) -> Examples:
        size, parts = self._num_frames, self._parts(split)
        x = np.zeros((len(parts), size, NUM_NOTES), np.uint8)
        for row, part in zip(x, parts):
            row[: len(part)] = part
        return ArrayExamples({"x": x, "num_frames": np.array([len(p) for p in parts], np.int32)})

    def spec(self) -> dict[str, Any]:
        """data_shape (T, 88), range and num_levels."""
        return {"data_shape": (self._num_frames, NUM_NOTES), "range": (0.0, 1.0), "num_levels": 2}

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
        """Writes a picture of all rolls, and a MIDI and a WAV file of each of the first eight."""
        return write_rolls(np.asarray(samples) > 0.5, stem)

    def protocol(self) -> str:
        return f"piano rolls of {NUM_NOTES} notes, nats summed over notes, every frame from the first on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoteEvents(PianoRolls):
    """Piano rolls as `tokens` int32 [B, T + 1]: the start, then the notes of each frame from low to high and its end.

    Tokens 0 .. 87 are notes, 88 ends a frame, 89 is the start and fills up.  `mask` is False at the filling.  With
    `num_frames` [B] evaluations compute nats per frame.  They are comparable with nats per frame of piano rolls, and
    never too
    good: a model that gives a piece's tokens the probability p gives its roll at least the probability p.

    Attributes:
      crop: number of tokens of a training example, cut from a piece at a random place; None for whole pieces.
    """

    crop: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop is not None and self.crop < 1:
            raise DataError(f"data.crop={self.crop} must be at least 1, or none")

    def load_split(self, split: str) -> Examples:
        rows = [events(roll) for roll in self._parts(split)]
        length = self.spec()["sequence_length"]
        tokens = np.full((len(rows), length + 1), START, np.uint8)
        for place, row in zip(tokens, rows):
            place[1 : len(row) + 1] = row
        num_frames = np.array([(row == FRAME).sum() for row in rows], np.int32)
        return ArrayExamples(
            {"tokens": tokens, "num_events": np.array([len(r) for r in rows], np.int32), "num_frames": num_frames}
        )

    def spec(self) -> dict[str, Any]:
        """vocab_size, sequence_length and start_token."""
        splits = ("train", "validation", "test")
        longest = max(int(roll.sum()) + len(roll) for split in splits for roll in self._parts(split))
        return {"vocab_size": START + 1, "sequence_length": longest, "start_token": START}

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        keys = example_keys(key, batch)

        def change(tokens: jax.Array, size: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            shift_key, place_key = jax.random.split(key)
            notes = tokens < NUM_NOTES
            shift = jax.random.randint(shift_key, (), -self.transpose, self.transpose + 1)
            low = jnp.where(notes, tokens, NUM_NOTES).min()
            high = jnp.where(notes, tokens, 0).max()
            tokens = jnp.where(notes, tokens + jnp.clip(shift, -low, NUM_NOTES - 1 - high), tokens)
            if self.crop is None or self.crop >= tokens.shape[0] - 1:
                return tokens, size
            # Places before a piece count as its beginning, so that beginnings are learned as often.
            start = jax.random.randint(place_key, (), -self.crop // 4, jnp.maximum(size - self.crop, 0) + 1)
            start = jnp.maximum(start, 0)
            tokens = jax.lax.dynamic_slice_in_dim(tokens, start, self.crop + 1)
            return tokens, jnp.minimum(size - start, self.crop)

        tokens, size = jax.vmap(change)(batch["tokens"].astype(jnp.int32), batch["num_events"], keys)
        # Frames of a part are not counted: only whole pieces are evaluated per frame.
        batch = {name: a for name, a in batch.items() if name != "num_frames"} if self.crop else batch
        return {**batch, "tokens": tokens, "num_events": size}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        tokens = batch["tokens"].astype(jnp.int32)
        return {**batch, "tokens": tokens, "mask": jnp.arange(tokens.shape[1])[None] <= batch["num_events"][:, None]}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes a picture of all rolls, and a MIDI and a WAV file of each of the first eight."""
        rolls = [roll_of_events(row[1:]) for row in np.asarray(samples)]
        padded = np.zeros((len(rolls), max(1, *(len(roll) for roll in rolls)), NUM_NOTES), bool)
        for place, roll in zip(padded, rolls):
            place[: len(roll)] = roll
        return write_rolls(padded, stem)

    def protocol(self) -> str:
        return (
            f"piano rolls of {NUM_NOTES} notes as events, nats summed over notes and ends of frames, "
            "every frame from the first on"
        )


FRAME, START = NUM_NOTES, NUM_NOTES + 1  # tokens


def events(roll: np.ndarray) -> np.ndarray:
    """Tokens of a roll [T, 88]: the notes of each frame from low to high, and the frame's end; uint8."""
    marked = np.concatenate([roll > 0, np.ones((len(roll), 1), bool)], axis=1)
    return np.nonzero(marked)[1].astype(np.uint8)


def roll_of_events(tokens: np.ndarray) -> np.ndarray:
    """The roll bool [T, 88] of tokens; a last frame without an end is left out, and so are starts."""
    tokens = np.asarray(tokens)
    ends = np.cumsum(tokens == FRAME)
    roll = np.zeros((int(ends[-1]) if len(ends) else 0, NUM_NOTES), bool)
    notes = (tokens < NUM_NOTES) & (ends < len(roll))
    roll[ends[notes], tokens[notes]] = True
    return roll


def write_rolls(rolls: np.ndarray, stem: Path) -> list[Path]:
    """Writes a picture of rolls [N, T, 88], and a MIDI and a WAV file of each of the first eight."""
    paths = [with_ending(stem, ".png")]
    # Notes of four pixels can be told apart.
    pictures = rolls.swapaxes(1, 2)[:, ::-1, :, None].astype(np.float32).repeat(4, 1).repeat(4, 2)
    write_grid(pictures, paths[0], num_columns=2)
    for i, roll in enumerate(rolls[:8]):
        for suffix, content in ((".mid", midi(roll)), (".wav", wav(synthesize(roll)))):
            paths.append(Path(f"{stem}_{i}{suffix}"))
            paths[-1].write_bytes(content)
    return paths


@functools.lru_cache(maxsize=8)
def _read_folder(
    directory: str | None, split: str, frames_per_quarter: int, skip_unreadable: bool
) -> tuple[np.ndarray, ...]:
    """Rolls of the MIDI files of a split."""
    root = buckets.folder(directory or ".")
    files = files_below(root, (".mid", ".midi"))
    if not files:
        raise DataError(f"--data.dir={directory} is no folder with MIDI files (.mid, .midi)")
    # The split is decided first, so that leaving out a file moves no other file to another split.
    chosen = split_files(files, root, split, f"of MIDI files {directory}")
    rolls, skipped = [], []
    for file in chosen:
        try:
            rolls.append(_read_file(file, frames_per_quarter))
        except DataError as error:
            if not skip_unreadable:
                raise DataError(f"{error}; --data.skip_unreadable leaves such files out") from None
            skipped.append(str(error))
    if skipped:
        _logger.warning(
            "%d of %d MIDI files of the split %s are left out: %s", len(skipped), len(chosen), split, "; ".join(skipped)
        )
    if chosen and not rolls:
        raise DataError(f"none of the {len(chosen)} MIDI files of the split {split} can be used, for one: {skipped[0]}")
    return tuple(rolls)


def _read_file(file: Path, frames_per_quarter: int) -> np.ndarray:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    roll = read_midi(content, str(file), frames_per_quarter)
    if not len(roll):
        raise DataError(f"{file} has no notes but notes of drums, if any, which have no pitch")
    return roll


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
