"""Forecasts the last part of every series of a split with intervals, and tells how well the intervals are calibrated:

python -m experiments.forecast --workdir=runs/mixture_density_waves --horizon=24
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import command_line
from genjax import config
from genjax.training.records import write_json

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train on time series")
command_line.define_step()
flags.DEFINE_integer("horizon", 12, "time steps that are forecast", lower_bound=1)
flags.DEFINE_integer("num_samples", 200, "futures that are drawn of each series", lower_bound=2)
flags.DEFINE_integer("num_series", 128, "number of series of the split", lower_bound=1)
flags.DEFINE_list("levels", ["0.5", "0.9"], "masses of the intervals")
flags.DEFINE_integer("seed", 0, "seed of the futures")


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    import jax
    import numpy as np

    from genjax.data import first_examples
    from genjax.evaluation.forecasts import forecast_metrics

    values, model, data = flags.FLAGS, run.model, run.experiment.data
    if not hasattr(model, "forecast"):
        raise config.ConfigError(f"{type(model).__name__} makes no forecasts; train a model of time series")
    try:
        levels = tuple(float(level) for level in values.levels)
    except ValueError:
        raise config.ConfigError(f"--levels={','.join(values.levels)} is not a list of numbers") from None
    split = run.experiment.evaluation.split
    examples = data.load(split)
    x = examples.gather(first_examples(len(examples), values.num_series))["x"].astype(np.float32)
    if values.horizon >= x.shape[1]:
        raise config.ConfigError(
            f"--horizon={values.horizon} leaves nothing of series of {x.shape[1]} time steps to go on from"
        )
    past, truth = x[:, : -values.horizon], x[:, -values.horizon :]
    forecast = jax.jit(model.forecast, static_argnums=(3, 4))
    samples = np.asarray(
        forecast(run.state, jax.random.key(values.seed), past, values.horizon, values.num_samples), np.float64
    )
    metrics = forecast_metrics(samples, truth, levels)
    protocol = (
        f"last {values.horizon} of {x.shape[1]} time steps of {len(x)} series of {data.name}, split {split}, "
        f"{values.num_samples} futures each, seed {values.seed}, step {run.step}"
    )
    print(f"protocol: {protocol}")
    for name, value in metrics.items():
        print(f"  {name:<24} {value:.4f}")
    path = Path(run.workdir) / f"forecast_{run.step:08d}"
    write_json(path.with_suffix(".json"), {"protocol": protocol, **metrics})
    draw(samples, x, levels, path.with_suffix(".png"))
    print(path.with_suffix(".png"))
    return 0


def draw(samples, x, levels: tuple[float, ...], path: Path) -> None:
    """A picture of the first four series with the median and the intervals of the first feature."""
    import matplotlib.figure
    import numpy as np

    from genjax.evaluation.forecasts import central_interval

    rows = min(4, len(x))
    horizon, size = samples.shape[2], x.shape[1]
    future = np.arange(size - horizon, size)
    figure = matplotlib.figure.Figure(figsize=(8, 2 * rows), layout="constrained")
    for row, axes in enumerate(figure.subplots(rows, squeeze=False)[:, 0]):
        axes.plot(np.arange(size), x[row, :, 0], color="black", linewidth=0.8)
        axes.plot(future, np.median(samples[:, row, :, 0], axis=0), color="tab:blue", linewidth=1.2)
        for level in levels:
            lower, upper = central_interval(samples[:, row, :, 0], level)
            axes.fill_between(future, lower, upper, color="tab:blue", alpha=0.2, linewidth=0)
    figure.savefig(path)


if __name__ == "__main__":
    command_line.run(main)
