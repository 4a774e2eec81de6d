"""Measures the samples of a run whose data are pictures, in a feature space, beside the floor of data against data:

    python -m experiments.quality --workdir=runs/dcgan_mnist --features=runs/feature_net_mnist --num_samples=10000

--features is `pixels`; the working directory of a classifier, a run of feature_net_mnist or feature_net_digits; or a file
with the weights of the Inception network in the layout of pytorch-fid or torch-fidelity (a .pth file of torch.save, read
without running what it may hold, .safetensors or .npz), with which frechet_distance is the FID.

Metrics (--metrics, by default all): frechet, kernel, classes (with logits: class_score, by the Inception network the
Inception score, and the shares of the classes), precision_recall, density_coverage, memorization.  Each is given for the
samples, for as many training pictures, and for one half of the split against the other (the floor).  Moments are of all
pictures; neighbours are looked for among the first --num_kept.  memorization also draws the samples that lie nearest to a
training picture beside those pictures.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.data import Images, write_grid
from genjax.evaluation import quality
from genjax.evaluation.neighbors import NearestNeighbors, memorization
from genjax.evaluation.quality import FeatureStatistics

METRICS = (*quality.METRICS, "memorization")

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
flags.DEFINE_integer("step", None, "which checkpoint, by default the latest sound one")
flags.DEFINE_string(
    "features", "pixels", "pixels, the directory of a run of a classifier, or a file of Inception weights"
)
flags.DEFINE_enum(
    "resize", "tensorflow", ("tensorflow", "pytorch"), "how pictures are scaled for the Inception network"
)
flags.DEFINE_list("metrics", list(METRICS), f"which of {', '.join(METRICS)}")
flags.DEFINE_integer("num_samples", 10000, "number of samples", lower_bound=2)
flags.DEFINE_integer("num_data", None, "at most so many pictures of the split; by default all", lower_bound=4)
flags.DEFINE_integer("num_kept", 10000, "so many features are kept, of each set, to look for neighbours", lower_bound=8)
flags.DEFINE_integer("num_queries", 1000, "samples, and pictures of the split, compared with all the training set")
flags.DEFINE_integer("seed", 0, "seed of the samples")

#: What maps pictures [B, H, W, C] in [0, 1] to features [B, D] and logits [B, K] or None.
Extract = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def compiled(function: Any) -> Extract:
    """Calls a jitted function with whole batches: short ones are filled up."""
    function, size = jax.jit(function), 0

    def extract(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        nonlocal size
        size = max(size, len(pictures))
        filled = pictures[np.minimum(np.arange(size), len(pictures) - 1)]
        return tuple(np.asarray(part)[: len(pictures)] for part in function(filled))

    return extract


def feature_extractor(name: str, resize: str) -> tuple[str, Extract]:
    """A description of the features, and what computes them.

    Raises:
      ConfigError: there are no such features.
      ValueError: the file of weights cannot be used.
    """
    if name == "pixels":
        return "pixels in [0, 1]", lambda x: (x.reshape(len(x), -1), None)
    path = Path(name).expanduser()
    if path.is_dir():
        return classifier_features(path)
    if not path.is_file():
        raise ConfigError(f"--features={name} is neither pixels, nor the directory of a run, nor a file of weights")
    from genjax.evaluation.inception import InceptionV3, prepare
    from genjax.interop.inception import inception_params

    params = inception_params(path)
    apply = lambda x: InceptionV3().apply({"params": params}, prepare(x, resize))  # noqa: E731
    return f"Inception v3 of the FID ({path.name}, resized as {resize} does)", compiled(apply)


def classifier_features(path: Path) -> tuple[str, Extract]:
    """Features of a trained classifier; pictures with a margin around are cropped to its size."""
    from genjax.training import run as runs

    run = runs.restore(path)
    data, model = run.experiment.data, run.model
    if not hasattr(model, "features"):
        raise ConfigError(f"--features={path} is a run of {type(model).__name__}, which gives no features")
    if not isinstance(data, Images) or data.preprocessing != "unit" or data.flatten:
        raise ConfigError(f"--features={path} must be trained on pictures with data.preprocessing=unit")
    shape = tuple(model.data_shape)

    def apply(x: jax.Array) -> Any:
        margins = [have - want for have, want in zip(x.shape[1:], shape, strict=True)]
        if min(margins) < 0 or margins[2]:
            raise ConfigError(f"--features={path} wants pictures of shape {shape}, these have {x.shape[1:]}")
        top, left = margins[0] // 2, margins[1] // 2
        return model.features(run.state, x[:, top : top + shape[0], left : left + shape[1]])

    return f"{run.name} ({type(model).__name__}, step {run.step}, trained on {data.name})", compiled(apply)


def pictures_of(data: Images, split: str, order: np.ndarray) -> Iterator[np.ndarray]:
    """Pictures in [0, 1] of a split in an order, batch after batch, as a model of these data sees them."""
    examples, size = data.load(split), data.eval_batch_size
    transform = jax.jit(data.transform)
    for start in range(0, len(order), size):
        rows = order[np.minimum(np.arange(start, start + size), len(order) - 1)]
        batch = {**examples.gather(rows), "example_index": rows.astype(np.int32)}
        yield data.to_unit(transform(batch, jax.random.key(0))["x"])[: len(order) - start]


def samples_of(run: Any, seed: int, count: int) -> Iterator[np.ndarray]:
    """Samples as pictures in [0, 1], batch after batch."""
    data = run.experiment.data
    size = min(data.eval_batch_size, count)
    for i in range(math.ceil(count / size)):
        samples = run.sample(jax.random.fold_in(jax.random.key(seed), i), size)
        yield data.to_unit(samples[: count - i * size])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """How many pictures a measurement takes; see the flags of the same names."""

    num_samples: int = 10000
    num_data: int | None = None
    num_kept: int = 10000
    num_queries: int = 1000
    seed: int = 0


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


def draw_neighbors(run: Any, queries: Queries, distances: np.ndarray, rows: np.ndarray, path: Path) -> None:
    """Writes the ten samples nearest to a training picture, each followed by its nearest training pictures."""
    data = run.experiment.data
    nearest = np.argsort(distances[:, 0])[:10]
    shown = np.concatenate(list(pictures_of(data, "train", rows[nearest].reshape(-1))))
    shown = shown.reshape(len(nearest), -1, *shown.shape[1:])
    samples = np.concatenate(queries.pictures)[nearest][:, None]
    write_grid(np.concatenate([samples, shown], 1).reshape(-1, *shown.shape[2:]), path, 1 + rows.shape[1])


def measure(run: Any, extract: Extract, metrics: Sequence[str], values: Counts) -> dict[str, Any]:
    """All figures by the name of the set that is held against the split, and what a reader must know."""
    data = run.experiment.data
    split, needs_train = run.experiment.evaluation.split, "memorization" in metrics
    held_out, queries = Queries(values.num_queries), Queries(values.num_queries)
    reference = FeatureStatistics(values.num_kept)
    for pictures in pictures_of(data, split, np.arange(len(data.load(split)))[: values.num_data]):
        features, logits = extract(pictures)
        reference.add(features, logits)
        held_out.add(pictures, features)
    samples = FeatureStatistics(values.num_kept, reference)
    for pictures in samples_of(run, values.seed, values.num_samples):
        features, logits = extract(pictures)
        if not np.isfinite(features).all():
            raise ConfigError(f"samples of {run.workdir} at step {run.step} have features that are not finite")
        samples.add(features, logits)
        queries.add(pictures, features)
    train = FeatureStatistics(values.num_kept, reference)
    # In another order than the set's, so that the first pictures are a fair part of it.
    order = np.random.default_rng(0).permutation(len(data.load("train")))
    order = order if needs_train else order[: values.num_samples]
    near_samples = NearestNeighbors(np.concatenate(queries.features), min(5, len(order)))
    near_held_out = NearestNeighbors(np.concatenate(held_out.features))
    for pictures in pictures_of(data, "train", order):
        features, logits = extract(pictures)
        wanted = max(values.num_samples - train.count, 0)
        if wanted:
            train.add(features[:wanted], None if logits is None else logits[:wanted])
        if needs_train:
            near_samples.add(features)
            near_held_out.add(features)
    result: dict[str, Any] = {
        "counts": {"samples": samples.count, split: reference.count, "train": train.count, "kept": values.num_kept},
        "num_features": len(reference.moments.mean),
        "samples": quality.figures(reference, samples, metrics),
        "train": quality.figures(reference, train, metrics),
        "floor": quality.floor(reference, metrics),
        "notes": quality.warnings("samples", samples) + quality.warnings(f"pictures of the split {split}", reference),
    }
    if needs_train:
        distances, indices = near_samples.result()
        if split == "train":
            result["notes"].append("the split is the training set itself, so memorization says nothing")
        result["memorization"] = memorization(distances[:, 0], near_held_out.result()[0][:, 0])
        path = Path(run.workdir) / "neighbors.png"
        draw_neighbors(run, queries, distances, order[indices], path)
        result["notes"].append(
            f"{path}: samples, the ones nearest to a training picture first, each with its {indices.shape[1]} nearest "
            f"training pictures; memorization compares {len(distances)} samples with {len(order)} training pictures"
        )
    return result


def report(result: dict[str, Any], split: str) -> None:
    """Prints the figures as a table."""
    counts = result["counts"]
    half = counts[split] // 2
    print(f"  {'':<32}{'samples':>14}{'train':>14}{'floor':>14}")
    print(f"  {'pictures':<32}{counts['samples']:>14}{counts['train']:>14}{half:>14}")
    print(f"  {'against ' + split:<32}{counts[split]:>14}{counts[split]:>14}{counts[split] - half:>14}")
    for name, value in result["samples"].items():
        cells = [value, result["train"].get(name), result["floor"].get(name)]
        print(f"  {name:<32}" + "".join(f"{'' if c is None else format(c, '.5g'):>14}" for c in cells))
    for name, value in result.get("memorization", {}).items():
        print(f"  {name:<32}{value:>14.5g}")
    for note in result["notes"]:
        print(f"  note: {note}")


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    values, data = flags.FLAGS, run.experiment.data
    if not isinstance(data, Images):
        raise ConfigError(f"experiments.quality measures pictures; {run.name} has {type(data).__name__} data")
    unknown = [name for name in values.metrics if name not in METRICS]
    if unknown:
        raise ConfigError(f"--metrics has no {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    description, extract = feature_extractor(values.features, values.resize)
    split = run.experiment.evaluation.split
    counts = Counts(**{field.name: values[field.name].value for field in dataclasses.fields(Counts)})
    result = measure(run, extract, values.metrics, counts)
    protocol = (
        f"{run.name}, step {run.step}: {type(run.model).__name__} on {data.name}, split {split}, {data.protocol()}; "
        f"features: {description}, {result['num_features']} of them; seed {values.seed}"
    )
    print(protocol)
    report(result, split)
    path = Path(run.workdir) / f"quality_{split}.json"
    path.write_text(json.dumps({"protocol": protocol, "step": run.step, **result}, indent=2) + "\n")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
