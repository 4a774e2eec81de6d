"""Evaluates a trained run on a split:

    python -m experiments.evaluate --workdir=runs/vae --evaluation.split=test

The model is rebuilt from the working directory alone.  Flags may change its fields as long as the trained state still
fits, for instance the number of importance samples of an estimator.
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags

from experiments import command_line
from genjax.training.records import write_json

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    settings, data = run.experiment.evaluation, run.experiment.data
    began = time.monotonic()
    metrics = run.evaluate()
    seconds = time.monotonic() - began
    count = metrics.pop("num_examples")
    protocol = (
        f"{run.name}, step {run.step}: {type(run.model).__name__} on {data.name}, split {settings.split}, {count} examples, "
        f"{data.protocol()}, seed {settings.seed}, {seconds:.1f} s"
    )
    print(protocol)
    for name, value in metrics.items():
        print(f"  {name:<24} {value:.6g}")
    record = {"step": run.step, "split": settings.split, "protocol": protocol, "num_examples": count, **metrics}
    path = Path(run.workdir) / f"evaluation_{settings.split}.json"
    write_json(path, record)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
