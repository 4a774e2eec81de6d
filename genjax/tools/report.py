"""One report of many runs: tables with means over seeds, learning curves, and samples side by side.

    report = collect(["runs/*"])
    for table in report.tables:
        print(table.protocol, [(row.label, row.cells) for row in table.rows])

Runs that differ in nothing but their seed, and in how they were run (devices, records, checkpoints), are one row: the
mean and the standard deviation over seeds (that divides by their number less one).  Numbers stand in one column only
where their protocols agree: the data, the split, the number of examples, the estimator.  The protocol is what the
command that measured them has written.

Runs are read as JSON alone, so runs of other versions are read too.  What cannot be read is listed with its reason.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genjax import config
from genjax.tools.sweep import CPU_FILE
from genjax.training.experiment import CONFIG_FILE
from genjax.training.records import METRICS_FILE, read_lines

#: Settings that do not decide what is learned.
HOW = {
    f"training.{name}"
    for name in (
        "seed", "parallelism", "mesh", "log_every", "checkpoint_every", "evaluate_every", "sample_every", "num_samples",
        "pictures", "keep_checkpoints", "best_metric", "best_mode", "tensorboard", "compilation_cache", "profile_steps",
        "debug_nans", "distributed", "coordinator_address", "num_processes", "process_id", "hang_timeout",
    )
}  # fmt: skip
#: Points of a curve that are kept of each run, so that a thousand runs fit into memory.
_CURVE_POINTS = 200
#: Files of a run that hold no measures.
_NO_MEASURES = (CONFIG_FILE, METRICS_FILE, CPU_FILE, "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one command measured of a run.

    Attributes:
      protocol: what the numbers belong to; equal protocols are comparable.
      values: numbers by name.
    """

    protocol: str
    values: dict[str, float]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What a report keeps of a run.

    Attributes:
      workdir: its directory.
      name: its experiment.
      data: name of its data set.
      settings: fields of its configuration by path.
      version: version of the code that began it, or "unknown".
      flags: fields that its command gave, or None where the run does not say.
      seed: seed of its training.
      step: the last step that is recorded.
      num_steps: the step that it ends at.
      seconds: time of training, from the recorded steps per second.
      measured: its measures.
      curves: for each kind of record (train or a split) and metric, steps and values, [2, N].
      samples: its latest sheet of samples, or None.
    """

    workdir: Path
    name: str
    data: str
    settings: dict[str, Any]
    version: str
    flags: list[str] | None
    seed: int
    step: int
    num_steps: int
    seconds: float
    measured: list[Measured]
    curves: dict[tuple[str, str], np.ndarray]
    samples: Path | None

    @property
    def finished(self) -> bool:
        return self.step >= self.num_steps


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
      label: the experiment, and the fields in which its groups differ.
      runs: the runs, by seed.
    """

    label: str
    runs: list[RunSummary]

    @property
    def versions(self) -> str:
        """Versions of the code of its runs."""
        return ", ".join(dict.fromkeys(run.version for run in self.runs))

    @property
    def command(self) -> str:
        """The command that gives such a run: with the flags that it was given, or else with the fields of the label."""
        first = self.runs[0]
        if first.flags is None:
            flags = [f"--{part}" for part in self.label.split(" ")[1:]]
        else:
            flags = [each for each in first.flags if each.lstrip("-").partition("=")[0] not in HOW]
        return " ".join(["python -m experiments.train", f"--experiment={first.name}", *flags, "--workdir=RUN"])


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number of a group.

    Attributes:
      mean: mean over seeds.
      deviation: standard deviation over seeds; None for one seed.
      count: number of seeds.
    """

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.0f}" if float(self.mean).is_integer() else f"{self.mean:.5g}"
        digits = max(0, 1 - math.floor(math.log10(self.deviation))) if self.deviation > 0 else 3
        digits = min(digits, 6)
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f} ({self.count})"


@dataclasses.dataclass(frozen=True)
class Row:
    """A group in a table: its label, whether the runs behind its numbers have ended, and a cell a column or None."""

    label: str
    finished: bool
    cells: list[Cell | None]


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers of one protocol."""

    protocol: str
    columns: list[str]
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
      groups: runs by configuration.
      tables: measures by protocol.
      left_out: directories that could not be read, with the reason.
    """

    groups: list[Group]
    tables: list[Table]
    left_out: list[tuple[Path, str]]


def collect(patterns: Sequence[str]) -> Report:
    """Reads the runs that patterns of paths name, as in `runs/*`.

    Raises:
      ConfigError: no directory matches, or none of them is a run.
    """
    workdirs = sorted({Path(path) for pattern in patterns for path in glob.glob(str(Path(pattern).expanduser()))})
    workdirs = [path for path in workdirs if path.is_dir()]
    if not workdirs:
        raise config.ConfigError(
            f"no directory matches {' '.join(patterns) or 'no pattern at all'}; give --runs='runs/*'"
        )
    runs, left_out = [], []
    for workdir in _with_progress(workdirs):
        try:
            runs.append(summary(workdir))
        except config.ConfigError as error:
            left_out.append((workdir, str(error)))
    if not runs:
        raise config.ConfigError(f"none of {len(workdirs)} directories is a run; {left_out[0][0]}: {left_out[0][1]}")
    groups = grouped(runs)
    return Report(groups, tables_of(groups), left_out)


def _with_progress(workdirs: list[Path]) -> Iterable[Path]:
    if len(workdirs) < 20 or not sys.stderr.isatty():
        return workdirs
    from tqdm import tqdm

    return tqdm(workdirs, unit="run")


def summary(workdir: Path) -> RunSummary:
    """Reads one run; one that is still written is read as far as it goes.

    Raises:
      ConfigError: the directory holds no configuration, or a damaged one.
    """
    file = workdir / CONFIG_FILE
    if not file.is_file():
        raise config.ConfigError(f"it holds no {CONFIG_FILE}, so it is no run")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        name, tree = content["name"], content["experiment"]
        settings = dict(_fields(tree))
        data, num_steps = str(settings["data.name"]), int(settings["training.num_steps"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise config.ConfigError(f"its {CONFIG_FILE} is damaged, or no configuration of an experiment") from None
    rows = [row for row in read_lines(workdir) if isinstance(row.get("step"), int) and isinstance(row.get("kind"), str)]
    sheets = sorted((workdir / "samples").glob("samples_*.png"))
    return RunSummary(
        workdir=workdir,
        name=name,
        data=data,
        settings=settings,
        version=str(content.get("version") or "unknown"),
        flags=content.get("flags"),
        seed=int(settings.get("training.seed") or 0),
        step=max((row["step"] for row in rows), default=0),
        num_steps=num_steps,
        seconds=_seconds(rows),
        measured=list(_measured(workdir, data)),
        curves=_curves(rows),
        samples=sheets[-1] if sheets else None,
    )


def _fields(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values of a saved configuration; of a part that was chosen among classes also its class."""
    for name, value in tree.items():
        if name == "class":
            if prefix:
                yield prefix.rstrip("."), str(value).rpartition(":")[2]
        elif isinstance(value, dict) and "class" in value:
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _seconds(rows: list[dict[str, Any]]) -> float:
    """Time of training: steps between two lines over the speed that the second line states."""
    total, before = 0.0, 0
    for row in rows:
        if row["kind"] == "train" and row.get("steps_per_second", 0) > 0:
            total += (row["step"] - before) / row["steps_per_second"]
            before = row["step"]
    return total


