"""Vectors: two-dimensional densities and tables of numbers; samples become a scatter plot and a CSV."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.data import procedural
from genjax.data.base import ArrayExamples, Data, DataError, check_split, split_indices
from genjax.data.figures import empty_figure
from genjax.data.files import with_ending
from genjax.data.tables import read_table
from genjax.data.training_files import save_training_files

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Data):
    """Vectors `x` float32 [B, D], and `condition` float32 [B, K] if there are condition_columns.

    Attributes:
      name: two_moons, circles, rings, swiss_roll, two_spirals, pinwheel, eight_gaussians, grid_gaussians, checkerboard
        (all embedded), or table, a .csv or .npy file that `dir` names.
      num_train: number of training examples of an embedded density.
      num_held_out: number of examples of each other split of an embedded density.
      condition_columns: names of columns of a table that the model is conditional on; it models the other columns.
        Columns are called column_0, column_1, ... if the file has no names.
      standardize: subtract the mean of the training set and divide by its standard deviation, column by column.
    """

    name: str = "two_moons"
    num_train: int = 50000
    num_held_out: int = 10000
    condition_columns: tuple[str, ...] = ()
    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in (*procedural.DENSITIES, "table"):
            raise DataError(f"data.name={self.name!r} is none of {', '.join(procedural.DENSITIES)}, table")

    def load_split(self, split: str) -> ArrayExamples:
        if self.name == "table":
            values, names = read_table(self.dir)
            values = values[split_indices(len(values), split, f"table {self.dir}")]
            modelled, given = self._columns(names)
            return ArrayExamples({"x": values[:, modelled], **({"condition": values[:, given]} if given else {})})
        if self.condition_columns:
            raise DataError(
                f"data.condition_columns names columns of a table; {self.name} has none that could be set apart"
            )
        check_split(split, _SPLITS, self.name)
        count = self.num_train if split == "train" else self.num_held_out
        rng = np.random.default_rng([_SPLITS.index(split), *self.name.encode()])
        return ArrayExamples({"x": procedural.DENSITIES[self.name](rng, count).astype(np.float32)})

    def _columns(self, names: list[str]) -> tuple[list[int], list[int]]:
        """Indices of the columns of a table that are modelled, and of those that are given."""
        missing = [name for name in self.condition_columns if name not in names]
        if missing:
            raise DataError(f"data.condition_columns: {self.dir} has no column {missing[0]}; it has {', '.join(names)}")
        given = [names.index(name) for name in self.condition_columns]
        modelled = [index for index in range(len(names)) if index not in given]
        if not modelled:
            raise DataError(
                "data.condition_columns names every column of the table, so that none is left to be modelled"
            )
        return modelled, given

    def save(self, workdir: Path) -> None:
        """Writes the size of the table into the run's directory, if it is not there yet.

        Raises:
          DataError: the run was trained on another table.
        """
        if self.name == "table":
            # Whatever it is called.
            file = buckets.folder(self.dir)
            save_training_files(workdir, {file: [file]})

    def spec(self) -> dict[str, Any]:
        """data_shape (D,), and condition_dim K where there is a condition."""
        shape = self.load("train").arrays()["x"].shape[1:]
        return {
            "data_shape": shape,
            **({"condition_dim": len(self.condition_columns)} if self.condition_columns else {}),
        }

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        if not self.standardize:
            return batch
        moments = _moments(self)
        standardized = {name: (batch[name] - mean[None]) / scale[None] for name, (mean, scale) in moments.items()}
        log_abs_det = jnp.full(batch["x"].shape[:1], -np.sum(np.log(moments["x"][1])), jnp.float32)
        return {**batch, **standardized, "log_abs_det": log_abs_det}

    def condition(self, values: list[float]) -> np.ndarray:
        """Turns values of the condition columns, in the table's units, into the model's condition, float32 [K].

        Raises:
          DataError: there are not as many columns.
        """
        if len(values) != len(self.condition_columns):
            columns = ", ".join(self.condition_columns) or "none"
            raise DataError(f"{len(values)} values are given, but these are the data's condition columns: {columns}")
        mean, scale = _moments(self)["condition"] if self.standardize else (0.0, 1.0)
        return ((np.asarray(values) - mean) / scale).astype(np.float32)

    def inverse_transform(self, samples: np.ndarray) -> np.ndarray:
        """Samples of a model in the units of the data."""
        if not self.standardize:
            return np.asarray(samples)
        mean, scale = _moments(self)["x"]
        return np.asarray(samples) * scale + mean

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes a scatter plot of the first two columns, beside training examples, and a CSV of all."""
        samples = self.inverse_transform(samples)
        names = ["x", "y"]
        if self.name == "table":
            names = read_table(self.dir)[1]
            names = [names[index] for index in self._columns(names)[0]]
        table = with_ending(stem, ".csv")
        np.savetxt(table, samples, delimiter=",", header=",".join(names), comments="", fmt="%.6g")
        if samples.shape[1] < 2:
            return [table]
        picture = with_ending(stem, ".png")
        _scatter(samples, self.load("train").arrays()["x"], names, picture)
        return [picture, table]

    def protocol(self) -> str:
        return "standardised by the training set" if self.standardize else "as stored"


@functools.lru_cache(maxsize=8)
def _moments(data: Points) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of the columns of the training set, of `x` [D] and of `condition` [K] if there is
    one.
    """
    arrays = data.load("train").arrays()
    return {name: (a.mean(0), np.maximum(a.std(0), 1e-6)) for name, a in arrays.items()}


def _scatter(samples: np.ndarray, examples: np.ndarray, names: list[str], path: Path) -> None:
    figure = empty_figure(8, 4)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, points, title in zip(panels, (examples[: len(samples)], samples), ("data", "samples")):
        panel.scatter(points[:, 0], points[:, 1], s=4, alpha=0.6, linewidths=0)
        panel.set(title=title, xlabel=names[0], ylabel=names[1])
    # A few wild samples must not shrink the picture to a dot.
    low, high = examples[:, :2].min(0), examples[:, :2].max(0)
    margin = 0.25 * (high - low)
    panels[0].set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    figure.savefig(path, dpi=100)
