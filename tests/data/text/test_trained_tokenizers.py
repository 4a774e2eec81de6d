"""Tokenizers that are trained: once, by one process, on a sample, and kept in a file."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from genjax.data import DataError, Text
from genjax.data import files as shared_files
from genjax.data.text import base as tokenized
from genjax.data.text import trained as trained_tokenizers
from genjax.data.text.tokenizer import Tokenizer
from genjax.data.text.trained import BLOCK, spread_sample

#: Waits until the other process is there too, and says whether it trained.
START = """
import sys, time
from pathlib import Path
from genjax.data import Text
from genjax.data.text import base as tokenized
train = tokenized.train_tokenizer
def slowly(*arguments):
    print("trained")
    time.sleep(1)
    return train(*arguments)
tokenized.train_tokenizer = slowly
text, own, other, result = map(Path, sys.argv[1:])
own.touch()
while not other.exists():
    time.sleep(0.01)
result.write_text(Text(name="file", dir=str(text), tokenizer="unigram", vocab_size=300).make_tokenizer().to_json())
"""


def test_two_processes_train_one_tokenizer_and_read_the_same(tmp_path):
    pytest.importorskip("tokenizers")
    text, (first, second) = tmp_path / "text.txt", (tmp_path / name for name in "ab")
    text.write_text("the quick brown fox jumps over the lazy dog, and other words of no meaning. " * 400)
    root = Path(tokenized.__file__).parents[3]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, text, own, other, own.with_suffix(".json")],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for own, other in [(first, second), (second, first)]
    ]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and sorted(printed) == ["", "trained\n"]
    content = first.with_suffix(".json").read_bytes()
    assert content == second.with_suffix(".json").read_bytes() and b"unigram" in content
    assert sorted(path.suffix for path in (tmp_path / ".genjax").iterdir()) == [".lock", ".tokenizer"]


@pytest.mark.parametrize("links", [True, False])
def test_one_tokenizer_stays_where_the_disk_knows_no_locks(links, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files.fcntl, "flock", Mock(side_effect=OSError("no locks")))
    if not links:
        monkeypatch.setattr(trained_tokenizers.os, "link", Mock(side_effect=OSError("no links")))
    corpus = trained_tokenizers.in_memory(["text"], str(tmp_path))
    mine, theirs = (Tokenizer("characters", [symbol]) for symbol in (b"m", b"t"))

    def slow() -> Tokenizer:
        # Another process comes later and is ready first.
        others = trained_tokenizers.made_once(lambda: theirs, [corpus], ["settings"])
        assert others.pieces == theirs.pieces
        return mine

    last = trained_tokenizers.made_once(slow, [corpus], ["settings"])
    again = trained_tokenizers.made_once(Mock(side_effect=AssertionError), [corpus], ["settings"])
    # Without links the last one stays, and the run compares the tokenizers of its processes.
    assert last.pieces == again.pieces == (theirs if links else mine).pieces
    assert not list((tmp_path / ".genjax").glob("*.part"))


def test_a_sample_is_bounded_and_spread_evenly_over_the_text():
    texts = [f"{i:04d}" + "x" * (BLOCK - 4) for i in range(1000)]
    blocks, total = spread_sample(iter(texts), 150 * BLOCK)
    assert total == 1000 * BLOCK and blocks == spread_sample(texts, 150 * BLOCK)[0]
    numbers = [int(block[:4]) for block in blocks]
    # Every block whose place is in the first eighth.
    assert 100 < len(numbers) <= 150 and numbers == sorted(set(numbers))
    tenths = [sum(n // 100 == tenth for n in numbers) for tenth in range(10)]
    assert max(tenths) - min(tenths) <= 2
    for period in (2, 3, 4):
        counts = [sum(n % period == rest for n in numbers) for rest in range(period)]
        assert max(counts) - min(counts) <= 3
    # Long texts are cut, and a small corpus is taken whole.
    assert spread_sample(["".join(texts)], 150 * BLOCK)[0] == blocks
    assert spread_sample(["one", "two", ""], 6) == (["one", "two"], 6)
    assert spread_sample(["x" * 3 * BLOCK], 1) == (["x" * BLOCK], 3 * BLOCK)


def test_pieces_are_trained_on_a_sample_which_the_log_says(tmp_path, monkeypatch, caplog):
    train = Mock(return_value=Tokenizer("bpe", [b"a", b"b"]))
    monkeypatch.setattr(tokenized, "train_tokenizer", train)
    for i in range(20):
        (tmp_path / f"{i:02d}.txt").write_text(f"{i:02d}")
    options = {"name": "file", "dir": str(tmp_path), "tokenizer": "bpe"}
    with caplog.at_level(logging.WARNING):
        Text(**options).make_tokenizer()
        assert not caplog.records and len(train.call_args.args[1]) == 17
        Text(**options, tokenizer_sample=20).make_tokenizer()
    (line,) = caplog.messages
    assert line == "the tokenizer of file sees 18 of 34 characters, spread over all of it (data.tokenizer_sample=20)"
    assert len(train.call_args.args[1]) == 9
    with pytest.raises(DataError, match=r"data.tokenizer_sample=0 must be at least 1"):
        Text(tokenizer_sample=0)


def test_texts_in_memory_are_known_by_their_content(tmp_path):
    texts = (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c"])
    corpora = [trained_tokenizers.in_memory(each, str(tmp_path / "table.tsv")) for each in texts]
    assert len({corpus.identity for corpus in corpora}) == 4 and corpora[0].identity == corpora[4].identity
    assert corpora[0].folder == tmp_path and corpora[0].num_bytes == 3 and list(corpora[0]) == ["ab", "c"]


def test_a_run_whose_tokenizer_cannot_be_trained_again_goes_on_with_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, "USER_FOLDER", tmp_path / "first")
    train = Mock(side_effect=lambda *arguments: Tokenizer("unigram", [b"%d" % train.call_count]))
    monkeypatch.setattr(tokenized, "train_tokenizer", train)
    data = Text(tokenizer="unigram")
    data.save(tmp_path)
    monkeypatch.setattr(shared_files, "USER_FOLDER", tmp_path / "another")
    tokenized._tokenizer.cache_clear()
    with pytest.raises(DataError, match=r"--data.tokenizer_file=.*/tokenizer.json to keep its tokenizer"):
        data.save(tmp_path)
    data.with_tokenizer(tmp_path / "tokenizer.json").save(tmp_path)
