"""Likelihoods of raw examples, compared with a normal distribution and with likelihoods of
altered pictures and other sets.

    run = genjax.restore("runs/maf_mnist")
    print(likelihood.compare(run, likelihood.Options(ood=("black", "uniform"))))

`compare` also draws the density of two-dimensional data.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from PIL import Image

from genjax.batch import Array, Batch
from genjax.config import ConfigError, check_at_least
from genjax.data import Images, Latents, Points, TimeSeries, first_examples, full_batches
from genjax.data.base import Data
from genjax.evaluation import likelihood
from genjax.model import Dequantizes, GenerativeModel, HasLogProb, HasLogProbBound, TrainState, takes
from genjax.tools.conditions import has_exact_log_prob
from genjax.tools.drawing import draw_density
from genjax.training import Run

#: Ways to make other pictures from the split's pictures.
ALTERED = ("uniform", "constant", "black", "inverted", "shuffled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a comparison of likelihoods.

    Attributes:
      ood: out-of-distribution sets to compare with: uniform, constant, black, inverted or shuffled pictures made from
        the split, or names of data sets, with their place if it is not data.dir: emoji=FILE.
      num_examples: number of examples of each set that are compared.
      output: path of the picture of the density; by default <workdir>/density.png.
    """

    ood: tuple[str, ...] = ()
    num_examples: int = 2000
    output: str | None = None

    renamed: ClassVar[dict[str, str]] = {"against": "ood"}

    def __post_init__(self) -> None:
        check_at_least(self, num_examples=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Mean log-likelihood of a split.

    Attributes:
      log_likelihood: mean log-likelihood in nats an example, in the model's space.
      bits_per_dim: negative log-likelihood of the raw data, in bits a number.
      exact: whether the likelihood is exact; otherwise it is a bound.
    """

    log_likelihood: float
    bits_per_dim: float
    exact: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The likelihood of a run, and likelihoods to compare it with.

    Attributes:
      step: the run's step.
      split: the split.
      num_examples: number of examples of the split.
      likelihoods: likelihoods of the split under the model and under the normal distribution, by name.
      roc_auc: area under the ROC curve for telling the split from each other set; below 0.5 the other set is likelier.
      bits_per_dim: negative log-likelihood of each other set, in bits a number.
      integral: integral of a two-dimensional density over the square of its picture.
      picture: path of that picture.
    """

    step: int
    split: str
    num_examples: int
    likelihoods: dict[str, Likelihood]
    roc_auc: dict[str, float]
    bits_per_dim: dict[str, float]
    integral: float | None = None
    picture: Path | None = None


def compare(run: Run, options: Options | None = None) -> Comparison:
    """Compares the likelihood of the evaluation split with a normal distribution and with the likelihood of other sets.

    Raises:
      ConfigError: the model has no likelihood, or another set cannot be compared.
    """
    options = options or Options()
    model, data, split = run.model, run.experiment.data, run.experiment.evaluation.split
    if not isinstance(model, HasLogProb | HasLogProbBound):
        raise ConfigError(f"{type(model).__name__} has no likelihood")
    held_out = data.load(split)
    test = held_out.gather(np.arange(len(held_out)))
    others = {against.partition("=")[0]: _compared_with(run, against, test, options) for against in options.ood}
    score = functools.partial(scores, run, jax.jit(functools.partial(scores_of_examples, model, data)))
    log_prob, raw, x = score(test)
    nats_per_bit = math.prod(x.shape[1:]) * math.log(2.0)
    shift = (raw - log_prob).mean()
    means = {type(model).__name__: log_prob.mean()} | _likelihood_of_normal(run, test, x)
    exact = has_exact_log_prob(model)
    likelihoods = {
        name: Likelihood(
            log_likelihood=float(value),
            bits_per_dim=float(-(value + shift) / nats_per_bit),
            exact=exact or name != type(model).__name__,
        )
        for name, value in means.items()
    }
    integral = picture = None
    if x.shape[1:] == (2,) and exact and "condition" not in test:
        picture = Path(options.output or Path(run.workdir) / "density.png").expanduser()
        integral = _draw_density(run, x, picture)
    own = first_examples(len(raw), options.num_examples)
    theirs = {name: score(examples)[1] for name, examples in others.items()}
    return Comparison(
        step=run.step,
        split=split,
        num_examples=len(x),
        likelihoods=likelihoods,
        # Examples whose likelihood underflows to 0 count as the least likely.
        roc_auc={n: likelihood.roc_auc(np.nan_to_num(a, nan=-np.inf), raw[own]) for n, a in theirs.items()},
        bits_per_dim={name: float(-values.mean() / nats_per_bit) for name, values in theirs.items()},
        integral=integral,
        picture=picture,
    )


def scores(run: Run, score: Any, examples: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Results of the compiled `scores_of_examples` for all raw examples, in batches of `data.eval_batch_size`."""
    key, parts = jax.random.key(run.experiment.evaluation.seed), []
    for index, own in full_batches(len(examples["x"]), run.experiment.data.eval_batch_size):
        batch = {name: a[index] for name, a in examples.items()}
        part = score(run.state, {**batch, "example_index": index.astype(np.int32)}, key)
        parts.append([np.asarray(p)[:own] for p in part])
    return [np.concatenate(p) for p in zip(*parts, strict=True)]


def _compared_with(run: Run, against: str, test: dict[str, np.ndarray], options: Options) -> dict[str, np.ndarray]:
    """The raw examples that an entry of `ood` names."""
    data, shape = run.experiment.data, test["x"].shape[1:]
    if against in ALTERED:
        if not isinstance(data, Images):
            raise ConfigError(f"--ood={against} is made from pictures, but {data.name} has none")
        examples = {**test, "x": altered(against, test["x"], data.levels)}
        own = first_examples(len(test["x"]), options.num_examples)
        return {name: a[own] for name, a in examples.items()}
    if takes(run.model, "label"):
        raise ConfigError(f"the run is conditional on classes, which --ood={against} does not share")
    return other_set(data, against, run.experiment.evaluation.split, shape, options.num_examples)


def _likelihood_of_normal(run: Run, test: dict[str, np.ndarray], x: np.ndarray) -> dict[str, float]:
    """Mean log-density of x [N, ...] under a normal distribution fitted to training examples, where
    both are densities.
    """
    data, key = run.experiment.data, jax.random.key(run.experiment.evaluation.seed)
    if (isinstance(run.model, Dequantizes) and run.model.dequantization is not None) or not has_density(
        data, test, key
    ):
        return {}
    train = data.load("train")
    batch = train.gather(first_examples(len(train), 60000))
    batch["example_index"] = np.arange(len(batch["x"]), dtype=np.int32)
    transformed = np.asarray(jax.jit(data.transform)(batch, jax.random.fold_in(key, 1))["x"])
    name = "normal without condition" if "condition" in test else "full-covariance normal"
    return {name: likelihood.gaussian_log_prob(x, *likelihood.fit_gaussian(transformed)).mean()}


def _draw_density(run: Run, x: np.ndarray, path: Path) -> float:
    """Draws a density of two dimensions beside x [N, 2], and gives its integral over the square of the picture."""
    low, high = x.min(0) - 1.0, x.max(0) + 1.0
    log_prob = jax.jit(run.model.log_prob)
    density, integral = likelihood.density_grid(lambda points: log_prob(run.state, {"x": points}), low, high, 400)
    draw_density(density, low, high, x, path)
    return integral


def log_likelihoods(model: GenerativeModel, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Array]:
    """Exact log-likelihoods, or bounds, of x and of the data before their transform, in nats, [B] each."""
    exact = has_exact_log_prob(model)
    log_prob = model.log_prob(state, batch) if exact else model.log_prob_bound(state, batch, key)
    return log_prob, log_prob + batch["log_abs_det"] if "log_abs_det" in batch else log_prob


def scores_of_examples(
    model: GenerativeModel, data: Data, state: TrainState, batch: Batch, key: Array
) -> tuple[Array, Array, Array]:
    """Results of `log_likelihoods` for raw examples, and x; bound and transform have different noise."""
    batch = data.transform(batch, key)
    return *log_likelihoods(model, state, batch, jax.random.fold_in(key, 2)), batch["x"]


def altered(kind: str, x: np.ndarray, num_levels: int) -> np.ndarray:
    """Pictures x [N, H, W, C] of integer levels, made into others of the same shape."""
    rng = np.random.default_rng(0)
    match kind:
        case "uniform":
            return rng.integers(0, num_levels, x.shape).astype(x.dtype)
        case "constant":
            return np.broadcast_to(rng.integers(0, num_levels, (len(x), 1, 1, 1)), x.shape).astype(x.dtype)
        case "black":
            return np.zeros_like(x)
        case "inverted":
            return (num_levels - 1 - x).astype(x.dtype)
    return rng.permuted(x.reshape(len(x), -1), axis=1).reshape(x.shape)


def fitted(x: np.ndarray, shape: tuple[int, ...], num_levels: int, to_num_levels: int) -> np.ndarray:
    """Pictures x [N, h, w, c] of integer levels, converted to a run's raw pictures: uint8
    [N, *shape], black stays black.

    Raises:
      ConfigError: colours can be neither taken away nor added.
    """
    unit = x.astype(np.float32) / (num_levels - 1)
    if unit.shape[-1] != shape[-1]:
        if shape[-1] == 1 and unit.shape[-1] == 3:
            unit = unit @ np.array([[0.299], [0.587], [0.114]], np.float32)
        elif unit.shape[-1] == 1:
            unit = np.repeat(unit, shape[-1], axis=-1)
        else:
            raise ConfigError(f"pictures of {unit.shape[-1]} channels cannot be made into those of {shape[-1]}")
    if unit.shape[1:3] != shape[:2]:
        scale = lambda a: np.asarray(Image.fromarray(a).resize(shape[1::-1], Image.Resampling.BOX))
        unit = np.stack([np.stack([scale(a[..., c]) for c in range(shape[-1])], -1) for a in unit])
    return np.round(unit * (to_num_levels - 1)).astype(np.uint8)


def other_set(data: Data, against: str, split: str, shape: tuple[int, ...], count: int) -> dict[str, np.ndarray]:
    """The first examples, in `random_order`, of the set NAME or NAME=DIR, as the run's data give
    them before their transform.

    Args:
      data: the run's data.
      against: the set's name, with its place if it is not the run's.
      split: which split is read.
      shape: shape of a raw example of the run.
      count: largest number of examples.

    Raises:
      ConfigError: its examples cannot be converted to the form of the run's examples.
    """
    name, _, folder = against.partition("=")
    changes = {"name": name, "dir": folder or data.dir, **({"classes": ()} if isinstance(data, Images) else {})}
    other = dataclasses.replace(data, **changes)
    loaded = other.load(split)
    examples = loaded.gather(first_examples(len(loaded), count))
    if isinstance(data, Images):
        return {**examples, "x": fitted(examples["x"], shape, other.levels, data.levels)}
    if examples["x"].shape[1:] != shape:
        raise ConfigError(f"--ood={name} has examples of shape {examples['x'].shape[1:]}, the run {shape}")
    return examples


def has_density(data: Data, examples: dict[str, np.ndarray], key: jax.Array) -> bool:
    """Whether x is continuous, so that a normal distribution's density can be compared with the model's.

    Levels and binary pixels have probabilities, and a normal distribution could narrow around them without end.
    """
    if isinstance(data, Points | Latents | TimeSeries):
        return True
    batch = {**{name: a[:1] for name, a in examples.items()}, "example_index": np.zeros(1, np.int32)}
    return "log_abs_det" in jax.eval_shape(data.transform, batch, key)
