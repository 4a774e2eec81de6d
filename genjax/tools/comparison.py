"""Runs of different families on the same pictures, in the same units: what each knows and draws, and what it costs.

    record = measure(run, features="runs/feature_net_digits")       # also written to <workdir>/comparison_test.json
    found = table({"flow": records_of_seeds, ...}, fields=("bits/dim",))

A likelihood stands in one of three columns: exact, a bound, or an estimate.  A flow that adds noise to levels has an
exact density, which bounds the probability of the levels (Theis et al. 2016, arXiv:1511.01844, section 3.1).
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax.config import ConfigError
from genjax.data import Images
from genjax.model import HasLogProb, HasLogProbBound
from genjax.tools import likelihood, quality
from genjax.tools.conditions import has_exact_log_prob
from genjax.tools.features import feature_extractor
from genjax.tools.report import Row, Table, cell, protocol_of
from genjax.tools.sweep import cpu_seconds
from genjax.training import Run
from genjax.training.records import version, write_json

#: Columns beside the likelihoods: what samples are like, and what the run costs.
COLUMNS = (
    "Frechet distance", "precision", "recall", "copied", "parameters", "CPU s to train", "CPU s to draw 1000",
)  # fmt: skip
_METRICS = ("frechet", "precision_recall", "memorization")


def file_of(workdir: Path, split: str) -> Path:
    """Where `measure` keeps its record."""
    return workdir / f"comparison_{split}.json"


def measure(run: Run, features: str, num_samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Measures a run of pictures, or reads what was measured of the same step in the same way.

    Args:
      run: the run.
      features: features of the Frechet distance, as `quality.Options.features`.
      num_samples: number of samples.
      seed: seed of the samples.

    Returns:
      `protocol`, `step`, `version`, what was `asked`, and numbers by column; what samples are like also of training
      pictures (`train`) and of one half of the split against the other (`floor`).

    Raises:
      ConfigError: the data are no pictures.
    """
    data, split = run.experiment.data, run.experiment.evaluation.split
    if not isinstance(data, Images):
        raise ConfigError(f"families are compared on pictures; {run.name} has {type(data).__name__} data")
    path = file_of(Path(run.workdir), split)
    asked = f"step {run.step}, features {features}, {num_samples} samples, seed {seed}"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.get("asked") == asked:
            return known
    description, extract = feature_extractor(features, "tensorflow")
    options = quality.Options(features=features, metrics=_METRICS, num_samples=num_samples, seed=seed)
    figures = quality.figures(run, extract, options)
    values = {
        **likelihoods(run),
        **_of_samples(figures["samples"]),
        "copied": figures["memorization"]["copied_share"],
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.engine.abstract_state.params)),
        "CPU s to draw 1000": _seconds_to_draw(run, seed),
    }
    if (seconds := cpu_seconds(Path(run.workdir))) is not None:
        values["CPU s to train"] = seconds
    protocol = (
        f"{run.name}, step {run.step}: {type(run.model).__name__} on {data.name}, {data.levels} levels, split {split}, "
        f"{figures['counts'][split]} pictures; {num_samples} samples in features of {description}; "
        f"likelihoods with seed {run.experiment.evaluation.seed}"
    )
    record = {
        "protocol": protocol,
        "version": version(),
        "asked": asked,
        "step": run.step,
        **values,
        "train": _of_samples(figures["train"]),
        "floor": _of_samples(figures["floor"]),
    }
    write_json(path, record)
    return record


def _of_samples(figures: Mapping[str, float]) -> dict[str, float]:
    return {
        "Frechet distance": figures["frechet_distance"],
        "precision": figures["precision"],
        "recall": figures["recall"],
    }


def likelihoods(run: Run) -> dict[str, float]:
    """Negative log-likelihoods of the split by what they are: exact, bound or estimate.

    In bits a dimension of pictures with levels, and in nats a picture of binary ones.
    """
    data, model = run.experiment.data, run.model
    held_out = data.load(run.experiment.evaluation.split)
    examples = held_out.gather(np.arange(len(held_out)))
    unit, nats = _unit(data.levels, math.prod(examples["x"].shape[1:]))
    found = {}
    if isinstance(model, HasLogProb | HasLogProbBound):
        score = jax.jit(functools.partial(likelihood.scores_of_examples, model, data))
        _, raw, _ = likelihood.scores(run, score, examples)
        dequantized = likelihood.has_density(data, examples, jax.random.key(0))
        kind = "exact" if has_exact_log_prob(model) and not dequantized else "bound"
        if np.isfinite(raw).all():
            found[f"{unit}, {kind}"] = float(-raw.mean() / nats)
    if f"{unit}, exact" not in found and not isinstance(model, HasLogProb):
        metrics = run.evaluate()
        for kind, name in (("bound", "nll_bound"), ("estimate", "nll"), ("estimate", "nll_ais")):
            if name in metrics:
                found.setdefault(f"{unit}, {kind}", metrics[name] / nats)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _unit(levels: int, size: int) -> tuple[str, float]:
    """The unit of a likelihood, and how many nats a picture are one of it."""
    return ("nats", 1.0) if levels == 2 else ("bits/dim", size * math.log(2.0))


def _seconds_to_draw(run: Run, seed: int) -> float:
    """CPU time of 1000 samples, without compilation."""
    size = min(run.experiment.data.eval_batch_size, 1000)
    drawn = quality.samples_of(run, seed, 2 * size)
    next(drawn)
    began = time.process_time()
    next(drawn)
    return (time.process_time() - began) * 1000 / size


def table(systems: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """One table of all systems: means over the records of their seeds.

    Args:
      systems: records of `measure` by name.

    Raises:
      ConfigError: the records were not measured in the same way.
    """
    records = [record for own in systems.values() for record in own]
    protocols = sorted({protocol_of(record, "comparison", "") for record in records})
    if len(protocols) > 1:
        raise ConfigError(
            f"these runs were not measured alike, and do not belong into one table: {'; '.join(protocols)}"
        )
    names = {n for record in records for n, v in record.items() if isinstance(v, (int, float)) and n != "step"}
    columns = [*sorted(names - set(COLUMNS)), *(name for name in COLUMNS if name in names)]
    rows = [_row(name, own, columns) for name, own in systems.items() if own]
    for name, part in (("training pictures", "train"), ("half of the split against the other", "floor")):
        rows.append(_row(name, [records[0][part]], columns))
    return Table(protocols[0], columns, rows)


def _row(name: str, values: Sequence[Mapping[str, float]], columns: Sequence[str]) -> Row:
    found = {column: [each[column] for each in values if column in each] for column in columns}
    return Row(name, True, [cell(found[column]) if found[column] else None for column in columns])
