"""Draws samples from a trained run and writes them as pictures, text, sound or whatever suits their domain:

    python -m experiments.sample --workdir=runs/vae --num_samples=64 --seed=1

A model that reads text draws what prompts say, in turn; its guidance leads away from the negative prompt:

    python -m experiments.sample --workdir=runs/scenes --prompt="a small red circle left of a large blue square" \\
        --model.guidance.scale=2

Of several candidates for each prompt, a run of CLIP or SigLIP may choose the best: --rerank=RUN --candidates=16.

A translator, of text or of pictures, translates the first --num_samples sources of the evaluation split, and shows each
translation with its source and its target.
"""

from __future__ import annotations

from experiments import command_line
from genjax.tools import answers, samples


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, samples.Options())
    if given is None:
        return 0
    run, options = given
    paths = samples.write(run, options)
    if not options.reconstruct and answers.answers_examples(run) and paths[0].suffix == ".txt":
        print(paths[0].read_text(encoding="utf-8"))
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    command_line.run(main)
