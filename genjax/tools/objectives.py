"""Objectives of GANs compared under equal compute: methods, seeds side by side, operations
of a step, figures of samples.

    for row in objectives.compare("runs/objectives", objectives.Options(methods=("hinge", "least_squares"))):
        print(row.name, row.figures)

`reference` gives the same figures of the data themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets, config
from genjax.batch import PyTree
from genjax.config import ConfigError, check_at_least
from genjax.data import Pipeline, first_examples, procedural, random_order
from genjax.evaluation import quality
from genjax.evaluation.modes import mode_coverage
from genjax.evaluation.quality import FeatureStatistics
from genjax.nn.products import prefers_matrix_products
from genjax.tools.features import Extract, feature_extractor
from genjax.tools.quality import pictures_of
from genjax.training import Experiment
from genjax.training.experiment import resolve
from genjax.training.records import write_json

_CRITIC = {"model.objective": "wasserstein", "model.num_discriminator_steps": 5}
#: Changes of each method to a GAN without penalty that updates both networks in turn.
METHODS: dict[str, dict[str, Any]] = {
    "minimax": {"model.objective": "minimax"},
    "non_saturating": {"model.objective": "non_saturating"},
    "least_squares": {"model.objective": "least_squares"},
    "hinge": {"model.objective": "hinge"},
    "relativistic": {"model.objective": "relativistic"},
    "relativistic_average": {"model.objective": "relativistic_average"},
    "wasserstein_clipped": {**_CRITIC, "model.penalty": "none", "model.clip_weights": 0.05},
    "wasserstein_gp": {**_CRITIC, "model.penalty": "wgan_gp"},
    "non_saturating_r1": {"model.objective": "non_saturating", "model.penalty": "r1"},
    "relativistic_r1_r2": {"model.objective": "relativistic", "model.penalty": "r1_r2"},
}
#: Means and standard deviation of the mixtures.
MIXTURES = {
    "eight_gaussians": (procedural.eight_gaussians_means, 0.2),
    "grid_gaussians": (procedural.grid_gaussians_means, 0.05),
}
#: Number of pictures of a set in which neighbours are searched.
_RESERVOIR_SIZE = 2000
_DISTANCES = ("frechet_distance", "recall")
_PICTURES = {
    "model.conditioning": "none",
    "model.latent_dim": 32,
    "model.network.base_channels": 16,
    "model.network.discriminator_norm": "spectral",
}
#: Spectral norm would undo the clipping of weights, and a critic with a gradient penalty is bounded already.  In a
#: short training, updates of the generator are worth more than further updates of the critic.
_PICTURES_OF_CRITICS = {
    "wasserstein_clipped": {"model.network.discriminator_norm": "batch", "model.clip_weights": 0.03},
    "wasserstein_gp": {"model.network.discriminator_norm": "layer"},
}
#: For each data set: the experiment to start from, changes to it, learning rate, and weights of
#: wgan_gp and of R1 and R2.
SETTINGS: dict[str, tuple[str, dict[str, Any], float, float, float]] = {
    "eight_gaussians": ("wgan_gp_eight_gaussians", {}, 1e-3, 0.1, 0.1),
    # Without a penalty most objectives lose modes of the grid.
    "grid_gaussians": ("wgan_gp_eight_gaussians", {"model.penalty": "r1"}, 1e-3, 0.1, 0.03),
    "digits": ("dcgan_digits", {**_PICTURES, "model.network.base_channels": 32}, 1e-3, 10.0, 0.1),
    "mnist": ("dcgan_mnist", _PICTURES, 1e-3, 10.0, 0.1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared.

    Attributes:
      data: mixture or pictures.
      data_dir: where the pictures lie, as data.dir of an experiment.
      features: features of pictures: pixels, or the directory of a run of a classifier.
      methods: which methods.
      num_steps: steps of non_saturating.
      learning_rate: learning rate of both networks; by default one that suits the data.
      num_seeds: runs of each method, with the seeds 0, 1, ...
      num_samples: samples of each run.
    """

    data: Literal["eight_gaussians", "grid_gaussians", "digits", "mnist"] = "eight_gaussians"
    data_dir: str | None = None
    features: str | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    num_steps: int = 10000
    learning_rate: float | None = None
    num_seeds: int = 5
    num_samples: int = 10000

    def __post_init__(self) -> None:
        check_at_least(self, num_steps=1, num_seeds=1, num_samples=100)
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown:
            raise ConfigError(f"--methods={','.join(unknown)} is none of {', '.join(METHODS)}")

    def experiment(self, method: str, num_steps: int = 1) -> Experiment:
        """The resolved experiment of a method."""
        return experiment_of(method, self.data, self.learning_rate, self.data_dir, num_steps)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are held against.

    Attributes:
      notes: sentences about the protocol.
      rows: figures of the data themselves, by name.
      measure: figures of samples [N, *data_shape].
    """

    notes: tuple[str, ...]
    rows: dict[str, dict[str, float]]
    measure: Callable[[np.ndarray], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Row:
    """A method's figures for each seed in turn, after its number of steps."""

    name: str
    num_steps: int
    figures: tuple[dict[str, float], ...]


