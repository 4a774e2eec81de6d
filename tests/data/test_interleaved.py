"""Texts with pictures between their words: answers are true of the pictures, and shots alone define words."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.data import DataError, Interleaved
from genjax.data.interleaved import WORDS
from genjax.data.scenes import judge

DATA = Interleaved(num_made=60, num_held_out=24, num_pictures=400)


def seen(batch):
    """What the judge finds in each picture of a row, None for filled-up places."""
    rows = []
    for x in np.asarray(batch["x"]):
        things = judge.things_of(judge.analyse(x.astype(np.float32) / 255))
        rows.append([None if found is None or len(found) != 1 else found[0].kind for found in things])
    return rows


def test_answers_about_either_picture_are_true_of_it():
    batch = DATA.load("either").gather(np.arange(8))
    assert batch["x"].shape == (8, 5, 32, 32, 3)
    for tokens, counted, kinds in zip(batch["tokens"], batch["loss_mask"], seen(batch)):
        text = DATA.written(tokens).strip()
        form = r"<image> first <image> second what (\w+) is the (\w+)\? (\w+) <EOC>"
        asked, place, answer = re.fullmatch(form, text).groups()
        assert getattr(kinds[("first", "second").index(place)], asked) == answer
        assert DATA.written(tokens[counted]).split() == [answer, "<EOC>"]
        assert kinds[2:] == [None] * 3


def test_shots_alone_say_what_a_word_means():
    batch = DATA.load("four_shots").gather(np.arange(12))
    meanings = set()
    for tokens, counted, kinds in zip(batch["tokens"], batch["loss_mask"], seen(batch)):
        words = re.fullmatch(r"(?:<image> this is (\w+) <EOC> ?)+", DATA.written(tokens).strip()) and [
            word for word in DATA.written(tokens).split() if word in WORDS
        ]
        colours = [kind.colour for kind in kinds]
        # Four words for four colours, and the last picture has one of them.
        told = dict(zip(colours[:4], words[:4]))
        assert len(told) == 4 and len(set(words[:4])) == 4 and told[colours[4]] == words[4]
        assert DATA.written(tokens[counted]).split() == [words[4], "<EOC>"]
        meanings |= set(told.items())
    # No colour has a word of its own.
    assert len({word for colour, word in meanings if colour == "red"}) > 1
    alone = DATA.load("no_shots").gather(np.arange(3))
    assert [DATA.written(row).split()[:3] for row in alone["tokens"]] == [["<image>", "this", "is"]] * 3
    train = DATA.load("train").gather(np.arange(60))
    for tokens, counted in zip(train["tokens"][1::2], train["loss_mask"][1::2]):
        words = [word for word in DATA.written(tokens).split() if word in WORDS]
        told = [word for word in DATA.written(tokens[counted]).split() if word in WORDS]
        # What counts was told before, or is the only word of the row.
        assert told == [w for i, w in enumerate(words) if w in words[:i]] or len(words) == 1


def test_a_prompt_is_read_as_the_row_that_it_is(tmp_path):
    batch = DATA.load("either").gather(np.arange(1))
    files = []
    for i, picture in enumerate(batch["x"][0, :2]):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(picture).save(files[-1])
    place = int(np.flatnonzero(batch["loss_mask"][0])[0])
    prompt = DATA.written(batch["tokens"][0][:place]).strip()
    x, tokens = DATA.read_prompt(prompt, files)
    np.testing.assert_array_equal(tokens[0], batch["tokens"][0][:place])
    np.testing.assert_allclose(x, DATA.transform({"x": batch["x"]}, jax.random.key(0))["x"][:, :2], atol=1e-6)
    x, tokens = DATA.read_prompt("<image> this is dax <EOC> <image> this is", files)
    assert DATA.written(tokens[0]).split() == ["<image>", "this", "is", "dax", "<EOC>", "<image>", "this", "is"]
    for text, given, message in (
        (
            "<image> first what",
            files,
            "has 1 image token for 2 pictures, each worth one token; write <image> in --prompt",
        ),
        ("<image> <image> <image>", files, "has 3 image tokens for 2 pictures, each worth one"),
        ("<image> first what", [], "has 1 image token for 0 pictures, each worth one"),
        ("what colour", files[:1], "has 0 image tokens for 1 picture, each worth one"),
        (" ".join(["<image>"] * 6), files * 3, "has 6 pictures, and the model reads 1 to 5"),
        ("what colour", [], "has 0 pictures, and the model reads 1 to 5"),
        ("<image> this is pink", files[:1], "the word 'pink', which is not among the 31 words"),
        (
            "<image> this is",
            [tmp_path / "none.png"],
            r"none.png is not a readable picture \(No such file or directory\)$",
        ),
    ):
        with pytest.raises(DataError, match=message):
            DATA.read_prompt(text, given)


def test_settings_that_cannot_be_are_refused():
    for fields, message in (
        ({"sequence_length": 20}, "data.sequence_length=20 must be at least 26"),
        ({"num_pictures": 20}, "data.num_pictures=20 must be at least 400"),
    ):
        with pytest.raises(DataError, match=message):
            Interleaved(**fields)
    with pytest.raises(DataError, match="data.name=web is no set of texts with pictures between them: scenes"):
        Interleaved(name="web").load("train")
    with pytest.raises(DataError, match="has no split 'shots'; it has train, validation, test, either"):
        DATA.rows("shots")
