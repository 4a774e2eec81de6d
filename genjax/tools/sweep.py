"""Grids of settings and seeds: which runs they are, how they are started, and what they reached."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from genjax import config
from genjax.config import ConfigError
from genjax.training.experiment import Experiment
from genjax.training.records import read_lines, write_json

#: What a run prints, in its directory.
OUTPUT_FILE = "output.txt"
#: CPU time of a run's processes, in its directory.
CPU_FILE = "cpu_seconds.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is swept.

    Attributes:
      sweep: fields and their values, as in model.latent_dim=2,8,32;data.batch_size=32,64.
      seeds: number of seeds of each combination: training.seed and the numbers after it.
      workers: number of runs side by side.
    """

    sweep: str = ""
    seeds: int = 1
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
      workdir: its directory, named after its settings.
      settings: its fields and their values, as flags have them.
      seed: its seed.
      num_steps: its last step.
    """

    workdir: Path
    settings: dict[str, str]
    seed: int
    num_steps: int

    def is_finished(self) -> bool:
        """Whether its last line of training metrics is of its last step."""
        lines = [line for line in read_lines(self.workdir) if line["kind"] == "train"]
        return bool(lines) and lines[-1]["step"] >= self.num_steps and _has_checkpoint(self)


def _has_checkpoint(run: SweptRun) -> bool:
    return (run.workdir / "checkpoints" / str(run.num_steps) / "digests.json").is_file()


def parse_grid(text: str) -> dict[str, list[str]]:
    """Reads `model.latent_dim=2,8,32;model.network.hidden_dims=[64,64],[256]` into values by field.

    Raises:
      ConfigError: it is not of that form.
    """
    grid: dict[str, list[str]] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        path, equals, values = part.partition("=")
        found = [v.strip("[]") for v in re.findall(r"\[[^\]]*\]|[^,\[\]]+", values)]
        if not equals or not found or path.strip() in grid:
            raise ConfigError(
                f"--sweep={text!r} is not of the form model.latent_dim=2,8;data.batch_size=32,64, with each field once"
            )
        grid[path.strip()] = found
    return grid


def runs_of(experiment: Experiment, options: Options, folder: Path) -> list[SweptRun]:
    """The runs of a sweep, every combination with every seed.

    Raises:
      ConfigError: a field does not exist or a value does not fit, or there is nothing to sweep.
    """
    if options.seeds < 1 or options.workers < 1:
        raise ConfigError(f"--seeds={options.seeds} and --workers={options.workers} must be at least 1")
    grid = parse_grid(options.sweep)
    if "training.seed" in grid:
        raise ConfigError("seeds are swept by --seeds=N, from --training.seed on")
    runs = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values))
        changed = experiment
        # As from the command line, so that a value that does not fit is told before the first run.
        for path, value in settings.items():
            changed = config.override(changed, path, value, text=True)
        for seed in range(experiment.training.seed, experiment.training.seed + options.seeds):
            name = ",".join(
                [f"{path.rpartition('.')[2]}={_plain(v)}" for path, v in settings.items()] + [f"seed={seed}"]
            )
            runs.append(SweptRun(folder / name, settings, seed, changed.training.num_steps))
    if len({run.workdir for run in runs}) < len(runs):
        raise ConfigError(f"--sweep={options.sweep!r} names a value twice, or two fields of the same last name")
    return runs


def _plain(value: str) -> str:
    """A value as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "_", value)


def commands(experiment: str, runs: Sequence[SweptRun], shared: Sequence[str]) -> list[list[str]]:
    """The command line of each run; `shared` are flags of all of them."""
    return [
        [
            sys.executable, "-m", "experiments.train", f"--experiment={experiment}", *shared,
            *(f"--{path}={value}" for path, value in run.settings.items()),
            f"--training.seed={run.seed}", f"--workdir={run.workdir}",
        ]
        for run in runs
    ]  # fmt: skip


def run_all(runs: Sequence[SweptRun], lines: Sequence[Sequence[str]], workers: int) -> list[SweptRun]:
    """Runs what is not finished, `workers` at a time; returns the runs that failed.

    If this process is asked to stop, so are the runs; they save their states, and the same sweep goes on.
    """
    waiting = [(run, line) for run, line in zip(runs, lines) if not run.is_finished()]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before", flush=True)
    running: dict[subprocess.Popen[bytes], SweptRun] = {}
    failed = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                run, line = waiting.pop(0)
                run.workdir.mkdir(parents=True, exist_ok=True)
                with (run.workdir / OUTPUT_FILE).open("ab") as output:
                    process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, env=_environment(workers))
                running[process] = run
                print(f"started {run.workdir}", flush=True)
            for process in list(running):
                before = _cpu_seconds_of_ended()
                if process.poll() is None:
                    continue
                run = running.pop(process)
                _add_cpu_seconds(run.workdir, _cpu_seconds_of_ended() - before)
                failed += [run] if process.returncode else []
                print(f"{'FAILED' if process.returncode else 'finished'} {run.workdir}", flush=True)
            time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def _cpu_seconds_of_ended() -> float:
    """CPU time of all processes that this one has started and that have ended, with theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _add_cpu_seconds(workdir: Path, seconds: float) -> None:
    """Adds to the CPU time of a run, which may take several processes one after the other."""
    write_json(workdir / CPU_FILE, {"cpu_seconds": seconds + (cpu_seconds(workdir) or 0.0)})


def cpu_seconds(workdir: Path) -> float | None:
    """CPU time of a run's processes, compilation included, or None where no sweep has started it."""
    file = workdir / CPU_FILE
    return json.loads(file.read_text(encoding="utf-8"))["cpu_seconds"] if file.is_file() else None


def _environment(workers: int) -> dict[str, str]:
    """The environment of a run: several at a time share the memory of an accelerator."""
    share = {} if workers == 1 else {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / workers:.2f}"}
    return {**share, **os.environ}


def array_job(lines: Sequence[Sequence[str]], folder: Path) -> str:
    """A SLURM array job with a run a task; a task that is started again goes on from its last checkpoint."""
    written = "\n".join(f"  {shlex.quote(shlex.join(line))}" for line in lines)
    return f"""#!/bin/bash
#SBATCH --job-name=sweep
#SBATCH --array=0-{len(lines) - 1}
#SBATCH --output={folder}/slurm-%A_%a.out
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Choose the machine: #SBATCH --gres=gpu:1 --time=24:00:00 --partition=...
runs=(
{written}
)
eval "exec ${{runs[$SLURM_ARRAY_TASK_ID]}}"
"""


def table(runs: Sequence[SweptRun]) -> str:
    """Last validation metrics, or else training metrics: mean and standard deviation over seeds of each combination."""
    rows: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for run in runs:
        lines = read_lines(run.workdir)
        held_out = [line for line in lines if line["kind"] != "train"] or lines
        if held_out:
            rows.setdefault(tuple(f"{k}={v}" for k, v in run.settings.items()), []).append(held_out[-1])
    hidden = {"step", "kind", "num_examples", "steps_per_second"}
    shown = []
    for settings, found in rows.items():
        names = [name for name in found[0] if name not in hidden][:4]
        means = []
        for name in names:
            values = [line[name] for line in found if name in line]
            mean = math.fsum(values) / len(values)
            deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
            means.append(f"{name} {mean:.5g}" + (f" ({deviation:.2g})" if len(values) > 1 else ""))
        shown.append(f"  {'  '.join(settings) or 'as registered'}  [{len(found)} seeds]  {'  '.join(means)}")
    return "\n".join(shown)
