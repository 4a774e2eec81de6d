"""Paths and directions in a space of latent codes: interpolation, traversal, attribute vectors."""

from __future__ import annotations

import numpy as np

from genjax.errors import UserError


def linear_interpolation(start: np.ndarray, end: np.ndarray, num_values: int) -> np.ndarray:
    """Points on the straight lines from rows of `start` to rows of `end`, both included.

    Args:
      start, end: codes [N, ...].
      num_values: points on each line, at least 2.

    Returns:
      Codes [N, num_values, ...].
    """
    weight = np.linspace(0.0, 1.0, num_values).reshape(1, -1, *[1] * (start.ndim - 1))
    return (1.0 - weight) * start[:, None] + weight * end[:, None]


def spherical_interpolation(start: np.ndarray, end: np.ndarray, num_values: int) -> np.ndarray:
    """Points on great arcs (slerp; White 2016, arXiv:1609.04468), which keep norms typical of a normal prior.

    The angle between the two directions is divided evenly, and the norm changes linearly; opposite or equal directions
    have no unique arc, so a straight line is used.

    Args:
      start, end: codes [N, ...]; all axes but the first are one vector.
      num_values: points on each arc, at least 2.

    Returns:
      Codes [N, num_values, ...].
    """
    shape = start.shape
    a, b = start.reshape(len(start), -1), end.reshape(len(end), -1)
    norm_a, norm_b = np.linalg.norm(a, axis=1, keepdims=True), np.linalg.norm(b, axis=1, keepdims=True)
    a, b = a / np.maximum(norm_a, 1e-12), b / np.maximum(norm_b, 1e-12)
    angle = np.arccos(np.clip((a * b).sum(1), -1.0, 1.0))[:, None, None]  # [N, 1, 1]
    weight = np.linspace(0.0, 1.0, num_values)[None, :, None]
    sine = np.maximum(np.sin(angle), 1e-12)
    arc = (np.sin((1.0 - weight) * angle) * a[:, None] + np.sin(weight * angle) * b[:, None]) / sine
    norm = (1.0 - weight) * norm_a[:, None] + weight * norm_b[:, None]
    line = linear_interpolation(start, end, num_values).reshape(len(a), num_values, -1)
    points = np.where(np.sin(angle) > 1e-4, arc * norm, line)
    return points.reshape(shape[0], num_values, *shape[1:])


def traversal(code: np.ndarray, dimensions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Copies of one code with one dimension at a time set to each value.

    Args:
      code: [D].
      dimensions: numbers of the dimensions, [K].
      values: values to set them to, [V].

    Returns:
      Codes [K, V, D].
    """
    codes = np.broadcast_to(code, (len(dimensions), len(values), len(code))).copy()
    for row, dimension in enumerate(dimensions):
        codes[row, :, dimension] = values
    return codes


def partners(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices [count]: for each of the first `count` examples, an example of the same class among the others.

    Raises:
      UserError: a class has no example among the others.
    """
    found = []
    for label in labels[:count]:
        others = count + np.flatnonzero(labels[count:] == label)
        if not len(others):
            raise UserError(f"the class {label} has no example after the first {count}; take fewer rows")
        found.append(others[0])
    return np.array(found)


def attribute_vector(codes: np.ndarray, labels: np.ndarray, source: int, target: int) -> np.ndarray:
    """Difference of the mean codes of two classes, shape of one code (Larsen et al. 2016,
    arXiv:1512.09300, section 3.3).

    Raises:
      UserError: a class has no example.
    """
    for label in (source, target):
        if not (labels == label).any():
            raise UserError(f"no example has the class {label}; there are {', '.join(map(str, np.unique(labels)))}")
    return codes[labels == target].mean(0) - codes[labels == source].mean(0)
