"""Vectors: two-dimensional densities and tables of numbers; samples become a scatter plot and a CSV."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data import procedural, sources
from genjax.data.base import ArrayExamples, Data, DataError, check_split, split_indices

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Data):
    """Vectors `x` float32 [B, D].

    Attributes:
      name: two_moons, circles, rings, swiss_roll, two_spirals, pinwheel, eight_gaussians, grid_gaussians, checkerboard
        (all embedded), or table, a .csv or .npy file that `dir` names.
      num_train: number of training examples of an embedded density.
      num_held_out: number of examples of each other split of an embedded density.
      standardize: subtract the mean and divide by the standard deviation of the training set, column by column.
    """

    name: str = "two_moons"
    num_train: int = 50000
    num_held_out: int = 10000
    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in (*procedural.DENSITIES, "table"):
            raise DataError(f"data.name={self.name!r} is none of {', '.join(procedural.DENSITIES)}, table")

    def load_split(self, split: str) -> ArrayExamples:
        if self.name == "table":
            values, _ = sources.read_table(self.dir)
            return ArrayExamples({"x": values[split_indices(len(values), split, f"table {self.dir}")]})
        check_split(split, _SPLITS, self.name)
        count = self.num_train if split == "train" else self.num_held_out
        rng = np.random.default_rng([_SPLITS.index(split), *self.name.encode()])
        return ArrayExamples({"x": procedural.DENSITIES[self.name](rng, count).astype(np.float32)})

    def spec(self) -> dict[str, Any]:
        """data_shape (D,)."""
        return {"data_shape": self.load("train").arrays()["x"].shape[1:]}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        if not self.standardize:
            return batch
        mean, scale = _moments(self)
        log_abs_det = jnp.full(batch["x"].shape[:1], -np.sum(np.log(scale)), jnp.float32)
        return {**batch, "x": (batch["x"] - mean[None]) / scale[None], "log_abs_det": log_abs_det}

    def inverse_transform(self, samples: np.ndarray) -> np.ndarray:
        """Samples of a model in the units of the data."""
        if not self.standardize:
            return np.asarray(samples)
        mean, scale = _moments(self)
        return np.asarray(samples) * scale + mean

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes a scatter plot of the first two columns, beside training examples, and a CSV of all."""
        samples = self.inverse_transform(samples)
        names = sources.read_table(self.dir)[1] if self.name == "table" else ["x", "y"]
        table = Path(stem).with_suffix(".csv")
        np.savetxt(table, samples, delimiter=",", header=",".join(names), comments="", fmt="%.6g")
        if samples.shape[1] < 2:
            return [table]
        picture = Path(stem).with_suffix(".png")
        _scatter(samples, self.load("train").arrays()["x"], names, picture)
        return [picture, table]

    def protocol(self) -> str:
        return "standardised by the training set" if self.standardize else "as stored"


@functools.lru_cache(maxsize=8)
def _moments(data: Points) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the columns of the training set, each [D]."""
    x = data.load("train").arrays()["x"]
    return x.mean(0), np.maximum(x.std(0), 1e-6)


def _scatter(samples: np.ndarray, examples: np.ndarray, names: list[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, points, title in zip(panels, (examples[: len(samples)], samples), ("data", "samples")):
        panel.scatter(points[:, 0], points[:, 1], s=4, alpha=0.6, linewidths=0)
        panel.set(title=title, xlabel=names[0], ylabel=names[1])
    # A few wild samples must not shrink the picture to a dot.
    low, high = examples[:, :2].min(0), examples[:, :2].max(0)
    margin = 0.25 * (high - low)
    panels[0].set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    figure.savefig(path, dpi=100)
