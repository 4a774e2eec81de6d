"""Looks at the Markov chains of a trained run:

    python -m experiments.chains --workdir=runs/nuts_eight_schools

Prints a table of mean, standard deviation, R-hat and effective sample sizes of each parameter, and writes into the working
directory the table (chains.csv), traces and ranks of the first parameters (chains_trace.png), their pairs with divergences
in red (chains_pairs.png), and all draws (chains.npz), which `load_arviz` makes an object of arviz.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.data.evidence import plot_pairs

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
flags.DEFINE_integer("step", None, "which checkpoint, by default the latest sound one")
flags.DEFINE_integer("num_shown", 5, "parameters in the pictures", lower_bound=1)


def load_arviz(path: str | Path):
    """The arviz.InferenceData of a file chains.npz; needs arviz."""
    import arviz

    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as content:
        for name, values in content.items():
            group, _, variable = name.partition("/")
            groups.setdefault(group, {})[variable] = values
    return arviz.from_dict(**groups)


def columns(posterior: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Names and draws [chains, draws, D] of all numbers of a posterior."""
    names, parts = [], []
    for name, values in posterior.items():
        shape = values.shape[2:]
        names += [f"{name}[{','.join(map(str, index))}]" if shape else name for index in np.ndindex(*shape)]
        parts.append(values.reshape(*values.shape[:2], -1))
    return names, np.concatenate(parts, -1)


def plot_traces(names: list[str], draws: np.ndarray, path: Path) -> None:
    """Writes the traces of all chains [chains, draws, D], and histograms of their ranks, flat where chains agree."""
    from matplotlib.figure import Figure

    count = draws.shape[-1]
    figure = Figure(figsize=(10, 1.6 * count + 0.6), layout="constrained")
    panels = figure.subplots(count, 2, squeeze=False, width_ratios=(3, 1))
    for row, name in enumerate(names):
        values = draws[:, :, row]
        ranks = values.reshape(-1).argsort().argsort().reshape(values.shape)
        for chain, chain_ranks in zip(values[:8], ranks):
            panels[row][0].plot(chain, linewidth=0.4, alpha=0.8)
            panels[row][1].hist(chain_ranks, bins=20, range=(0, ranks.size), histtype="step")
        panels[row][0].set_ylabel(name)
        panels[row][1].set_yticks([])
    panels[-1][0].set_xlabel("draw")
    panels[-1][1].set_xlabel("rank")
    figure.savefig(path, dpi=90)


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    if not hasattr(run.model, "draws"):
        raise ConfigError(
            f"{type(run.model).__name__} has no chains; give a run of a Markov chain Monte Carlo experiment"
        )
    draws = jax.jit(run.model.draws)(run.state)
    groups = draws.to_arviz()
    names, values = columns(groups["posterior"])
    summary = draws.summary()
    print(f"{run.name}, step {run.step}: {values.shape[0]} chains of {values.shape[1]} draws, ", end="")
    print(f"{int(groups['sample_stats']['diverging'].sum())} divergences")
    print(f"{'':<16}" + "".join(f"{title:>20}" for title in summary))
    for i, name in enumerate(names):
        print(f"{name:<16}" + "".join(f"{column[i]:20.4g}" for column in summary.values()))
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
