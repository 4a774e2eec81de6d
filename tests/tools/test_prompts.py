"""`experiments.generate` as a user runs it."""

import re
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

import genjax
from genjax.config import ConfigError
from genjax.data import DataError, Text
from genjax.data.text.tokenizer import train_tokenizer
from genjax.families.language.gpt import GPT
from genjax.nn.transformer import Transformer
from genjax.training import Evaluation, Experiment, Training, train
from tests.entry_points import entry_point
from tests.training.tiny_runs import call

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


def run(workdir: Path, *arguments: str) -> subprocess.CompletedProcess:
    return call("generate", f"--workdir={workdir}", *arguments)


def test_a_prompt_is_continued_as_the_pattern_says(workdir):
    result = run(workdir, "--prompt=The ", "--regex=[a-c]{3}(de|ed)+", "--max_new_tokens=12", "--watermark_seed=1")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"[a-c]{3}(de|ed)+", result.stdout.rstrip("\n")), result.stdout


@pytest.fixture
def write(workdir, capsys):
    """Runs the entry point in this process; returns what it wrote."""

    def call_main(*arguments: str) -> str:
        with flagsaver.flagsaver():
            entry_point("generate").main(["generate", f"--workdir={workdir}", "--training.mesh=data:1", *arguments])
        return capsys.readouterr().out

    return call_main


def test_every_search_writes_what_the_context_leaves_and_is_greedy_where_it_must_be(workdir, write):
    greedy = write("--prompt=The ", "--model.sampling.temperature=0")
    assert len(greedy) == 16 - len("The ") + len("\n")
    draft = f"--draft_workdir={workdir}"
    for options in (
        ["--search=beam", "--num_beams=1"],
        ["--search=contrastive", "--contrastive_alpha=0"],
        ["--search=speculative", draft, "--model.sampling.temperature=0"],
    ):
        assert write("--prompt=The ", *options) == greedy, options
    with pytest.raises(ConfigError, match="--draft_workdir"):
        write("--search=speculative")


def test_a_finite_pattern_ends_without_an_end_token_and_a_watermark_is_found(write, tmp_path):
    assert re.fullmatch(r"[a-z]{4}\n", write("--regex=[a-z]{4}"))
    mark = ["--watermark_seed=3", "--watermark_delta=50"]
    path = tmp_path / "text.txt"
    path.write_text(write(*mark).rstrip("\n"))
    score = re.match(r"z-score ([\d.-]+) in \d+ tokens", write(*mark, f"--detect={path}"))
    assert float(score[1]) > 3
    with pytest.raises(ConfigError, match="needs the secret"):
        write(f"--detect={path}")
    path.write_bytes(b"caf\xe9 caf\xe9")
    with pytest.raises(DataError, match=f"{path.name} is not UTF-8 text"):
        write(*mark, f"--detect={path}")
    with pytest.raises(DataError, match="is not among the"):
        write("--prompt=a\udcff")


def test_a_prompt_with_a_token_outside_the_vocabulary_is_refused(workdir):
    with pytest.raises(ValueError, match="the prompt has the token 5000, which lies outside the vocabulary"):
        genjax.restore(workdir).sample(jax.random.key(0), 2, prompt=np.array([1, 5000], np.int32))


def test_a_prompt_longer_than_the_context_is_refused(workdir):
    result = run(workdir, "--prompt=" + 20 * "long ", "--max_new_tokens=4")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "the longest context is model.network.max_length=16" in result.stderr


def test_a_tokenizer_of_another_run_is_refused(workdir):
    (workdir / "tokenizer.json").write_text(train_tokenizer("characters", ["abc"], 0).to_json())
    result = run(workdir, "--prompt=abc")
    assert result.returncode == 1 and "it does not belong to the checkpoint" in result.stderr, result.stderr
