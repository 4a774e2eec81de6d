"""Forecasts the last part of every series of a split, with intervals, and tells how well the intervals are calibrated:

python -m experiments.forecast --workdir=runs/mixture_density_waves --horizon=24
"""

from __future__ import annotations

from experiments import command_line
from genjax.tools import forecasts


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, forecasts.Options())
    if given is None:
        return 0
    run, options = given
    forecast = forecasts.forecast(run, options)
    print(f"protocol: {forecast.protocol}")
    for name, value in forecast.metrics.items():
        print(f"  {name:<24} {value:.4f}")
    name = f"forecast_{run.step:08d}"
    command_line.write_record(run, name, {"protocol": forecast.protocol, **forecast.metrics})
    picture = run.workdir / f"{name}.png"
    forecasts.draw(forecast, options.levels, picture)
    print(picture)
    return 0


if __name__ == "__main__":
    command_line.run(main)
