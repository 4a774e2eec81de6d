"""Questions about pictures: rows with their answers, words, and the files of VQA v2."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.data import DataError, PictureQuestions

DATA = PictureQuestions(num_made=24, num_held_out=12)


def test_rows_of_scenes_are_questions_with_answers_that_count():
    rows = DATA.transform(DATA.load("test").gather(np.arange(12)), jax.random.key(0))
    assert rows["x"].shape == (12, 32, 32, 3) and DATA.spec()["sequence_length"] == 16
    for asked, tokens, mask, counted in zip(DATA.asked("test"), *(rows[n] for n in ("tokens", "mask", "loss_mask"))):
        assert DATA.decode(tokens) == asked.text and DATA.answer_of(tokens) == asked.answer
        # The answer is one word, and its end counts.
        assert counted.sum() == 2 and mask.sum() == len(asked.text.split()) + 4 and (mask | ~counted).all()
        assert np.flatnonzero(counted)[-1] == np.flatnonzero(mask)[-1]
        prompts, lengths = DATA.opening([asked.text])
        np.testing.assert_array_equal(tokens[: lengths[0]], prompts[0])
        assert lengths[0] == np.flatnonzero(counted)[0]
    prompts, lengths = DATA.opening(["how many things are there?", "is there a red circle?"])
    assert prompts.shape == (2, 7) and lengths.tolist() == [7, 7]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("is there a pink circle?", "the word 'pink', which is not among the 41 words of the tokenizer"),
        (" ", "give one by --question=TEXT"),
        (None, "give one by --question=TEXT"),
        ("is " * 20, "takes 22 tokens, and data.sequence_length=16 leaves 14 for it"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(question, message):
    with pytest.raises(DataError, match=message):
        DATA.opening([question])


def test_the_tokens_of_a_picture_stand_behind_the_start_and_are_never_cut():
    data = PictureQuestions(num_made=24, num_held_out=12, picture_tokens=3)
    spec, plain = data.spec(), DATA.spec()
    image = plain["vocab_size"]
    assert (spec["image_token"], spec["vocab_size"], spec["picture_tokens"]) == (image, image + 1, 3)
    assert spec["sequence_length"] == 19 and "image_token" not in plain
    rows, without = (own.load("test").gather(np.arange(12)) for own in (data, DATA))
    assert (rows["tokens"][:, 1:4] == image).all()
    for name in ("tokens", "mask", "loss_mask"):
        np.testing.assert_array_equal(np.delete(rows[name], slice(1, 4), axis=1), without[name])
    asked = data.asked("test")[0]
    assert data.decode(rows["tokens"][0]) == asked.text and data.answer_of(rows["tokens"][0]) == asked.answer
    np.testing.assert_array_equal(data.opening([asked.text])[0][0], rows["tokens"][0, : rows["loss_mask"][0].argmax()])
    np.testing.assert_array_equal(data.beginning(asked.text, with_picture=False), DATA.opening([asked.text])[0][0])
    texts = PictureQuestions(num_made=24, num_held_out=12, picture_tokens=0, learn_questions=True)
    learned = texts.load("test").gather(np.arange(12))
    assert texts.spec()["vocab_size"] == image + 1 and texts.spec()["sequence_length"] == 16
    np.testing.assert_array_equal(learned["tokens"], without["tokens"])
    np.testing.assert_array_equal(learned["loss_mask"], without["mask"] & (np.arange(16) > 0)[None])
    with pytest.raises(DataError, match="data.picture_tokens=-1 must not be negative"):
        PictureQuestions(picture_tokens=-1)


def changed(root, name, number, **fields):
    """Changes an entry of a file of the training split."""
    content = json.loads((root / f"train_{name}.json").read_text())
    content[name][number] |= fields
    (root / f"train_{name}.json").write_text(json.dumps(content))


def vqa(root):
    for split in ("train", "validation", "test"):
        (root / split).mkdir(parents=True)
        for number in (9, 25):
            Image.new("RGB", (4, 4), (number,) * 3).save(root / split / f"COCO_{split}_{number:012d}.png")
        asked = [(25, 250, "What colour is it?"), (9, 90, "Is it dark?"), (25, 251, "Is it dark?")]
        questions = [{"image_id": i, "question_id": q, "question": text} for i, q, text in asked]
        notes = [
            {"question_id": q, "answer_type": "other", "multiple_choice_answer": a, "answers": [{"answer": a}] * n}
            for q, a, n in ((90, "yes", 10), (250, "dark grey", 4), (251, "no", 1))
        ]
        (root / f"{split}_questions.json").write_text(json.dumps({"questions": questions}))
        (root / f"{split}_annotations.json").write_text(json.dumps({"annotations": notes}))
    return PictureQuestions(name="vqa", dir=str(root), sequence_length=10)


def test_files_of_vqa(tmp_path):
    data = vqa(tmp_path)
    rows = data.load("train").gather(np.arange(3))
    assert rows["x"][:, 0, 0, 0].tolist() == [25, 9, 25]
    assert [data.answer_of(row) for row in rows["tokens"]] == ["dark grey", "yes", "no"]
    assert data.references("test")[0] == ("dark grey",) * 4


def test_questions_about_pictures_that_are_left_out_are_left_out_too(tmp_path):
    data = vqa(tmp_path)
    changed(tmp_path, "questions", 0, question=3)
    (tmp_path / "train/COCO_train_000000000009.png").write_bytes(b"x")
    asked = dataclasses.replace(data, skip_corrupt=True).asked("train")
    assert [each.text for each in asked] == ["3", "Is it dark?"] and [each.answer for each in asked][1] == "no"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train_questions.json").unlink(), "train_questions.json is missing"),
        (lambda root: (root / "train_annotations.json").write_text("[]"), 'an object with a list "annotations"'),
        (lambda root: (root / "train/COCO_train_000000000009.png").unlink(), "has no picture 9, which 'Is it dark"),
        (lambda root: (root / "train/x.png").write_bytes((root / "train/COCO_train_000000000009.png").read_bytes()),
         "x.png has no number of a picture"),
        (lambda root: (root / "train/a_9.png").write_bytes((root / "train/COCO_train_000000000009.png").read_bytes()),
         "are both the picture number"),
        (lambda root: (root / "train/COCO_train_000000000009.png").write_bytes(b"x"),
         "000000009.png is not a readable picture .*--data.skip_corrupt"),
        (lambda root: changed(root, "questions", 0, question=" "),
         "train_questions.json has an empty text of the question 250"),
        (lambda root: changed(root, "questions", 0, image_id="25"), "has no picture '25', which 'What colour"),
        (lambda root: changed(root, "annotations", 0, multiple_choice_answer=""),
         "train_annotations.json has an empty answer to the question 90"),
        (lambda root: changed(root, "annotations", 0, answers=[1]), '"answers" of the question 90 must be a list'),
        (lambda root: changed(root, "annotations", 0, answers=None), '"answers" of the question 90 must be a list'),
        (lambda root: changed(root, "annotations", 0, question_id=3), "has no answers to the question 90, 'Is it dark"),
    ],
)  # fmt: skip
def test_damaged_files_of_vqa_are_refused(spoil, message, tmp_path):
    data = vqa(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        data.load_split("train")
