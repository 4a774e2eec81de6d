"""Measures a run of CLIP or SigLIP on a split: retrieval of texts and pictures, hard negatives of Scenes, and classes.

    python -m experiments.pairs --workdir=runs/clip_scenes --evaluation.split=held_out_pairs

A text that equals the right one is as right.  Hard negatives are captions of the same words that are not true: colours
exchanged, or the relation reversed; a bag of words prefers the right caption in half of the cases.  Zero-shot
classification tells each picture's class by the nearest text (pictures whose caption names exactly one of the classes):

    ... --classes=circle,square,triangle,cross --templates="a small red {},a large white {}"
"""

from __future__ import annotations

from experiments import command_line
from genjax.tools import pairs


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, pairs.Options())
    if given is None:
        return 0
    run, options = given
    result = pairs.measure(run, options)
    print(f"{run.name}, step {run.step}: {result['num_pairs']} pairs of {result['split']}")
    for name, value in result.items():
        if isinstance(value, float):
            print(f"  {name:<20}{value:>10.4f}")
    command_line.write_record(run, f"pairs_{result['split']}", result)
    return 0


if __name__ == "__main__":
    command_line.run(main)
