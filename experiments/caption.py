"""Writes captions of pictures, or answers questions about them; without a picture it measures a split:

    python -m experiments.caption --workdir=runs/captions_scenes --image=picture.png
    python -m experiments.caption --workdir=runs/questions_scenes --image=picture.png --question="is there a red cross?"
    python -m experiments.caption --workdir=runs/captions_scenes --evaluation.split=held_out_pairs

Captions are measured by exact match, BLEU and CIDEr-D, and of Scenes by the share that is true of the picture, which a
judge decides; answers by exact match and the accuracy of VQA.
"""

from __future__ import annotations

from experiments import command_line
from genjax import config
from genjax.tools import captions


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, captions.Options())
    if given is None:
        return 0
    run, options = given
    if options.image is not None:
        for file in options.image:
            text = captions.describe_file(run, file, options.question, options.num_beams)
            print(f"{file}: {text}" if len(options.image) > 1 else text)
        return 0
    if options.question is not None:
        raise config.ConfigError(f"--question={options.question} asks about a picture; give it by --image=FILE")
    record = captions.measure(run, options.num_beams)
    print(f"{run.name}, step {run.step}: {record['num_examples']} pictures of {record['split']}")
    for name, value in record["scores"].items():
        print(f"  {name:<28}{value:>10.4f}")
    command_line.write_record(run, f"captions_{record['split']}", record)
    return 0


if __name__ == "__main__":
    command_line.run(main)
