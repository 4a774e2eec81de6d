"""Runs an experiment with every combination of some flags and several seeds, one directory a run:

    python -m experiments.sweep --experiment=vae_digits --sweep='model.latent_dim=2,8,32' --seeds=5 --workdir=runs/sweep
    python -m experiments.sweep vae_digits --sweep='model.latent_dim=2,8;data.batch_size=32,64' --workers=2
    python -m experiments.sweep vae_digits --sweep='model.latent_dim=2,8,32' --array=sweep.sbatch

Parts of --sweep are divided by semicolons; values of a field that itself has commas stand in brackets, as in
model.network.hidden_dims=[64,64],[256].  Other flags are for all runs, as in experiments.train.  Runs go side by side,
--workers at a time, each in a process of its own; a sweep that is killed, or started again, goes on where it was.
--array writes a SLURM array job in place of running.  Ends with a table of the last validation metrics.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

from experiments import command_line
from genjax import buckets, config
from genjax.tools import sweep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """The experiment that is swept, and where its runs lie.

    Attributes:
      experiment: name of a registered experiment, or path/to/file.py:function.
      workdir: directory of the runs; runs/sweep_<experiment> unless given.
      array: file to write a SLURM array job to, in place of running.
    """

    experiment: str | None = None
    workdir: str | None = None
    array: str | None = None


def main(arguments: list[str]) -> int:
    arguments = command_line.named_first(arguments, "experiment")
    first = command_line.first_flags(arguments, {"experiment": True, "help": False, "h": False})
    help_section = first.get("help", first.get("h"))
    if "experiment" not in first:
        if help_section is not None:
            command_line.print_help(__doc__, Given(), sweep.Options(), section=help_section)
            return 0
        raise config.ConfigError("--experiment is missing; experiments.train --list prints the names")
    experiment = config.find_experiment(first["experiment"]).build()
    if help_section is not None:
        usage, chosen = inspect.cleandoc(__doc__), config.with_choices(experiment, arguments)
        command_line.print_help(usage, Given(), sweep.Options(), experiment=chosen, section=help_section)
        return 0
    given, options, experiment = config.from_flags(arguments, Given(), sweep.Options(), experiment)
    own = {field.name for each in (Given(), options) for field in dataclasses.fields(each)}
    shared = command_line.flags_besides(arguments, own)
    folder = given.workdir or f"runs/sweep_{first['experiment'].rpartition(':')[2]}"
    folder = buckets.on_disk(folder, "--workdir")
    runs = sweep.runs_of(experiment, options, folder)
    commands = sweep.commands(first["experiment"], runs, shared)
    if given.array is not None:
        path = Path(given.array).expanduser()
        path.write_text(sweep.array_job(commands, folder))
        print(f"{len(runs)} runs; start them with: sbatch {path}")
        return 0
    failed = sweep.run_all(runs, commands, options.workers)
    print(sweep.table(runs))
    for run in failed:
        print(f"failed: {run.workdir} (see {run.workdir / sweep.OUTPUT_FILE})")
    return 1 if failed else 0


if __name__ == "__main__":
    command_line.run(main)
