"""A report of runs that were written by hand, sound and damaged."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import report as command
from genjax.errors import UserError
from genjax.tools import report, report_pages

PROTOCOL = "vae, step 10: VAE on digits, split test, 179 examples, seed 0, {seconds} s"


def write(workdir: Path, seed: int = 0, latent_dim: int = 2, elbo: float | None = None, **changes: object) -> Path:
    """A run with its configuration, four lines of metrics, and an evaluation."""
    settings = {"num_steps": 10, "seed": seed, "mesh": changes.get("mesh")}
    experiment = {
        "class": "genjax.training.experiment:Experiment",
        "model": {"class": "genjax.families.vae.vae:VAE", "latent_dim": latent_dim},
        "data": {"class": "genjax.data.images:Images", "name": changes.get("data", "digits")},
        "training": {"class": "genjax.training.experiment:Training", **settings},
    }
    workdir.mkdir(parents=True)
    content = {"name": "vae", "version": "0.1.0 (abc)", "experiment": experiment}
    if "flags" in changes:
        content["flags"] = changes["flags"]
    (workdir / "config.json").write_text(json.dumps(content))
    lines = [
        {"step": s, "kind": "train", "loss": 9.0 - s, "steps_per_second": 2.0}
        for s in range(2, 2 + int(changes.get("steps", 10)), 2)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 12, "ki')
    if elbo is not None:
        protocol = str(changes.get("protocol", PROTOCOL)).format(seconds=seed + 0.5)
        record = {"step": 10, "split": "test", "protocol": protocol, "version": "x", "num_examples": 179, "elbo": elbo}
        (workdir / "evaluation_test.json").write_text(json.dumps({**record, **changes.get("more", {})}))
    return workdir


def test_runs_of_several_seeds_are_one_row_with_mean_and_deviation(tmp_path):
    for seed, elbo in enumerate((-22.0, -23.0, -25.5)):
        write(tmp_path / f"two{seed}", seed, elbo=elbo, mesh=f"data:{seed + 1}")
    write(tmp_path / "four", 0, latent_dim=4, elbo=-20.0)
    found = report.collect([str(tmp_path / "*")])
    assert [group.label for group in found.groups] == ["vae model.latent_dim=4", "vae model.latent_dim=2"]
    (table,) = found.tables
    assert table.protocol == "evaluation: digits, split test, 179 examples, seed 0" and table.columns == ["elbo"]
    cells = {row.label: row.cells[0] for row in table.rows}
    three = cells["vae model.latent_dim=2"]
    assert three.mean == pytest.approx(-23.5) and three.count == 3
    assert three.deviation == pytest.approx(np.sqrt((1.5**2 + 0.5**2 + 2**2) / 2))
    assert str(three) == "-23.5 ± 1.8 (3)" and str(cells["vae model.latent_dim=4"]) == "-20"
    group = found.groups[1]
    assert group.command == "python -m experiments.train --experiment=vae --model.latent_dim=2 --workdir=RUN"
    # Five steps of two at two steps a second.
    assert group.runs[0].seconds == pytest.approx(5) and group.versions == "0.1.0 (abc)"


def test_a_command_has_the_flags_that_its_run_was_given(tmp_path):
    write(tmp_path / "run", 3, flags=["--model.latent_dim=2", "--training.seed=3"])
    (group,) = report.collect([str(tmp_path / "*")]).groups
    # The label of one configuration alone names no field.
    assert group.label == "vae"
    assert group.command == "python -m experiments.train --experiment=vae --model.latent_dim=2 --workdir=RUN"


def test_numbers_of_other_protocols_stand_in_other_tables(tmp_path):
    write(tmp_path / "a", elbo=-1.0, more={"nll": 2.0})
    write(tmp_path / "b", latent_dim=4, elbo=-2.0, protocol=PROTOCOL.replace("split test", "split validation"))
    write(tmp_path / "c", latent_dim=8, elbo=-3.0)
    tables = {table.protocol: table for table in report.collect([f"{tmp_path}/*"]).tables}
    assert len(tables) == 2
    test = tables["evaluation: digits, split test, 179 examples, seed 0"]
    # A metric that only some runs have leaves the others' cells empty.
    assert [[cell and cell.mean for cell in row.cells] for row in test.rows] == [[-1.0, 2.0], [-3.0, None]]


def test_unfinished_and_damaged_runs(tmp_path):
    write(tmp_path / "a", elbo=-1.0)
    write(tmp_path / "b", latent_dim=4, elbo=-2.0, steps=4)
    (tmp_path / "b/quality_test.json").write_text('{"frechet": 1')
    (tmp_path / "c").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d/config.json").write_text('{"name": "vae"')
    found = report.collect([f"{tmp_path}/*"])
    assert [(path.name, reason.split(",")[0]) for path, reason in found.left_out] == [
        ("c", "it holds no config.json"),
        ("d", "its config.json is damaged"),
    ]
    assert [row.finished for row in found.tables[0].rows] == [True, False]
    assert "step 4 of 10" in report_pages.page(found) and "(not finished)" in report_pages.markdown(found)


def test_pages_hold_every_number_and_load_nothing(tmp_path, capsys):
    write(tmp_path / "runs/a<b", elbo=-1.25)
    (tmp_path / "runs/a<b/samples").mkdir()
    from PIL import Image

    Image.new("RGB", (900, 300)).save(tmp_path / "runs/a<b/samples/samples_00000010.png")
    assert command.main(["report", f"--runs={tmp_path}/runs/*", f"--output={tmp_path}/out"]) == 0
    assert "1 runs in 1 configurations, 1 tables" in capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text()
    assert "<td>-1.25</td>" in page and page.count("data:image/png;base64,") == 2
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "-1.25 \\\\" in (tmp_path / "out/report.tex").read_text()
    assert "| vae | -1.25 |" in (tmp_path / "out/report.md").read_text()


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path):
    write(tmp_path / "a", steps=5000)
    curve = report.collect([f"{tmp_path}/a"]).groups[0].runs[0].curves["train", "loss"]
    assert curve.shape == (2, 200) and curve[0, 0] == 2 and curve[0, -1] == 5000


def test_patterns_that_match_no_run_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no directory matches"):
        report.collect([f"{tmp_path}/nothing*"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="none of 1 directories is a run; .*empty: it holds no config.json"):
        report.collect([f"{tmp_path}/*"])
