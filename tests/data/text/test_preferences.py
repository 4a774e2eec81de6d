"""Pairs of answers as rows, their known strength, and bad input."""

import dataclasses
import json

import numpy as np
import pytest

from genjax.data import Preferences
from genjax.data.base import DataError
from genjax.data.text.labelled import judged_review, made_reviews

BYTES = Preferences(tokenizer="bytes", sequence_length=60, num_made=4000)


def files(tmp_path, *rows, **fields):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Preferences(name="pairs", dir=str(tmp_path), tokenizer="bytes", **{"sequence_length": 60, **fields})


def shown(data, tokens, where):
    return data.decode(np.asarray(tokens)[where])


def test_made_pairs_have_the_strength_that_they_say():
    for split in ("train", "test"):
        assert all(judged_review(text) == (label == "good") for text, label in made_reviews(split)[:200])
    assert judged_review("the film was") is None
    pairs = dataclasses.replace(BYTES, strength=2.0).pairs("test")
    good = np.array([[judged_review(pair[name]) for name in ("chosen", "rejected")] for pair in pairs], float)
    differ = good[:, 0] != good[:, 1]
    # Within four standard errors of sigma(2), and of a half.
    assert abs((good[differ, 0]).mean() - 1 / (1 + np.exp(-2.0))) < 4 * np.sqrt(0.105 / differ.sum())
    assert abs(differ.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(pairs))
    right = np.where(differ, good[:, 0] > good[:, 1], 0.5).mean()
    data = dataclasses.replace(BYTES, strength=2.0)
    assert abs(right - data.bayes_rate()) < 4 * 0.4 / np.sqrt(len(pairs)) and "Bayes rate 0.6904" in data.protocol()
    # The texts of a split are in no other.
    texts = [{pair[n] for pair in BYTES.pairs(split) for n in ("chosen", "rejected")} for split in ("train", "test")]
    assert not texts[0] & texts[1] and BYTES.pairs("train")[:50] == dataclasses.replace(BYTES, num_made=50).pairs(
        "train"
    )


def test_pairs_of_drawn_texts_have_every_text_and_rate_what_is_no_review_as_bad(tmp_path):
    good, bad, broken = "the film was great", "the film was dull", "film film"
    (tmp_path / "drawn.txt").write_text("\n-----\n".join([good, bad, broken] * 20) + "\n")
    data = dataclasses.replace(BYTES, texts=str(tmp_path / "drawn.txt"), strength=2.0)
    pairs = data.pairs("train")
    chosen = {(pair["chosen"], pair["rejected"]): 0 for pair in pairs}
    for pair in pairs:
        chosen[pair["chosen"], pair["rejected"]] += 1
    assert set(chosen) == {(a, b) for a in (good, bad, broken) for b in (good, bad, broken) if a != b}
    for other in (bad, broken):
        won, lost = chosen[good, other], chosen[other, good]
        assert abs(won / (won + lost) - 1 / (1 + np.exp(-2.0))) < 4 * np.sqrt(0.105 / (won + lost))
    tied = chosen[bad, broken], chosen[broken, bad]
    assert abs(tied[0] / sum(tied) - 0.5) < 4 * 0.5 / np.sqrt(sum(tied))
    differ = np.mean([(good in pair.values()) for pair in data.pairs("test")])
    assert data.bayes_rate() == pytest.approx(0.5 * (1 - differ) + differ / (1 + np.exp(-2.0)))
    with pytest.raises(DataError, match="is no file; experiments.sample writes one"):
        dataclasses.replace(data, texts=str(tmp_path / "none.txt")).pairs("train")
    with pytest.raises(DataError, match="fewer than two different texts for the split validation"):
        (tmp_path / "few.txt").write_text(f"{good}\n")
        dataclasses.replace(data, texts=str(tmp_path / "few.txt")).pairs("validation")
    with pytest.raises(DataError, match="judged as made reviews"):
        dataclasses.replace(data, name="pairs")


