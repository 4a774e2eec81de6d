"""Measures the samples of a run whose data are pictures, in a feature space, beside the floor (data against data):

    python -m experiments.quality --workdir=runs/dcgan_mnist --features=runs/feature_net_mnist --num_samples=10000

--features is one of
- `pixels`;
- the working directory of a classifier, such as a run of feature_net_mnist or feature_net_digits;
- a file with the weights of the Inception network in the layout of pytorch-fid or torch-fidelity (.safetensors, .npz or
  .pth of torch.save, whose code is never run); frechet_distance is then the FID.

Metrics (--metrics, by default all):

frechet           Frechet distance, from the moments of all pictures
kernel            kernel distance, over blocks of a random sample of --reservoir_size pictures
classes           class_score (the Inception score, with the Inception network) and shares of the classes; needs logits
precision_recall, density_coverage
                  by nearest neighbours in a random sample of --reservoir_size pictures
memorization      whether samples lie nearer to training pictures than held-out pictures do; also draws the samples
                  nearest to a training picture (or to its mirror image, if data.horizontal_flip was on) beside that
                  picture

Each metric is given for the samples, for the same number of training pictures, and for one half of the split against
the other half (the floor).  A translator translates each source of the split once.  Samples of a model conditional on
classes have the classes of the training pictures that they are compared with.  A set that is not used whole contributes
its first pictures in a fixed random order.

--judge=scenes asks instead whether each sample is what its caption says, for the first --num_judged captions of the
split and each weight of guidance in --scales; "all" is the share in which every thing and relation is right:

    python -m experiments.quality --workdir=runs/scenes --judge=scenes --scales=0,2 --evaluation.split=held_out_pairs

    python -m experiments.quality --workdir=runs/dalle --judge=scenes --rerank=runs/clip_scenes --candidates=16

draws several samples of each caption, and judges the one that a run of CLIP or SigLIP finds nearest to it.

--weak_step names an earlier checkpoint of a diffusion model, whose worse estimates guide the samples (autoguidance)
with the weight --model.guidance.scale.
"""

from __future__ import annotations

from typing import Any

from experiments import command_line
from genjax.tools import judging, quality
from genjax.training import Run, restore


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


def judged(run: Run, options: quality.Options) -> int:
    """Judges samples, prints the rates as a table with a column for each weight of guidance, and writes them."""
    scorer, reranker = (None if path is None else restore(path) for path in (options.scorer, options.rerank))
    arguments = (options.num_judged, options.scales, options.seed, scorer, reranker, options.candidates)
    result = judging.measure(run, *arguments)
    print(result["protocol"])
    columns = {f"w = {scale}": rates for scale, rates in result["scales"].items()}
    columns |= {name: result[name] for name in ("reconstructions", "data") if name in result}
    width = max(10, *(len(name) + 2 for name in columns))
    print(f"  {'':<16}" + "".join(f"{name:>{width}}" for name in columns))
    for name in result["data"]:
        print(f"  {name:<16}" + "".join(f"{rates[name]:>{width}.3f}" for rates in columns.values()))
    command_line.write_record(run, f"judged_{result['split']}_{result['step']:08d}", result)
    return 0


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, quality.Options())
    if given is None:
        return 0
    run, options = given
    if options.judge is not None:
        return judged(run, options)
    result, split = quality.measure(run, options), run.experiment.evaluation.split
    print(result["protocol"])
    report(result, split)
    command_line.write_record(run, f"quality_{split}", result)
    return 0


if __name__ == "__main__":
    command_line.run(main)
