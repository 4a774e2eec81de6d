"""Evaluates a trained run on a split:

    python -m experiments.evaluate --workdir=runs/vae --evaluation.split=test

The model is rebuilt from the working directory alone.  Flags may change its fields as long as the trained state still
fits, for instance the number of importance samples of an estimator.
"""

from __future__ import annotations

from experiments import command_line
from genjax.tools import evaluate


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, command_line.NoOptions())
    if given is None:
        return 0
    run, _ = given
    record = evaluate.measure(run)
    print(record["protocol"])
    for name, value in record.items():
        if name not in ("step", "split", "protocol", "version", "num_examples"):
            print(f"  {name:<24} {value:.6g}")
    command_line.write_record(run, f"evaluation_{record['split']}", record)
    return 0


if __name__ == "__main__":
    command_line.run(main)
