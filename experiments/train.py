"""Trains an experiment:

    python -m experiments.train --experiment=vae_digits --workdir=runs/vae --model.latent_dim=16

The first argument may be the name alone (`experiments.train vae_digits`).  Every field of the experiment is a flag:
`--experiment=NAME --help` prints all of them, `--help=model.optimizer` prints one part.  `--list` prints a line for
each experiment; `--list=gan` describes the experiments of a family, of a data set, or with `gan` in the name.  The same
command, given again, goes on from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import shlex

from experiments import command_line
from experiments.listing import listing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The experiment to train, and its directory.

    Attributes:
      experiment: name of a registered experiment, or path/to/file.py:function.
      workdir: directory of checkpoints, metrics and samples; runs/<experiment> unless given.
      list: print a line for each experiment; --list=gan describes the experiments of a family, of a data
        set, or with a part of a name.
    """

    experiment: str | None = None
    workdir: str | None = None
    list: str | None = None


def main(arguments: list[str]) -> int:
    first = command_line.first_flags(arguments, {"list": True})
    if "list" in first:
        print(listing(first["list"]))
        return 0
    given = command_line.experiment_and_options(arguments, __doc__, Options())
    if given is None:
        return 0
    entry, experiment, options = given
    from genjax import training

    draw = None
    if experiment.training.pictures:
        from genjax.tools.generators import scheduled

        draw = scheduled(experiment)
    workdir = options.workdir or f"runs/{entry.name.rpartition(':')[2]}"
    fields = command_line.flags_besides(
        command_line.named_first(arguments, "experiment"), {field.name for field in dataclasses.fields(Options)}
    )
    training.train(experiment, workdir, name=entry.name, draw=draw, flags=fields)
    print(f"finished; samples, metrics and checkpoints are in {workdir}")
    print(f"  evaluate: {command_line.command('evaluate')} --workdir={shlex.quote(workdir)}")
    print(f"  sample:   {command_line.command('sample')} --workdir={shlex.quote(workdir)} --num_samples=64")
    return 0


if __name__ == "__main__":
    command_line.run(main)
