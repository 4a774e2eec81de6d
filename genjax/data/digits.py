"""The handwritten digits that scikit-learn carries."""

from __future__ import annotations

import numpy as np

from genjax.data.base import ArrayExamples, split_indices


def read_digits(split: str) -> ArrayExamples:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels of 17 levels (UCI, Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = split_indices(len(data.target), split, "digits")
    return ArrayExamples(
        {"x": data.images[rows, ..., None].astype(np.uint8), "label": data.target[rows].astype(np.int32)}
    )
