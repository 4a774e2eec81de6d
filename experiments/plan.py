"""Plans an experiment for devices that are not there: memory, operations, collectives, and the bound on a step's time:

    python -m experiments.plan --experiment=llama_7b --topology=v5p:4x4x4 --training.mesh=data:4,fsdp:16
    python -m experiments.plan --experiment=my_file.py:my_model --topology=h100:8 --training.mesh=data:8
    python -m experiments.plan --experiment=gpt2_124m --topology=v5e:4x4 --search --batch_sizes=256,480

Compiles the training step, the evaluation and the sampler, without data and without weights; every field of the
experiment is a flag, as in experiments.train.  TPU slices need libtpu (pip install libtpu), which compiles on any x86
machine.  --topology=host:N compiles for N devices of this machine, and says what such a plan cannot know; --chip then
gives the rates.  --json prints JSON, --output=FILE writes it; --record renews the plan in the table of docs/speed.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from experiments import PLANS, command_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """The experiment to plan, and how the plan is printed.

    Attributes:
      experiment: name of a registered experiment, or path/to/file.py:function.
      json: print JSON in place of a table.
      output: file to write the plan to as JSON, beside what is printed.
      record: write the plan into experiments/plans.jsonl, of which `experiments.results --write` makes a table.
    """

    experiment: str | None = None
    json: bool = False
    output: str | None = None
    record: bool = False


def main(arguments: list[str]) -> int:
    # Plans need no accelerator; a process that has one would hold it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from genjax.tools import plan
    from genjax.training.records import version

    read = command_line.experiment_and_options(arguments, __doc__, Given(), plan.Options())
    if read is None:
        return 0
    entry, experiment, given, options = read
    if options.search:
        found = []
        for each in plan.search(experiment, options, entry.name):
            found.append(each)
            if not given.json:
                print(plan.summary(each), flush=True)
        plans = plan.best_first(found)
        text = plan.ranking(plans, len(found))
        content = [each.to_json() for each in plans]
    else:
        planned = plan.plan(experiment, options, entry.name)
        text, content = plan.table(planned), planned.to_json()
        if given.record:
            plan.record(planned, version(), PLANS)
    print(json.dumps(content, indent=2) if given.json else text)
    if given.output is not None:
        Path(given.output).expanduser().write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    command_line.run(main)
