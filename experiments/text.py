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

from pathlib import Path
from typing import Any

from absl import flags

from experiments import command_line
from genjax import config
from genjax.training.records import write_json

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
flags.DEFINE_integer("num_samples", 0, "samples whose diversity is measured, for models of text alone", lower_bound=0)
flags.DEFINE_integer("num_beams", 1, "hypotheses of the search for answers; 1 takes the likeliest token", lower_bound=1)
flags.DEFINE_boolean(
    "memorized", False, "how much of the samples stands in the training text, and what prefixes bring back"
)
flags.DEFINE_integer("ngram", 0, "order of an n-gram of the training text to hold masked tokens against", lower_bound=0)
flags.DEFINE_string("bias", None, "file of sentence pairs, with a tab between, whose likelihoods are compared")
flags.DEFINE_string(
    "before", None, "run or checkpoint that this one was trained further from, to state perplexities before and after"
)
flags.DEFINE_string(
    "other", None, "text of that run (data.name, or a file), to see what was forgotten; by default its own"
)
flags.DEFINE_boolean("pictures", False, "write attention maps and a map of the token embeddings into the run")

#: What groups of scores are measured in, where that is not plain from their names.
UNITS = {
    "answers": "literal matches in [0, 1]; BLEU, chrF and ROUGE from 0 to 100",
    "entities": "from 0 to 100",
    "spans": "from 0 to 100",
}


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    from genjax.data import LabelledTokens, QuestionAnswering, TextToText
    from genjax.tools import text as measures

    values, data = flags.FLAGS, run.experiment.data
    split = run.experiment.evaluation.split
    print(f"{run.name}, step {run.step}: {type(run.model).__name__} on {data.name}, split {split}")
    record: dict[str, Any] = {"step": run.step, "split": split}

    def report(group: str, scores: dict[str, Any]) -> None:
        record[group] = scores
        print(f" {group}" + (f" ({UNITS[group]})" if group in UNITS else ""))
        for name, value in scores.items():
            print(f"  {name:<28} {value:.6g}" if isinstance(value, float) else f"  {name:<28} {value}")

    if isinstance(data, TextToText):
        scores, answers = measures.answer_scores(run, split, values.num_beams)
        report("answers", scores)
        report("diversity_of_answers", measures.diversity(answers))
        report("diversity_of_references", measures.diversity(measures.references_of(run, split)))
        path = Path(run.workdir) / f"answers_{split}.txt"
        # A line for each, whatever an answer has in it.
        path.write_text("".join(" ".join(answer.splitlines()) + "\n" for answer in answers), encoding="utf-8")
        print(path)
    elif isinstance(data, LabelledTokens):
        report("entities", measures.entity_scores(run, split))
    elif isinstance(data, QuestionAnswering):
        report("spans", measures.span_scores(run, split))
    if values.ngram:
        report("masked_tokens", measures.masked_scores(run, split, values.ngram))
    if values.num_samples or values.memorized:
        texts = measures.sample_texts(run, values.num_samples or 64)
        report("diversity", measures.diversity(texts))
        if values.memorized:
            report("memorization", measures.memorized(run, texts))
            if hasattr(run.model, "generate") and not isinstance(data, TextToText):
                report("extraction", measures.extraction(run))
    if values.bias is not None:
        report("bias", measures.bias_scores(run, values.bias))
    if values.before is not None:
        report("perplexity", measures.adaptation_scores(run, values.before, values.other))
    if values.pictures:
        for path in measures.pictures(run, split):
            print(path)
    elif len(record) == 2:
        raise config.ConfigError(
            f"{data.name} has no references; ask for one of --num_samples, --memorized, --ngram, --bias, --before, --pictures"
        )
    path = Path(run.workdir) / f"text_{split}.json"
    write_json(path, record)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
