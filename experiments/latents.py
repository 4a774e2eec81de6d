"""Looks at the latent codes of a trained run, and writes a picture or a table:

    python -m experiments.latents --workdir=runs/vae_digits --tool=interpolate

interpolate   pairs of examples, and the decoded points between their two codes, on lines and on great arcs (both
              examples have one class if the model is conditional on classes)
traverse      one example, its code changed along one dimension at a time from -3 to 3; for InfoGAN a picture for each
              variable of the code, which changes along the rows of samples
arithmetic    examples of class --source, decoded after adding the mean code of --target and subtracting the mean code
              of --source (a model conditional on classes still decodes them as --source)
anomaly       detection of the class --held_out, which the run must not have seen (train it with --data.classes=...):
              area under the ROC curve of the negative likelihood, or of its bound
augment       labelled examples drawn from a model conditional on classes, --num_samples of each class
disentangle   mutual information gap and FactorVAE score, for a set with known factors (sprites)
export        the codes of --evaluation.split as a table, for instance to train a flow on; or maps of codes with their
              classes and captions, for --data=latents
decode        pictures of the codes in the rows of the table --codes, for instance codes that the flow has drawn

To learn the density of an autoencoder's codes by a flow, and to see the flow's samples as pictures:

    python -m experiments.latents --workdir=runs/vae_digits --tool=export --evaluation.split=train
    python -m experiments.train --experiment=spline_table --data.dir=runs/vae_digits/latents/codes_train.npy \\
        --workdir=runs/flow
    python -m experiments.sample --workdir=runs/flow --output=runs/flow/codes
    python -m experiments.latents --workdir=runs/vae_digits --tool=decode --codes=runs/flow/codes.csv
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from experiments import command_line
from genjax.tools import latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(latents.Options):
    """What is looked at, and how.

    Attributes:
      tool: what to look at.
    """

    tool: Literal[*latents.TOOLS] = "interpolate"


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, Options())
    if given is not None:
        run, options = given
        print(latents.TOOLS[options.tool](run, options).text())
    return 0


if __name__ == "__main__":
    command_line.run(main)
