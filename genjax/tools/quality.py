"""Quality of a run that generates pictures: samples, training pictures and a split, compared in a feature space.

    run = genjax.restore("runs/dcgan_mnist")
    figures = quality.measure(run, quality.Options(features="runs/feature_net_mnist", num_samples=1000))

Options of `experiments.quality` are the fields of `Options`; its --help says what each metric is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from genjax.config import ConfigError, check_at_least
from genjax.data import HasPrompts, Images, full_batches, random_order, write_grid
from genjax.evaluation import quality
from genjax.evaluation.neighbors import NearestNeighbors, memorization
from genjax.evaluation.quality import FeatureStatistics
from genjax.model import takes
from genjax.tools.answers import examples_in_order
from genjax.tools.conditions import guided_by_step
from genjax.tools.features import Extract, feature_extractor
from genjax.training import Run

METRICS = (*quality.METRICS, "memorization")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a measurement.

    Attributes:
      features: pixels, the directory of a run of a classifier, or a file of Inception weights.
      resize: method by which pictures are scaled for the Inception network.
      metrics: groups of metrics: frechet, kernel, classes, precision_recall, density_coverage, memorization.
      num_samples: number of samples.
      num_data: largest number of pictures of the split; by default all.
      reservoir_size: number of pictures of each set, chosen at random, for neighbours and the kernel distance.
      num_memorization_samples: number of samples, and of pictures of the split, that are compared with all training
        pictures.
      seed: seed of the samples.
      weak_step: an early checkpoint that guides a diffusion model, by model.guidance.scale.
      judge: in place of all metrics, whether samples are what their captions say: scenes, by the judge of Scenes; clip,
        by the CLIP score alone.
      scorer: directory of a run of CLIP or SigLIP, whose CLIP score of samples and captions is given with --judge.
      rerank: directory of a run of CLIP or SigLIP, which chooses each sample that is judged among candidates.
      candidates: number of candidates of each sample, with --rerank.
      num_judged: largest number of captions that are judged.
      scales: weights of guidance that are judged one after the other; empty for the model's own.
    """

    features: str = "pixels"
    resize: Literal["tensorflow", "pytorch"] = "tensorflow"
    metrics: tuple[str, ...] = METRICS
    num_samples: int = 10000
    num_data: int | None = None
    reservoir_size: int = 10000
    num_memorization_samples: int = 1000
    seed: int = 0
    weak_step: int | None = None
    judge: Literal["scenes", "clip"] | None = None
    scorer: str | None = None
    rerank: str | None = None
    candidates: int = 16
    num_judged: int = 400
    scales: tuple[float, ...] = ()

    renamed: ClassVar[dict[str, str]] = {"num_kept": "reservoir_size", "num_queries": "num_memorization_samples"}

    def __post_init__(self) -> None:
        check_at_least(self, num_samples=2, num_data=4, reservoir_size=8, num_judged=1, candidates=1)
        if self.rerank is not None and self.judge is None:
            raise ConfigError("--rerank chooses the samples that are judged: give --judge=scenes or --judge=clip")
        if self.judge == "clip" and self.scorer is None:
            raise ConfigError("--judge=clip needs a run of CLIP or SigLIP: --scorer=RUN")
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            raise ConfigError(f"--metrics has no {', '.join(unknown)}; choose from {', '.join(METRICS)}")


def pictures_of(data: Images, split: str, order: np.ndarray) -> Iterator[np.ndarray]:
    """Yields batches of a split's pictures in [0, 1], in the given order, after the transform for the model."""
    examples = data.load(split)
    transform = jax.jit(data.transform)
    for places, own in full_batches(len(order), data.eval_batch_size):
        rows = order[places]
        batch = {**examples.gather(rows), "example_index": rows.astype(np.int32)}
        yield data.to_unit(transform(batch, jax.random.key(0))["x"])[:own]


def samples_of(run: Run, seed: int, count: int) -> Iterator[np.ndarray]:
    """Yields batches of samples as pictures in [0, 1].

    A translator translates the sources of the split, in turn.  Samples of a model conditional on classes have the
    classes of the training pictures in `random_order`, so that each class is as frequent as in the data; samples of a
    model that reads text have their captions.
    """
    data = run.experiment.data
    size = min(data.eval_batch_size, count)
    order = random_order(len(data.load("train"))) if takes(run.model, "label") else None
    captions = None
    if takes(run.model, "tokens") and isinstance(data, HasPrompts):
        own = data.references("train")
        captions = [own[j][0] for j in random_order(len(own))]
    for i in range(math.ceil(count / size)):
        key, condition = jax.random.fold_in(jax.random.key(seed), i), {}
        if takes(run.model, "source"):
            condition["source"] = examples_in_order(run, np.arange(i * size, (i + 1) * size), key)["source"]
        if order is not None:
            rows = order[np.arange(i * size, (i + 1) * size) % len(order)]
            condition["label"] = data.load("train").gather(rows)["label"]
        if captions is not None:
            condition |= data.prompts([captions[j % len(captions)] for j in range(i * size, (i + 1) * size)])
        samples = run.sample(key, size, **condition)
        yield data.to_unit(samples[: count - i * size])


@dataclasses.dataclass
class Queries:
    """The first pictures of a set with their features, to find their nearest training pictures."""

    limit: int
    pictures: list[np.ndarray] = dataclasses.field(default_factory=list)
    features: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(self, pictures: np.ndarray, features: np.ndarray) -> None:
        left = max(self.limit - sum(map(len, self.features)), 0)
        self.pictures.append(pictures[:left])
        self.features.append(features[:left])


