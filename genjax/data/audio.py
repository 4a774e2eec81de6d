"""Sound: embedded tones, spoken digits, or a folder of WAV files; samples become a WAV file and its spectrograms."""

from __future__ import annotations

import dataclasses
import wave
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, Data, DataError, check_any_files, check_split, split_files
from genjax.data.files import archive, files_below, with_ending
from genjax.data.images import write_grid
from genjax.data.training_files import save_training_files
from genjax.errors import reason_of

TONE_CLASSES = ("sine", "square", "sawtooth", "chirp", "plucked")
_SAMPLE_RATE = 8000
_FULL_SCALE = 32767


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waveforms(Data):
    """Mono waveforms `x` [B, L, 1] in [-1, 1], with classes `label` [B] where the set has them.

    Attributes:
      name: tones (embedded, with the classes sine, square, sawtooth, chirp and plucked); spoken_digits, the file
        fsdd.npz at data.dir; or folder, 16-bit WAV files with one sample rate at data.dir.
      num_samples: length L; longer recordings are cut and shorter ones padded with silence, both at the end.
      num_train: number of tones in the training set; validation and test have a tenth as many.
    """

    name: str = "tones"
    num_samples: int = 2048
    num_train: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("num_samples", "num_train"):
            if getattr(self, field) < 16:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least 16")

    def load_split(self, split: str) -> ArrayExamples:
        check_split(split, ("train", "validation", "test"), self.name)
        match self.name:
            case "tones":
                count = self.num_train if split == "train" else self.num_train // 10
                x, label = tones(np.random.default_rng(sum(split.encode())), count, self.num_samples)
                return ArrayExamples({"x": x[..., None], "label": label})
            case "spoken_digits":
                return self._spoken_digits(split)
            case "folder":
                return self._folder(split)
        raise DataError(f"data.name={self.name} is not a set of waveforms: tones, spoken_digits, folder")

    def _cut(self, recordings: list[np.ndarray]) -> np.ndarray:
        x = np.zeros((len(recordings), self.num_samples, 1), np.int16)
        for row, recording in zip(x, recordings):
            recording = recording[: self.num_samples]
            row[: len(recording), 0] = recording
        return x

    def _spoken_digits(self, split: str) -> ArrayExamples:
        with np.load(archive(self.dir, "fsdd.npz")) as content:
            audio, offsets, label = content["audio"], content["offsets"], content["label"]
            is_test, is_validation = content["is_test"], ~content["is_test"] & (content["take"] >= 45)
        rows = np.flatnonzero({"test": is_test, "validation": is_validation, "train": ~is_test & ~is_validation}[split])
        x = self._cut([audio[offsets[i] : offsets[i + 1]] for i in rows])
        return ArrayExamples({"x": x, "label": label[rows].astype(np.int32)})

    def _folder(self, split: str) -> ArrayExamples:
        files = wav_files(self.dir)
        common_sample_rate(files)
        root = buckets.folder(self.dir)
        chosen = split_files(files, root, split, "folder")
        check_any_files(chosen, len(files), root, split)
        return ArrayExamples({"x": self._cut([read_wav(file)[0] for file in chosen])})

    def save(self, workdir: Path) -> None:
        """Writes the list of training files of a folder into the run's directory, if it is not there yet.

        Raises:
          DataError: the run was trained on other files.
        """
        if self.name == "folder":
            root = buckets.folder(self.dir)
            save_training_files(workdir, {root: split_files(wav_files(self.dir), root, "train", "folder")})

    def label_names(self) -> tuple[str, ...]:
        return {"tones": TONE_CLASSES, "spoken_digits": tuple(map(str, range(10)))}.get(self.name, ())

    @property
    def sample_rate(self) -> int:
        """Samples a second; for a folder, the rate of its first file.

        Raises:
          DataError: the files of a folder differ.
        """
        if self.name != "folder":
            return _SAMPLE_RATE
        return common_sample_rate(wav_files(self.dir))

    def spec(self) -> dict[str, Any]:
        """data_shape (L, 1), range, which the levels of 16 bits are taken to fill, and num_classes
        of a labelled set.
        """
        classes = {"num_classes": len(self.label_names())} if self.label_names() else {}
        return {"data_shape": (self.num_samples, 1), "range": (-1.0, 1.0), "num_levels": None, **classes}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        del key
        return {**batch, "x": batch["x"].astype(jnp.float32) / _FULL_SCALE}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes one WAV file, a quarter second of silence between samples, and one PNG with their spectrograms."""
        waves = np.clip(np.asarray(samples, np.float32)[..., 0], -1.0, 1.0)
        rate = self.sample_rate
        silence = np.zeros((len(waves), rate // 4), np.float32)
        sound, picture = with_ending(stem, ".wav"), with_ending(stem, ".png")
        write_wav(np.concatenate([waves, silence], axis=1).ravel(), sound, rate)
        # Low notes at the bottom.
        write_grid(np.stack([spectrogram(w)[::-1, :, None] for w in waves]), picture)
        return [sound, picture]

    def protocol(self) -> str:
        return f"{self.num_samples} samples of mono sound in [-1, 1]"


def tones(rng: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tones of the classes `TONE_CLASSES` with random pitch (110 to 880 Hz at 8 kHz), loudness, attack and decay.

    Returns:
      int16 [count, length] and classes int32 [count].
    """
    label = rng.integers(0, len(TONE_CLASSES), count).astype(np.int32)
    time = np.arange(length) / _SAMPLE_RATE  # [L] seconds
    pitch = 110.0 * 2.0 ** rng.uniform(0.0, 3.0, (count, 1))
    turns = pitch * time + rng.random((count, 1))
    harmonics = np.arange(1, 5)[:, None, None]  # so that no harmonic lies above half the sample rate
    waves = {
        "sine": np.sin(2 * np.pi * turns),
        "square": (np.sin(2 * np.pi * (2 * harmonics[:2] - 1) * turns) / (2 * harmonics[:2] - 1)).sum(0),
        "sawtooth": 0.7 * (np.sin(2 * np.pi * harmonics * turns) / harmonics).sum(0),
        "chirp": np.sin(2 * np.pi * turns * (1.0 + time / time[-1])),
        "plucked": (np.sin(2 * np.pi * harmonics * turns) * np.exp(-12.0 * harmonics * time) / harmonics).sum(0),
    }
    x = np.stack([waves[name] for name in TONE_CLASSES])[label, np.arange(count)]
    attack, decay = rng.uniform(0.002, 0.02, (count, 1)), rng.uniform(1.0, 6.0, (count, 1))
    envelope = np.minimum(time / attack, 1.0) * np.exp(-decay * time)
    x = rng.uniform(0.3, 0.8, (count, 1)) * envelope * x
    return np.round(np.clip(x, -1.0, 1.0) * _FULL_SCALE).astype(np.int16), label


