"""Trains an experiment:

    python -m experiments.train --experiment=vae_digits --workdir=runs/vae --model.latent_dim=16

The first argument may be the name alone (`experiments.train vae_digits`).  Every field of the experiment is a flag:
`--experiment=NAME --help` prints all of them, `--help=model.optimizer` prints one part.  `--list` prints a line for
each experiment; `--list=gan` describes the experiments of a family, of a data set, or with `gan` in the name.  The same
command, given again, goes on from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import textwrap
from typing import Any

from experiments import RESULTS, command_line
from genjax import config
from genjax.tools import results


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


_FIELDS_ARE_FLAGS = """
Every field of the experiment is a flag, --name=value; --help=model.optimizer prints the fields of one part alone.
"""


def main(arguments: list[str]) -> int:
    arguments = command_line.named_first(arguments, "experiment")
    first = command_line.first_flags(arguments, {"experiment": True, "list": True, "help": False, "h": False})
    if "list" in first:
        print(listing(first["list"]))
        return 0
    help_section = first.get("help", first.get("h"))
    if "experiment" not in first:
        if help_section is not None:
            command_line.print_help(__doc__, Options(), section=help_section)
            return 0
        raise config.ConfigError("--experiment is missing; --list prints the names, e.g. --experiment=vae_digits")
    entry = config.find_experiment(first["experiment"])
    experiment = entry.build()
    if help_section is not None:
        usage = f"{entry.name}: {inspect.cleandoc(entry.build.__doc__ or '')}\n{_FIELDS_ARE_FLAGS}"
        experiment = config.with_choices(experiment, arguments)
        command_line.print_help(usage, Options(), experiment=experiment, section=help_section)
        return 0
    options, experiment = config.from_flags(arguments, Options(), experiment)
    from genjax import training

    draw = None
    if experiment.training.pictures:
        from genjax.tools.generators import scheduled

        draw = scheduled(experiment)
    workdir = options.workdir or f"runs/{entry.name.rpartition(':')[2]}"
    training.train(experiment, workdir, name=entry.name, draw=draw)
    print(f"finished; samples, metrics and checkpoints are in {workdir}")
    print(f"  evaluate: {command_line.command('evaluate')} --workdir={shlex.quote(workdir)}")
    print(f"  sample:   {command_line.command('sample')} --workdir={shlex.quote(workdir)} --num_samples=64")
    return 0


def listing(word: str = "") -> str:
    """The registered experiments by family, a line each; with a word, a description of the
    experiments of that family, of that data set, or with that word in their names.

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


if __name__ == "__main__":
    command_line.run(main)
