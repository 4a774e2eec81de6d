"""Neighbour metrics against direct sums and sklearn."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors as Peer

from genjax.evaluation.neighbors import (
    NearestNeighbors,
    density_coverage,
    memorization,
    neighbor_radii,
    precision_recall,
)

RNG = np.random.default_rng(0)
DATA, SAMPLES = RNG.normal(size=(70, 3)), 0.7 * RNG.normal(size=(55, 3)) + 0.4


def test_radii_are_those_of_sklearn():
    distances = Peer(n_neighbors=5).fit(DATA).kneighbors()[0]
    np.testing.assert_allclose(neighbor_radii(DATA, 5, block_size=16) ** 0.5, distances[:, -1], rtol=1e-9)
    with pytest.raises(ValueError, match="more than 5 examples, not 5"):
        neighbor_radii(DATA[:5], 5)


def test_coverage_of_the_data_by_samples_matches_its_sums():
    def radius(points, i, k):
        return np.sort(np.linalg.norm(points - points[i], axis=1))[k]

    inside = lambda x, points, k: [np.linalg.norm(x - p) <= radius(points, i, k) for i, p in enumerate(points)]
    got = precision_recall(DATA, SAMPLES, 3, block_size=16)
    assert got["precision"] == pytest.approx(np.mean([any(inside(x, DATA, 3)) for x in SAMPLES]))
    assert got["recall"] == pytest.approx(np.mean([any(inside(y, SAMPLES, 3)) for y in DATA]))
    got = density_coverage(DATA, SAMPLES, 5, block_size=16)
    table = np.array([inside(x, DATA, 5) for x in SAMPLES])
    assert got["density"] == pytest.approx(table.sum() / (5 * len(SAMPLES)))
    assert got["coverage"] == pytest.approx(table.any(0).mean())


def test_lost_modes_lower_recall_and_noise_lowers_precision():
    modes = RNG.normal(size=(2, 300, 2)) + np.array([[[0.0, 0.0]], [[50.0, 0.0]]])
    both, one = modes.reshape(-1, 2), RNG.normal(size=(300, 2))
    lost = precision_recall(both, one)
    assert lost["precision"] > 0.9 and lost["recall"] < 0.55
    noisy = precision_recall(one, both)
    assert noisy["precision"] < 0.55 and noisy["recall"] > 0.9
    assert density_coverage(both, one)["coverage"] < 0.55


def test_neighbours_in_a_stream_are_those_in_the_whole():
    stream = NearestNeighbors(SAMPLES, 4)
    for part in np.split(DATA, [2, 30]):
        stream.add(part)
    distances, indices = Peer(n_neighbors=4).fit(DATA).kneighbors(SAMPLES)
    np.testing.assert_allclose(stream.result()[0], distances, rtol=1e-9)
    np.testing.assert_array_equal(stream.result()[1], indices)


def test_copies_are_noticed():
    train, held_out, fresh = RNG.normal(size=(3, 400, 3))
    nearest = lambda x: NearestNeighbors(x).add(train).result()[0][:, 0]
    honest = memorization(nearest(fresh), nearest(held_out))
    assert honest["memorization_auc"] == pytest.approx(0.5, abs=0.08) and honest["copied_share"] < 0.04
    copied = memorization(nearest(train[:100] + 1e-4), nearest(held_out))
    assert copied["memorization_auc"] > 0.99 and copied["copied_share"] > 0.95
