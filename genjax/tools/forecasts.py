"""Forecasts of the last part of every series of a split, with intervals, and how well they are calibrated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from genjax import config
from genjax.data import first_examples
from genjax.data.figures import empty_figure
from genjax.evaluation.forecasts import central_interval, forecast_metrics
from genjax.model import Forecasts
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of forecasts.

    Attributes:
      horizon: number of time steps that are forecast.
      num_samples: number of futures that are drawn for each series.
      num_series: number of series of the split that are used.
      levels: probability masses of the intervals.
      seed: seed of the futures.
    """

    horizon: int = 12
    num_samples: int = 200
    num_series: int = 128
    levels: tuple[float, ...] = (0.5, 0.9)
    seed: int = 0

    def __post_init__(self) -> None:
        config.check_at_least(self, horizon=1, num_samples=2, num_series=1)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Series and the futures that a model draws of them.

    Attributes:
      x: the series, float32 [N, T, C]; their last `horizon` steps are forecast.
      samples: futures, float64 [S, N, horizon, C].
      metrics: coverage and width of the intervals, CRPS and errors (genjax.evaluation.forecasts).
      protocol: a sentence on what was forecast from what.
    """

    x: np.ndarray
    samples: np.ndarray
    metrics: dict[str, float]
    protocol: str


def forecast(run: Run, options: Options | None = None) -> Forecast:
    """Forecasts the ends of the first series of the evaluation split from their beginnings.

    Raises:
      ConfigError: the model makes no forecasts, or the series are not longer than the horizon.
    """
    options, model, data = options or Options(), run.model, run.experiment.data
    if not isinstance(model, Forecasts):
        raise config.ConfigError(f"{type(model).__name__} makes no forecasts; train a model of time series")
    split, horizon = run.experiment.evaluation.split, options.horizon
    examples = data.load(split)
    x = examples.gather(first_examples(len(examples), options.num_series))["x"].astype(np.float32)
    if horizon >= x.shape[1]:
        raise config.ConfigError(
            f"--horizon={horizon} leaves nothing of series of {x.shape[1]} time steps to go on from"
        )
    draw_futures = jax.jit(model.forecast, static_argnums=(3, 4))
    key = jax.random.key(options.seed)
    samples = np.asarray(draw_futures(run.state, key, x[:, :-horizon], horizon, options.num_samples), np.float64)
    protocol = (
        f"last {horizon} of {x.shape[1]} time steps of {len(x)} series of {data.name}, split {split}, "
        f"{options.num_samples} futures each, seed {options.seed}, step {run.step}"
    )
    return Forecast(x, samples, forecast_metrics(samples, x[:, -horizon:], options.levels), protocol)


def draw(forecast: Forecast, levels: tuple[float, ...], path: Path) -> None:
    """Writes a picture of the first four series with the median and the intervals of the first feature."""
    x, samples = forecast.x, forecast.samples
    rows = min(4, len(x))
    horizon, size = samples.shape[2], x.shape[1]
    future = np.arange(size - horizon, size)
    figure = empty_figure(8, 2 * rows)
    for row, axes in enumerate(figure.subplots(rows, squeeze=False)[:, 0]):
        axes.plot(np.arange(size), x[row, :, 0], color="black", linewidth=0.8)
        axes.plot(future, np.median(samples[:, row, :, 0], axis=0), color="tab:blue", linewidth=1.2)
        for level in levels:
            lower, upper = central_interval(samples[:, row, :, 0], level)
            axes.fill_between(future, lower, upper, color="tab:blue", alpha=0.2, linewidth=0)
    figure.savefig(path)
