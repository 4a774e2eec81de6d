"""Folders of pictures: their splits, classes and damaged files, and what a run remembers of them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from genjax.data import DataError, Images, Pipeline, Points, Waveforms, folders
from genjax.data.audio import write_wav
from genjax.data.base import split_of_file
from genjax.data.files import files_below, with_ending
from genjax.data.fitting import fit_pictures, read_image

SPLITS = ("train", "validation", "test")


def write(path, level=0, size=(4, 4)):
    """A picture of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size[::-1], level).save(path)


def folder(root, **options):
    return Images(name="folder", dir=str(root), channels=1, **options)


def levels(root, split, **options):
    """The levels that tell which pictures a split has."""
    # Read anew, as the folder changes.
    return folder(root, **options).load_split(split).arrays()["x"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("divided", [False, True])
def test_a_folder_gives_pictures_and_classes(divided, tmp_path):
    root = tmp_path / "pictures"
    for split in ("Train", "validation", "Test") if divided else ("",):
        for label, name in enumerate(("cat", "dog")):
            for i in range(20):
                write(root / split / name / f"{i}.png", 100 * label + i, (6, 5))
        # What systems and editors leave behind is no class and no picture.
        for name in (".checkpoints", "__MACOSX", "empty", "notes"):
            (root / split / name).mkdir()
        (root / split / "notes" / "read.txt").write_text("no picture")
        for name in ("cat", "__MACOSX"):
            (root / split / name / "._0.png").write_bytes(b"no picture")
    data = folder(root, batch_size=4)
    arrays = data.load("train").arrays()
    assert data.spec() == {"data_shape": (6, 5, 1), "range": (0.0, 1.0), "num_levels": 256, "num_classes": 2}
    assert data.label_names() == ("cat", "dog")
    assert [len(data.load(split)) for split in SPLITS] == ([40] * 3 if divided else [31, 3, 6])
    np.testing.assert_array_equal(arrays["x"][:, 0, 0, 0] // 100, arrays["label"])

    # A run knows its classes when it is shown a folder that lacks one.
    data.save(tmp_path)
    for split in ("Train", "validation", "Test") if divided else ("",):
        shutil.rmtree(root / split / "cat")
    assert set(folder(root).beside(tmp_path).load("train").arrays()["label"]) == {1}


def test_a_file_keeps_its_split_whatever_files_come_and_go(tmp_path):
    for i in range(100):
        write(tmp_path / f"{i:03d}.png", i)
    before = {split: set(levels(tmp_path, split)) for split in SPLITS}
    assert sum(map(len, before.values())) == 100 and min(map(len, before.values())) > 3
    (tmp_path / "000.png").unlink()
    write(tmp_path / "0505.png", 200)
    for split in SPLITS:
        assert set(levels(tmp_path, split)) - {200} == before[split] - {0}
    # The place of the folder, the suffix and the form of accents do not matter; a tenth each is held out.
    names = [f"b/{i}" for i in range(5000)]
    found = [split_of_file(tmp_path / f"{name}.png", tmp_path) for name in names]
    assert found == [split_of_file(tmp_path / "x" / f"{name}.jpg", tmp_path / "x") for name in names]
    assert abs(found.count("test") - 500) < 4 * 21.2 and abs(found.count("validation") - 500) < 4 * 21.2
    composed, decomposed = (split_of_file(tmp_path / f"{name}.png", tmp_path) for name in ("\u00e9", "e\u0301"))
    assert composed == decomposed


def test_a_run_goes_on_with_the_files_that_it_was_trained_on_alone(tmp_path):
    root, run = tmp_path / "pictures", tmp_path / "run"
    run.mkdir()
    for i in range(20):
        write(root / f"{i}.png", i)
        write(root / "new" / f"{i}.png", i)
    shutil.move(root / "new", tmp_path / "new")
    folder(root).save(run)
    shutil.copytree(root, tmp_path / "moved")
    folder(tmp_path / "moved").save(run)
    shutil.move(tmp_path / "new", root / "new")
    with pytest.raises(DataError, match=r"the 3\d training files of .* are not the 1\d that the run"):
        folder(root).save(run)
    (run / "training_files.json").unlink()
    folder(root).save(run)
    for i in range(20):
        write_wav(np.zeros(8), tmp_path / "sounds" / f"{i}.wav", 8000) if i else (tmp_path / "sounds").mkdir()
    table = tmp_path / "table.csv"
    table.write_text("1,2\n" * 20)
    points, other = (Points(name="table", dir=str(path)) for path in (table, tmp_path / "renamed.csv"))
    points.save(tmp_path)
    table.rename(tmp_path / "renamed.csv")
    other.save(tmp_path)
    (tmp_path / "renamed.csv").write_text("1,2\n" * 21)
    with pytest.raises(DataError, match="the 1 training files of .*renamed.csv are not the 1 that the run in"):
        other.save(tmp_path)
    sounds = Waveforms(name="folder", dir=str(tmp_path / "sounds"))
    with pytest.raises(DataError, match="are not the 33 that the run"):
        sounds.save(run)


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tmp_path / "pictures"
    for i in range(12):
        write(tmp_path / "elsewhere" / f"{i}.png", i)
        write(root / "dog" / f"{i}.png", 100 + i)
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "above").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    arrays = folder(root).load("train").arrays()
    assert set(arrays["label"]) == {0, 1} and len(files_below(root, (".png",))) == 24
    np.testing.assert_array_equal(arrays["x"][:, 0, 0, 0] // 100, arrays["label"])


def test_pictures_beside_class_folders_and_folders_that_differ_in_case_are_said(tmp_path):
    for name in ("cat", "dog"):
        for i in range(10):
            write(tmp_path / name / f"{i}.png")
    for i in range(10):
        write(tmp_path / f"stray{i}.png")
    with pytest.raises(DataError, match="pictures beside them, stray.*others; move these into a class or away"):
        folder(tmp_path).load("train")
    assert "num_classes" not in folder(tmp_path, class_names=()).spec()
    write(tmp_path / "two" / "Train" / "0.png")
    write(tmp_path / "two" / "train" / "0.png")
    with pytest.raises(DataError, match="has the folders Train and train; keep one"):
        folder(tmp_path / "two").load("train")


def test_classes_are_in_natural_order_but_those_of_a_run_keep_theirs(tmp_path):
    for name in range(12):
        for i in range(4):
            write(tmp_path / "p" / str(name) / f"{i}.png", name)
    data = folder(tmp_path / "p")
    arrays = data.load("train").arrays()
    np.testing.assert_array_equal(arrays["x"][:, 0, 0, 0], arrays["label"])
    # Runs from before had them in the order of their characters.
    earlier = folder(tmp_path / "p", class_names=tuple(sorted(map(str, range(12)))))
    earlier.save(tmp_path)
    again = data.going_on(tmp_path)
    again.save(tmp_path)
    assert again.label_names() == earlier.label_names() and again.label_names()[2] == "10"


def test_chosen_classes_are_numbered_anew(tmp_path):
    data = Images(name="digits", classes=(7, 3))
    whole, arrays = Images(name="digits").load("test").arrays(), data.load("test").arrays()
    assert data.spec()["num_classes"] == 2 and data.label_names() == ("7", "3")
    for label, digit in enumerate((7, 3)):
        np.testing.assert_array_equal(arrays["x"][arrays["label"] == label], whole["x"][whole["label"] == digit])
    with pytest.raises(DataError, match="data.classes=10 is no class of digits, which has 0 to 9"):
        Images(name="digits", classes=(1, 10)).load("test")


@pytest.mark.parametrize("in_memory", [True, False])
def test_damaged_pictures_are_met_before_the_first_step_or_left_out(in_memory, tmp_path, monkeypatch, caplog):
    if not in_memory:
        monkeypatch.setattr(folders, "MEMORY_BYTES", 0)
    for i in range(12):
        write(tmp_path / "train" / f"{i:02d}.png", i, (40, 40))
    for name in ("00", "05"):
        file = tmp_path / "train" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:45])
    for _ in range(2):
        with pytest.raises(DataError, match="00.png is not a readable picture.*and 1 more below.*--data.skip_corrupt"):
            folder(tmp_path).load_split("train")
    examples = folder(tmp_path, skip_corrupt=True).load_split("train")
    assert (examples.arrays() is not None) == in_memory
    found = examples.gather(np.arange(len(examples)))["x"][:, 0, 0, 0].tolist()
    assert found == [i for i in range(12) if i not in (0, 5)]
    printed = caplog.text
    assert "2 of 12 pictures are left out" in printed
    # They are looked for once for each state of the folder.
    assert printed.count("looking for damaged pictures") == (0 if in_memory else 1)
    write(tmp_path / "train" / "05.png", 5, (40, 41))
    with pytest.raises(DataError, match="05.png is 40 x 41 pixels, but .*01.png is 40 x 40; .*--data.image_size=40,40"):
        folder(tmp_path, skip_corrupt=True).load_split("train")
    assert len(folder(tmp_path, skip_corrupt=True, image_size=(4, 6)).load_split("train")) == 11


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_whose_colours_have_no_grey_are_refused_in_the_right_words(channels, tmp_path):
    Image.new("LAB", (4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(
        DataError, match="a.tiff is not a readable picture .its colours are in the space LAB; save it in RGB"
    ):
        read_image(tmp_path / "a.tiff", None, channels)


def test_size_and_channels_of_embedded_pictures_are_what_is_asked_for():
    plain = Images(name="shapes").load("test").arrays()["x"]
    grey = Images(name="shapes", channels=1, image_size=(16, 16)).load("test").arrays()["x"]
    assert grey.shape == (len(plain), 16, 16, 1) and grey.dtype == np.uint8
    luma = plain @ np.array([0.299, 0.587, 0.114])
    # Half the size is about the mean of each 2 x 2 pixels.
    blocks = luma.reshape(-1, 16, 2, 16, 2).mean((2, 4))
    assert np.abs(grey[..., 0] - blocks).mean() < 4
    digits = Images(name="digits", channels=3, image_size=(16, 12))
    x, own = digits.load("test").arrays()["x"], Images(name="digits").load("test").arrays()["x"]
    assert digits.spec()["data_shape"] == (16, 12, 3) and x.max() == 16 and (x == x[..., :1]).all()
    # Cropped to the same proportions: the middle six columns.
    assert np.abs(x[:, ::2, ::2, 0].astype(float) - own[:, :, 1:7, 0]).mean() < 2
    clear = Images(name="digits", channels=4).load("test").arrays()["x"]
    assert (clear[..., 3] == 16).all() and (clear[..., :3] == own).all()
    half = np.zeros((1, 2, 2, 4), np.uint8)
    half[0, 0] = (200, 0, 100, 255)
    assert fit_pictures(half, None, 3, 255)[0, :, 0].tolist() == [[200, 0, 100], [255, 255, 255]]


def test_channels_of_earlier_runs_stay_without_effect():
    from genjax import config

    saved = config.to_json(Images(name="digits", channels=3))
    assert config.from_json(saved).channels == 3
    del saved["skip_corrupt"]
    assert config.from_json(saved) == Images(name="digits")
    assert config.from_json({**saved, "name": "folder"}).channels == 3


def test_every_pair_of_two_domains_without_pairs_is_met_and_each_picture_as_often(tmp_path):
    from genjax.data import Translations

    for i in range(40):
        write(tmp_path / "x" / "train" / f"{i}.png", i)
    for i in range(30):
        write(tmp_path / "y" / "train" / f"{i}.png", i)
    data = Translations(name="folder", dir=str(tmp_path / "x"), source_dir=str(tmp_path / "y"), paired=False,
                        channels=1, batch_size=24)  # fmt: skip
    pipeline = Pipeline(data, "train", 0)
    batches = [pipeline.batch(step) for step in range(50)]
    x, source = (np.concatenate([b[name][:, 0, 0, 0] for b in batches]) for name in ("x", "source"))
    assert (np.bincount(x) == 30).all() and (np.bincount(source) == 40).all()
    # Of 1200 pairs drawn at random out of 1200, 1 - 1/e are met.
    assert abs(len(set(zip(x.tolist(), source.tolist()))) / 1200 - 0.632) < 0.04
    assert not np.array_equal(x[:24], Pipeline(data, "train", 1).batch(0)["x"][:, 0, 0, 0])
    whole = data.load("train").gather(np.arange(40))
    assert sorted(whole["x"][:, 0, 0, 0]) == list(range(40)) and set(whole["source"][:, 0, 0, 0]) == set(range(30))
    with pytest.raises(DataError, match="would tear pairs of two folders apart"):
        Translations(name="folder", dir="x", source_dir="y", skip_corrupt=True)


def test_a_dot_in_the_name_of_a_sheet_begins_no_ending(tmp_path):
    paths = Images(name="digits").write_samples(np.zeros((1, 8, 8, 1), np.float32), tmp_path / "rate0.1")
    assert [path.name for path in paths] == ["rate0.1.png"]
    assert with_ending("sheet.png", ".png").name == "sheet.png"
