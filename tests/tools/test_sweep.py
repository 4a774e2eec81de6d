"""Sweeps: which runs they are, that they go on where they were, and what they reached."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import command_line
from experiments import sweep as command
from genjax import config
from genjax.config import ConfigError
from genjax.tools import sweep

#: Writes what a run of `experiments.train` leaves behind, without training.
FAKE = """
import json, pathlib, sys
flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:] if "=" in a)
workdir = pathlib.Path(flags["workdir"])
(workdir / "checkpoints" / "7").mkdir(parents=True)
(workdir / "checkpoints" / "7" / "digests.json").write_text("{}")
loss = float(flags["model.latent_dim"]) + float(flags["training.seed"])
lines = [{"step": 7, "kind": "train", "loss": loss}, {"step": 7, "kind": "validation", "nll": 10 * loss}]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
sys.exit(int(flags["model.latent_dim"] == "32"))
"""


def swept(tmp_path: Path, text: str = "model.latent_dim=2,8", seeds: int = 3) -> list[sweep.SweptRun]:
    experiment = config.override(config.find_experiment("vae_digits").build(), "training.num_steps", 7)
    return sweep.runs_of(experiment, sweep.Options(sweep=text, seeds=seeds), tmp_path)


def faked(tmp_path: Path, runs: list[sweep.SweptRun]) -> list[list[str]]:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return [[sys.executable, str(script), *line[3:]] for line in sweep.commands("vae_digits", runs, [])]


def test_every_combination_has_every_seed_and_a_directory_of_its_own(tmp_path):
    runs = swept(tmp_path, "model.latent_dim=2,8; model.network.hidden_dims=[64,32],[16]", seeds=2)
    assert [(r.settings["model.latent_dim"], r.settings["model.network.hidden_dims"], r.seed) for r in runs] == [
        (latent, hidden, seed) for latent in "28" for hidden in ("64,32", "16") for seed in (0, 1)
    ]
    assert runs[0].workdir == tmp_path / "latent_dim=2,hidden_dims=64_32,seed=0"
    assert len({run.workdir for run in runs}) == len(runs)
    assert sweep.commands("vae_digits", runs, ["--data.batch_size=64"])[0][3:] == [
        "--experiment=vae_digits", "--data.batch_size=64", "--model.latent_dim=2", "--model.network.hidden_dims=64,32",
        "--training.seed=0", f"--workdir={runs[0].workdir}",
    ]  # fmt: skip


def test_a_sweep_goes_on_where_it_was_and_tells_means_over_seeds(tmp_path, capsys):
    runs = swept(tmp_path)
    lines = faked(tmp_path, runs)
    assert sweep.run_all(runs[:2], lines[:2], workers=2) == []
    assert all(run.is_finished() for run in runs[:2]) and not runs[2].is_finished()
    assert sweep.run_all(runs, lines, workers=2) == []
    printed = capsys.readouterr().out
    assert "6 runs, 2 of them finished before" in printed
    assert printed.count("started") == 6
    assert all(0 < sweep.cpu_seconds(run.workdir) < 60 for run in runs) and sweep.cpu_seconds(tmp_path) is None
    # Losses 2, 3, 4 and 8, 9, 10, ten times as large in the validation split.
    assert sweep.table(runs).splitlines() == [
        "  model.latent_dim=2  [3 seeds]  nll 30 (10)",
        "  model.latent_dim=8  [3 seeds]  nll 90 (10)",
    ]


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path):
    runs = swept(tmp_path, "model.latent_dim=32,2", seeds=1)
    assert sweep.run_all(runs, faked(tmp_path, runs), workers=1) == [runs[0]]
    assert runs[1].is_finished()


def test_an_array_job_runs_the_command_of_its_number(tmp_path):
    runs = swept(tmp_path, "model.network.hidden_dims=[64,32],[16]", seeds=1)
    path = tmp_path / "job.sh"
    path.write_text(sweep.array_job(faked(tmp_path, runs), tmp_path).replace("exec ", "echo "))
    assert "#SBATCH --array=0-1" in path.read_text()
    for number, run in enumerate(runs):
        shown = subprocess.run(
            ["bash", str(path)], env={"SLURM_ARRAY_TASK_ID": str(number), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert shown.split() == faked(tmp_path, runs)[number] and f"--workdir={run.workdir}" in shown


def test_the_command_writes_an_array_job_with_the_flags_of_all_runs(tmp_path, capsys):
    job = tmp_path / "sweep.sbatch"
    arguments = ["sweep", "vae_digits", "--sweep=model.latent_dim=2,8", "--seeds", "2", f"--array={job}"]
    assert command.main([*arguments, f"--workdir={tmp_path / 'runs'}", "--training.num_steps=9"]) == 0
    assert "4 runs; start them with: sbatch" in capsys.readouterr().out
    text = job.read_text()
    assert text.count("--training.num_steps=9") == 4 and "--seeds" not in text and "--training.seed=1" in text


def test_flags_of_a_command_are_told_from_flags_of_its_runs():
    arguments = ["sweep", "--seeds", "5", "--sweep=a=1,2", "--model.latent_dim", "4", "--array=x"]
    assert command_line.flags_besides(arguments, {"seeds", "sweep", "array"}) == ["--model.latent_dim", "4"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model.latent_dim", "is not of the form"),
        ("model.latent_dim=2;model.latent_dim=4", "with each field once"),
        ("model.latent_dims=2", "VAE has no field 'latent_dims'"),
        ("model.latent_dim=two", "latent_dim"),
        ("model.latent_dim=2,2", "names a value twice"),
        ("training.seed=1,2", "seeds are swept by --seeds=N"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_sentence(text, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        swept(tmp_path, text)


def test_a_damaged_line_of_metrics_counts_as_unfinished(tmp_path):
    run = swept(tmp_path)[0]
    run.workdir.mkdir()
    (run.workdir / "metrics.jsonl").write_text(json.dumps({"step": 3, "kind": "train", "loss": 1.0}) + '\n{"st')
    assert not run.is_finished()