def wav_files(directory: str | None) -> list[Path]:
    """WAV files below a directory, in order.

    Raises:
      DataError: there are none.
    """
    if directory is None:
        raise DataError("data.name=folder needs --data.dir, a folder of WAV files")
    files = files_below(buckets.folder(directory), (".wav",))
    if not files:
        raise DataError(f"there is no WAV file below {directory}")
    return files


def common_sample_rate(files: list[Path]) -> int:
    """The sample rate of WAV files.

    Raises:
      DataError: they differ, or one cannot be read.
    """
    rates = {read_wav(path)[1] for path in files}
    if len(rates) > 1:
        raise DataError(f"the WAV files beside {files[0]} have different sample rates: {sorted(rates)}")
    return rates.pop()


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Reads a 16-bit WAV file; channels are averaged.

    Returns:
      int16 [L] and the sample rate.

    Raises:
      DataError: it is not such a file.
    """
    try:
        with wave.open(str(path)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as a WAV file: {reason_of(error)}") from None
    if width != 2:
        raise DataError(f"{path} has {8 * width} bits a sample; convert it to 16")
    samples = np.frombuffer(content, "<i2").reshape(-1, channels)
    return np.round(samples.mean(1)).astype(np.int16), rate


def write_wav(samples: np.ndarray, path: Path, sample_rate: int) -> None:
    """Writes a waveform [L] in [-1, 1] as a 16-bit mono WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(np.clip(samples, -1.0, 1.0) * _FULL_SCALE).astype("<i2").tobytes())


def spectrogram(samples: np.ndarray, window: int = 128, hop: int = 32) -> np.ndarray:
    """Magnitudes of the short-time Fourier transform of a waveform [L] in dB, from -80 (0) to its maximum (1).

    Returns:
      [window / 2 + 1 frequencies, frames].
    """
    padded = np.pad(samples, window // 2)
    starts = np.arange(0, len(padded) - window + 1, hop)
    frames = padded[starts[:, None] + np.arange(window)] * np.hanning(window)
    magnitude = np.abs(np.fft.rfft(frames, axis=1)).T
    decibels = 20.0 * np.log10(np.maximum(magnitude, 1e-10))
    return np.clip(1.0 + (decibels - decibels.max()) / 80.0, 0.0, 1.0)