def test_rows_of_texts_are_start_prompt_answer_and_end(tmp_path):
    data = files(tmp_path, {"prompt": "Say hi ", "chosen": " hi", "rejected": "no", "margin": 0.5})
    arrays = {name: a[0] for name, a in data.load_split("train").arrays().items()}
    start, end = data.start_token, data.separator_token
    # trl 2054: prompt and answer are encoded apart; both keep their blanks.
    assert arrays["tokens"][arrays["mask"]].tolist() == [start, *b"Say hi  hi", end]
    assert arrays["tokens"][arrays["loss_mask"]].tolist() == [*b" hi", end]
    assert arrays["rejected"][arrays["rejected_loss_mask"]].tolist() == [*b"no", end]
    assert arrays["margin"] == 0.5 and data.spec()["sequence_length"] == 60
    apart = dataclasses.replace(data, source_length=12)
    arrays = {name: a[0] for name, a in apart.load_split("train").arrays().items()}
    assert arrays["source"][arrays["source_mask"]].tolist() == [start, *b"Say hi ", end]
    assert arrays["tokens"][arrays["mask"]].tolist() == [start, *b" hi", end]
    assert arrays["tokens"][arrays["loss_mask"]].tolist() == [*b" hi", end]


def test_rows_of_messages_learn_the_last_answer_alone(tmp_path):
    pytest.importorskip("jinja2")
    turn = lambda role, text: {"role": role, "content": text}
    before = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    both = {"chosen": [turn("assistant", "yes")], "rejected": [turn("assistant", "no")]}
    data = files(tmp_path, {"prompt": before, **both}, sequence_length=160)
    arrays = {name: a[0] for name, a in data.load_split("train").arrays().items()}
    assert shown(data, arrays["tokens"], arrays["loss_mask"]) == "yes<|im_end|>"
    assert shown(data, arrays["rejected"], arrays["rejected_loss_mask"]) == "no<|im_end|>"
    # A reward is read at the last token of the row: the end of the answer, and not what the template writes behind it.
    assert arrays["tokens"][arrays["mask"]][-1] == data.end_of_turn()
    # Two whole chats that begin with the same turns.
    whole = {name: before + rows for name, rows in both.items()}
    again = files(tmp_path, whole, sequence_length=160).load_split("train").arrays()
    assert all((again[name][0] == arrays[name]).all() for name in arrays)


LONG = {"prompt": "x" * 70, "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 1 of .* has the same chosen and rejected answer"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "line 1 of .* has an empty chosen answer"),
        ({"prompt": "a", "chosen": "b"}, "line 1 of .* has no rejected; a pair has prompt, chosen and rejected"),
        ({"chosen": "b", "rejected": "c"}, "line 1 of .* has no prompt; a pair of texts"),
        (LONG, r"none of the 1 pairs of pairs \(train\) fits into data.sequence_length=60 with its prompt"),
    ],
)  # fmt: skip
def test_bad_pairs_are_one_clear_sentence(row, message, tmp_path):
    with pytest.raises(DataError, match=message):
        files(tmp_path, row).load_split("train")


def test_pairs_that_do_not_fit_are_counted_and_left_out(tmp_path, caplog):
    # trl 6548: answers that truncation has emptied give 0 / 0.
    data = files(tmp_path, LONG, {"prompt": "a", "chosen": "b", "rejected": "c"})
    assert len(data.load_split("train")) == 1
    assert "1 of 2 pairs of pairs (train) do not fit into data.sequence_length=60" in caplog.text
    with pytest.raises(DataError, match="num_made=0 must be at least 10"):
        dataclasses.replace(BYTES, num_made=0)
    with pytest.raises(DataError, match="has no known rewards"):
        data.bayes_rate()


def test_rewards_of_texts_are_written_one_a_line(tmp_path):
    (path,) = BYTES.write_samples(np.array([0.5, -1.0], np.float32), tmp_path / "sheet")
    assert path.read_text() == "0.5000\n-1.0000\n"
    (path,) = BYTES.write_samples(np.array([[256, *b"fine", 257]]), tmp_path / "texts")
    assert "fine" in path.read_text()
