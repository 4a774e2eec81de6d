"""Measures the samples of a run whose data are pictures, in a feature space, beside the floor (data against data):

    python -m experiments.quality --workdir=runs/dcgan_mnist --features=runs/feature_net_mnist --num_samples=10000

--features is one of
- `pixels`;
- the working directory of a classifier, such as a run of feature_net_mnist or feature_net_digits;
- a file with the weights of the Inception network in the layout of pytorch-fid or torch-fidelity (.safetensors, .npz or
  .pth of torch.save, whose code is never run); frechet_distance is then the FID.

Metrics (--metrics, by default all):

frechet           Frechet distance, from the moments of all pictures
kernel            kernel distance, over blocks of a random sample of --num_kept pictures
classes           class_score (the Inception score, with the Inception network) and shares of the classes; needs logits
precision_recall, density_coverage
                  by nearest neighbours in a random sample of --num_kept pictures
memorization      whether samples lie nearer to training pictures than held-out pictures do; also draws the samples
                  nearest to a training picture (or to its mirror image, if data.horizontal_flip was on) beside that
                  picture

Each metric is given for the samples, for the same number of training pictures, and for one half of the split against
the other half (the floor).  A translator translates each source of the split once.  Samples of a model conditional on
classes have the classes of the training pictures that they are compared with.  A set that is not used whole contributes
its first pictures in a fixed random order.

--weak_step names an earlier checkpoint of a diffusion model, whose worse estimates guide the samples (autoguidance)
with the weight --model.guidance.scale.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.data import Images
from genjax.tools import conditions
from genjax.tools.features import feature_extractor
from genjax.tools.quality import METRICS, Counts, measure
from genjax.training.records import write_json

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
flags.DEFINE_integer("weak_step", None, "an early checkpoint that guides a diffusion model, by model.guidance.scale")
flags.DEFINE_string(
    "features", "pixels", "pixels, the directory of a run of a classifier, or a file of Inception weights"
)
flags.DEFINE_enum(
    "resize", "tensorflow", ("tensorflow", "pytorch"), "how pictures are scaled for the Inception network"
)
flags.DEFINE_list("metrics", list(METRICS), f"which of {', '.join(METRICS)}")
flags.DEFINE_integer("num_samples", 10000, "number of samples", lower_bound=2)
flags.DEFINE_integer("num_data", None, "at most this many pictures of the split; by default all", lower_bound=4)
flags.DEFINE_integer(
    "num_kept",
    10000,
    "features of each set that are kept at random, for neighbours and the kernel distance",
    lower_bound=8,
)
flags.DEFINE_integer("num_queries", 1000, "samples, and pictures of the split, compared with all the training set")
flags.DEFINE_integer("seed", 0, "seed of the samples")


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
    run = conditions.guided_by_step(run, flags.FLAGS.weak_step)
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
    write_json(path, {"protocol": protocol, "step": run.step, **result})
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
