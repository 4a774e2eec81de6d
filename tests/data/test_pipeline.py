"""Batches are a function of (seed, step), and every example is seen once an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import DataError, Images, Pipeline, Points, evaluation_batches, full_batches
from genjax.data.base import ArrayExamples
from genjax.data.fitting import read_image
from genjax.data.tables import read_table

DATA = Images(name="digits", batch_size=100)


def test_an_epoch_sees_every_example_once():
    pipeline = Pipeline(DATA, "train", 0)
    count = len(pipeline.examples)
    stream = np.concatenate([pipeline.indices(step) for step in range(3 * count // 100 + 1)])
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(stream[epoch * count : (epoch + 1) * count]), np.arange(count))
    assert not np.array_equal(stream[:count], stream[count : 2 * count])


def test_any_step_can_be_asked_for_alone():
    first, second = Pipeline(DATA, "train", 5), Pipeline(DATA, "train", 5)
    expected = [first.batch(step)["x"] for step in range(30)]
    np.testing.assert_array_equal(second.batch(29)["x"], expected[29])
    for got, want in zip(second.iterate(17, 30), expected[17:], strict=True):
        np.testing.assert_array_equal(got["x"], want)
    assert not np.array_equal(Pipeline(DATA, "train", 6).batch(0)["x"], expected[0])


@pytest.mark.parametrize("count", [2, 4])
def test_slices_of_processes_are_the_global_batch(count):
    whole = Pipeline(DATA, "train", 1).batch(7)
    parts = [Pipeline(DATA, "train", 1, process_index=i, process_count=count).batch(7) for i in range(count)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (7, [([0, 1, 2], 3), ([3, 4, 5], 3), ([6, 6, 6], 1)]),
        (6, [([0, 1, 2], 3), ([3, 4, 5], 3)]),
        (2, [([0, 1, 1], 2)]),
        (0, []),
    ],
)
def test_full_batches_hold_every_place_once_and_repeat_the_last(count, expected):
    assert [(rows.tolist(), own) for rows, own in full_batches(count, 3)] == expected


def test_an_evaluation_reads_every_example_once_and_masks_its_padding():
    batches = list(evaluation_batches(DATA, "test", 50))
    assert all(len(b["x"]) == len(mask) == 50 for b, mask in batches)
    seen = np.concatenate([b["x"][mask > 0] for b, mask in batches])
    np.testing.assert_array_equal(seen, DATA.load("test").arrays()["x"])


def test_a_part_of_an_evaluation_is_a_fair_part_of_the_split():
    def first(limit):
        batches = evaluation_batches(Images(name="sprites"), "test", 50, limit)
        return np.concatenate([b["label"][mask > 0] for b, mask in batches])

    # Of 614 sprites that lie class after class, the first 120 in their own order are all squares.
    assert len(first(120)) == 120 and np.bincount(first(120)).min() > 25
    np.testing.assert_array_equal(first(70), first(120)[:70])
    np.testing.assert_array_equal(first(None), Images(name="sprites").load("test").arrays()["label"])
    np.testing.assert_array_equal(first(10000), first(None))


def test_a_set_that_is_read_piece_by_piece_is_resident_where_it_is_asked_for(monkeypatch):
    asked, by_default = (Pipeline(Images(name="digits", resident=r, batch_size=4), "train", 0) for r in (True, None))
    monkeypatch.setattr(ArrayExamples, "arrays", lambda examples: None)
    assert asked.resident and not by_default.resident
    np.testing.assert_array_equal(asked.arrays()["x"][asked.indices(3)], by_default.batch(3)["x"])


def test_splits_of_a_set_do_not_overlap():
    sizes = [len(DATA.load(split)) for split in ("train", "validation", "test")]
    assert sum(sizes) == 1797 and sizes[1] == sizes[2] == 179
    with pytest.raises(DataError, match="has no split 'tests'; it has train, validation, test"):
        DATA.load("tests")


def test_classes_can_be_held_out():
    labels = Images(name="digits", classes=(0, 1, 2)).load("train").arrays()["label"]
    assert set(labels) == {0, 1, 2}


def test_padding_and_quantising_change_the_levels_as_they_say():
    data = Images(name="digits", pad_to=(12, 11), num_levels=4)
    x = data.load("train").arrays()["x"]
    plain = Images(name="digits").load("train").arrays()["x"]
    assert x.shape[1:] == (12, 11, 1) and x.max() == 3
    np.testing.assert_array_equal(x[:, 2:10, 1:9], plain.astype(int) * 4 // 17)
    assert data.spec() == {"data_shape": (12, 11, 1), "range": (0.0, 1.0), "num_levels": 4, "num_classes": 10}


@pytest.mark.parametrize("preprocessing", ["binarize_static", "binarize_dynamic", "binarize_threshold"])
def test_binary_pictures_have_two_levels_whatever_they_were_made_of(preprocessing):
    data = Images(name="digits", preprocessing=preprocessing)
    assert data.spec()["num_levels"] == 2
    batch = {"x": jnp.asarray(data.load("train").arrays()["x"][:8])}
    assert set(np.unique(data.transform(batch, jax.random.key(0))["x"])) == {0.0, 1.0}


def test_a_table_is_read_standardised_and_written_back(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal([10.0, -3.0], [2.0, 0.1], (500, 2)).astype(np.float32)
    file = tmp_path / "table.csv"
    np.savetxt(file, values, delimiter=",", header="height,weight", comments="")
    data = Points(name="table", dir=str(file), standardize=True)
    x = data.load("train").arrays()["x"]
    batch = data.transform({"x": x}, None)
    np.testing.assert_allclose(np.mean(batch["x"], 0), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.std(batch["x"], 0), 1.0, atol=1e-4)
    np.testing.assert_allclose(batch["log_abs_det"], -np.log(x.std(0)).sum(), rtol=1e-4)
    _, csv = data.write_samples(batch["x"][:5], tmp_path / "samples")
    assert csv.read_text().startswith("height,weight\n")
    np.testing.assert_allclose(np.loadtxt(csv, delimiter=",", skiprows=1), x[:5], rtol=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,x\n", "line 3 of .* is not a number"),
        ("1,2\n3\n", "line 2 of .* has 1 cells, the first row has 2"),
        ("1,2\n3,nan\n", "row 2, column 2 of .* is not a finite number"),
        ("", "has no rows"),
        # A first row that lacks a value is not the line of names.
        ("1,,3\n4,5,6\n", "line 1 of .* is not a number"),
        ("a,b\n1,2,3\n", "names 2 columns, and its rows have 3 cells"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_that_names_the_place(content, message, tmp_path):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        Points(name="table", dir=str(tmp_path / "t.csv")).load("train")


def test_a_byte_order_mark_does_not_make_names_of_the_first_row(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeff1,5\n2,6\n", encoding="utf-8")
    values, names = read_table(str(tmp_path / "t.csv"))
    assert values.tolist() == [[1, 5], [2, 6]] and names == ["column_0", "column_1"]


def test_pictures_of_16_bits_and_transparent_ones_are_what_a_viewer_shows(tmp_path):
    from PIL import Image

    levels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(levels * 1000).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "deep.png", None, 3), (levels * 1000 // 256)[..., None].repeat(3, -1)
    )
    half = np.zeros((2, 2, 4), np.uint8)
    half[0] = (200, 0, 0, 255)
    Image.fromarray(half).save(tmp_path / "half.png")
    assert read_image(tmp_path / "half.png", None, 3)[:, 0].tolist() == [[200, 0, 0], [255, 255, 255]]
    assert read_image(tmp_path / "half.png", None, 4)[:, 0].tolist() == [[200, 0, 0, 255], [0, 0, 0, 0]]
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match="its pixels have 32 bits"):
        read_image(tmp_path / "float.tiff", None, 1)
