"""The documents say what experiments/results.jsonl says, their links lead somewhere, and recorded commands can be
typed.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments import RESULTS as RESULTS_FILE
from experiments import results as command
from experiments import train
from experiments.__main__ import commands
from genjax import config
from genjax.tools import results

ROOT = Path(__file__).parents[1]
RESULTS = results.read_results(RESULTS_FILE)
ENTRIES = config.import_experiments()
DOCUMENTS = [ROOT / "README.md", ROOT / "BUILD_NOTES.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_tables_are_made_from_the_results():
    stale = results.stale_documents(ROOT, command.blocks(RESULTS), write=False)
    assert not stale, "python -m experiments.results --write brings them up to date"


def test_the_readme_is_short():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    assert len(text.split()) <= 700


def test_cells_of_the_reproduction_table_are_short():
    rows = [line for line in (ROOT / "BUILD_NOTES.md").read_text().splitlines() if "](docs/results/" in line]
    assert len(rows) > 90
    for cell in (cell for row in rows for cell in row.strip("|").split(" | ")):
        assert len(cell.split()) <= 12, cell


def anchors(path: Path) -> set[str]:
    """What links within a page may end with."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    assert len(set(headings)) == len(headings), f"two sections of {path} have the same heading"
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_results_name_experiments_and_pages_that_there_are():
    for result in RESULTS:
        assert result.experiment is None or result.experiment in ENTRIES, result.name
        assert (ROOT / "docs" / "results" / f"{result.page}.md").exists(), result.name
        assert result.picture is None or (ROOT / "docs" / result.picture).stat().st_size <= 60_000, result.name


def test_checked_numbers_are_of_runs_that_the_commands_make():
    checked = [result for result in RESULTS if result.checks]
    assert len(checked) > 40
    for result in checked:
        for check in result.checks:
            run = "/".join(check.file.split("/")[:2])
            assert any(f"--workdir={run}" in line.split() for line in result.commands), result.name
            assert result.minutes and ":" in check.file and check.tolerance > 0, result.name


def experiment_of(words: list[str]) -> str:
    """The experiment that the flags of a command name, or nothing."""
    return next((word.partition("=")[2] for word in words if word.startswith("--experiment=")), "")


def check_training(words: list[str]) -> None:
    """Reads the flags of a command of experiments.train, with the choices that they make."""
    config.from_flags(["train", *words], train.Options(), ENTRIES[experiment_of(words)].build())


def test_recorded_training_commands_parse():
    for line in {line for result in RESULTS for line in result.commands}:
        words = line.split()
        assert words[:2] == ["python", "-m"] and words[2].removeprefix("experiments.") in commands(), line
        assert any(word.startswith("--workdir=runs/") for word in words), line
        if words[2] == "experiments.train":
            check_training(words[3:])


def test_flags_of_all_commands_in_the_documents_exist(capsys):
    text = "\n".join(path.read_text() for path in DOCUMENTS).replace("\\\n", "")
    lines = set(re.findall(r"(?:python -m experiments\.|genjax )([a-z]\w*)(?=[ \n`])([^`\n|]*)", text))
    flags_of = {}
    for name in commands():
        importlib.import_module(f"experiments.{name}").main([name, "--help"])
        flags_of[name] = set(re.findall(r"^  --(\w+):", capsys.readouterr().out, re.MULTILINE)) | {"help"}
    assert len(flags_of) >= 16
    for name, rest in lines:
        words = shlex.split(rest, comments=True) if name == "train" else []
        if experiment_of(words) in ENTRIES and not any(word.startswith("--help") for word in words):
            check_training(words)
            continue
        for flag in re.findall(r" --(?:no)?(\w+)(?=[= ]|$)", rest.partition("#")[0]):
            assert flag in flags_of.get(name, ()), f"{name}{rest}"
