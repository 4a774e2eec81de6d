"""Likelihoods of raw examples, and what `experiments.likelihood` holds them against: altered pictures, other sets, a normal."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from PIL import Image

from genjax.batch import Array, Batch
from genjax.config import ConfigError
from genjax.data import Images, Latents, Points, TimeSeries, first_examples
from genjax.data.base import Data
from genjax.model import GenerativeModel, TrainState
from genjax.tools import conditions


def log_likelihoods(model: GenerativeModel, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Array]:
    """Exact log-likelihoods, or bounds, of x and of the data before their transform, in nats, [B] each."""
    exact = conditions.has_exact_log_prob(model)
    log_prob = model.log_prob(state, batch) if exact else model.log_prob_bound(state, batch, key)
    return log_prob, log_prob + batch["log_abs_det"] if "log_abs_det" in batch else log_prob


def scores_of_examples(
    model: GenerativeModel, data: Data, state: TrainState, batch: Batch, key: Array
) -> tuple[Array, Array, Array]:
    """What `log_likelihoods` gives of raw examples, and x.  The noise of a bound is not that of the data's transform."""
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
    """Pictures x [N, h, w, c] of integer levels as a run sees pictures: uint8 [N, *shape], black to black, white to white.

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
        scale = lambda a: np.asarray(Image.fromarray(a).resize(shape[1::-1], Image.Resampling.BOX))  # noqa: E731
        unit = np.stack([np.stack([scale(a[..., c]) for c in range(shape[-1])], -1) for a in unit])
    return np.round(unit * (to_num_levels - 1)).astype(np.uint8)


def other_set(data: Data, against: str, split: str, shape: tuple[int, ...], count: int) -> dict[str, np.ndarray]:
    """The first examples, in `random_order`, of the set NAME or NAME=DIR, as the run's data give them before their transform.

    Args:
      data: those of the run.
      against: the set's name, with its place where that is not the run's.
      split: which split is read.
      shape: shape of a raw example of the run.
      count: largest number of examples.

    Raises:
      ConfigError: its examples cannot be made like those of the run.
    """
    name, _, folder = against.partition("=")
    changes = {"name": name, "dir": folder or data.dir, **({"classes": ()} if isinstance(data, Images) else {})}
    other = dataclasses.replace(data, **changes)
    loaded = other.load(split)
    examples = loaded.gather(first_examples(len(loaded), count))
    if isinstance(data, Images):
        return {**examples, "x": fitted(examples["x"], shape, other.levels, data.levels)}
    if examples["x"].shape[1:] != shape:
        raise ConfigError(f"--against={name} has examples of shape {examples['x'].shape[1:]}, the run {shape}")
    return examples


def has_density(data: Data, examples: dict[str, np.ndarray], key) -> bool:
    """Whether x is continuous, so that the density of a normal distribution says something beside the model's.

    Levels and binary pixels have probabilities: the normal distribution could narrow around them without end.
    """
    if isinstance(data, Points | Latents | TimeSeries):
        return True
    batch = {**{name: a[:1] for name, a in examples.items()}, "example_index": np.zeros(1, np.int32)}
    return "log_abs_det" in jax.eval_shape(data.transform, batch, key)