def _curves(rows: list[dict[str, Any]]) -> dict[tuple[str, str], np.ndarray]:
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "kind") and isinstance(value, (int, float)):
                found.setdefault((row["kind"], name), []).append((row["step"], float(value)))
    kept = {}
    for key, points in found.items():
        chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), _CURVE_POINTS)).round().astype(int))
        kept[key] = np.array([points[i] for i in chosen], np.float64).T
    return kept


def _measured(workdir: Path, data: str) -> Iterator[Measured]:
    """Measures in the JSON files of a run; a file that is just being written is left out."""
    for file in sorted(workdir.glob("*.json")):
        if file.name in _NO_MEASURES:
            continue
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(record, dict):
            values = dict(_numbers(record))
            if values:
                yield Measured(protocol_of(record, file.stem, data), values)


def protocol_of(record: dict[str, Any], stem: str, data: str) -> str:
    """The protocol of a record without what belongs to the run alone: its name, step, model and time."""
    tool = stem.partition("_")[0]
    if isinstance(record.get("protocol"), str):
        text = record["protocol"].partition(": ")[2] or record["protocol"]
        text = text.partition(" on ")[2] or text
        return f"{tool}: {re.sub(r', [0-9.]+ s$', '', text)}"
    parts = [data, *(f"{name} {record[name]}" for name in ("split", "num_examples") if name in record)]
    return f"{tool}: {', '.join(parts)}"


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if name in ("step", "num_examples"):
            continue
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def grouped(runs: list[RunSummary]) -> list[Group]:
    """Runs by what is learned, in the order of their experiments."""
    found: dict[tuple[str, str], list[RunSummary]] = {}
    for run in runs:
        learned = {path: value for path, value in run.settings.items() if path not in HOW}
        found.setdefault((run.name, json.dumps(learned, sort_keys=True)), []).append(run)
    settings: dict[str, list[dict[str, Any]]] = {}
    for (name, _), own in found.items():
        settings.setdefault(name, []).append(own[0].settings)
    # The fields in which the configurations of an experiment differ, found once an experiment.
    varied = {
        name: {path for each in all_of for path in each if each[path] != all_of[0].get(path)}
        | {path for path in all_of[0] if any(path not in each for each in all_of)}
        for name, all_of in settings.items()
    }
    groups = []
    for (name, _), own in found.items():
        first = own[0].settings
        differing = [path for path in first if path not in HOW and path in varied[name]]
        parts = [f"{path}={_shown(first[path])}" for path in differing]
        groups.append(Group(" ".join([name, *parts]), sorted(own, key=lambda run: run.seed)))
    return groups


def _shown(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return {None: "none", True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, dict) else "..."


def tables_of(groups: list[Group]) -> list[Table]:
    """Tables of what was measured, one for each protocol; two runs of one seed count as two."""
    protocols: dict[str, dict[str, dict[int, list[float]]]] = {}
    for place, group in enumerate(groups):
        for run in group.runs:
            for measured in run.measured:
                columns = protocols.setdefault(measured.protocol, {})
                for name, value in measured.values.items():
                    columns.setdefault(name, {}).setdefault(place, []).append(value)
    tables = []
    for protocol, columns in sorted(protocols.items()):
        places = sorted({place for column in columns.values() for place in column})
        rows = [
            Row(
                groups[place].label,
                all(run.finished for run in groups[place].runs if any(m.protocol == protocol for m in run.measured)),
                [cell(column[place]) if place in column else None for column in columns.values()],
            )
            for place in places
        ]
        tables.append(Table(protocol, list(columns), rows))
    return tables


def cell(values: list[float]) -> Cell:
    """Mean and deviation of numbers."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Cell(float(np.mean(values)), deviation, len(values))
