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

import numpy as np
from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.data.evidence import plot_pairs
from genjax.tools.drawing import columns, plot_traces

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
flags.DEFINE_integer("num_shown", 5, "parameters in the pictures", lower_bound=1)


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    if not hasattr(run.model, "draws"):
        raise ConfigError(
            f"{type(run.model).__name__} has no chains; give a run of a Markov chain Monte Carlo experiment"
        )
    draws = run.model.draws(run.state)
    groups = draws.to_arviz()
    names, values = columns(groups["posterior"])
    summary = draws.summary()
    print(f"{run.name}, step {run.step}: {values.shape[0]} chains of {values.shape[1]} draws, ", end="")
    print(f"{int(groups['sample_stats']['diverging'].sum())} divergences")
    print(f"{'':<16}" + "".join(f"{title:>20}" for title in summary))
    for i, name in enumerate(names):
        print(f"{name:<16}" + "".join(f"{column[i]:20.4g}" for column in summary.values()))
    missing = [name for i, name in enumerate(names) if np.isnan(values[:, :, i]).any()]
    still = [name for i, name in enumerate(names) if np.ptp(values[:, :, i]) == 0]
    for what, some in (("hold NaN", missing), ("never change", still)):
        if some:
            print(f"warning: draws that {what} have no R-hat: {', '.join(some)}")
    stem = Path(run.workdir) / "chains"
    rows = [
        ",".join(["parameter", *summary]),
        *(",".join([f'"{n}"', *(f"{c[i]:.6g}" for c in summary.values())]) for i, n in enumerate(names)),
    ]
    stem.with_suffix(".csv").write_text("\n".join(rows) + "\n")
    flat = {f"{group}/{name}": a for group, variables in groups.items() for name, a in variables.items()}
    np.savez_compressed(stem.with_suffix(".npz"), **flat)
    shown = flags.FLAGS.num_shown
    plot_traces(names[:shown], values[:, :, :shown], Path(f"{stem}_trace.png"))
    diverging = groups["sample_stats"]["diverging"].reshape(-1)
    plot_pairs(values.reshape(-1, len(names))[:, :shown], names[:shown], Path(f"{stem}_pairs.png"), diverging)
    print(f"written to {stem}.csv, {stem}.npz, {stem}_trace.png, {stem}_pairs.png")
    return 0


if __name__ == "__main__":
    command_line.run(main)
