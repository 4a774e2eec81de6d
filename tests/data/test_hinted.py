"""Pairs with hints: a hint for each picture, mirrored with it, and what is refused."""

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.data import DataError, HintedImages, Pipeline, folders


def levels_of(seed, height=6, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw(path, levels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Seven pictures with captions in a folder of splits, and hints that are the same pictures as PNG."""
    for i, split in enumerate([*["train"] * 4, *["validation"] * 2, "test"]):
        path = tmp_path / "pictures" / split / "deep" / f"{i}.webp"
        draw(path, levels_of(i), lossless=True)
        draw(tmp_path / "hints" / split / "deep" / f"{i}.png", levels_of(i))
        path.with_suffix(".txt").write_text(f"picture {i}")
    return tmp_path


def data_of(root, **options):
    given = {"name": "folder", "dir": str(root / "pictures"), "hints": str(root / "hints"), **options}
    return HintedImages(preprocessing="signed", batch_size=4, **given)


def test_hints_are_those_of_their_pictures_and_mirrored_with_them(root, monkeypatch):
    for memory in (2**30, 0):
        # Read at once, and when they are asked for.
        monkeypatch.setattr(folders, "MEMORY_BYTES", memory)
        data = data_of(root, horizontal_flip=True, eval_batch_size=3 + bool(memory))
        mirrored = 0
        for step in range(4):
            raw = Pipeline(data, "train", seed=1).batch(step)
            batch = data.transform(data.augment(raw, jax.random.key(step)), jax.random.key(0))
            assert batch["hint"].shape == (4, 6, 8, 3)
            np.testing.assert_allclose(batch["hint"], (batch["x"] + 1) / 2, atol=1e-6)
            mirrored += int((np.abs(raw["hint"] - 255 * batch["hint"]).max((1, 2, 3)) > 1).sum())
        assert 2 < mirrored < 14
    held_out = data.load("validation").gather(np.arange(2))
    np.testing.assert_array_equal(held_out["hint"], held_out["x"])
    given = data.read_hint(str(root / "hints" / "train" / "deep" / "0.png"))
    np.testing.assert_allclose(given[0], levels_of(0) / 255, atol=1e-6)
    # Without a folder of hints the model makes them.
    plain = data_of(root, hints=None)
    assert "hint" not in plain.load("train").gather(np.arange(1)) and plain.read_hint("nowhere.png") is None


def test_a_run_goes_on_with_the_hints_of_its_start_alone(root, tmp_path):
    data = data_of(root)
    data.save(tmp_path)
    data.save(tmp_path)
    draw(root / "hints" / "train" / "deep" / "1.png", levels_of(9, 60, 80))
    with pytest.raises(DataError, match="training files of .*pictures.* and .*hints are not the 8"):
        data.save(tmp_path)


def removed(root):
    (root / "hints" / "train" / "deep" / "1.png").unlink()


def doubled(root):
    draw(root / "hints" / "train" / "deep" / "1.bmp", levels_of(1))


def larger(root):
    for i in range(4):
        draw(root / "hints" / "train" / "deep" / f"{i}.png", levels_of(i, 6, 9))


def damaged(root):
    (root / "hints" / "train" / "deep" / "1.png").write_text("no picture")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (removed, {}, "hints has no hint of train/deep/1.webp: a picture of the same name below it"),
        (doubled, {}, "1.bmp and .*1.png are each a hint of one picture; remove one of them"),
        (larger, {}, "have 6 x 9 pixels and their pictures 6 x 8; bring both to one size with --data.image_size=6,8"),
        (damaged, {"skip_corrupt": True}, "1.png is not a readable picture .*; repair or remove what is damaged$"),
        (None, {"hints": "nowhere"}, "--data.hints=nowhere is not a folder"),
        (None, {"name": "scenes"}, "data.hints belong to pictures of a folder, and data.name=scenes is none"),
        (None, {"pad_to": (9, 9)}, "scale both with data.image_size"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, options, words, root):
    if change is not None:
        change(root)
    with pytest.raises(DataError, match=words):
        data_of(root, **options).load("train")


def test_hints_among_the_pictures_are_refused(root):
    (root / "hints").rename(root / "pictures" / "hints")
    with pytest.raises(DataError, match="would be read as pictures, as they lie below data.dir=.*; put them beside it"):
        data_of(root, hints=str(root / "pictures" / "hints")).load("train")
