"""The files in launch/ start the command that they promise, with flags that exist."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from experiments.train import Options
from genjax import config
from genjax.training import Experiment

LAUNCH = Path(__file__).parents[1] / "launch"


def flags_of(line: list[str]) -> Experiment:
    """The experiment that a command line of experiments.train names, with its flags."""
    assert line[:3] == ["python", "-m", "experiments.train"], line
    first = next(a.partition("=")[2] for a in line if a.startswith("--experiment="))
    return config.from_flags(line[2:], Options(), config.find_experiment(first).build())[1]


def shown(script: str, stub: str, folder: Path, *arguments: str, **environment: str) -> list[list[str]]:
    """The command lines that a script hands to a program in its place, one a call."""
    program = folder / stub
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" "END" >> {folder}/calls\nexit ${{STATUS:-0}}\n')
    program.chmod(0o755)
    variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
    subprocess.run(["bash", str(LAUNCH / script), *arguments], env=variables, capture_output=True, timeout=240)
    calls = (folder / "calls").read_text().split("END\n")
    return [call.splitlines() for call in calls if call]


def test_slurm_starts_one_process_a_machine(tmp_path):
    (call,) = shown("slurm.sbatch", "srun", tmp_path, "--training.seed=3")
    place = call.index("experiments.train") + 1
    (*_, options, python, module, name), flags = call[:place], call[place:]
    assert options == "--kill-on-bad-exit=1"
    experiment = flags_of([python, module, name, *flags])
    assert experiment.training.distributed and experiment.training.mesh == "data:4,fsdp:8"
    assert experiment.training.seed == 3 and experiment.training.hang_timeout == 1800
    text = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --requeue" in text and "#SBATCH --signal=TERM@120" in text


@pytest.mark.parametrize(("status", "count"), [("0", 1), ("1", 1), ("143", 1), ("124", 3), ("137", 3)])
def test_one_machine_starts_again_what_died_and_not_what_was_stopped(status, count, tmp_path):
    arguments = ["--experiment=gpt2_124m", "--training.mesh=data:4,fsdp:2"]
    calls = shown("eight_gpus.sh", "python", tmp_path, *arguments, STATUS=status, ATTEMPTS="3", PAUSE="0")
    assert len(calls) == count
    assert flags_of(["python", *calls[0]]).training.mesh == "data:4,fsdp:2"


def test_a_tpu_slice_runs_the_same_command_on_every_machine(tmp_path):
    arguments = ["--experiment=llama_7b", "--workdir=/mnt/a run", "--training.mesh=data:4,fsdp:16"]
    (call,) = shown("tpu_slice.sh", "gcloud", tmp_path, *arguments, TPU="slice", ZONE="zone")
    assert call[:6] == ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone"] and call[6] == "--worker=all"
    command = call[7].removeprefix("--command=").partition("exec ")[2]
    told = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    ).stdout
    line = told.splitlines()
    assert "--workdir=/mnt/a run" in line
    assert flags_of(["python", *line[1:]]).training.distributed


def test_a_job_set_has_one_pod_a_machine():
    (job,) = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    experiment = flags_of(container["command"])
    assert experiment.training.distributed and experiment.training.hang_timeout == 1800
    # 4 x 4 x 4 chips, four a machine; the mesh has as many devices.
    assert spec["parallelism"] == spec["completions"] == 4 * 4 * 4 // 4
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert experiment.training.mesh == "data:4,fsdp:16"
