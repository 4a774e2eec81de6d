"""Compares the objectives of GANs under equal compute; several seeds of each objective are trained side by side:

    python -m experiments.objectives --data=eight_gaussians --workdir=runs/objectives
    python -m experiments.objectives --data=grid_gaussians --num_steps=20000 --workdir=runs/objectives
    python -m experiments.objectives --data=mnist --data_dir=DIRECTORY --features=runs/feature_net_mnist \\
        --num_steps=4000 --workdir=runs/objectives

Networks, and updates of the critic in a step:

data      method            network                             R1 penalty                         critic updates
mixtures  weight clipping   perceptrons                         none                               5
mixtures  gradient penalty  perceptrons                         none (the method has its own)      5
mixtures  all others        perceptrons                         the method's own, else on the grid 1
pictures  weight clipping   DCGAN, batch norm in the critic     none                               2
pictures  gradient penalty  DCGAN, layer norm in the critic     none (the method has its own)      2
pictures  all others        DCGAN, spectral norm in the critic  only the method's own              1

Compute is matched in FLOPs to non_saturating at --num_steps; XLA counts the operations of one update of each network.
Learning rates fall to 0 over a method's steps.  Samples are drawn from the generator's moving average.

The table has mean and standard deviation over the seeds, below the same figures of the data themselves.  Figures of
mixtures: the modes covered, and the share of samples within three standard deviations of a mode.  Figures of pictures:
Frechet distance to the test split in the features of --features, recall, the number of classes among the samples and
the share of the largest class; one half of the test split against the other half is given as well.  A method that
--workdir already holds with the same settings is not trained again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from experiments import command_line
from genjax import config
from genjax.config import ConfigError
from genjax.data import first_examples
from genjax.evaluation.modes import mode_coverage
from genjax.tools.features import feature_extractor
from genjax.tools.objectives import (
    METHODS,
    MIXTURES,
    SETTINGS,
    PictureMeasures,
    experiment_of,
    first_states,
    operations,
    samples_of,
    train,
)
from genjax.training import Experiment, Training, host
from genjax.training.records import write_json

flags.DEFINE_string("workdir", None, "directory of the tables, and of a sheet of samples for each method")
flags.DEFINE_enum("data", "eight_gaussians", tuple(SETTINGS), "mixture or pictures")
flags.DEFINE_string("data_dir", None, "where the pictures lie, as data.dir of an experiment")
flags.DEFINE_string("features", None, "of pictures: pixels, or the directory of a run of a classifier")
flags.DEFINE_list("methods", list(METHODS), f"which of {', '.join(METHODS)}")
flags.DEFINE_integer("num_steps", 10000, "steps of non_saturating", lower_bound=1)
flags.DEFINE_float("learning_rate", None, "of both networks; by default one that suits the data")
flags.DEFINE_integer("num_seeds", 5, "runs of each method, with the seeds 0, 1, ...", lower_bound=1)
flags.DEFINE_integer("num_samples", 10000, "samples of each run", lower_bound=100)


def measures_of(experiment: Experiment, name: str, features: str | None) -> Callable[[np.ndarray], dict[str, float]]:
    """A function that measures samples on the named data; prints the figures of the data themselves."""
    num_samples = flags.FLAGS.num_samples
    if name in MIXTURES:
        means, scale = MIXTURES[name]
        measure = lambda samples: mode_coverage(samples, means(), scale)  # noqa: E731
        points = experiment.data.load("test").arrays()["x"]
        points = points[first_examples(len(points), num_samples)]
        print(f"figures of {num_samples} samples beside those of {len(points)} points of the test split")
        print(f"  {'test points':<22} {line([measure(points)])}")
        return measure
    if features is None:
        raise ConfigError("--features is missing; it is pixels, or the directory of a run of a classifier")
    description, extract = feature_extractor(features, "tensorflow")
    measures = PictureMeasures(experiment, extract)
    print(f"features: {description}")
    for text in measures.protocol(num_samples):
        print(text)
    print(f"  {'floor':<22} {line([measures.floor()])}")
    print(f"  {'training pictures':<22} {line([measures.of_training_pictures(num_samples)])}")
    return measures.of_samples


def line(figures: Sequence[dict[str, float]]) -> str:
    """Mean and standard deviation over runs of every figure; the single values of counts."""
    parts = []
    for name in figures[0]:
        values = [each[name] for each in figures]
        if all(isinstance(value, int) for value in values):
            parts.append(f"{name} {' '.join(map(str, values))}")
        else:
            parts.append(f"{name} {np.mean(values):.4g} ({np.std(values):.2g})")
    return "   ".join(parts)


def main(arguments: list[str]) -> int:
    if command_line.first_flags(arguments, {"help": False, "h": False}):
        command_line.print_help(__doc__)
        return 0
    values = flags.FLAGS
    values(arguments)
    if values.workdir is None:
        raise ConfigError("--workdir is missing; it is the directory of the tables")
    unknown = [name for name in values.methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"--methods={','.join(unknown)} is none of {', '.join(METHODS)}")
    host.initialize(Training())
    folder = Path(values.workdir).expanduser() / values.data
    folder.mkdir(parents=True, exist_ok=True)
    given = (values.data, values.learning_rate, values.data_dir)
    reference = experiment_of("non_saturating", *given)
    budget = values.num_steps * operations(reference, first_states(reference, 1))
    measure = measures_of(reference, values.data, values.features)
    rows = {}
    for method in values.methods:
        experiment = experiment_of(method, *given)
        states = first_states(experiment, values.num_seeds)
        num_steps = round(budget / operations(experiment, states))
        experiment = experiment_of(method, *given, num_steps)
        path = folder / f"{method}.json"
        settings = {"experiment": config.to_json(experiment), "num_steps": num_steps, "num_seeds": values.num_seeds}
        settings |= {"num_samples": values.num_samples, "features": values.features}
        known = json.loads(path.read_text()) if path.is_file() else {}
        known["figures"] = [{n: np.nan if v is None else v for n, v in row.items()} for row in known.get("figures", ())]
        if known.get("settings") != json.loads(json.dumps(settings)):
            states = train(experiment, states, num_steps)
            figures = []
            for samples in samples_of(experiment, states, values.num_samples):
                if not figures:
                    experiment.data.write_samples(samples[: 100 if samples.ndim == 4 else None], folder / method)
                figures.append(measure(samples))
            known = {"settings": settings, "figures": figures}
            write_json(path, known)
        rows[method] = known["figures"]
        print(f"  {method:<22} {num_steps:>6} steps   {line(rows[method])}", flush=True)
    print(
        f"{values.num_seeds} seeds, as many operations as {values.num_steps} steps of non_saturating; written to {folder}"
    )
    return 0


if __name__ == "__main__":
    command_line.run(main)
