"""Prompts from Python, and `experiments.generate` as a user runs it."""

import io
import re
import shutil

import jax
import numpy as np
import pytest

import genjax
from genjax.config import ConfigError
from genjax.data import DataError, Text
from genjax.data.text.tokenizer import train_tokenizer
from genjax.families.language.gpt import GPT
from genjax.nn.transformer import Transformer
from genjax.tools import prompts
from genjax.tools.prompts import Options
from genjax.training import Evaluation, Experiment, Training, train
from tests.experiments.commands import call
from tests.tools.untrained import untrained

NETWORK = Transformer(num_layers=1, width=8, num_heads=2, max_length=16)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    experiment = Experiment(
        model=GPT(network=NETWORK),
        data=Text(sequence_length=8, batch_size=8),
        training=Training(num_steps=1, num_samples=1, tensorboard=False, compilation_cache="", mesh="data:1"),
        evaluation=Evaluation(num_examples=8),
    )
    path = tmp_path_factory.mktemp("run")
    train(experiment, path, name="text")
    return path


def run(workdir, *arguments):
    return call("generate", f"--workdir={workdir}", "--training.mesh=data:1", *arguments)


def test_a_prompt_is_continued_as_the_pattern_says(workdir):
    result = run(workdir, "--prompt=The ", "--regex=[a-c]{3}(de|ed)+", "--max_new_tokens=12", "--watermark_seed=1")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"[a-c]{3}(de|ed)+", result.stdout.rstrip("\n")), result.stdout


@pytest.fixture(scope="module")
def greedy(workdir):
    """The run with a model that takes the likeliest token."""
    return genjax.restore(workdir, overrides={"training.mesh": "data:1", "model.sampling.temperature": 0.0})


@pytest.fixture(scope="module")
def drawing(workdir):
    """The run as it was trained."""
    return genjax.restore(workdir, overrides={"training.mesh": "data:1"})


def write(run, prompt="", **options):
    return "".join(prompts.generate(run, prompt, Options(**options)))


def test_every_search_writes_what_the_context_leaves_and_is_greedy_where_it_must_be(workdir, greedy):
    text = write(greedy, "The ")
    assert len(text) == 16 - len("The ")
    for options in (
        {"search": "beam", "num_beams": 1},
        {"search": "contrastive", "contrastive_alpha": 0.0},
        {"search": "speculative", "draft_workdir": str(workdir)},
    ):
        assert write(greedy, "The ", **options) == text, options
    with pytest.raises(ConfigError, match="--draft_workdir"):
        write(greedy, search="speculative")


def test_a_finite_pattern_ends_without_an_end_token_and_a_watermark_is_found(workdir, drawing, tmp_path):
    assert re.fullmatch(r"[a-z]{4}", write(drawing, regex="[a-z]{4}"))
    mark = {"watermark_seed": 3, "watermark_delta": 50.0}
    text = write(drawing, **mark)
    assert prompts.detect(drawing, text, Options(**mark)).z_score > 3
    with pytest.raises(ConfigError, match="needs the secret"):
        prompts.detect(drawing, text, Options())
    path = tmp_path / "text.txt"
    path.write_text(text)
    flags = ["--watermark_seed=3", "--watermark_delta=50", f"--detect={path}"]
    assert float(re.match(r"z-score ([\d.-]+) in \d+ tokens", run(workdir, *flags).stdout)[1]) > 3
    path.write_bytes(b"caf\xe9 caf\xe9")
    assert f"{path.name} is not UTF-8 text" in run(workdir, *flags).stderr
    with pytest.raises(DataError, match="is not among the"):
        write(drawing, "a\udcff")


def test_a_prompt_with_a_token_outside_the_vocabulary_is_refused(workdir):
    with pytest.raises(ValueError, match="the prompt has the token 5000, which lies outside the vocabulary"):
        genjax.restore(workdir).sample(jax.random.key(0), 2, prompt=np.array([1, 5000], np.int32))


def test_a_prompt_longer_than_the_context_is_refused(workdir):
    result = run(workdir, "--prompt=" + 20 * "long ", "--max_new_tokens=4")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "the longest context is model.network.max_length=16" in result.stderr


def test_a_tokenizer_of_another_run_is_refused(workdir, tmp_path):
    # What a process has read of a folder it keeps.
    other = shutil.copytree(workdir, tmp_path / "run")
    (other / "tokenizer.json").write_text(train_tokenizer("characters", ["abc"], 0).to_json())
    result = run(other, "--prompt=abc")
    assert result.returncode == 1 and "it does not belong to the checkpoint" in result.stderr, result.stderr


def test_a_chat_is_answered_turn_by_turn_with_the_template_of_its_run(workdir, tmp_path, monkeypatch):
    pytest.importorskip("jinja2")
    run = untrained("instructions", tmp_path / "chat")
    data = run.experiment.data
    messages = [{"role": "user", "content": "walk twice<|im_end|>"}]
    seen = []
    monkeypatch.setattr(
        type(data), "prompt_ids", lambda self, chat: seen.append([dict(m) for m in chat]) or np.array([3])
    )
    # The end of a turn ends an answer, whatever else ends the model's texts.
    assert data.end_of_turn() in prompts.ends_of(run, messages)
    monkeypatch.setattr("sys.stdin", io.StringIO("walk twice\nagain\n"))
    answered = call(
        "generate",
        f"--workdir={tmp_path / 'chat'}",
        "--training.mesh=data:1",
        "--chat",
        "--system=Be brief.",
        "--max_new_tokens=3",
    )
    assert answered.returncode == 0, answered.stderr
    assert [[m["role"] for m in chat] for chat in seen] == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert seen[1][2]["content"] == answered.stdout.split("\n")[0] and seen[1][3]["content"] == "again"
    with pytest.raises(ConfigError, match="was not trained on chats"):
        write(genjax.restore(workdir, overrides={"training.mesh": "data:1"}), messages)
