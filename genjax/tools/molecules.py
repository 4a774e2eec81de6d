"""Metrics of molecules that a run generates, as MOSES defines them (genjax.evaluation.molecules)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from genjax import config
from genjax.data import Molecules
from genjax.evaluation.molecules import canonical, molecule_metrics
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement.

    Attributes:
      num_samples: number of samples.
      num_reference: number of molecules of the split in the distances; 0 for all.
      split: split for the distances.
      sample_batch: number of samples that are generated at a time.
      seed: seed of the samples, and of the choice of reference molecules.
    """

    num_samples: int = 30_000
    num_reference: int = 10_000
    split: str = "test"
    sample_batch: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        config.check_at_least(self, num_samples=1, num_reference=0, sample_batch=1)


def known_molecules(data: Molecules) -> list[str]:
    """The molecules that do not count as new, as canonical SMILES.

    They are the whole training set, even if a run has seen only a part of it; for MOSES, whose strings are canonical,
    also the molecules of its training file that are held out for validation.
    """
    whole = dataclasses.replace(data, max_molecules=None)
    if data.canonical:
        return whole.smiles("train") + whole.smiles("validation")
    return [string for string in canonical(whole.smiles("train")) if string is not None]


def measure(run: Run, options: Options | None = None) -> tuple[dict[str, Any], list[str]]:
    """Generates molecules and measures them.

    Returns:
      The metrics, beside `protocol`, which says of what; and the samples as SMILES, valid or not.

    Raises:
      ConfigError: the data of the run are no molecules.
    """
    options, data = options or Options(), run.experiment.data
    if not isinstance(data, Molecules):
        raise config.ConfigError(f"{run.workdir} is a run on {type(data).__name__}, not on molecules")
    key, size, samples = jax.random.key(options.seed), options.sample_batch, []
    for i in range(-(-options.num_samples // size)):
        samples += [data.decode(row) for row in run.sample(jax.random.fold_in(key, i), size)]
    samples = samples[: options.num_samples]
    reference = data.smiles(options.split)
    if options.num_reference and options.num_reference < len(reference):
        chosen = np.random.default_rng(options.seed).choice(len(reference), options.num_reference, replace=False)
        reference = [reference[i] for i in chosen]
    if not data.canonical:
        reference = [string for string in canonical(reference) if string is not None]
    protocol = (
        f"{options.num_samples} samples with seed {options.seed} of step {run.step}, distances to {len(reference)} "
        f"molecules of the split {options.split}, novelty to the whole training set by canonical SMILES"
    )
    return {"protocol": protocol, **molecule_metrics(samples, known_molecules(data), reference)}, samples
