"""Commands are found by name, from wherever `genjax` is called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as program
from experiments import command_line
from genjax import config

ROOT = Path(__file__).parents[2]


def test_every_command_has_a_line():
    shown = program.listing().splitlines()[1:]
    modules = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {
        "__init__",
        "__main__",
        "command_line",
        "listing",
    }
    assert {line.split()[0] for line in shown} == modules
    assert all(len(line.split()) > 3 and len(line) <= 140 for line in shown)


@pytest.mark.parametrize(
    ("name", "error"), [("trian", "lists them; did you mean train?"), ("command_line", "no command 'command_l")]
)
def test_an_unknown_command_is_one_sentence_with_a_suggestion(name, error):
    with pytest.raises(config.ConfigError, match=error):
        program.run_command(["genjax", name])


def test_commands_are_told_as_they_are_called(monkeypatch):
    assert command_line.command("sample") == "python -m experiments.sample"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/usr/bin/genjax", raising=False)
    assert command_line.command("sample") == "genjax sample"


def test_a_folder_with_experiments_of_its_own_has_no_part_in_the_command(tmp_path):
    package = tmp_path / "experiments"
    package.mkdir()
    for name in ("__init__", "train"):
        (package / f"{name}.py").write_text("raise RuntimeError('of the user')\n")
    (tmp_path / "beside.py").write_text("SIZE = 3\n")
    (tmp_path / "mine.py").write_text("from beside import SIZE\n\n\ndef small():\n    return SIZE\n")
    # As pip writes it; the folder of a script, not the current one, is what Python looks in first.
    script = tmp_path / "bin" / "genjax"
    script.parent.mkdir()
    script.write_text("from experiments.__main__ import main\n\nif __name__ == '__main__':\n    main()\n")
    command = [sys.executable, script, "train", "--experiment=mine.py:smal"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert "mine.py has no function 'smal'" in ended.stderr and "small" in ended.stderr, ended.stderr
