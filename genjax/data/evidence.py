"""Small data sets of classical problems, to condition posteriors on; samples are parameters, shown as pair plots."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data.base import ArrayExamples, Data, check_split
from genjax.data.figures import empty_figure
from genjax.data.files import with_ending

_SPLITS = ("train", "validation", "test")
# Rubin 1981, table 1: effects of coaching, and their standard errors.
_SCHOOL_EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
_SCHOOL_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
#: Number of training, validation and test examples of breast_cancer; 456 can be divided among eight devices.
_SIZES = (456, 56, 57)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence(Data):
    """Observations `x` [B, D], with `scale` [B] and `group` [B], or `label` [B].

    Attributes:
      name: eight_schools (effects, their errors and their numbers, the same in every split); breast_cancer (30
        standardised features after a one, and the label: 456, 56 and 57 examples); or nothing, for densities that need
        no data.
    """

    name: Literal["eight_schools", "breast_cancer", "nothing"] = "nothing"

    def load_split(self, split: str) -> ArrayExamples:
        check_split(split, _SPLITS, self.name)
        if self.name == "nothing":
            return ArrayExamples({"x": np.zeros((8, 0), np.float32)})
        if self.name == "eight_schools":
            effects, errors = np.float32(_SCHOOL_EFFECTS), np.float32(_SCHOOL_ERRORS)
            return ArrayExamples({"x": effects[:, None], "scale": errors, "group": np.arange(8, dtype=np.int32)})
        from sklearn.datasets import load_breast_cancer

        x, label = load_breast_cancer(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        parts = dict(zip(("train", "validation", "test"), np.split(order, np.cumsum(_SIZES)[:-1])))
        train = x[parts["train"]]
        x = np.concatenate([np.ones((len(x), 1)), (x - train.mean(0)) / train.std(0)], 1)
        return ArrayExamples({"x": np.float32(x[parts[split]]), "label": np.int32(label[parts[split]])})

    def spec(self) -> dict[str, Any]:
        """data_shape (D,) and num_examples of the training set."""
        x = self.load("train").arrays()["x"]
        return {"data_shape": x.shape[1:], "num_examples": len(x)}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return {name: jnp.asarray(a) for name, a in batch.items()}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes a plot of each pair of the first five parameters, and a CSV of all."""
        samples = np.asarray(samples)
        table, picture = with_ending(stem, ".csv"), with_ending(stem, ".png")
        header = ",".join(f"parameter_{i}" for i in range(samples.shape[1]))
        np.savetxt(table, samples, delimiter=",", header=header, comments="", fmt="%.6g")
        plot_pairs(samples[:, :5], header.split(",")[:5], picture)
        return [picture, table]

    def protocol(self) -> str:
        return "features standardised by the training set" if self.name == "breast_cancer" else "as stored"


def plot_pairs(samples: np.ndarray, names: list[str], path: Path, marked: np.ndarray | None = None) -> None:
    """Writes histograms of the columns of samples [N, D] on the diagonal, and scatter plots of their pairs below.

    Args:
      samples: the samples.
      names: names of the columns.
      path: the picture.
      marked: samples [N] to show in red, such as divergent ones.
    """
    size = samples.shape[1]
    figure = empty_figure(1.8 * size + 0.6, 1.8 * size + 0.6)
    panels = figure.subplots(size, size, squeeze=False)
    for row in range(size):
        for column in range(size):
            panel = panels[row][column]
            if column > row:
                panel.axis("off")
                continue
            if column == row:
                panel.hist(samples[:, row], bins=40, histtype="stepfilled", alpha=0.7)
                panel.set_yticks([])
            else:
                panel.scatter(samples[:, column], samples[:, row], s=3, alpha=0.3, linewidths=0)
                if marked is not None and marked.any():
                    panel.scatter(samples[marked, column], samples[marked, row], s=6, color="red", linewidths=0)
            if row == size - 1:
                panel.set_xlabel(names[column])
            if column == 0 and row:
                panel.set_ylabel(names[row])
    figure.savefig(path, dpi=90)
