"""Collects many runs in one report: tables with means over seeds, learning curves, samples side by side:

    python -m experiments.report --runs='runs/*' --output=report

Runs that differ in their seed alone are one row.  Numbers stand in one column only where their protocols agree.  The
numbers are those that experiments.evaluate, likelihood, quality and text have written into the runs.  Runs that are not
finished are shown as far as they are; what cannot be read is listed with its reason.  report.html is one file that
needs no network; report.md and report.tex hold its tables.
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
    """

    runs: tuple[str, ...] = ("runs/*",)
    output: str = "report"


def main(arguments: list[str]) -> int:
    options = command_line.options_only(command_line.named_first(arguments, "runs"), __doc__, Options())
    if options is None:
        return 0
    found = report.collect(options.runs)
    number = sum(len(group.runs) for group in found.groups)
    print(f"{number} runs in {len(found.groups)} configurations, {len(found.tables)} tables")
    for path, reason in found.left_out:
        print(f"left out: {path}: {reason}")
    print(*report_pages.write(found, Path(options.output).expanduser()), sep="\n")
    return 0


if __name__ == "__main__":
    command_line.run(main)
