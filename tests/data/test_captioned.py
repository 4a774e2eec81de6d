"""Pairs of pictures and texts: captions of folders, of emoji and of scenes as tokens."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.data import CaptionedImages, DataError, Pipeline

WORDS = {"name": "folder", "tokenizer": "words", "sequence_length": 8}


def write(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level,) * 3).save(path)


def folder(root, **options):
    return CaptionedImages(dir=str(root), **{**WORDS, **options})


def captioned(root, names=("a", "b", "c")):
    """A folder of splits whose training pictures are grey level 0, 1, ..."""
    for split in ("train", "validation", "test"):
        for level, name in enumerate(names):
            write(root / split / f"{name}.png", level)
            (root / split / f"{name}.txt").write_text(f"level {level}\n\nthe {level}th\n" if level else "level 0")
    return root


def seen(data, split="train", step=0, augment=True):
    """A batch as a model sees it, and its captions as text."""
    batch = (
        Pipeline(data, split, 0).batch(step) if augment else data.load(split).gather(np.arange(len(data.load(split))))
    )
    batch = data.augment(batch, jax.random.key(step)) if augment else batch
    batch = data.transform(batch, jax.random.key(0))
    return batch, [data.decode(row) for row in np.asarray(batch["tokens"])]


def test_scenes_are_pairs_whose_vocabulary_depends_on_no_split():
    data = CaptionedImages(num_made=40, num_held_out=6, batch_size=8)
    assert data.spec()["data_shape"] == (32, 32, 3) and data.spec()["vocab_size"] == 27
    for split in ("train", "paraphrase", "three_things"):
        batch, texts = seen(data, split, augment=False)
        assert texts == [caption for (caption,) in data.references(split)]
        assert not {"captions", "captions_mask", "num_captions"} & set(batch)
        assert (np.asarray(batch["mask"]).sum(1) == [len(text.split()) + 2 for text in texts]).all()
        assert (np.asarray(batch["tokens"])[~np.asarray(batch["mask"])] == data.padding_token).all()
    given = data.prompts(["a small red circle", ""])
    assert [data.decode(row) for row in given["tokens"]] == ["a small red circle", ""]
    assert given["mask"].sum(1).tolist() == [6, 2]
    with pytest.raises(DataError, match="the word 'pink', which is not among the 23 words of the tokenizer"):
        data.prompts(["a small pink circle"])
    with pytest.raises(DataError, match=r"'a small red circle left.* has 22 tokens.* the longest has 18"):
        data.prompts([" left of ".join(["a small red circle"] * 4)])


@pytest.mark.parametrize("form", ["text files", "captions.jsonl", "metadata.jsonl", "coco"])
def test_captions_of_a_folder_in_every_form(form, tmp_path):
    root = captioned(tmp_path)
    if form != "text files":
        entries = []
        for path in sorted(root.rglob("*.txt")):
            lines = [line for line in path.read_text().splitlines() if line]
            entries.append((f"{path.parent.name}/{path.stem}.png", lines))
            path.unlink()
        if form == "coco":
            images = [{"id": 10 + i, "file_name": name} for i, (name, _) in enumerate(entries)]
            notes = [{"image_id": 10 + i, "caption": c} for i, (_, lines) in enumerate(entries) for c in lines]
            (root / "list.json").write_text(json.dumps({"images": images, "annotations": notes}))
        elif form == "captions.jsonl":
            (root / form).write_text("".join(json.dumps({"image": n, "captions": c}) + "\n" for n, c in entries))
        else:
            lines = [{"file_name": n, "text": c} for n, own in entries for c in own]
            (root / form).write_text("\n".join(map(json.dumps, lines)))
    data = folder(root, captions="list.json" if form == "coco" else None, batch_size=3)
    assert data.references("train") == [("level 0",), ("level 1", "the 1th"), ("level 2", "the 2th")]
    batch, texts = seen(data, augment=False)
    assert texts == ["level 0", "level 1", "level 2"]
    np.testing.assert_allclose(batch["x"][:, 0, 0, 0] * 255, [0, 1, 2], atol=1e-4)
    # Training shows each caption, beside its own picture.
    shown = set()
    for step in range(8):
        batch, texts = seen(data, step=step)
        levels = np.round(np.asarray(batch["x"])[:, 0, 0, 0] * 255).astype(int)
        assert all(str(level) in text for level, text in zip(levels, texts))
        shown |= set(texts)
    assert shown == {"level 0", "level 1", "the 1th", "level 2", "the 2th"}
    data.save(tmp_path / "train")
    assert data.beside(tmp_path / "train").make_tokenizer().to_json() == data.make_tokenizer().to_json()


def test_a_large_folder_is_read_as_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("genjax.data.folders.MEMORY_BYTES", 0)
    data = folder(captioned(tmp_path))
    assert data.load("train").arrays() is None
    assert seen(data, augment=False)[1] == ["level 0", "level 1", "level 2"]


def lines(*entries):
    return lambda root: (root / "captions.jsonl").write_text("\n".join(entries))


def coco(number, caption="a"):
    content = {"images": [{"id": 0, "file_name": "train/a.png"}]}
    content["annotations"] = [{"image_id": number, "caption": caption}]
    return lambda root: (root / "captions.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train/b.txt").unlink(), r"b.png has no caption: there is neither b.txt .* nor one of"),
        (lambda root: (root / "train/z.txt").write_text("z"), "no picture beside the caption .*z.txt; add the picture"),
        (lambda root: [(root / f"train/{n}.txt").write_text("z") for n in "yz"], "caption .*y.txt and 1 other; add"),
        (lambda root: (root / "train/b.txt").write_text(" \n"), "the caption of .*b.png in b.txt is empty"),
        (lambda root: write(root / "train/b.jpg"), "b.jpg and .*b.png have one file of captions, b.txt; rename one"),
        (lambda root: (root / "train/b.png").write_bytes(b"x"),
         r"b.png is not a readable picture \(its content .* PNG or JPEG\); repair"),
        (lines('{"image": "a.png"}'), 'line 1 of .* is not like {"file_name": "a.png", "text": "a cat"}'),
        (lines('{"image": "d.png", "text": "d"}'), "has a caption of d.png, and there is no such picture in"),
        (lines('{"image": "train/a.png", "text": " "}'), "has an empty caption of train/a.png"),
        (lines('{"image": "train/a.png", "text": "a"}'), "has no caption of train/b.png and 1 other; add it"),
        (coco(1), "has a caption of the picture with the id 1, which its images do not name"),
        (coco(0, ""), "has an empty caption of train/a.png"),
        (lambda root: (root / "captions.json").write_text("{}"), "is not a list of captions in COCO's format"),
    ],
)  # fmt: skip
def test_captions_that_cannot_be_used_are_one_sentence(change, message, tmp_path):
    change(captioned(tmp_path))
    with pytest.raises(DataError, match=message):
        folder(tmp_path).load("train")


def test_scenes_read_no_folder(tmp_path):
    with pytest.raises(DataError, match="scenes are made and read nothing from data.dir=.*give --data.name=folder"):
        CaptionedImages(dir=str(tmp_path)).spec()


def test_settings_that_cannot_be_are_one_sentence(tmp_path):
    with pytest.raises(
        DataError, match="data.name=mnist is no set of pairs of pictures and texts: scenes, emoji, folder"
    ):
        CaptionedImages(name="mnist")
    with pytest.raises(DataError, match="data.sequence_length=2 must be at least 3"):
        CaptionedImages(sequence_length=2)
    with pytest.raises(DataError, match="--data.captions=x.json is not a file, here or in"):
        folder(captioned(tmp_path), captions="x.json").load("train")
    with pytest.raises(DataError, match="has no split 'all'; it has train"):
        CaptionedImages(num_made=2, num_held_out=2).load("all")


def test_emoji_have_their_captions_and_both_drawings_one_split(tmp_path):
    names = [f"emoji {i // 2}" for i in range(40)]
    content = {
        "images": np.full((40, 64, 64, 4), 255, np.uint8), "category": np.zeros(40, np.int8),
        "caption": np.array(names), "emoji_id": np.arange(40) // 2, "is_test": np.arange(40) < 8,
    }  # fmt: skip
    np.savez(tmp_path / "emoji64.npz", **content)
    data = CaptionedImages(name="emoji", dir=str(tmp_path), image_size=(8, 8))
    assert data.references("test") == [(name,) for name in names[:8]]
    assert data.references("validation") == [(names[16],)] * 2 + [(names[36],)] * 2
    batch, texts = seen(data, "validation", augment=False)
    assert texts == ["emoji 8"] * 2 + ["emoji 18"] * 2 and batch["x"].shape == (4, 8, 8, 3) and "label" in batch
