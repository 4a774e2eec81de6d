"""Sparse attention of a picture's codes to earlier codes (Ramesh et al. 2021, arXiv:2102.12092, figure 11).

Codes are numbered row by row, i = row * width + column.  Every code sees itself, and of the codes before it

    row           the last `width` of them, so that the one right above is among them
    column        those above it in its column, and its left neighbour: on the transposed picture, the last `height`
    convolution   those in a square around it, which goes on at the other side in the neighbouring row

Of layers 1 .. L, layer L is a convolution, layers 2, 6, 10, ... look along columns, and all others along rows
(appendix B.1).
"""

from __future__ import annotations

import functools

import numpy as np


def row_mask(height: int, width: int) -> np.ndarray:
    """Whether code i (first axis) sees code j along rows, bool [h w, h w]."""
    back = _distance(np.arange(height * width))
    return (back >= 0) & (back <= width)


def column_mask(height: int, width: int) -> np.ndarray:
    """Whether code i (first axis) sees code j along columns, bool [h w, h w]."""
    index = np.arange(height * width)
    # On the transposed picture some of the last codes lie later in the order that codes are drawn in.
    back = _distance(index % width * height + index // width)
    return (back >= 0) & (back <= height) & (_distance(index) >= 0)


def convolution_mask(height: int, width: int, size: int) -> np.ndarray:
    """Whether code i (first axis) sees code j in a square of `size` x `size` codes around it, bool [h w, h w]."""
    half = size // 2
    rows, columns = np.arange(half + 1)[:, None], np.arange(-half, half + 1)[None]
    back = _distance(np.arange(height * width))
    return (back >= 0) & np.isin(back, rows * width + columns)


def _distance(index: np.ndarray) -> np.ndarray:
    return index[:, None] - index[None]


@functools.lru_cache(maxsize=16)
def sparse_masks(num_layers: int, num_text: int, height: int, width: int, size: int) -> tuple[np.ndarray, ...]:
    """For each layer, whether the input at one place (first axis) sees the input at another, bool [L, L].

    The inputs are `num_text` places of text, which see all text up to them, and all codes but the last, which see all
    text, themselves and the codes of their layer's pattern.

    Args:
      num_layers: number of layers.
      num_text: places of text.
      height, width: of the map of codes.
      size: height and width of the convolution.
    """
    total = num_text + height * width - 1

    def stream(mask: np.ndarray) -> np.ndarray:
        whole = np.tril(np.ones((total, total), bool))
        whole[num_text:, num_text:] = mask[:-1, :-1]
        return whole

    row, column = stream(row_mask(height, width)), stream(column_mask(height, width))
    chosen = [column if layer % 4 == 2 else row for layer in range(1, num_layers)]
    return (*chosen, stream(convolution_mask(height, width, size)))
