"""Forecasts the last part of every series of a split, with intervals, and tells how well the intervals are calibrated:

python -m experiments.forecast --workdir=runs/mixture_density_waves --horizon=24
"""

from __future__ import annotations

from pathlib import Path

from experiments import command_line
from genjax.tools import forecasts
from genjax.training.records import write_json


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, forecasts.Options())
    if given is None:
        return 0
    run, options = given
    forecast = forecasts.forecast(run, options)
    print(f"protocol: {forecast.protocol}")
    for name, value in forecast.metrics.items():
        print(f"  {name:<24} {value:.4f}")
    path = Path(run.workdir) / f"forecast_{run.step:08d}.png"
    write_json(path.with_suffix(".json"), {"protocol": forecast.protocol, **forecast.metrics})
    forecasts.draw(forecast, options.levels, path)
    print(path)
    return 0


if __name__ == "__main__":
    command_line.run(main)
