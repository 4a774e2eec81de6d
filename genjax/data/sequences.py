"""Small sequence sets: made pairs of source and target tokens, and time series that are made or read as numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data.base import ArrayExamples, Data, DataError, Examples, check_split
from genjax.data.figures import empty_figure
from genjax.data.files import with_ending
from genjax.data.tables import read_table

_SIZES = {"train": 8192, "validation": 512, "test": 512}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPairs(Data):
    """Pairs `source` [B, S] with `source_mask`, and `tokens` [B, S + 2]: end token, target, end token, with `mask`.

    Attributes:
      name: how the target is made from the source: its reversal, its symbols sorted, or a copy.
      num_symbols: number of symbols.
      max_length: longest source; lengths are uniform from 1.
    """

    name: Literal["reversal", "sorting", "copy"] = "reversal"
    num_symbols: int = 16
    max_length: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("num_symbols", "max_length"):
            if getattr(self, field) < 1:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least 1")

    def load_split(self, split: str) -> Examples:
        check_split(split, tuple(_SIZES), self.name)
        rng = np.random.default_rng(list(_SIZES).index(split))
        count, size, end = _SIZES[split], self.max_length, self.num_symbols
        lengths = rng.integers(1, size + 1, count)
        source = rng.integers(0, end, (count, size)).astype(np.int32)
        source_mask = np.arange(size)[None] < lengths[:, None]
        source[~source_mask] = end
        tokens = np.full((count, size + 2), end, np.int32)
        change = {"reversal": lambda s: s[::-1], "sorting": np.sort, "copy": lambda s: s}[self.name]
        for row, symbols, length in zip(tokens, source, lengths):
            row[1 : length + 1] = change(symbols[:length])
        mask = np.arange(size + 2)[None] < lengths[:, None] + 2
        return ArrayExamples({"source": source, "source_mask": source_mask, "tokens": tokens, "mask": mask})

    def spec(self) -> dict[str, Any]:
        """vocab_size, sequence_length, start_token and end_token."""
        end = self.num_symbols
        return {"vocab_size": end + 1, "sequence_length": self.max_length + 1, "start_token": end, "end_token": end}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes the symbols of a sample as numbers, one sample a line."""
        path = with_ending(stem, ".txt")
        path.write_text("".join(self._show(row) + "\n" for row in np.asarray(samples)))
        return [path]

    def _show(self, row: np.ndarray) -> str:
        return " ".join(str(t) for t in row.tolist() if t < self.num_symbols)

    def write_answers(self, batch: dict[str, np.ndarray], answers: np.ndarray, stem: Path) -> list[Path]:
        """Writes the source of each example of a batch, its answer [B, T] and its target, with tabs between, a line
        each.
        """
        path = with_ending(stem, ".txt")
        rows = zip(np.asarray(batch["source"]), np.asarray(answers), np.asarray(batch["tokens"]))
        path.write_text("".join("\t".join(map(self._show, row)) + "\n" for row in rows))
        return [path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeSeries(Data):
    """Series `x` float32 [B, T, D].

    Attributes:
      name: waves, embedded sums of two sines with noise and a random phase; strokes, made pen strokes (dx, dy, whether
        the pen is lifted after it), of words of loops; or table, the rows of a .npy or .csv file at data.dir in time
        order, standardised by the training part, with its columns as features.
      sequence_length: length T.
    """

    name: str = "waves"
    sequence_length: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length < 1:
            raise DataError(f"data.sequence_length={self.sequence_length} must be at least 1")

    def load_split(self, split: str) -> Examples:
        check_split(split, tuple(_SIZES), self.name)
        size = self.sequence_length
        if self.name == "waves":
            rng = np.random.default_rng(list(_SIZES).index(split))
            time = np.arange(size)[None]
            phase, other = rng.uniform(0, 2 * np.pi, (2, _SIZES[split], 1))
            x = np.sin(2 * np.pi * time / 12 + phase) + 0.5 * np.sin(2 * np.pi * time / 5 + other)
            return ArrayExamples({"x": (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)[:, :, None]})
        if self.name == "strokes":
            rng = np.random.default_rng(list(_SIZES).index(split))
            return ArrayExamples({"x": np.stack([_strokes(rng, size) for _ in range(_SIZES[split] // 4)])})
        if self.name != "table":
            raise DataError(f"data.name={self.name} is not a set of time series: waves, strokes, table")
        values, _ = read_table(self.dir)  # raises DataError for numbers that are not finite
        train = values[: round(0.8 * len(values))]
        values = (values - train.mean(0)) / np.maximum(train.std(0), 1e-6)
        begin, end = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}[split]
        part = values[round(begin * len(values)) : round(end * len(values))]
        if len(part) < size:
            raise DataError(
                f"the split {split} of {self.dir} has {len(part)} rows, fewer than data.sequence_length={size}"
            )
        starts = range(0, len(part) - size + 1, 1 if split == "train" else size)
        return ArrayExamples({"x": np.stack([part[i : i + size] for i in starts]).astype(np.float32)})

    def spec(self) -> dict[str, Any]:
        """data_shape (T, D), and num_binary, how many of the last features are 0 or 1."""
        example = self.load("train").gather(np.zeros(1, np.int64))["x"]
        return {"data_shape": example.shape[1:], "num_binary": int(self.name == "strokes")}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return {**batch, "x": batch["x"].astype(jnp.float32)}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes one picture, with a line for each sample's first feature, or with the strokes."""
        figure = empty_figure(8, 4)
        axes = figure.subplots()
        for i, row in enumerate(np.asarray(samples)[:16]):
            if self.name == "strokes":
                path = np.cumsum(row[:, :2], axis=0) + [0.0, -4.0 * i]
                for part in np.split(path, np.flatnonzero(row[:, 2] > 0.5) + 1):
                    axes.plot(*part.T, color="black", linewidth=0.8)
            else:
                axes.plot(row[:, 0], linewidth=0.8)
        path = with_ending(stem, ".png")
        figure.savefig(path)
        return [path]


def _strokes(rng: np.random.Generator, size: int) -> np.ndarray:
    """A line of handwriting-like strokes (dx, dy, lifted), float32 [size, 3]: loops of random heights in words."""
    slant, rows = rng.normal(0.2, 0.1), []
    while len(rows) < size + 1:
        for _ in range(rng.integers(2, 6)):  # letters of a word
            height, points = rng.choice([0.6, 1.2]) * rng.uniform(0.9, 1.1), int(rng.integers(8, 11))
            angle = np.linspace(0.0, 2.0 * np.pi, points + 1)
            x, y = 0.6 * angle / (2.0 * np.pi) - 0.25 * np.sin(angle), 0.5 * height * (1.0 - np.cos(angle))
            steps = np.diff(np.stack([x + slant * y, y], 1), axis=0) + 0.01 * rng.normal(size=(points, 2))
            rows += [[*step, 0.0] for step in steps]
        rows[-1][2] = 1.0
        rows.append([0.8 + 0.1 * rng.normal(), 0.05 * rng.normal(), 0.0])
    start = rng.integers(0, len(rows) - size + 1)
    return np.array(rows[start : start + size], np.float32)
