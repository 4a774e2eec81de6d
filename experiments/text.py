"""Measures the text that a trained run writes:

    python -m experiments.text --workdir=runs/t5                                     # text to text, tags, questions
    python -m experiments.text --workdir=runs/bert --ngram=3                         # masked tokens beside an n-gram's
    python -m experiments.text --workdir=runs/gpt --num_samples=64 --memorized       # diversity, what is repeated
    python -m experiments.text --workdir=runs/gpt --bias=PAIRS.tsv
    python -m experiments.text --workdir=runs/adapted --before=runs/bert --other=python_topics

A model that answers sources answers the evaluation split, and its answers are compared with the references:

texts     share of exact matches, BLEU, chrF, ROUGE; diversity and repetition of answers and of references
spans     exact match and F1
entities  F1

BLEU, chrF, ROUGE and the scores of spans and entities run from 0 to 100, as is usual for them; all other matches and
accuracies are shares in [0, 1], also in training and in experiments.evaluate.

Other models write samples.  Their diversity and repetition are printed, with --memorized also the longest parts that
stand in the training text.  --before names the run that --workdir was trained further from, or the folder of another
library's checkpoint (then give --other too).  It prints perplexities before and after the further training, on the new
text and on the text --other that was learned before.  --pictures draws attention maps and embeddings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments import command_line
from genjax.tools import text

#: What groups of scores are measured in, where that is not plain from their names.
UNITS = {
    "answers": "literal matches in [0, 1]; BLEU, chrF and ROUGE from 0 to 100",
    "entities": "from 0 to 100",
    "spans": "from 0 to 100",
}


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, text.Options())
    if given is None:
        return 0
    run, options = given
    split = run.experiment.evaluation.split
    print(f"{run.name}, step {run.step}: {type(run.model).__name__} on {run.experiment.data.name}, split {split}")
    record = text.measure(run, options)
    for group, scores in record.items():
        if isinstance(scores, dict):
            report(group, scores)
    for file in record["files"]:
        print(file)
    name = f"text_{split}"
    command_line.write_record(run, name, {**earlier_groups(run.workdir / f"{name}.json", run.step), **record})
    return 0


def earlier_groups(path: Path, step: int) -> dict[str, Any]:
    """What was measured of the same checkpoint before, with other options."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return earlier if earlier.get("step") == step else {}


def report(group: str, scores: dict[str, Any]) -> None:
    """Prints a group of scores with its unit."""
    print(f" {group}" + (f" ({UNITS[group]})" if group in UNITS else ""))
    for name, value in scores.items():
        print(f"  {name:<28} {value:.6g}" if isinstance(value, float) else f"  {name:<28} {value}")


if __name__ == "__main__":
    command_line.run(main)