def reference(options: Options) -> Reference:
    """What measures the samples of a run on the data of `options`, and the same figures of the data themselves.

    Raises:
      ConfigError: pictures have no features to be judged by.
    """
    experiment, count = options.experiment("non_saturating"), options.num_samples
    if options.data in MIXTURES:
        means, scale = MIXTURES[options.data]
        points = experiment.data.load("test").arrays()["x"]
        points = points[first_examples(len(points), count)]
        measure = functools.partial(mode_coverage, means=means(), scale=scale)
        note = f"figures of {count} samples beside figures of {len(points)} points of the test split"
        return Reference((note,), {"test points": measure(points)}, measure)
    if options.features is None:
        raise ConfigError("--features is missing; it is pixels, or the directory of a run of a classifier")
    description, extract = feature_extractor(options.features, "tensorflow")
    measures = PictureMeasures(experiment, extract)
    rows = {"floor": measures.floor(), "training pictures": measures.of_training_pictures(count)}
    return Reference((f"features: {description}", *measures.protocol(count)), rows, measures.of_samples)


def compare(
    workdir: str | Path, options: Options | None = None, held_against: Reference | None = None
) -> Iterator[Row]:
    """Trains each method with as many operations as the others, and measures its samples.

    A method that `workdir` holds with the same settings is not trained again.

    Args:
      workdir: directory of the tables, and of a sheet of samples for each method, in a folder named after the data.
      options: what is compared.
      held_against: what `reference` gives, where it is there already.

    Raises:
      ConfigError: pictures have no features to be judged by.
    """
    options = options or Options()
    held_against = held_against or reference(options)
    folder = buckets.on_disk(workdir, "--workdir") / options.data
    folder.mkdir(parents=True, exist_ok=True)
    first = options.experiment("non_saturating")
    budget = options.num_steps * operations(first, first_states(first, 1))
    for method in options.methods:
        experiment = options.experiment(method)
        states = first_states(experiment, options.num_seeds)
        num_steps = round(budget / operations(experiment, states))
        experiment = options.experiment(method, num_steps)
        path = folder / f"{method}.json"
        settings = {"experiment": config.to_json(experiment), "num_steps": num_steps, "num_seeds": options.num_seeds}
        settings |= {"num_samples": options.num_samples, "features": options.features}
        known = json.loads(path.read_text()) if path.is_file() else {}
        known["figures"] = [{n: np.nan if v is None else v for n, v in row.items()} for row in known.get("figures", ())]
        if known.get("settings") != json.loads(json.dumps(settings)):
            states = train(experiment, states, num_steps)
            figures = []
            for samples in samples_of(experiment, states, options.num_samples):
                if not figures:
                    experiment.data.write_samples(samples[: 100 if samples.ndim == 4 else None], folder / method)
                figures.append(held_against.measure(samples))
            known = {"settings": settings, "figures": figures}
            write_json(path, known)
        yield Row(method, num_steps, tuple(known["figures"]))


