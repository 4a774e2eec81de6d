"""What grows with the data does not grow with all of it: bytes held, places of 64 bits, orders that are computed."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from genjax.data.pipeline import evaluation_batches, first_examples
from genjax.data.text import encoder, token_files
from genjax.data.text.encoder import EncoderText
from genjax.data.text.token_files import MappedTokens
from genjax.data.text.windows import Windows

FIRST_BEYOND = 2**31


def test_a_text_of_more_tokens_than_32_bits_can_count_is_read_at_its_end(tmp_path):
    count, length = FIRST_BEYOND + 1000, 100
    path = tmp_path / "row.ids"
    with path.open("wb") as file:
        # A hole that takes no room on the disk.
        file.seek(2 * (count - 500))
        np.arange(500, dtype=np.uint16).tofile(file)
    windows = Windows(
        MappedTokens(path, np.uint16), np.array([0, count - 500]), np.ones(500, np.int32), length, length, ""
    )
    assert len(windows) == -(-(count - 1) // length)
    batch = windows.gather(np.array([len(windows) - 2, 0]))
    begin = (len(windows) - 2) * length
    np.testing.assert_array_equal(batch["tokens"][0], np.arange(begin, begin + length + 1) - (count - 500))
    assert not batch["tokens"][1].any() and batch["segment_ids"][:, 0].tolist() == [2, 1]
    # Rows that go on where they were, in a text whose windows are more than 32 bits can count.
    many = Windows(MappedTokens(path, np.uint16), None, np.ones(500, np.int32), 1, 1, "contiguous")
    rows = many.batch_indices(5, 2, 0)
    assert rows.tolist() == [5, -(-len(many) // 2) + 5] and len(many) > FIRST_BEYOND - 1
    assert many.gather(np.array([count - 10]))["tokens"].tolist() == [[490, 491]]


@pytest.mark.parametrize("pairs", [False, True])
def test_clean_text_holds_few_bytes_of_a_large_text(pairs, tmp_path, monkeypatch):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(60):
        (texts / f"{i}.txt").write_text("some words of a text. " * 2000)
    settings = {"name": "file", "dir": str(texts), "tokenizer": "bytes", "sentence_pairs": pairs}
    data = EncoderText(**settings)
    whole = data.load_split("train").arrays()
    monkeypatch.setattr(token_files, "MEMORY_BYTES", 0)
    monkeypatch.setattr(encoder, "RESIDENT_BYTES", 0)
    size = data.corpus("train").num_bytes
    tracemalloc.start()
    examples = data.load_split("train")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 35 bytes a byte of text, as lists of Python.
    assert held < 0.5 * size and peak < 1.5 * size
    assert examples.arrays() is None
    some = np.array([0, len(examples) - 1, len(examples) // 2])
    for name, rows in examples.gather(some).items():
        np.testing.assert_array_equal(rows, whole[name][some], err_msg=name)


class Many:
    """More examples than 32 bits can count."""

    def __len__(self):
        return 3 * 10**9

    def gather(self, indices):
        return {"place": indices}


def test_the_order_of_an_evaluation_is_computed_and_not_stored():
    data = SimpleNamespace(name="many", load=lambda split: Many())
    tracemalloc.start()
    (all_of_them, _), (some, mask) = (next(evaluation_batches(data, "test", 64, limit)) for limit in (None, 10**9))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    np.testing.assert_array_equal(all_of_them["place"], np.arange(64))
    assert len(set(some["place"].tolist())) == 64 and some["place"].max() > FIRST_BEYOND and mask.all()


@pytest.mark.parametrize("limit", [None, 5, 20])
def test_the_order_of_an_evaluation_is_that_of_the_first_examples(limit):
    few = type("Few", (Many,), {"__len__": lambda self: 20})()
    data = SimpleNamespace(name="few", load=lambda split: few)
    found = [batch["place"][mask > 0] for batch, mask in evaluation_batches(data, "test", 8, limit)]
    np.testing.assert_array_equal(np.concatenate(found), first_examples(20, limit))


def test_of_several_processes_each_reads_its_part_of_an_evaluation():
    read = []

    class Counted(Many):
        def __len__(self):
            return 21

        def gather(self, indices):
            read.append(len(indices))
            return super().gather(indices)

    data = SimpleNamespace(name="counted", load=lambda split: Counted())
    whole = list(evaluation_batches(data, "test", 8))
    read.clear()
    parts = [list(evaluation_batches(data, "test", 8, part=i, num_parts=4)) for i in range(4)]
    assert read == [2] * 12
    for number, (batch, mask) in enumerate(whole):
        own = [part[number] for part in parts]
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([each[name] for each, _ in own]), batch[name])
        np.testing.assert_array_equal(np.concatenate([own_mask for _, own_mask in own]), mask)
