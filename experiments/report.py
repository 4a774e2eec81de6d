"""Collects many runs in one report: tables with means over seeds, learning curves, samples side by side:

    python -m experiments.report --runs='runs/*' --output=report

Runs that differ in their seed alone are one row.  Numbers stand in one column only where their protocols agree.  The
numbers are those that experiments.evaluate, likelihood, quality and text have written into the runs.  Runs that are not
finished are shown as far as they are; what cannot be read is listed with its reason.  report.html is one file that
needs no network; report.md and report.tex hold its tables.

    python -m experiments.report --runs=runs/gpt_text --card --licence=Apache-2.0

writes a model card of each run instead, card_RUN.md, with what the run knows of its data, sizes, numbers and limits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments import command_line
from genjax.tools import report, report_pages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Runs, and the place of the report.

    Attributes:
      runs: patterns of directories, separated by commas; it may also be the first argument.
      output: folder of the report.
      card: write a model card of each run instead.
      licence: name of the licence of the weights, for the card.
    """

    runs: tuple[str, ...] = ("runs/*",)
    output: str = "report"
    card: bool = False
    licence: str | None = None


def main(arguments: list[str]) -> int:
    options = command_line.options_only(command_line.named_first(arguments, "runs"), __doc__, Options())
    if options is None:
        return 0
    found = report.collect(options.runs)
    number = sum(len(group.runs) for group in found.groups)
    print(f"{number} runs in {len(found.groups)} configurations, {len(found.tables)} tables")
    for path, reason in found.left_out:
        print(f"left out: {path}: {reason}")
    folder = Path(options.output).expanduser()
    print(*(_cards(found, folder, options.licence) if options.card else report_pages.write(found, folder)), sep="\n")
    return 0


def _cards(found: report.Report, folder: Path, licence: str | None) -> list[Path]:
    """Writes the model card of every run into a folder."""
    # Restoring a run needs JAX, which a report does without.
    import genjax
    from experiments import RESULTS
    from genjax.tools import cards, results

    folder.mkdir(parents=True, exist_ok=True)
    recorded, files = results.read_results(RESULTS), []
    for run in (run for group in found.groups for run in group.runs):
        files.append(folder / f"card_{run.workdir.name}.md")
        files[-1].write_text(cards.card(genjax.restore(run.workdir), licence, recorded), encoding="utf-8")
    return files


if __name__ == "__main__":
    command_line.run(main)
