"""The Markov chains of a run of Markov chain Monte Carlo: their summary, traces, ranks, pairs and all draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from genjax import config
from genjax.data.evidence import plot_pairs
from genjax.model import HasDraws
from genjax.tools.drawing import columns, plot_traces
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the pictures.

    Attributes:
      num_shown: number of parameters in the pictures.
    """

    num_shown: int = 5

    def __post_init__(self) -> None:
        config.check_at_least(self, num_shown=1)


@dataclasses.dataclass(frozen=True)
class Chains:
    """The draws of a run.

    Attributes:
      names: names of the D parameters.
      values: their draws [chains, draws, D].
      summary: columns of a table, a value for each parameter: mean, standard deviation, R-hat, effective sample sizes.
      groups: the draws in the form of arviz: arrays by name, in the groups `posterior` and `sample_stats`.
    """

    names: list[str]
    values: np.ndarray
    summary: dict[str, np.ndarray]
    groups: dict[str, dict[str, np.ndarray]]

    @property
    def diverging(self) -> np.ndarray:
        """Whether each draw diverged, bool [chains, draws]."""
        return self.groups["sample_stats"]["diverging"]


def chains(run: Run) -> Chains:
    """The chains of a run.

    Raises:
      ConfigError: the model has no chains.
      UserError: there are no draws yet.
    """
    if not isinstance(run.model, HasDraws):
        raise config.ConfigError(
            f"{type(run.model).__name__} has no chains; give a run of a Markov chain Monte Carlo experiment"
        )
    draws = run.model.draws(run.state)
    groups = draws.to_arviz()
    return Chains(*columns(groups["posterior"]), draws.summary(), groups)


def write(chains: Chains, stem: Path, options: Options | None = None) -> list[Path]:
    """Writes the table STEM.csv, all draws STEM.npz (`drawing.load_arviz` reads them),
    STEM_trace.png and STEM_pairs.png.
    """
    shown = (options or Options()).num_shown
    files = [Path(f"{stem}{ending}") for ending in (".csv", ".npz", "_trace.png", "_pairs.png")]
    rows = [
        ",".join(["parameter", *chains.summary]),
        *(
            ",".join([f'"{name}"', *(f"{column[i]:.6g}" for column in chains.summary.values())])
            for i, name in enumerate(chains.names)
        ),
    ]
    files[0].write_text("\n".join(rows) + "\n")
    flat = {f"{group}/{name}": a for group, variables in chains.groups.items() for name, a in variables.items()}
    np.savez_compressed(files[1], **flat)
    names, values = chains.names[:shown], chains.values[:, :, :shown]
    plot_traces(names, values, files[2])
    plot_pairs(values.reshape(-1, len(names)), names, files[3], chains.diverging.reshape(-1))
    return files
