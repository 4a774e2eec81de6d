"""Sparse masks of a picture's codes against loops over rows and columns."""

import numpy as np
import pytest

from genjax.nn.picture_masks import column_mask, convolution_mask, row_mask, sparse_masks


def by_loop(height, width, sees):
    """Mask of a rule of (row, column) of the code that looks and of the code that is seen."""
    places = [(r, c) for r in range(height) for c in range(width)]
    return np.array([[b <= a and sees(*a, *b) for b in places] for a in places])


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (5, 2)])
def test_patterns_are_those_of_loops_over_places(height, width):
    row = by_loop(height, width, lambda r, c, s, d: s == r or (s == r - 1 and d >= c))
    np.testing.assert_array_equal(row_mask(height, width), row)
    column = by_loop(height, width, lambda r, c, s, d: d == c or (s == r and d == c - 1))
    np.testing.assert_array_equal(column_mask(height, width), column)
    # The square goes on at the other side, one row further up or down.
    around = lambda r, c, s, d: any(
        (s, d) == (r - i + shift, c - j - shift * width) for i in range(2) for j in range(-1, 2) for shift in (-1, 0, 1)
    )
    np.testing.assert_array_equal(convolution_mask(height, width, 3), by_loop(height, width, around))


def test_a_row_of_four_sees_five_codes_and_the_middle_of_a_convolution_a_square():
    assert row_mask(4, 4)[4:].sum(1).tolist() == [5] * 12
    seen = np.flatnonzero(convolution_mask(5, 5, 3)[12])
    assert seen.tolist() == [6, 7, 8, 11, 12]
    # A square of the whole picture leaves nothing out.
    np.testing.assert_array_equal(convolution_mask(3, 3, 11), np.tril(np.ones((9, 9), bool)))


def test_layers_take_turns_and_every_code_sees_all_text():
    masks = sparse_masks(7, 3, 2, 3, 3)
    kinds = {"row": row_mask(2, 3), "column": column_mask(2, 3), "convolution": convolution_mask(2, 3, 3)}
    order = ["row", "column", "row", "row", "row", "column", "convolution"]
    for mask, kind in zip(masks, order, strict=True):
        assert mask.shape == (8, 8)
        np.testing.assert_array_equal(mask[3:, 3:], kinds[kind][:5, :5])
        np.testing.assert_array_equal(mask[:3], np.tril(np.ones((3, 8), bool)))
        assert mask[3:, :3].all()
