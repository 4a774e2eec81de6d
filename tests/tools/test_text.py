"""The report of experiments.text on runs of two steps."""

import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import genjax
from experiments.text import earlier_groups
from genjax import config
from genjax.data import evaluation_batches
from genjax.tools import text as text_measures
from genjax.tools.answers import examples_to_answer
from genjax.training import resolve, train
from genjax.training.checkpoints import flatten
from tests.experiments.commands import call

SHORT = {
    "training.num_steps": 2,
    "training.steps_per_dispatch": 1,
    "training.evaluate_every": None,
    "training.best_metric": None,
    "training.num_samples": 2,
    "training.tensorboard": False,
    "training.compilation_cache": "",
    "training.mesh": "data:1",
    "evaluation.num_examples": 12,
    "data.eval_batch_size": 8,
}


def run_of(name, workdir, **changes):
    entry = config.find_experiment(name)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    train(config.apply_overrides(entry.build(), {**entry.shrunk, **SHORT, **changes}), workdir, name=name, quiet=True)
    return genjax.restore(workdir)


def test_answers_are_held_against_references(tmp_path):
    pytest.importorskip("sacrebleu")
    run = run_of("t5_mixture", tmp_path / "run", data__tasks=("sum", "reverse"))
    data = run.experiment.data
    assert data.tasks == ("sum", "reverse")
    ((batch, _),) = evaluation_batches(data, "test", 12, 12)
    assert [data.decode(row).strip() for row in batch["tokens"]] == text_measures.references_of(run, "test")
    result = call("text", f"--workdir={tmp_path}/run", "--pictures", "--training.mesh=data:1")
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "run" / "text_test.json").read_text())["answers"]
    assert scores["num_examples"] == 12 and "literal_match_reverse" in scores
    assert len((tmp_path / "run" / "answers_test.txt").read_text().splitlines()) >= 12
    names = {path.name for path in (tmp_path / "run" / "pictures").iterdir()}
    assert names == {
        "attention_self.png",
        "attention_self.html",
        "attention_cross.png",
        "attention_cross.html",
        "embeddings.png",
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run_of("bert_embedded", tmp_path_factory.mktemp("first"))


def test_masked_tokens_pairs_of_sentences_and_further_training(first, tmp_path):
    pytest.importorskip("sacrebleu")
    run = first
    scores = text_measures.masked_scores(run, "test", 2)
    # The same masks as those of experiments.evaluate.
    assert scores["masked_nll_per_token"] == pytest.approx(run.evaluate("test")["nll_per_token"], rel=1e-5)
    # A model that has learnt nothing spreads over all tokens, which an n-gram does not.
    assert scores["masked_nll_per_token"] == pytest.approx(np.log(run.model.vocab_size), abs=0.3)
    assert scores["2_gram_nll_per_token"] < 4.0 and scores["num_tokens"] > 12
    table = text_measures.token_embeddings(run.state.eval_params)
    assert table.shape[0] == run.model.vocab_size, "not the table of positions, which is larger"
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("He is kind.\tShe is kind.\tgender\n")
    assert text_measures.bias_scores(run, str(pairs))["prefers_first"] in (0.0, 100.0)
    scores = text_measures.adaptation_scores(run, str(run.workdir), None)
    assert scores["per"] == "token" and scores["before_new_text"] > 1
    assert scores["gained_on_new_text"] == scores["forgotten_of_old_text"] == 0.0
    with pytest.raises(config.ConfigError, match="does not write answers"):
        text_measures.answer_scores(run, "test")


def test_a_vocabulary_grows_for_another_text_and_both_perplexities_are_stated(first, tmp_path):
    text = tmp_path / "new.txt"
    text.write_text("ein anderer Text über Bäume, Vögel und Füße; " * 100)
    second = run_of(
        "bert_embedded", tmp_path / "second", data__name="file", data__dir=str(text), data__added_tokens=8,
        training__init_from=str(first.workdir), model__optimizer="sgd", model__optimizer__learning_rate=0.0,
    )  # fmt: skip
    old, new = first.model.vocab_size, second.model.vocab_size
    pieces = second.experiment.data.make_tokenizer().pieces
    assert [piece.decode() for piece in pieces[old:]] == ["ä", "ö", "ü"] and new == old + 3
    assert second.experiment.data.special_ids() == first.experiment.data.special_ids()
    before, after = (flatten(run.state.params) for run in (first, second))
    grown = [name for name in before if before[name].shape != after[name].shape]
    assert sorted(grown) == ["embedding/token/embedding", "heads/masked_tokens/bias"]
    for name, array in before.items():
        np.testing.assert_array_equal(after[name][: len(array)] if name in grown else after[name], array)
    table = np.asarray(before["embedding/token/embedding"])
    rows = np.asarray(after["embedding/token/embedding"])[old:]
    np.testing.assert_allclose(rows, np.broadcast_to(table.mean(0), rows.shape), atol=1e-6)
    scores = text_measures.adaptation_scores(second, str(first.workdir), None)
    # The old tokenizer has no characters for the new text.
    assert scores["per"] == "character" and scores["before_new_text"] == np.inf and scores["gained_on_new_text"] == 1.0
    assert 1 < scores["after_new_text"] < 500 and abs(scores["forgotten_of_old_text"]) < 0.5


def test_spans_and_entities_are_read_from_heads(tmp_path):
    scores = text_measures.span_scores(run_of("bert_questions", tmp_path / "spans"), "test")
    assert set(scores) == {"num_questions", "exact_match", "f1"} and scores["num_questions"] == 12
    scores = text_measures.entity_scores(run_of("bert_entities", tmp_path / "tags"), "test")
    assert 0 <= scores["f1"] <= 100 and "f1_PER" in scores


def test_samples_are_compared_with_the_training_text(tmp_path):
    pytest.importorskip("sacrebleu")
    run = run_of("gpt_text", tmp_path / "run", data__sequence_length=64, model__network__max_length=64)
    texts = text_measures.sample_texts(run, 3)
    assert len(texts) == 3 and "distinct_2" in text_measures.diversity(texts)
    scores = text_measures.memorized(run, texts)
    # Python's help is like itself more than like random characters.
    assert scores["longest_match_mean"] < scores["longest_match_mean_of_unseen_text"]
    assert text_measures.memorized(run, ["", ""]) == {"num_samples": 2, "num_empty_samples": 2}
    assert text_measures.memorized(run, ["", "", "q"])["longest_match_mean"] == pytest.approx(1 / 3)
    assert text_measures.extraction(run, 5)["extracted"] == 0.0
    # A window has a token more than the context, the last target.
    assert (tmp_path / "run" / "pictures" / "attention_self.png") in text_measures.pictures(run, "test")


@pytest.mark.parametrize("name", ["t5_embedded", "attention_reversal"])
def test_samples_answer_examples_of_the_evaluation_split(name, tmp_path):
    entry = config.find_experiment(name)
    experiment = resolve(config.apply_overrides(entry.build(), {**entry.shrunk, "evaluation.split": "validation"}))
    run = SimpleNamespace(experiment=experiment, model=experiment.model)
    batch = examples_to_answer(run, 3, jax.random.key(0))
    assert len(batch["source"]) == len(batch["source_mask"]) == len(batch["tokens"]) == 3
    (path,) = experiment.data.write_answers(batch, batch["tokens"], tmp_path / "answers")
    text = path.read_text()
    if name == "t5_embedded":
        answers, targets = (re.findall(rf"^{part}  (.*)$", text, re.MULTILINE) for part in ("answer", "target"))
        assert len(answers) == 3 and answers == targets and "source  " in text
    else:
        for line in text.splitlines():
            source, answer, target = (part.split() for part in line.split("\t"))
            assert source[::-1] == answer == target


def test_measures_of_one_checkpoint_stand_together(tmp_path):
    path = tmp_path / "text_test.json"
    assert earlier_groups(path, 3) == {}
    path.write_text(json.dumps({"step": 3, "memorization": {"covered": 0.5}}))
    assert earlier_groups(path, 3)["memorization"] == {"covered": 0.5} and earlier_groups(path, 4) == {}
    path.write_text("{")
    assert earlier_groups(path, 3) == {}