def examples_of_update(experiment: Experiment) -> int:
    """Number of examples in an update of one network."""
    model, size = experiment.model, experiment.data.batch_size
    return size // model.num_discriminator_steps if model.fresh_examples else size


def experiment_of(
    method: str, name: str, learning_rate: float | None, directory: str | None, num_steps: int = 1
) -> Experiment:
    """The resolved experiment of a method on the named data, with `num_steps` steps."""
    base, own, rate, weight, centred_weight = SETTINGS[name]
    start = config.find_experiment(base).build()
    changes = {"model.penalty": "none", "model.num_discriminator_steps": 1, "model.latent_dim": 16, **own}
    changes |= {"model.penalty_every": 1, **METHODS[method]}
    if name not in MIXTURES and method in _PICTURES_OF_CRITICS:
        changes |= {"model.num_discriminator_steps": 2, **_PICTURES_OF_CRITICS[method]}
    changes["model.fresh_examples"] = True
    changes["data.batch_size"] = examples_of_update(start) * changes["model.num_discriminator_steps"]
    changes["model.penalty_weight"] = weight if changes["model.penalty"] == "wgan_gp" else centred_weight
    for network in ("generator", "discriminator"):
        changes[f"model.{network}_optimizer.learning_rate"] = learning_rate or rate
        changes[f"model.{network}_optimizer.schedule"] = "linear"
    changes |= {"model.generator_optimizer.ema_decay": 0.999, "data.name": name, "data.dir": directory}
    changes["training.num_steps"] = num_steps
    return resolve(config.apply_overrides(start, changes))


def first_states(experiment: Experiment, num_seeds: int) -> PyTree:
    """The states of all seeds before the first step, stacked."""
    data = experiment.data
    batch = data.load("train").gather(np.zeros(data.batch_size, np.int64))
    batch = data.transform({name: jnp.asarray(a) for name, a in batch.items()}, jax.random.key(0))
    return jax.jit(jax.vmap(lambda key: experiment.model.init(key, batch)))(
        jax.random.split(jax.random.key(0), num_seeds)
    )


def operations(experiment: Experiment, states: PyTree) -> float:
    """Floating-point operations of a step: the sum over all updates of the discriminator and the generator's update."""
    model = experiment.model
    state = jax.eval_shape(lambda states: jax.tree.map(lambda leaf: leaf[0], states), states)
    batch = jax.eval_shape(lambda: {"x": jnp.zeros((examples_of_update(experiment), *model.data_shape))})
    key = jax.eval_shape(lambda: jax.random.key(0))
    discriminator, generator = (
        jax.jit(update).lower(state, batch, key).cost_analysis()["flops"]
        for update in (model.discriminator_update, model.generator_update)
    )
    return model.num_discriminator_steps * discriminator + generator


def train(experiment: Experiment, states: PyTree, num_steps: int, chunk: int = 100) -> PyTree:
    """The stacked states of seeds 0, 1, ... after `num_steps` steps; each seed has its own order of batches."""
    model, data = experiment.model, experiment.data
    num_seeds = len(states.step)
    pipelines = [Pipeline(data, "train", seed) for seed in range(num_seeds)]
    examples = data.load("train")
    x = jnp.asarray(examples.gather(np.arange(len(examples)))["x"])
    keys = jax.random.split(jax.random.key(1), num_seeds)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(states: PyTree, rows: jax.Array) -> PyTree:
        def one(state: PyTree, key: jax.Array, rows: jax.Array) -> PyTree:
            batch = data.transform({"x": x[rows]}, key)
            return model.train_step(state, {"x": batch["x"]}, jax.random.fold_in(key, state.step))[0]

        def step(states: PyTree, rows: jax.Array) -> tuple[PyTree, None]:
            # On CPU, products batched over seeds are slower than products one after the other.
            if prefers_matrix_products():
                return jax.lax.map(lambda arguments: one(*arguments), (states, keys, rows)), None
            return jax.vmap(one)(states, keys, rows), None

        return jax.lax.scan(step, states, rows)[0]

    for start in range(0, num_steps, chunk):
        steps = range(start, min(start + chunk, num_steps))
        rows = np.stack([[pipeline.indices(step) for pipeline in pipelines] for step in steps])
        states = advance(states, rows.astype(np.int32))
    return states


