"""A model card (Mitchell et al. 2019, arXiv:1810.03993) that is filled in from a run.

    print(card(genjax.restore("runs/gpt_text"), licence="Apache-2.0"))

What a run can know stands in it: the data, the sizes, the command, and every number with its protocol.  What only
people can know is left as a question, and what was not measured is said to be so, with the command that measures it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from genjax import config
from genjax.config.annotations import snake_case
from genjax.config.trees import leaves
from genjax.data.base import DataError
from genjax.model import ContinuesText
from genjax.tools.report import HOW, RunSummary, summary
from genjax.tools.results import Result
from genjax.training import Run, runs

_SPLITS = ("train", "validation", "test")


def card(run: Run, licence: str | None = None, results: Sequence[Result] = ()) -> str:
    """The card in Markdown.

    Args:
      run: a run, finished or not.
      licence: name of the licence of the weights.
      results: recorded results of the project, for the limits.
    """
    found, model, data = summary(Path(run.workdir)), run.model, run.experiment.data
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    entry = config.import_experiments().get(run.name)
    parts = [
        f"# Model card: {run.name}",
        "",
        "## Model",
        "",
        f"- {type(model).__name__}: {_first_sentence(model)}",
        *([f"- Source: {entry.source}"] if entry is not None else []),
        f"- {count:,} parameters; checkpoint of step {run.step} of {found.num_steps}"
        + ("" if run.step >= found.num_steps else " (**the training is not finished**)"),
        f"- Licence of the weights: {licence or '**not stated**; name one with `--licence=NAME`'}",
        "",
        "## Data",
        "",
        f"- {type(data).__name__} `{data.name}`: {data.protocol()}",
        f"- Examples: {_sizes(run)}",
        "- Whose data are these, under which licence, and does it allow a release of what was learned from them? "
        "**To be answered.**",
        "",
        "## Training",
        "",
        f"    {_command(run, entry)}",
        "",
        f"- Version of the code {found.version}, seed {found.seed}, {found.seconds:.0f} s between the recorded steps",
        "",
        "## Numbers",
        "",
        *_numbers(found),
        "",
        "## Misuse",
        "",
        *_misuse(run),
        "",
        "## Limits",
        "",
        *(f"- The project's own record: {_record(each)}" for each in results if each.experiment == run.name),
        "- The numbers above are of one run on the data above. They say nothing of other data, and nothing of people.",
        "- For whom is the model, and for what must it not be used? **To be answered.**",
    ]
    return "\n".join(parts) + "\n"


def _first_sentence(model: Any) -> str:
    text = " ".join((type(model).__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".") + "."


def _sizes(run: Run) -> str:
    """Number of examples of each split; sets that cannot be opened here are said to be so."""
    sizes = []
    for split in _SPLITS:
        try:
            sizes.append(f"{len(run.experiment.data.load(split)):,} {split}")
        except (DataError, ValueError, OSError):
            sizes.append(f"{split} could not be opened here")
    return ", ".join(sizes)


def _command(run: Run, entry: config.Entry | None) -> str:
    """The command of the run, with the fields that were changed."""
    changed = []
    if entry is not None:
        values = lambda experiment: {path: value for path, _, value in leaves(experiment)}
        ours, theirs = values(run.experiment), values(entry.build())
        # Fields that are None are filled from the data and the machine.
        changed = [
            f"--{path}={_text(value)}"
            for path, value in ours.items()
            if path not in HOW and path in theirs and theirs[path] is not None and not _same(value, theirs[path])
        ]
    return " ".join(["python -m experiments.train", f"--experiment={run.name}", *changed, "--workdir=RUN"])


def _same(one: Any, other: Any) -> bool:
    """Whether leaves are equal; of a choice between classes the class alone counts, as its fields are leaves too."""
    return type(one) is type(other) if dataclasses.is_dataclass(one) else one == other


def _text(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return snake_case(type(value).__name__)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return {None: "none", True: "true", False: "false"}.get(value, str(value))


def _numbers(found: RunSummary) -> list[str]:
    if not found.measured:
        return [f"None was measured: `python -m experiments.evaluate --workdir={found.workdir}`"]
    lines = []
    for measured in found.measured:
        lines += [f"{measured.protocol}", "", "| measure | value |", "| --- | ---: |"]
        lines += [f"| {name.replace('|', '/')} | {value:.5g} |" for name, value in measured.values.items()]
        lines.append("")
    return lines[:-1]


def _misuse(run: Run) -> list[str]:
    """What was looked for, and what was not."""
    workdir, texts = Path(run.workdir), {}
    for file in sorted(workdir.glob("text_*.json")):
        texts |= json.loads(file.read_text(encoding="utf-8"))
    lines = []
    if isinstance(runs.policy_run(run).model, ContinuesText):
        for group, what, flag in (
            ("memorization", "Repetition of training text", "--memorized"),
            ("bias", "Preferences between sentences about groups", "--bias=PAIRS.tsv"),
        ):
            seen = "measured, see above" if group in texts else _missing("text", run, flag)
            lines.append(f"- {what}: {seen}")
    elif not sorted(workdir.glob("quality_*.json")):
        lines.append(f"- Copies of training examples: {_missing('quality', run)}")
    else:
        lines.append("- Copies of training examples: measured, see above")
    marked = "measured, see `watermark.json`" if (workdir / "watermark.json").is_file() else _missing("watermark", run)
    return [*lines, f"- Watermark of its output: {marked}"]


def _missing(command: str, run: Run, *flags: str) -> str:
    call = " ".join([f"python -m experiments.{command}", f"--workdir={run.workdir}", *flags])
    return f"**not measured**; where the model allows it: `{call}`"


def _record(result: Result) -> str:
    reached = {True: "reached", False: "**not reached**", None: "not judged"}[result.met]
    return f"{result.title}: target {result.target}, {result.ours or 'not measured'} ({reached})"
