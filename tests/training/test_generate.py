"""`experiments.generate` as a user runs it."""

import re
import subprocess
from pathlib import Path

import pytest
from tiny_runs import call

from genjax.data import Text
from genjax.data.tokenization import train_tokenizer
from genjax.families.language.gpt import GPT
from genjax.nn.transformer import Transformer
from genjax.training import Evaluation, Experiment, Training, train

NETWORK = Transformer(num_layers=1, width=8, num_heads=2, max_length=16)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    experiment = Experiment(
        model=GPT(network=NETWORK),
        data=Text(sequence_length=8, batch_size=8),
        training=Training(num_steps=1, num_samples=1, tensorboard=False, compilation_cache=""),
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
    # A pattern may go on for longer than there are tokens.
    assert re.fullmatch(r"[a-c]{3}(de|ed)*[de]?", result.stdout.rstrip("\n")), result.stdout


def test_a_prompt_longer_than_the_context_is_refused(workdir):
    result = run(workdir, "--prompt=" + 20 * "long ", "--max_new_tokens=4")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "the longest context is model.network.max_length=16" in result.stderr


def test_a_tokenizer_of_another_run_is_refused(workdir):
    (workdir / "tokenizer.json").write_text(train_tokenizer("characters", ["abc"], 0).to_json())
    result = run(workdir, "--prompt=abc")
    assert result.returncode == 1 and "it does not belong to the checkpoint" in result.stderr, result.stderr
