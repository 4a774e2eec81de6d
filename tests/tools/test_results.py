"""Recorded results: reading them, the tables made from them, and running their commands again."""

import json

import pytest

from genjax.config import ConfigError
from genjax.tools import results
from genjax.tools.results import Check, Result

MEASURED = Result(
    name="vae_digits",
    page="vae",
    title="VAE on digits",
    experiment="vae_digits",
    target="<= 22 nats",
    ours="**21.68** nats",
    met=True,
    commit="measured at 3ae799d",
    picture="pictures/vae.png",
)
OPEN = Result(name="vdm", page="diffusion", title="VDM", experiment="vdm", target="paper: 2.5")


def test_results_are_read_from_lines_and_bad_lines_are_named(tmp_path):
    path = tmp_path / "results.jsonl"
    check = {"file": "runs/a/evaluation_test.json:nll", "value": 1.0, "tolerance": 0.1}
    line = json.dumps({"name": "a", "page": "vae", "title": "A", "commands": ["python -m x"], "checks": [check]})
    path.write_text(f"{line}\n")
    (read,) = results.read_results(path)
    assert read.commands == ("python -m x",) and read.checks == (Check(**check),)
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(ConfigError, match="line 2 of .* 'a' occurs twice"):
        results.read_results(path)
    path.write_text('{"name": "a", "page": "vae", "titel": "A"}\n')
    with pytest.raises(ConfigError, match="line 1 of .* is no result: .*titel"):
        results.read_results(path)


def test_tables_tell_what_was_measured_and_what_was_not():
    assert results.summary([MEASURED, OPEN], "vae_digits") == "VAE on digits: 21.68 nats (target: <= 22 nats)"
    assert results.summary([MEASURED, OPEN], "vdm") == "VDM: not measured (target: paper: 2.5)"
    assert results.summary([MEASURED, OPEN], "gan") == ""
    *_, row = results.reproduction_table([MEASURED, OPEN]).splitlines()
    assert row == (
        "| VAE on digits | <= 22 nats | **21.68** nats | yes | 3ae799d | [vae](docs/results/vae.md#vae-on-digits) |"
    )
    assert "Not measured yet" not in results.page([MEASURED, OPEN], "vae")
    assert "- `vdm`: VDM (paper: 2.5)" in results.page([MEASURED, OPEN], "diffusion")
    assert "`vae_digits`: 21.68 nats |" in results.captions([MEASURED, OPEN], ("vae_digits", "vdm"))


def test_documents_are_made_anew_between_their_markers_alone():
    text = "before\n<!-- results: page vae -->\nold\n<!-- end of results -->\nafter\n"
    made = results.rendered(text, {"page vae": "new"})
    assert made == "before\n<!-- results: page vae -->\n\nnew\n\n<!-- end of results -->\nafter\n"
    assert results.rendered(made, {"page vae": "new"}) == made
    with pytest.raises(ConfigError, match="asks for the results 'page vae'; there are families"):
        results.rendered(text, {"families": ""})


def test_commands_run_again_and_their_numbers_are_compared(tmp_path):
    script = tmp_path / "write.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1].partition('=')[2])\n"
        "path.mkdir(parents=True)\n"
        "path.joinpath('evaluation_test.json').write_text(json.dumps({'nll': {'mean': [float(sys.argv[2][-1]), 0]}}))\n"
    )
    checks = [
        Check(f"runs/a/evaluation_test.json:{key}", value, 0.5)
        for key, value in [("nll/mean/0", 6.7), ("nll/mean/0", 9), ("x", 1)]
    ]
    command = f"python {script} --workdir=runs/a --data.dir=DIGIT"
    result = Result(name="a", page="vae", title="A", commands=(command,), checks=tuple(checks))
    assert results.needed_folders(result) == {"DIGIT"}
    log = tmp_path / "log.txt"
    drifts = results.rerun(result, tmp_path / "again", {"DIGIT": "7"}, log)
    assert [drift.holds for drift in drifts] == [True, False, False]
    assert [drift.found for drift in drifts] == [7.0, 7.0, None]
    assert log.read_text().startswith("$ ") and "--data.dir=7" in log.read_text()