def draw_neighbors(
    run: Run, queries: Queries, distances: np.ndarray, rows: np.ndarray, mirrored: np.ndarray, path: Path
) -> None:
    """Writes the ten samples nearest to a training picture, each followed by its nearest training pictures.

    Args:
      run: the run.
      queries: the samples.
      distances: from each sample to its nearest training pictures, ascending [Q, K].
      rows: numbers of these training pictures [Q, K].
      mirrored: whether the nearest picture is the mirrored one, bool [Q, K].
      path: the file.
    """
    data = run.experiment.data
    nearest = np.argsort(distances[:, 0])[:10]
    shown = np.concatenate(list(pictures_of(data, "train", rows[nearest].reshape(-1))))
    shown = np.where(mirrored[nearest].reshape(-1, 1, 1, 1), shown[:, :, ::-1], shown)
    shown = shown.reshape(len(nearest), -1, *shown.shape[1:])
    samples = np.concatenate(queries.pictures)[nearest][:, None]
    write_grid(np.concatenate([samples, shown], 1).reshape(-1, *shown.shape[2:]), path, 1 + rows.shape[1])


def measure(run: Run, options: Options | None = None) -> dict[str, Any]:
    """Measures samples of a run of pictures; with memorization it draws `<workdir>/neighbors.png`.

    Returns:
      `protocol`, `step`, and the results of `figures`.

    Raises:
      ConfigError: the data are no pictures, there are no such features, or samples are not finite.
      UserError: the file of weights cannot be used.
    """
    options = options or Options()
    run, data = guided_by_step(run, options.weak_step), run.experiment.data
    if not isinstance(data, Images):
        raise ConfigError(f"experiments.quality measures pictures; {run.name} has {type(data).__name__} data")
    description, extract = feature_extractor(options.features, options.resize)
    result = figures(run, extract, options)
    protocol = (
        f"{run.name}, step {run.step}: {type(run.model).__name__} on {data.name}, "
        f"split {run.experiment.evaluation.split}, {data.protocol()}; features: {description}, "
        f"{result['num_features']} of them; seed {options.seed}"
    )
    return {"protocol": protocol, "step": run.step, **result}


def figures(run: Run, extract: Extract, options: Options) -> dict[str, Any]:
    """All figures in the features of `extract`, by the set that is compared with the split, and notes for the reader.

    Returns:
      `samples`, `train` and `floor`, each with figures by name; `memorization` where it was asked for; `counts` of
      pictures by set, `num_features`, and `notes`, a list of sentences.

    Raises:
      ConfigError: features of samples are not finite.
    """
    data = run.experiment.data
    split, needs_train = run.experiment.evaluation.split, "memorization" in options.metrics
    if takes(run.model, "source"):
        # A second translation of a source would be nearly the same picture.
        options = dataclasses.replace(options, num_samples=min(options.num_samples, len(data.load(split))))
    held_out, queries = Queries(options.num_memorization_samples), Queries(options.num_memorization_samples)
    reference = FeatureStatistics(options.reservoir_size)
    for pictures in pictures_of(data, split, random_order(len(data.load(split)), options.num_data)):
        features, logits = extract(pictures)
        reference.add(features, logits)
        held_out.add(pictures, features)
    samples = FeatureStatistics(options.reservoir_size, reference)
    for pictures in samples_of(run, options.seed, options.num_samples):
        features, logits = extract(pictures)
        if not np.isfinite(features).all():
            raise ConfigError(f"samples of {run.workdir} at step {run.step} have features that are not finite")
        samples.add(features, logits)
        queries.add(pictures, features)
    train = FeatureStatistics(options.reservoir_size, reference)
    order = random_order(len(data.load("train")))
    order = order if needs_train else order[: options.num_samples]
    near_samples = NearestNeighbors(np.concatenate(queries.features), min(5, len(order)))
    near_held_out = NearestNeighbors(np.concatenate(held_out.features))
    for pictures in pictures_of(data, "train", order):
        features, logits = extract(pictures)
        wanted = max(options.num_samples - train.count, 0)
        if wanted:
            train.add(features[:wanted], None if logits is None else logits[:wanted])
        if needs_train:
            near_samples.add(features)
            near_held_out.add(features)
    if needs_train and data.horizontal_flip:
        # A model that has seen mirrored pictures can copy them too.
        for pictures in pictures_of(data, "train", order):
            features = extract(pictures[:, :, ::-1])[0]
            near_samples.add(features)
            near_held_out.add(features)
    num_features = len(reference.moments.mean)
    sizes = {
        "samples": samples.count,
        "training pictures": train.count,
        f"pictures of the split {split}": reference.count,
        "pictures in one of its halves": reference.count // 2,
    }
    result: dict[str, Any] = {
        "counts": {
            "samples": samples.count,
            split: reference.count,
            "train": train.count,
            "kept": options.reservoir_size,
        },
        "num_features": num_features,
        "samples": quality.figures(reference, samples, options.metrics),
        "train": quality.figures(reference, train, options.metrics),
        "floor": quality.floor(reference, options.metrics),
        "notes": quality.warnings(sizes, num_features) if "frechet" in options.metrics else [],
    }
    if needs_train:
        distances, indices = near_samples.result()
        if split == "train":
            result["notes"].append("the split is the training set itself, so memorization says nothing")
        result["memorization"] = memorization(distances[:, 0], near_held_out.result()[0][:, 0])
        path = Path(run.workdir) / "neighbors.png"
        draw_neighbors(run, queries, distances, order[indices % len(order)], indices >= len(order), path)
        result["notes"].append(
            f"{path}: samples, the ones nearest to a training picture first, each with its {indices.shape[1]} nearest "
            f"training pictures; memorization compares {len(distances)} samples with {len(order)} training pictures"
        )
    return result
