"""The handwritten digits that scikit-learn carries."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from genjax.data.base import ArrayExamples, split_indices


def read_digits(split: str) -> ArrayExamples:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels of 17 levels (UCI, Alpaydin & Kaynak 1998)."""
    # The file alone: scikit-learn itself takes longer to import than all that a run needs.
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    with gzip.open(package / "datasets" / "data" / "digits.csv.gz", "rt") as lines:
        table = np.loadtxt(lines, np.int32, delimiter=",")  # 64 pixels and a label
    rows = split_indices(len(table), split, "digits")
    return ArrayExamples(
        {"x": table[rows, :-1].reshape(-1, 8, 8, 1).astype(np.uint8), "label": np.ascontiguousarray(table[rows, -1])}
    )
