"""The result of a tool: files, figures, and sentences about them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a tool for a run.

    Attributes:
      files: files that it wrote.
      notes: sentences that a reader of the files and figures needs, including the protocol.
      figures: rows of named numbers.
    """

    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[dict[str, Any], ...] = ()

    def text(self) -> str:
        """All of it for a terminal: a line for each figure of a single row, else a line for each row."""
        lines = [*map(str, self.files), *self.notes]
        if len(self.figures) == 1:
            lines += [f"  {name:<28} {_number(value)}" for name, value in self.figures[0].items()]
        else:
            lines += [
                "  " + "  ".join(f"{name} {_number(value)}" for name, value in row.items()) for row in self.figures
            ]
        return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def folder_of(run: Run, name: str) -> Path:
    """A folder in a run's directory; it is made if it does not exist."""
    folder = Path(run.workdir) / name
    folder.mkdir(exist_ok=True)
    return folder
