"""The embedded digits are those that scikit-learn reads."""

import numpy as np
from sklearn.datasets import load_digits

from genjax.data.base import split_indices
from genjax.data.digits import read_digits


def test_digits_are_those_that_scikit_learn_reads():
    theirs = load_digits()
    for split in ("train", "validation", "test"):
        ours, rows = read_digits(split).arrays(), split_indices(1797, split, "digits")
        np.testing.assert_array_equal(ours["x"][..., 0], theirs.images[rows])
        np.testing.assert_array_equal(ours["label"], theirs.target[rows])
        assert ours["x"].dtype == np.uint8 and ours["label"].dtype == np.int32
