"""The model card says what a run knows, and what nobody measured."""

import json

import jax
import pytest

from experiments import report as command
from genjax.tools import cards
from genjax.tools.results import Result
from tests.tools.untrained import untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained("gpt_reviews", tmp_path_factory.mktemp("runs") / "run")


def test_a_card_says_what_the_run_knows(run):
    recorded = [
        Result("gpt_reviews", "alignment", "GPT of reviews", met=False, experiment="gpt_reviews", target="9", ours="8")
    ]
    text = cards.card(run, "Apache-2.0", recorded)
    number = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    for words in (
        "# Model card: gpt_reviews",
        f"{number:,} parameters; checkpoint of step 0 of 600 (**the training is not finished**)",
        "Licence of the weights: Apache-2.0",
        "`reviews`: ",
        "python -m experiments.train --experiment=gpt_reviews --model.network.width=8 ",
        "None was measured: `python -m experiments.evaluate",
        f"Repetition of training text: **not measured**; where the model allows it: `python -m experiments.text "
        f"--workdir={run.workdir} --memorized`",
        "GPT of reviews: target 9, 8 (**not reached**)",
    ):
        assert words in text, (words, text)
    assert "**not stated**; name one with `--licence=NAME`" in cards.card(run)


def test_a_card_has_every_number_with_its_protocol(run):
    record = {"protocol": "run, step 0: GPT on reviews, split test, 7 examples", "nll": 1.5}
    (run.workdir / "evaluation_test.json").write_text(json.dumps(record))
    (run.workdir / "text_test.json").write_text(json.dumps({"memorization": {"longest_match_mean": 3.0}}))
    text = cards.card(run)
    assert "evaluation: reviews, split test, 7 examples\n\n| measure | value |\n| --- | ---: |\n| nll | 1.5 |" in text
    assert "Repetition of training text: measured, see above" in text
    assert "memorization/longest_match_mean | 3 |" in text


def test_the_command_writes_a_card_of_each_run(run, tmp_path, capsys):
    assert command.main(["report", f"--runs={run.workdir}", f"--output={tmp_path}", "--card"]) == 0
    assert (tmp_path / "card_run.md").read_text().startswith("# Model card: gpt_reviews")
    assert "card_run.md" in capsys.readouterr().out
