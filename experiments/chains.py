"""Looks at the Markov chains of a trained run:

    python -m experiments.chains --workdir=runs/nuts_eight_schools

Prints a table with mean, standard deviation, R-hat and effective sample sizes of each parameter.  Writes into the
working directory:

chains.csv        the same table
chains_trace.png  traces and ranks of the first parameters
chains_pairs.png  pairs of the first parameters, with divergences in red
chains.npz        all draws; `genjax.tools.drawing.load_arviz` turns them into an object of arviz
"""

from __future__ import annotations

from pathlib import Path

from experiments import command_line
from genjax.tools import chains


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, chains.Options())
    if given is None:
        return 0
    run, options = given
    found = chains.chains(run)
    num_chains, num_draws, _ = found.values.shape
    print(
        f"{run.name}, step {run.step}: {num_chains} chains of {num_draws} draws, "
        f"{int(found.diverging.sum())} divergences"
    )
    print(f"{'':<16}" + "".join(f"{title:>20}" for title in found.summary))
    for i, name in enumerate(found.names):
        print(f"{name:<16}" + "".join(f"{column[i]:20.4g}" for column in found.summary.values()))
    files = chains.write(found, Path(run.workdir) / "chains", options)
    print("written to " + ", ".join(map(str, files)))
    return 0


if __name__ == "__main__":
    command_line.run(main)