def samples_of(experiment: Experiment, states: PyTree, num_samples: int) -> Iterator[np.ndarray]:
    """Samples [num_samples, *data_shape] of each seed in turn; values that are not finite become large ones."""
    size = min(500, num_samples)
    sample = jax.jit(lambda state, key: experiment.model.sample(state, key, size))
    for seed in range(len(states.step)):
        state = jax.tree.map(lambda leaf, seed=seed: leaf[seed], states)
        keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(math.ceil(num_samples / size))]
        samples = np.concatenate([np.asarray(sample(state, key)) for key in keys])[:num_samples]
        yield np.nan_to_num(samples, nan=1e3, posinf=1e3, neginf=-1e3)


class PictureMeasures:
    """Measures pictures against the test split by a network's features."""

    def __init__(self, experiment: Experiment, extract: Extract) -> None:
        self._data, self._extract = experiment.data, extract
        self._reference = FeatureStatistics(_RESERVOIR_SIZE)
        for pictures in pictures_of(self._data, "test", random_order(len(self._data.load("test")))):
            self._reference.add(*extract(pictures))

    def __call__(self, pictures: Iterable[np.ndarray]) -> dict[str, float]:
        """Figures of pictures in [0, 1], given in batches."""
        statistics = FeatureStatistics(_RESERVOIR_SIZE, self._reference)
        for batch in pictures:
            statistics.add(*self._extract(batch))
        found = quality.figures(self._reference, statistics, ("frechet", "classes", "precision_recall"))
        figures = {name: found[name] for name in _DISTANCES}
        if statistics.classes is not None:
            shares = statistics.classes.shares
            figures |= {"classes": int((shares > 0.01).sum()), "largest_class_share": float(shares.max())}
        return figures

    def of_samples(self, samples: np.ndarray) -> dict[str, float]:
        """Figures of samples in the model's form."""
        size = self._data.eval_batch_size
        return self(self._data.to_unit(samples[i : i + size]) for i in range(0, len(samples), size))

    def floor(self) -> dict[str, float]:
        """The figures of one half of the test pictures against the other."""
        found = quality.floor(self._reference, ("frechet", "precision_recall"))
        return {name: found[name] for name in _DISTANCES}

    def protocol(self, num_samples: int) -> list[str]:
        """Lines for the reader: numbers of pictures behind the figures of `num_samples` samples, and warnings."""
        count, num_features = self._reference.count, len(self._reference.moments.mean)
        sizes = {"samples": num_samples, "test pictures": count, "pictures in one of their halves": count // 2}
        line = (
            f"{num_samples} samples, or as many training pictures, against {count} test pictures, "
            f"by {num_features} features; floor: {count // 2} against {count - count // 2} test pictures; "
            f"recall among at most {_RESERVOIR_SIZE} of each set"
        )
        return [line, *(f"note: {text}" for text in quality.warnings(sizes, num_features))]

    def of_training_pictures(self, count: int) -> dict[str, float]:
        """Figures of `count` training pictures, which no model can be expected to beat."""
        order = random_order(len(self._data.load("train")), count)
        return self(pictures_of(self._data, "train", order))
