"""Output of a run: metrics as JSON lines and in TensorBoard, a progress bar or plain lines, a table of parameters."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

METRICS_FILE = "metrics.jsonl"


@functools.cache
def version() -> str:
    """The version of genjax, and the commit where it runs from a clone, such as `0.1.0 (3ae799d)`."""
    root = Path(__file__).parents[2]
    try:
        number = importlib.metadata.version("genjax")
    except importlib.metadata.PackageNotFoundError:
        number = "not installed"
    if not (root / ".git").exists():
        return number
    asked = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return number
    return f"{number} ({commit})"


def format_metrics(metrics: Mapping[str, float]) -> str:
    """`loss 105.2  kl 24.1`"""
    return "  ".join(f"{name} {value:.5g}" for name, value in metrics.items())


def finite_json(value: Any, indent: int | None = None) -> str:
    """Metrics as JSON; numbers that are not finite become null, as JSON does not have them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(name): plain(v) for name, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Writes the results of a tool; numbers that are not finite become null."""
    path.write_text(finite_json(value, indent=2) + "\n")


def read_lines(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, null as NaN; a line that was not written to its end is left out."""
    path = workdir / METRICS_FILE
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            rows.append({name: math.nan if v is None else v for name, v in json.loads(line).items()})
    return rows


class Records:
    """Writes metrics of one run; only process 0 makes one."""

    def __init__(self, workdir: Path, start_step: int, tensorboard: bool) -> None:
        """Opens the files; lines of steps after `start_step` come from a run that was killed, and are dropped."""
        path = workdir / METRICS_FILE
        kept = [row for row in read_lines(workdir) if row["step"] <= start_step]
        self._written = {(row["step"], row["kind"]) for row in kept}
        # The file is replaced as a whole, so that it is not lost if the disk is full.
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(finite_json(row) + "\n" for row in kept))
        temporary.replace(path)
        self._file = path.open("a")
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1, flush_secs=30)

    def has(self, step: int, kind: str) -> bool:
        """Whether there was a line of a step and a kind when the files were opened."""
        return (step, kind) in self._written

    def write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Appends one line: the step, where the metrics come from ("train" or a split), and the metrics."""
        self._file.write(finite_json({"step": step, "kind": kind, **{k: float(v) for k, v in metrics.items()}}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Shows a PNG in TensorBoard."""
        if self._board is not None and path.suffix == ".png":
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class Progress:
    """A bar with steps/s and ETA on a terminal, plain lines elsewhere."""

    def __init__(self, start: int, total: int, quiet: bool = False) -> None:
        self._bar = None
        self._quiet = quiet
        self._start, self._total, self._began = start, total, time.monotonic()
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1)

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics of training."""
        if self._bar is not None:
            self._bar.set_postfix_str(format_metrics({k: v for k, v in metrics.items() if k != "steps_per_second"}))
            return
        rate = (step - self._start) / max(time.monotonic() - self._began, 1e-9)
        remaining = (self._total - step) / rate if rate else 0.0
        self.line(f"step {step}/{self._total}  {format_metrics(metrics)}  ({remaining:.0f} s left)")

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def parameter_overview(params: Any) -> str:
    """A table of parameter names, shapes and sizes with their total."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    rows = [(jax.tree_util.keystr(p, simple=True, separator="/"), tuple(a.shape), a.size) for p, a in leaves]
    width = max((len(name) for name, _, _ in rows), default=0)
    lines = [
        f"  {name:<{width}}  {'x'.join(map(str, shape)) or 'scalar':>16}  {size:>12,}" for name, shape, size in rows
    ]
    if len(lines) > 40:
        lines = [*lines[:20], f"  ... {len(lines) - 40} more ...", *lines[-20:]]
    return "\n".join([*lines, f"  {sum(size for _, _, size in rows):,} parameters"])
