"""Recorded results: one file has every number of the project, and all tables are made from it.

The file has one JSON object a line (see `Result`).  `write_documents` renders it between the markers of the documents,
`<!-- results: NAME -->` and `<!-- end of results -->`; `rerun` runs the commands of a result again and compares.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from genjax.config import ConfigError

_BLOCK = re.compile(r"(<!-- results: (?P<name>[\w /]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
_MARKS = {True: "yes", False: "**no**", None: ""}


@dataclasses.dataclass(frozen=True)
class Check:
    """A number that a command writes, and its recorded value.

    Attributes:
      file: JSON file that the commands write, with the key after a colon: `runs/vae_digits/evaluation_test.json:nll`;
        keys below keys and places in lists follow after slashes.
      value: the recorded number.
      tolerance: largest difference that does not count as drift.
    """

    file: str
    value: float
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Result:
    """One recorded result.

    Attributes:
      name: unique name.
      page: page of docs/results that shows it, named by family.
      title: what was measured, in at most twelve words.
      met: whether the target was met; None if there is no target.
      experiment: registered experiment, or None.
      target: the paper's number or the mark to reach, in at most twelve words.
      ours: our number, in at most twelve words; None if it was not measured.
      what: the setting in full.
      target_in_full: the target with its source.
      ours_in_full: our numbers with their qualifications.
      protocol: split, estimator and seed.
      commands: commands that give the number, in order; names such as TFDS and JSB stand for folders of data.
      device: device and time.
      commit: commit at which it was measured.
      curve: the metric along the run.
      picture: path of a picture below docs/.
      minutes: time of the commands on two cores, if they are cheap enough to run again.
      checks: numbers that the commands must give when they are run again.
      best: whether the README shows it for its family.
    """

    name: str
    page: str
    title: str
    met: bool | None = None
    experiment: str | None = None
    target: str | None = None
    ours: str | None = None
    what: str | None = None
    target_in_full: str | None = None
    ours_in_full: str | None = None
    protocol: str | None = None
    commands: tuple[str, ...] = ()
    device: str | None = None
    commit: str | None = None
    curve: str | None = None
    picture: str | None = None
    minutes: float | None = None
    checks: tuple[Check, ...] = ()
    best: bool = False


def read_results(path: Path) -> list[Result]:
    """Results of a file, one JSON object a line.

    Raises:
      ConfigError: a line is no result, or a name occurs twice.
    """
    found: dict[str, Result] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            fields["commands"] = tuple(fields.get("commands", ()))
            fields["checks"] = tuple(Check(**check) for check in fields.get("checks", ()))
            result = Result(**fields)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"line {number} of {path} is no result: {error}") from None
        if result.name in found:
            raise ConfigError(f"line {number} of {path}: the name {result.name!r} occurs twice")
        found[result.name] = result
    return list(found.values())


def summary(results: Sequence[Result], experiment: str) -> str:
    """Targets and numbers of an experiment in one line, for lists of experiments."""
    parts = []
    for result in results:
        if result.experiment != experiment:
            continue
        ours = (result.ours or "not measured").replace("**", "")
        parts.append(f"{result.title}: {ours}" + (f" (target: {result.target})" if result.target else ""))
    return "; ".join(parts)


def reproduction_table(results: Sequence[Result]) -> str:
    """The table of BUILD_NOTES.md: a row for each measured result."""
    lines = ["| result | target | ours | met | commit | page |", "|---|---|---|---|---|---|"]
    for r in results:
        if r.ours is None:
            continue
        link = f"[{r.page}](docs/results/{r.page}.md#{_anchor(r)})"
        cells = [r.title, r.target or "", r.ours, _MARKS[r.met], _first_commit(r.commit), link]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _first_commit(commit: str | None) -> str:
    found = re.search(r"\b[0-9a-f]{7}\b", commit or "")
    return found.group() if found else ""


def _anchor(result: Result) -> str:
    return re.sub(r"[^\w\- ]", "", result.title.lower()).replace(" ", "-")


def page(results: Sequence[Result], name: str) -> str:
    """A page of docs/results: a section for each result, then what was not measured."""
    parts, missing = [], []
    for r in results:
        if r.page != name:
            continue
        if r.ours is None:
            missing.append(f"- `{r.experiment}`: {r.title}" + (f" ({r.target})" if r.target else ""))
            continue
        parts.append("\n\n".join(_section(r)))
    if missing:
        parts.append("## Not measured yet\n\n" + "\n".join(missing))
    return "\n\n".join(parts)


def _section(r: Result) -> Iterator[str]:
    yield f"## {r.title}"
    if r.picture:
        yield f"![{r.title}](../{r.picture})"
    met = {True: "met", False: "not met", None: ""}[r.met]
    rows = [
        ("ours", r.ours),
        ("target", " ".join(filter(None, (r.target, f"({met})" if r.target and met else "")))),
        ("device", r.device),
        ("commit", r.commit),
    ]
    yield "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows if value)])
    for label, text, told in (
        ("Setting", r.what, f"`{r.experiment}`"),
        ("Target", r.target_in_full, r.target),
        ("Result", r.ours_in_full, r.ours),
        ("Protocol", r.protocol, None),
        ("Curve", r.curve, None),
    ):
        if text and text != told:
            yield f"**{label}.** {text}"
    if r.commands:
        yield "```sh\n" + "\n".join(r.commands) + "\n```"


def family_table(results: Sequence[Result], families: Mapping[str, str]) -> str:
    """The README's table: models of each family, its best number and its page."""
    lines = ["| family | models | a number | page |", "|---|---|---|---|"]
    for family, models in families.items():
        best = next((r for r in results if r.page == family and r.best), None)
        number = "" if best is None else f"{best.title}: {best.ours}"
        lines.append(f"| `{family}` | {models} | {number} | [{family}](docs/results/{family}.md) |")
    return "\n".join(lines)


