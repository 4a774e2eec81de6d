"""Looks at the Markov chains of a trained run:

    python -m experiments.chains --workdir=runs/nuts_eight_schools

Prints a table of mean, standard deviation, R-hat and effective sample sizes of each parameter, and writes into the working
directory the table (chains.csv), traces and ranks of the first parameters (chains_trace.png), their pairs with divergences
in red (chains_pairs.png), and all draws (chains.npz), which `genjax.tools.drawing.load_arviz` makes an object of arviz.
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
        f"{run.name}, step {run.step}: {num_chains} chains of {num_draws} draws, {int(found.diverging.sum())} divergences"
    )
    print(f"{'':<16}" + "".join(f"{title:>20}" for title in found.summary))
    for i, name in enumerate(found.names):
        print(f"{name:<16}" + "".join(f"{column[i]:20.4g}" for column in found.summary.values()))
    files = chains.write(found, Path(run.workdir) / "chains", options)
    print("written to " + ", ".join(map(str, files)))
    return 0


if __name__ == "__main__":
    command_line.run(main)
