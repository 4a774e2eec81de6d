"""Disentanglement metrics on codes whose value is known by construction."""

import numpy as np
import pytest

from genjax.data import procedural
from genjax.evaluation.disentanglement import factor_vae_score, mutual_information, mutual_information_gap

FACTORS = procedural.sprites()[1]


def noise(shape, scale, seed=0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def test_mutual_information_of_a_copy_is_the_entropy():
    information = mutual_information(FACTORS[:, :2].astype(float), FACTORS[:, :2])
    np.testing.assert_allclose(information, np.diag(np.log([3, 4])), atol=1e-9)


def test_mutual_information_of_a_noisy_bit_is_that_of_the_binary_channel():
    rng = np.random.default_rng(0)
    bit = rng.integers(0, 2, 100000)
    seen = np.where(rng.random(100000) < 0.1, 1 - bit, bit)
    expected = np.log(2) + 0.1 * np.log(0.1) + 0.9 * np.log(0.9)
    np.testing.assert_allclose(mutual_information(seen[:, None] * 1.0, bit[:, None])[0, 0], expected, atol=0.01)


def test_a_code_of_the_factors_scores_one():
    codes = FACTORS[:, ::-1] * np.array([1.0, -2.0, 0.5, 3.0, 1.0]) + noise(FACTORS.shape, 1e-3)
    assert mutual_information_gap(codes, FACTORS) > 0.99
    assert factor_vae_score(codes, FACTORS, np.random.default_rng(1), num_votes=200) == 1.0


def test_dimensions_that_say_nothing_do_not_count():
    codes = np.concatenate([FACTORS, noise((len(FACTORS), 3), 1.0), np.zeros((len(FACTORS), 1))], 1)
    assert mutual_information_gap(codes, FACTORS) > 0.97
    assert factor_vae_score(codes, FACTORS, np.random.default_rng(1), num_votes=200) > 0.98


def test_a_code_that_says_everything_twice_has_no_gap():
    codes = np.concatenate([FACTORS, FACTORS], 1).astype(float)
    assert mutual_information_gap(codes, FACTORS) == pytest.approx(0.0, abs=1e-9)


def test_a_rotated_code_scores_low():
    standardised = (FACTORS - FACTORS.mean(0)) / FACTORS.std(0)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    assert mutual_information_gap(standardised @ rotation, FACTORS) < 0.4
    turned = factor_vae_score(standardised @ rotation, FACTORS, np.random.default_rng(1), num_votes=200)
    random = factor_vae_score(noise(FACTORS.shape, 1.0), FACTORS, np.random.default_rng(1), num_votes=200)
    assert random < 0.4 and random < turned < 1.0


def test_factors_of_one_value_and_codes_that_say_nothing_are_left_out():
    codes = FACTORS + noise(FACTORS.shape, 1e-3)
    squares = FACTORS[:, 0] == 0
    rng = np.random.default_rng(1)
    gap = mutual_information_gap(codes[squares], FACTORS[squares])
    assert gap == pytest.approx(mutual_information_gap(codes[squares], FACTORS[squares, 1:])) and gap > 0.97
    assert factor_vae_score(codes[squares], FACTORS[squares], rng, num_votes=100) == 1.0
    constant = np.full((len(FACTORS), 3), 2.0)
    assert mutual_information_gap(constant, FACTORS) == 0.0
    assert factor_vae_score(constant, FACTORS, rng) == 0.2
    assert factor_vae_score(constant[squares], FACTORS[squares], rng) == 0.25
    for measure in (mutual_information_gap, lambda *both: factor_vae_score(*both, rng)):
        with pytest.raises(ValueError, match="every factor has the same value"):
            measure(codes[:1].repeat(4, 0), FACTORS[:1].repeat(4, 0))
        with pytest.raises(ValueError, match="codes must be finite"):
            measure(codes * np.nan, FACTORS)


def test_a_value_of_one_example_gives_no_vote():
    # Of one example alone every dimension varies by 0, which was a vote for the first dimension.
    factors = np.stack([np.arange(400) % 2, np.where(np.arange(400) < 200, np.arange(400), 1000)], 1)
    codes = np.stack([factors[:, 0] + noise(400, 1e-2), np.minimum(factors[:, 1], 300) / 100 + noise(400, 1e-2, 1)], 1)
    assert factor_vae_score(codes, factors, np.random.default_rng(0), num_votes=200) == 1.0
