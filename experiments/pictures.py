"""Draws pictures that show what the generator of a trained run has learned:

    python -m experiments.pictures --workdir=runs/dcgan_digits --tool=walk

curves       losses, gradient penalties and scores over the steps of training
walk         a GIF of --num_rows walks on great arcs, each from latent to latent of --num_columns latents, with
             --num_values frames from one latent to the next
classes      for a model conditional on classes: a row for each class, with the same latents in every row
truncation   StyleGAN: a row for each latent, with its w scaled from the mean of w (0) to w itself (1), and beyond
mixing       StyleGAN: a picture for each pair of latents: the style of the row's latent, except in the layers --layers,
             which have the style of the column's latent; first row and first column show the latents themselves
project      StyleGAN: pictures of the evaluation split, and the generator's pictures from the styles that come nearest
             to them by the distance of --features; needs data.preprocessing signed or unit
equivariance StyleGAN3: decibels for random shifts by whole pixels (EQ-T), by fractions (EQ-T_frac) and rotations (EQ-R)
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from experiments import command_line
from genjax.tools import generators


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(generators.Options):
    """What is drawn, and how.

    Attributes:
      tool: what to draw.
    """

    tool: Literal[*generators.TOOLS] = "walk"


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, Options())
    if given is not None:
        run, options = given
        print(generators.TOOLS[options.tool](run, options).text())
    return 0


if __name__ == "__main__":
    command_line.run(main)
