"""Clips of sound with what is said in them: made tunes, spoken digits, or a folder of WAV files.

A folder has a list texts.jsonl (or metadata.jsonl), a line for each file; the speaker may be left out:

    {"file_name": "a.wav", "text": "seven", "speaker": "jackson"}
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.batch import example_keys
from genjax.data.audio import common_sample_rate, read_wav, wav_files
from genjax.data.base import ArrayExamples, DataError, check_any_files, check_split, split_files
from genjax.data.files import archive, read_objects, with_ending
from genjax.data.images import write_grid
from genjax.data.log_mel import log_mel, num_frames
from genjax.data.text.base import DelimitedText
from genjax.data.text.labelled import write_lines
from genjax.data.training_files import save_training_files

_logger = logging.getLogger(__name__)

LISTS = ("texts.jsonl", "metadata.jsonl")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Notes of made tunes in Hz.
NOTES = {"do": 261.6, "re": 293.7, "mi": 329.6, "fa": 349.2, "sol": 392.0}
_SAMPLE_RATE = 8000
_FULL_SCALE = 32767.0


class Spoken(NamedTuple):
    """The clips of a split.

    Attributes:
      sounds: int16 waveforms.
      texts: what is said in each.
      speakers: who says it; None if nobody is named.
    """

    sounds: list[np.ndarray]
    texts: list[str]
    speakers: list[str] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpokenTexts(DelimitedText):
    """Log-mel features `x` [B, F, M] of clips with their texts: `tokens` int32 [B, T] and `mask`.

    Each row is a start token, the text and an end token.  Changes at random are made of the waveform, in training only.

    Attributes:
      name: tunes (made; one to four notes, and their names are the text); spoken_digits, the file fsdd.npz at data.dir;
        or folder, 16-bit WAV files with one sample rate and a list of their texts at data.dir.
      sequence_length: tokens T of a text with its start and end; longer ones are cut.
      num_samples: length of clips; longer ones are cut and shorter ones padded with silence, both at the end.
      num_mels: mel bands M of each frame of 10 milliseconds.
      stretch: largest change of the speed, and with it of the pitch, as a share of it.
      shift: largest shift, as a share of the clip's length.
      noise: largest standard deviation of added noise, in [0, 1].
      silenced: largest length of a stretch of silence in the clip, as a share of the clip's length.
      num_made: training clips of tunes.
      num_held_out: clips of each other split of tunes.
    """

    flag_name: ClassVar[str] = "spoken_texts"

    name: str = "tunes"
    tokenizer: Literal["characters", "bytes", "words", "bpe", "unigram"] = "characters"
    sequence_length: int = 24
    num_samples: int = 8192
    num_mels: int = 40
    stretch: float = 0.0
    shift: float = 0.0
    noise: float = 0.0
    silenced: float = 0.0
    num_made: int = 2000
    num_held_out: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"sequence_length": 3, "num_samples": 1000, "num_mels": 1, "num_made": 1, "num_held_out": 1}
        for field, number in least.items():
            if getattr(self, field) < number:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least {number}")
        for field in ("stretch", "shift", "noise", "silenced"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise DataError(f"data.{field}={getattr(self, field)} must lie in [0, 1)")

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def read(self, split: str) -> Spoken:
        """The clips of a split, their texts and speakers.

        Raises:
          DataError: there is no such split, or it cannot be read.
        """
        return _read(self, split)

    def documents(self, split: str) -> list[str]:
        return list(NOTES) if self.name == "tunes" and self.tokenizer == "words" else self.read(split).texts

    def references(self, split: str) -> list[tuple[str, ...]]:
        """What is said in each clip of a split."""
        return [(text,) for text in self.read(split).texts]

    def load_split(self, split: str) -> ArrayExamples:
        clips = self.read(split)
        encoded = [self.make_tokenizer().encode(text) for text in clips.texts]
        rows = [[self.start_token, *self.framed(ids, self.sequence_length - 1)] for ids in encoded]
        cut = sum(len(self.framed(ids)) > self.sequence_length - 1 for ids in encoded)
        if cut:
            _logger.warning(
                "%d of %d texts of %s are longer than data.sequence_length=%d tokens and are cut",
                cut, len(rows), split, self.sequence_length,
            )  # fmt: skip
        tokens, mask = self.pad(rows, self.sequence_length)
        return ArrayExamples({"x": self._cut(clips.sounds), "tokens": tokens, "mask": mask})

    def _cut(self, sounds: Sequence[np.ndarray]) -> np.ndarray:
        x = np.zeros((len(sounds), self.num_samples), np.int16)
        for row, sound in zip(x, sounds):
            row[: len(sound)] = sound[: self.num_samples]
        return x

    @property
    def sample_rate(self) -> int:
        """Samples a second; for a folder, the rate of its files."""
        return common_sample_rate(wav_files(self.dir)) if self.name == "folder" else _SAMPLE_RATE

    def spec(self) -> dict[str, Any]:
        """data_shape (F, M); vocab_size and special tokens, sequence_length T."""
        shape = (num_frames(self.num_samples, self.sample_rate), self.num_mels)
        return {**super().spec(), "data_shape": shape, "sequence_length": self.sequence_length}

    def save(self, workdir: Path) -> None:
        """Writes the tokenizer into the run's directory, and of a folder the list of training files."""
        super().save(workdir)
        if self.name == "folder":
            root = buckets.folder(self.dir)
            save_training_files(workdir, {root: split_files(wav_files(self.dir), root, "train", "folder")})

    # ------------------------------------------------------------------------------------------------------------------
    # On the device

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        if not (self.stretch or self.shift or self.noise or self.silenced):
            return batch
        return {**batch, "x": jax.vmap(self._changed)(batch["x"], example_keys(key, batch))}

    def _changed(self, sound: jax.Array, key: jax.Array) -> jax.Array:
        """A clip [L], changed at random, in levels of 16 bits."""
        length = self.num_samples
        speed, moved, place, size, level, normal = jax.random.split(key, 6)
        uniform = lambda k, low, high: jax.random.uniform(k, (), minval=low, maxval=high)
        place_of = jnp.arange(length)
        source = place_of * uniform(speed, 1.0 - self.stretch, 1.0 + self.stretch)
        source = source - uniform(moved, -self.shift, self.shift) * length
        sound = jnp.interp(source, place_of, sound.astype(jnp.float32), left=0.0, right=0.0)
        start, long = uniform(place, 0.0, 1.0) * length, uniform(size, 0.0, self.silenced) * length
        sound = jnp.where((place_of >= start) & (place_of < start + long), 0.0, sound)
        return sound + _FULL_SCALE * uniform(level, 0.0, self.noise) * jax.random.normal(normal, (length,))

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        del key
        sound = batch["x"].astype(jnp.float32) / _FULL_SCALE
        return {**batch, "x": log_mel(sound, self.num_mels, self.sample_rate)}

    # ------------------------------------------------------------------------------------------------------------------
    # For tools

    def read_sound(self, file: str | Path) -> jax.Array:
        """A WAV file as models of this data hear it, float32 [1, F, M].

        Raises:
          DataError: the file cannot be read, or has another sample rate than the data.
        """
        sound, rate = read_wav(Path(file).expanduser())
        if rate != self.sample_rate:
            raise DataError(f"{file} has {rate} samples a second, and the model hears {self.sample_rate}; resample it")
        return self.transform({"x": jnp.asarray(self._cut([sound]))}, jax.random.key(0))["x"]

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes texts [N, T] as lines."""
        return write_lines(stem, [self.decode(row) for row in samples])

    def write_answers(self, batch: dict[str, np.ndarray], answers: np.ndarray, stem: Path) -> list[Path]:
        """Writes the features of a batch as one PNG, low notes at the bottom, and a text with a line for each clip:
        what was written [N, T], and after a tab what is said.
        """
        lines = [f"{self.decode(row)}\t{self.decode(true)}" for row, true in zip(answers, np.asarray(batch["tokens"]))]
        pictures = np.clip((np.asarray(batch["source"]).swapaxes(1, 2)[:, ::-1, :, None] + 1.0) / 2.0, 0.0, 1.0)
        write_grid(pictures, with_ending(stem, ".png"))
        return [*write_lines(stem, lines), with_ending(stem, ".png")]

    def protocol(self) -> str:
        own = f"{self.num_samples} samples at {self.sample_rate} Hz as {self.num_mels} mel bands"
        return f"{own}, tokenizer {self.tokenizer_name}, texts cut at {self.sequence_length} tokens"


@functools.lru_cache(maxsize=8)
def _read(data: SpokenTexts, split: str) -> Spoken:
    check_split(split, ("train", "validation", "test"), data.name)
    match data.name:
        case "tunes":
            return _tunes(np.random.default_rng(sum(split.encode())), data, split)
        case "spoken_digits":
            return _spoken_digits(data.dir, split)
        case "folder":
            return _folder(data.dir, split)
    raise DataError(f"data.name={data.name} is no set of spoken texts: tunes, spoken_digits, folder")


def _tunes(rng: np.random.Generator, data: SpokenTexts, split: str) -> Spoken:
    count = data.num_made if split == "train" else data.num_held_out
    sounds, texts = [], []
    for _ in range(count):
        names = [list(NOTES)[i] for i in rng.integers(0, len(NOTES), 1 + int(rng.integers(4)))]
        pieces = [np.zeros(int(rng.integers(0, 800)))]
        for name in names:
            time = np.arange(int(rng.integers(1000, 1600))) / _SAMPLE_RATE
            harmonics = np.arange(1, 4)[:, None]
            wave = (np.sin(2 * np.pi * harmonics * NOTES[name] * time) / harmonics).sum(0) * np.exp(-12.0 * time)
            pieces.append(rng.uniform(0.2, 0.5) * wave)
        sounds.append(np.round(np.concatenate(pieces) * _FULL_SCALE).astype(np.int16))
        texts.append(" ".join(names))
    return Spoken(sounds, texts, None)


def _spoken_digits(directory: str | None, split: str) -> Spoken:
    with np.load(archive(directory, "fsdd.npz")) as content:
        audio, offsets, label, speaker = (content[name] for name in ("audio", "offsets", "label", "speaker"))
        names = content["speaker_names"].tolist()
        is_test, is_validation = content["is_test"], ~content["is_test"] & (content["take"] >= 45)
    rows = np.flatnonzero({"test": is_test, "validation": is_validation, "train": ~is_test & ~is_validation}[split])
    sounds = [audio[offsets[i] : offsets[i + 1]] for i in rows]
    return Spoken(sounds, [DIGITS[label[i]] for i in rows], [names[speaker[i]] for i in rows])


def _folder(directory: str | None, split: str) -> Spoken:
    files = wav_files(directory)
    common_sample_rate(files)
    root = buckets.folder(directory)
    entries = _listed(root)
    chosen = split_files(files, root, split, "folder")
    check_any_files(chosen, len(files), root, split)
    missing = [file for file in chosen if file.resolve() not in entries]
    if missing:
        raise DataError(f"the list of texts in {root} has no text of {missing[0].relative_to(root)}")
    found = [entries[file.resolve()] for file in chosen]
    speakers = [speaker for _, speaker in found]
    named = None if None in speakers else speakers
    return Spoken([read_wav(file)[0] for file in chosen], [text for text, _ in found], named)


def _listed(root: Path) -> dict[Path, tuple[str, str | None]]:
    """Text and speaker of each file of a folder's list."""
    file = next((root / name for name in LISTS if (root / name).is_file()), None)
    if file is None:
        raise DataError(f"{root} has none of {', '.join(LISTS)}, which says what is spoken in its WAV files")
    found: dict[Path, tuple[str, str | None]] = {}
    like = '{"file_name": "a.wav", "text": "seven"}'
    for _, entry in read_objects(file, like, ("file_name", "text")):
        name, text, speaker = entry["file_name"], entry["text"], entry.get("speaker")
        if not str(text).strip():
            raise DataError(f"{file} has an empty text of {name}")
        if not (root / name).is_file():
            raise DataError(f"{file} has a text of {name}, and there is no such file in {root}")
        path = (root / name).resolve()
        if path in found:
            raise DataError(f"{file} has two texts of {name}; keep one")
        found[path] = (" ".join(str(text).split()), None if speaker is None else str(speaker))
    return found
