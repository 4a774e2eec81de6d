"""A run goes on with the tokenizer in its working directory, whatever became of the text that this was trained on."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest

import genjax
from genjax import config
from genjax.config import ConfigError
from genjax.data import CaptionedImages, DataError, Text, base
from genjax.data import files as shared_files
from genjax.data.text import base as tokenized
from genjax.data.text.tokenizer import train_tokenizer
from genjax.families.language.gpt import GPT
from genjax.nn.transformer import Transformer
from genjax.training import Evaluation, Experiment, Training, resolve, train
from genjax.training.checkpoints import flatten

OPTIONS = {"num_samples": 1, "tensorboard": False, "compilation_cache": "", "mesh": "data:1", "checkpoint_every": 2}
LINE = "the parser parses the sentences, and the reader reads them. "


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    """A text of the user, beside which its tokenizer is kept."""
    monkeypatch.setattr(shared_files, "USER_FOLDER", tmp_path / "home")
    path = tmp_path / "texts" / "text.txt"
    path.parent.mkdir()
    path.write_text(LINE * 60)
    return path


def experiment(text: Path, **changes: object) -> Experiment:
    built = Experiment(
        model=GPT(network=Transformer(num_layers=1, width=8, num_heads=2, max_length=16)),
        data=Text(name="file", dir=str(text), tokenizer="bpe", vocab_size=260, sequence_length=8, batch_size=8),
        training=Training(num_steps=4, **OPTIONS),
        evaluation=Evaluation(num_examples=8),
    )
    return config.apply_overrides(built, {name.replace("__", "."): value for name, value in changes.items()})


def forget_tokenizers(monkeypatch, text: Path) -> None:
    """What was trained is gone, and nothing can be trained again."""
    shutil.rmtree(text.parent / ".genjax")
    tokenized._tokenizer.cache_clear()
    monkeypatch.setattr(tokenized, "train_tokenizer", Mock(side_effect=AssertionError("a tokenizer is trained again")))


def test_a_run_goes_on_with_its_own_tokenizer(text, tmp_path, monkeypatch, caplog):
    workdir, begun = tmp_path / "run", experiment(text)
    ended = {name: np.asarray(a).tobytes() for name, a in flatten(train(begun, workdir, quiet=True)).items()}
    own = (workdir / "tokenizer.json").read_text()
    shutil.rmtree(workdir / "checkpoints" / "4")
    forget_tokenizers(monkeypatch, text)
    again = flatten(train(begun, workdir, quiet=True))
    assert "have changed since" not in caplog.text
    assert {name: np.asarray(a).tobytes() for name, a in again.items()} == ended

    text.write_text("a reader reads other sentences, and no parser. " * 90)
    base._load.cache_clear()
    longer = experiment(text, training__num_steps=6)
    for _ in range(2):
        assert int(train(longer, workdir, quiet=True).step) == 6
    assert (
        caplog.text.count("the training data of") == caplog.text.count("have changed since this run was started") == 1
    )
    assert (workdir / "tokenizer.json").read_text() == own
    run = genjax.restore(workdir)
    assert np.isfinite(run.evaluate()["nll_per_token"])
    (written,) = run.write_samples(run.sample(jax.random.key(0), 2), tmp_path / "samples")
    assert written.read_text(encoding="utf-8").strip()
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(LINE)
    with pytest.raises(ConfigError, match=r"the data have 261 tokens, and the model knows 260; .* have an end token"):
        genjax.restore(workdir, overrides={"data.dir": str(tmp_path)}).evaluate()

    with pytest.raises(ConfigError, match=r"differs in data.vocab_size \(260, now 270\)"):
        train(experiment(text, data__vocab_size=270), workdir, quiet=True)
    other = tmp_path / "other.json"
    other.write_text(train_tokenizer("bpe", ["wholly other words. "], 260).to_json())
    with pytest.raises(DataError, match="so it does not belong to the checkpoint"):
        train(experiment(text, data__tokenizer_file=str(other)), workdir, quiet=True)


def test_a_run_that_added_tokens_goes_on_with_them(text, tmp_path, monkeypatch):
    train(experiment(text), tmp_path / "first", quiet=True)
    text.write_text("naïve parsers parse naïve sentences, ever naïver ones. " * 60)
    changes = {"training__init_from": str(tmp_path / "first"), "data__added_tokens": 2}
    train(experiment(text, **changes), tmp_path / "second", quiet=True)
    own = (tmp_path / "second" / "tokenizer.json").read_text()
    forget_tokenizers(monkeypatch, text)
    text.write_text("wholly other words, which would have been added instead. " * 60)
    for num_steps in (6, 8):
        state = train(experiment(text, training__num_steps=num_steps, **changes), tmp_path / "second", quiet=True)
        assert int(state.step) == num_steps
    assert (tmp_path / "second" / "tokenizer.json").read_text() == own
    with pytest.raises(ConfigError, match=r"differs in data.added_tokens \(2, now 3\)"):
        train(experiment(text, **{**changes, "data__added_tokens": 3}), tmp_path / "second", quiet=True)


def test_a_tokenizer_that_lacks_words_of_the_data_is_named(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(train_tokenizer("words", ["a small circle"], 0).to_json())
    data = CaptionedImages(num_made=4, num_held_out=2, tokenizer_file=str(file))
    with pytest.raises(DataError, match="the tokenizer .*tokenizer.json does not fit the data: .* among the 3 words"):
        resolve(Experiment(model=GPT(), data=data))
