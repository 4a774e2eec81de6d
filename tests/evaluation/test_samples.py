"""Distances of feature sets against other computations of them."""

import numpy as np
import pytest

from genjax.evaluation.quality import FeatureStatistics, figures, floor, warnings
from genjax.evaluation.samples import (
    ClassProbabilities,
    KernelBlocks,
    Moments,
    Reservoir,
    frechet_distance,
    kernel_distance,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)), RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4)) + 1.0


def test_frechet_distance_matches_the_general_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = np.cov(X, rowvar=False), np.cov(Y, rowvar=False)
    expected = np.sum((X.mean(0) - Y.mean(0)) ** 2) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    np.testing.assert_allclose(frechet_distance(X, Y), expected, rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(X, X), 0.0, atol=1e-8)


def test_moments_of_a_stream_are_those_of_the_whole():
    far = X + 1e6
    stream = Moments()
    for part in np.split(far, [1, 7, 40]):
        stream.add(part)
    np.testing.assert_allclose(stream.mean, far.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stream.covariance, np.cov(far, rowvar=False), rtol=1e-6)
    assert stream.count == 60
    merged = Moments().merge(Moments().add(X[:20])).merge(Moments()).merge(Moments().add(X[20:]))
    np.testing.assert_allclose(frechet_distance(merged, Y), frechet_distance(X, Y), rtol=1e-9)


def test_kernel_distance_matches_its_sums():
    k = lambda a, b: (a @ b / 4 + 1) ** 3
    pairs = lambda s: np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
    expected = pairs(X) + pairs(Y) - 2 * np.mean([k(a, b) for a in X for b in Y])
    np.testing.assert_allclose(kernel_distance(X, Y), expected, rtol=1e-9)


def test_a_reservoir_keeps_a_uniform_sample_however_the_stream_is_cut():
    stream = np.arange(1000)[:, None]
    kept = Reservoir(100).add(stream).sample
    cut = Reservoir(100)
    for part in np.split(stream, [1, 99, 100, 101, 640]):
        cut.add(part)
    np.testing.assert_array_equal(cut.sample, kept)
    assert len(np.unique(kept)) == 100
    # Of 2000 draws from each tenth of the stream a tenth is kept: 200 with a deviation of 13.
    counts = sum(
        np.bincount(Reservoir(10, seed).add(stream[:100]).sample[:, 0] // 10, minlength=10) for seed in range(200)
    )
    assert np.abs(counts - 200).max() < 4 * 13.4
    whole = Reservoir(2000).add(stream).sample[:, 0]
    np.testing.assert_array_equal(np.sort(whole), stream[:, 0])
    assert abs(np.corrcoef(whole, stream[:, 0])[0, 1]) < 0.1


def test_kernel_distance_of_a_stream_is_the_mean_of_its_blocks():
    stream = KernelBlocks(Y, block_size=20)
    for part in np.split(X, [5, 33]):
        stream.add(part)
    x, y = Reservoir(60).add(X).sample, Reservoir(50, seed=1).add(Y).sample
    blocks = [kernel_distance(x[:20], y[:20]), kernel_distance(x[20:40], y[20:40]), kernel_distance(x[40:], y[:20])]
    result = stream.result()
    assert result["kernel_distance"] == pytest.approx(np.mean(blocks))
    assert result["kernel_distance_standard_error"] == pytest.approx(np.std(blocks, ddof=1) / 3**0.5)
    short = KernelBlocks(Y).add(X[:30]).result()
    assert (
        short["kernel_distance"] == pytest.approx(kernel_distance(X[:30], Y))
        and short["kernel_distance_num_blocks"] == 1
    )


def test_kernel_distance_of_sets_that_lie_class_after_class_is_unbiased():
    # Two classes at -1 and 1: blocks of single classes give 13 where the distributions are equal.
    sets = np.random.default_rng(2).normal(size=(2, 800, 4)) * 0.3 + np.repeat([-1.0, 1.0], 400)[:, None]
    result = KernelBlocks(sets[0], block_size=100).add(sets[1]).result()
    assert abs(result["kernel_distance"]) < 4 * result["kernel_distance_standard_error"]
    assert result["kernel_distance_standard_error"] < 0.1
    data = FeatureStatistics(reservoir_size=400, block_size=100).add(sets[0])
    other = FeatureStatistics(400, data, block_size=100).add(sets[1])
    found, halves = figures(data, other), floor(data)
    assert abs(found["kernel_distance"]) < 0.3 and abs(halves["kernel_distance"]) < 0.3
    # Kept at random, vectors are of both classes.
    assert found["precision"] > 0.9 and found["recall"] > 0.9 and found["density"] == pytest.approx(1.0, abs=0.15)


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    draws = np.random.default_rng(1).normal(size=(2, 200, 10, 8))
    kernel = [kernel_distance(a, b) for a, b in zip(*draws)]
    assert abs(np.mean(kernel)) < 4 * np.std(kernel) / len(kernel) ** 0.5
    assert np.mean([frechet_distance(a, b) for a, b in zip(*draws)]) > 3


def test_class_score_has_its_two_extremes_and_its_sum():
    certain = 100.0 * np.eye(5)[np.arange(50) % 5]
    result = ClassProbabilities().add(certain[:7]).add(certain[7:]).result()
    assert result["class_score"] == pytest.approx(5.0)
    assert result["largest_class_share"] == result["smallest_class_share"] == pytest.approx(0.2)
    assert ClassProbabilities().add(np.ones((20, 5))).result()["class_score"] == pytest.approx(1.0)
    p = np.exp(X) / np.exp(X).sum(1, keepdims=True)
    expected = np.exp(np.mean([(row * np.log(row / p.mean(0))).sum() for row in p]))
    assert ClassProbabilities().add(X).result()["class_score"] == pytest.approx(expected)
    # Classes in turn, as a conditional model samples them: every part has all of them.
    in_turn = ClassProbabilities().add(np.tile(50.0 * np.eye(10), (100, 1))).result()
    assert in_turn["class_score_parts_mean"] == pytest.approx(10.0, rel=1e-2)


def test_floor_is_that_of_the_two_halves_and_samples_have_all_figures():
    data = FeatureStatistics(block_size=10).add(X[:33]).add(X[33:])
    got = floor(data)
    assert got["frechet_distance"] == pytest.approx(frechet_distance(X[::2], X[1::2]))
    assert 0.5 < got["precision"] <= 1.0
    other = FeatureStatistics(reference=data, block_size=10).add(Y, np.zeros((50, 3)))
    result = figures(data, other)
    assert result["frechet_distance"] == pytest.approx(frechet_distance(X, Y)) and result[
        "class_score"
    ] == pytest.approx(1)
    assert set(got) < set(result)


def test_every_set_whose_covariance_is_singular_is_named():
    assert not warnings({"samples": 60, "pictures": 5}, 4)
    (note,) = warnings({"samples": 60, "pictures": 8, "pictures in one of its halves": 4, "training pictures": 3}, 4)
    assert note.startswith(
        "the 4 pictures in one of its halves and the 3 training pictures are no more than the 4 features"
    )
    assert "covariance is singular" in note


def test_features_must_be_matrices_of_one_width():
    with pytest.raises(ValueError, match="shape"):
        frechet_distance(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="one set has 4 features, the other 3"):
        frechet_distance(X, Y[:, :3])
    with pytest.raises(ValueError, match="at least two vectors"):
        Moments().add(X[:1]).covariance.sum()
