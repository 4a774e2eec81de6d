"""Trains an experiment:

    python -m experiments.train --experiment=vae_digits --workdir=runs/vae --model.latent_dim=16

Every field of the experiment is a flag; `--experiment=NAME --help` lists them, `--list` lists the experiments.  The same
command again goes on from the last checkpoint.
"""

from __future__ import annotations

from absl import flags

from experiments import command_line
from genjax import config

flags.DEFINE_string("experiment", None, "name of a registered experiment, or path/to/file.py:function")
flags.DEFINE_string("workdir", None, "directory of checkpoints, metrics and samples; runs/<experiment> unless given")
flags.DEFINE_boolean("list", False, "print every experiment with its family, data, source and expected result")


def main(arguments: list[str]) -> int:
    first = command_line.first_flags(arguments, {"experiment": True, "list": False, "help": False, "h": False})
    if "list" in first:
        print_list()
        return 0
    if "experiment" not in first:
        if "help" in first or "h" in first:
            command_line.print_help(__doc__)
            return 0
        raise config.ConfigError("--experiment is missing; --list prints the names, e.g. --experiment=vae_digits")
    entry = config.find_experiment(first["experiment"])
    experiment = entry.build()
    if "help" in first or "h" in first:
        config.define_flags(experiment)
        command_line.print_help(f"{__doc__}\n{entry.name}: {(entry.build.__doc__ or '').strip()}\n")
        return 0
    experiment = config.flag_overrides(experiment, arguments)
    from genjax import training

    draw = None
    if experiment.training.pictures:
        from experiments.generator_pictures import scheduled

        draw = scheduled(experiment)
    workdir = flags.FLAGS.workdir or f"runs/{entry.name.rpartition(':')[2]}"
    training.train(experiment, workdir, name=entry.name, draw=draw)
    print(f"finished; samples, metrics and checkpoints are in {workdir}")
    print(f"  evaluate: python -m experiments.evaluate --workdir={workdir}")
    print(f"  sample:   python -m experiments.sample --workdir={workdir} --num_samples=64")
    return 0


def print_list() -> None:
    """Prints the registered experiments."""
    for name, entry in config.import_experiments().items():
        experiment = entry.build()
        family = type(experiment.model).__module__.split(".")[2:3]
        print(f"{name}")
        print(f"    family   {'.'.join(family)} ({type(experiment.model).__name__})")
        print(f"    data     {experiment.data.name}")
        print(f"    source   {entry.source}")
        print(f"    expected {entry.expected}")


if __name__ == "__main__":
    command_line.run(main)
