"""Measures the molecules that a trained run generates, by the metrics of MOSES:

python -m experiments.molecules --workdir=runs/gpt_molecules --num_samples=30000
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from experiments import command_line
from genjax import config
from genjax.training.records import write_json

if TYPE_CHECKING:
    from genjax.data import Molecules

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train on molecules")
command_line.define_step()
flags.DEFINE_integer("num_samples", 30_000, "number of samples", lower_bound=1)
flags.DEFINE_integer("num_reference", 10_000, "molecules of the split that distances are to; 0 for all", lower_bound=0)
flags.DEFINE_string("split", "test", "split that distances are to")
flags.DEFINE_integer("sample_batch", 1000, "samples that are generated at a time", lower_bound=1)
flags.DEFINE_integer("seed", 0, "seed of the samples, and of the choice of reference molecules")


def known_molecules(data: Molecules) -> list[str]:
    """What a molecule must not be among to be new, as canonical SMILES.

    That is the whole training set, though a run may have seen a part of it; of MOSES, whose strings are canonical, the
    molecules of its training file that are held out for validation as well.
    """
    whole = dataclasses.replace(data, max_molecules=None)
    if data.canonical:
        return whole.smiles("train") + whole.smiles("validation")
    from genjax.evaluation.molecules import canonical

    return [string for string in canonical(whole.smiles("train")) if string is not None]


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    import jax
    import numpy as np

    from genjax.data import Molecules
    from genjax.evaluation.molecules import canonical, molecule_metrics

    values, data = flags.FLAGS, run.experiment.data
    if not isinstance(data, Molecules):
        raise config.ConfigError(f"{values.workdir} is a run on {type(data).__name__}, not on molecules")
    key, size, samples = jax.random.key(values.seed), values.sample_batch, []
    for i in range(-(-values.num_samples // size)):
        samples += [data.decode(row) for row in run.sample(jax.random.fold_in(key, i), size)]
    samples = samples[: values.num_samples]
    reference = data.smiles(values.split)
    if values.num_reference and values.num_reference < len(reference):
        chosen = np.random.default_rng(values.seed).choice(len(reference), values.num_reference, replace=False)
        reference = [reference[i] for i in chosen]
    if not data.canonical:
        reference = [string for string in canonical(reference) if string is not None]
    metrics = molecule_metrics(samples, known_molecules(data), reference)
    protocol = (
        f"{values.num_samples} samples with seed {values.seed} of step {run.step}, distances to {len(reference)} "
        f"molecules of the split {values.split}, novelty to the whole training set by canonical SMILES"
    )
    print(f"protocol: {protocol}")
    for name, value in metrics.items():
        print(f"  {name:<22} {value:.4f}")
    if "fcd" not in metrics:
        print("  fcd                    not computed: fcd-torch is not installed (pip install 'genjax[molecules]')")
    path = Path(run.workdir) / f"molecules_{run.step:08d}.json"
    write_json(path, {"protocol": protocol, **metrics})
    (Path(run.workdir) / f"molecules_{run.step:08d}.smi").write_text("".join(s + "\n" for s in samples))
    return 0


if __name__ == "__main__":
    command_line.run(main)
