"""Compares the objectives of GANs under equal compute; several seeds of each objective are trained side by side:

    python -m experiments.objectives --data=eight_gaussians --workdir=runs/objectives
    python -m experiments.objectives --data=grid_gaussians --num_steps=20000 --workdir=runs/objectives
    python -m experiments.objectives --data=mnist --data_dir=DIRECTORY --features=runs/feature_net_mnist \\
        --num_steps=4000 --workdir=runs/objectives

The first argument may be the data set alone (`experiments.objectives eight_gaussians`).

Networks, and updates of the critic in a step:

data      method            network                             R1 penalty                         critic updates
mixtures  weight clipping   perceptrons                         none                               5
mixtures  gradient penalty  perceptrons                         none (the method has its own)      5
mixtures  all others        perceptrons                         the method's own, else on the grid 1
pictures  weight clipping   DCGAN, batch norm in the critic     none                               2
pictures  gradient penalty  DCGAN, layer norm in the critic     none (the method has its own)      2
pictures  all others        DCGAN, spectral norm in the critic  only the method's own              1

Compute is matched in FLOPs to non_saturating at --num_steps; XLA counts the operations of one update of each network.
Learning rates fall to 0 over a method's steps.  Samples are drawn from the generator's moving average.

The table has mean and standard deviation over the seeds, below the same figures of the data themselves.  Figures of
mixtures: the modes covered, and the share of samples within three standard deviations of a mode.  Figures of pictures:
Frechet distance to the test split in the features of --features, recall, the number of classes among the samples and
the share of the largest class; one half of the test split against the other half is given as well.  A method that
--workdir already holds with the same settings is not trained again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import command_line
from genjax.config import ConfigError
from genjax.tools import objectives
from genjax.training import Training, host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(objectives.Options):
    """What is compared, and where the results go.

    Attributes:
      workdir: directory of the tables, and of a sheet of samples for each method.
    """

    workdir: str | None = None


def line(figures: Sequence[dict[str, float]]) -> str:
    """Mean and standard deviation over runs of every figure; the single values of counts."""
    parts = []
    for name in figures[0]:
        values = [each[name] for each in figures]
        if all(isinstance(value, int) for value in values):
            parts.append(f"{name} {' '.join(map(str, values))}")
        else:
            parts.append(f"{name} {np.mean(values):.4g} ({np.std(values):.2g})")
    return "   ".join(parts)


def main(arguments: list[str]) -> int:
    options = command_line.options_only(arguments, __doc__, Options(), first="data")
    if options is None:
        return 0
    if options.workdir is None:
        raise ConfigError("--workdir is missing; it is the directory of the tables")
    host.initialize(Training())
    held_against = objectives.reference(options)
    print(*held_against.notes, sep="\n")
    for name, figures in held_against.rows.items():
        print(f"  {name:<22} {line([figures])}")
    for row in objectives.compare(options.workdir, options, held_against):
        print(f"  {row.name:<22} {row.num_steps:>6} steps   {line(row.figures)}", flush=True)
    print(
        f"{options.num_seeds} seeds, as many operations as {options.num_steps} steps of non_saturating; "
        f"written to {Path(options.workdir).expanduser() / options.data}"
    )
    return 0


if __name__ == "__main__":
    command_line.run(main)
