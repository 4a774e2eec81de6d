"""What `experiments.train --list` prints: the registered experiments, by family."""

from __future__ import annotations

import textwrap
from typing import Any

from experiments import RESULTS
from genjax import config
from genjax.tools import results


def listing(word: str = "") -> str:
    """The registered experiments by family, a line each.

    With a word, a description of the experiments of that family, of that data set, or with that word in their names.

    Raises:
      ConfigError: no experiment has the word.
    """
    families: dict[str, list[tuple[config.Entry, Any]]] = {}
    known = set()
    for entry in config.import_experiments().values():
        experiment = entry.build()
        family = type(experiment.model).__module__.removeprefix("genjax.families.").partition(".")[0]
        known |= {family, experiment.data.name, entry.name}
        if not word or word in (family, experiment.data.name) or word in entry.name:
            families.setdefault(family, []).append((entry, experiment))
    if not families:
        suggestion = config.suggestion(word, sorted(known))
        raise config.ConfigError(f"no experiment, family or data set is called {word!r}{suggestion}")
    describe = _described if word else _line
    recorded = results.read_results(RESULTS)
    reached = {
        entry.name: results.summary(recorded, entry.name) or entry.expected
        for rows in families.values()
        for entry, _ in rows
    }
    return "\n".join(
        line
        for family in sorted(families)
        for line in (family, *(describe(*row, reached[row[0].name]) for row in families[family]), "")
    )


def _line(entry: config.Entry, experiment: Any, reached: str) -> str:
    columns = f"  {entry.name:<32} {experiment.data.name:<18} "
    return columns + textwrap.shorten(reached, max(120 - len(columns), 20), placeholder=" ...")


def _described(entry: config.Entry, experiment: Any, reached: str) -> str:
    return (
        f"  {entry.name}\n"
        f"    model    {type(experiment.model).__name__}\n"
        f"    data     {experiment.data.name}\n"
        f"    source   {entry.source}\n"
        f"    reached  {reached}"
    )
