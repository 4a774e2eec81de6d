"""Orders that are computed and not stored are permutations, random, and as cheap for 10^13 examples as for a few."""

import numpy as np
import pytest

from genjax.data import permutation
from genjax.data.permutation import feistel, permuted
from genjax.data.pipeline import random_order, shuffled_indices
from genjax.data.text.token_files import MappedTokens
from genjax.data.text.windows import Windows


@pytest.mark.parametrize("count", [1, 2, 3, 17, 256, 1000, 4097])
def test_it_is_a_permutation(count):
    order = feistel((1, 2), np.arange(count), count)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_places_are_computed_one_by_one():
    order = feistel((3,), np.arange(5000), 5000)
    np.testing.assert_array_equal(feistel((3,), np.array([[4999, 7], [0, 7]]), 5000), order[[[4999, 7], [0, 7]]])


def test_orders_of_different_keys_look_independent():
    count = 10_007
    orders = np.stack([feistel((seed, epoch), np.arange(count), count) for seed in range(3) for epoch in range(3)])
    # Of n places about one is fixed between two random orders (Poisson with mean 1).
    fixed = [int((a == b).sum()) for i, a in enumerate(orders) for b in [*orders[:i], np.arange(count)]]
    assert np.mean(fixed) < 1.6 and max(fixed) <= 6
    # Successors in one order are no successors, nor near, in the other: correlations vanish as 1 / sqrt(n).
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 4 / np.sqrt(count)
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / np.sqrt(count)


def test_each_place_takes_every_value_equally_often():
    # 1600 orders of 8: each of the 64 pairs of place and value 200 times; chi-square with 49 degrees of freedom.
    orders = np.stack([feistel((seed,), np.arange(8), 8) for seed in range(1600)])
    counts = np.stack([np.bincount(column, minlength=8) for column in orders.T])
    assert ((counts - 200.0) ** 2 / 200.0).sum() < 85.4  # 99.9 %


def test_an_epoch_of_a_large_set_has_each_example_once(monkeypatch):
    monkeypatch.setattr(permutation, "LARGEST_STORED", 2**12)
    count, size = 2**12 + 1, 2**10
    seen = np.concatenate([shuffled_indices(0, step, size, count) for step in range(5)])
    np.testing.assert_array_equal(np.sort(seen[:count]), np.arange(count))
    assert (seen[count:] != seen[: len(seen) - count]).mean() > 0.99


def test_small_sets_keep_the_order_that_they_had():
    np.testing.assert_array_equal(random_order(50), np.random.default_rng(0).permutation(50))
    np.testing.assert_array_equal(
        permuted((5, 1, 0), np.arange(50), 50), np.random.default_rng([5, 1, 0]).permutation(50)
    )


def test_a_batch_of_a_huge_set_is_as_cheap_as_of_a_small_one():
    indices = shuffled_indices(7, 10**9, 1024, 10**13)
    assert len(set(indices.tolist())) == 1024 and indices.min() >= 0 and indices.max() < 10**13
    assert indices.max() > 9 * 10**12
    assert len(random_order(10**13, 100)) == 100


def test_a_text_of_more_tokens_than_numbers_of_32_bits_is_read_at_its_end(tmp_path):
    path, count, length = tmp_path / "text.ids", 2**32 + 1_001, 1000
    with path.open("wb") as file:
        # A hole of 8 GiB, which takes no place on the disk, and the last tokens.
        file.seek(2 * (count - 1_000))
        file.write(np.arange(1_000, dtype=np.uint16).tobytes())
    windows = Windows(MappedTokens(path, np.uint16), None, np.ones(2**16, np.int32), length, length, "")
    assert len(windows) == (count - 1) // length + 1
    last, whole = (windows.gather(np.array([i])) for i in (len(windows) - 1, len(windows) - 2))
    start = (len(windows) - 1) * length
    ids = np.arange(1_000)
    np.testing.assert_array_equal(last["tokens"][0][: count - start], ids[start - (count - 1_000) :])
    np.testing.assert_array_equal(last["mask"][0], np.arange(length + 1) < count - start)
    assert whole["mask"].all() and whole["tokens"][0, -1] == ids[start - (count - 1_000)]
    # Windows of one token each are more than 2^31.
    single = Windows(MappedTokens(path, np.uint16), None, np.ones(2**16, np.int32), 1, 1, "")
    assert len(single) == count - 1 > 2**31
    batch = single.gather(np.array([len(single) - 1, 2**31 + 5]))
    np.testing.assert_array_equal(batch["tokens"], [[998, 999], [0, 0]])
    np.testing.assert_array_equal(batch["window"], [(count - 2) % 2**31, 5])