def captions(results: Sequence[Result], names: Sequence[str]) -> str:
    """A table of results that have a picture, each with its number, three a row."""
    by_name = {r.name: r for r in results}
    chosen = [by_name[name] for name in names if by_name[name].picture]
    if not chosen:
        return ""
    lines = ["| | | |", "|---|---|---|"]
    for start in range(0, len(chosen), 3):
        row = chosen[start : start + 3]
        lines.append("| " + " | ".join(f"![{r.title}](docs/{r.picture})" for r in row) + " |")
        lines.append("| " + " | ".join(f"`{r.experiment}`: {(r.ours or '').replace('**', '')}" for r in row) + " |")
    return "\n".join(lines)


def rendered(text: str, blocks: Mapping[str, str]) -> str:
    """A document with the blocks between its markers made anew.

    Raises:
      ConfigError: a marker names a block that does not exist.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in blocks:
            raise ConfigError(f"a document asks for the results {name!r}; there are {', '.join(sorted(blocks))}")
        return f"{match[1]}\n{blocks[name]}\n\n{match[3]}"

    return _BLOCK.sub(replace, text)


def stale_documents(root: Path, blocks: Mapping[str, str], write: bool) -> list[Path]:
    """Documents below `root` whose tables are not what the results say; with `write`, they are brought up to date."""
    stale = []
    for path in (root / "README.md", root / "BUILD_NOTES.md", *sorted((root / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        made = rendered(text, blocks)
        if made != text:
            stale.append(path)
            if write:
                path.write_text(made, encoding="utf-8")
    return stale


@dataclasses.dataclass(frozen=True)
class Drift:
    """A recorded number, and the number `found` that its commands give now, None if they gave none."""

    result: Result
    check: Check
    found: float | None
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the new number is within the tolerance."""
        return self.found is not None and abs(self.found - self.check.value) <= self.check.tolerance


def needed_folders(result: Result) -> set[str]:
    """Names in capitals that stand for folders of data in the commands of a result."""
    return set(re.findall(r"=([A-Z][A-Z0-9]+)\b", " ".join(result.commands)))


def rerun(result: Result, directory: Path, folders: Mapping[str, str], log: Path) -> list[Drift]:
    """Runs the commands of a result again below a directory, and compares the numbers that they write.

    Args:
      result: a result with `checks`.
      directory: runs go to `directory`/runs; commands run in the current folder.
      folders: places of the data, by names such as TFDS and JSB.
      log: file that the output of the commands is added to.
    """
    began = time.monotonic()
    for command in result.commands:
        words = command.replace("runs/", f"{directory}/runs/").split()
        words = [re.sub(r"=([A-Z][A-Z0-9]+)\b", lambda m: f"={folders[m[1]]}", word) for word in words]
        words = [sys.executable if word == "python" else word for word in words]
        with log.open("a", encoding="utf-8") as output:
            output.write(f"$ {' '.join(words)}\n")
            output.flush()
            if subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                break
    seconds = time.monotonic() - began
    return [Drift(result, check, _number(check, directory), seconds) for check in result.checks]


def _number(check: Check, directory: Path) -> float | None:
    name, _, keys = check.file.partition(":")
    try:
        value = json.loads((directory / name).read_text())
        for key in keys.split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return float(value)
    except (OSError, ValueError, KeyError, TypeError):
        return None
