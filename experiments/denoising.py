"""Shows how a trained diffusion model denoises, guides and edits:

    python -m experiments.denoising --workdir=runs/edm_mnist --tool=trajectory

trajectory  the way from noise to samples, pictures or points, as a GIF
schedule    alpha, sigma and the log signal-to-noise ratio of the forward process over time, with the sampler's steps
guidance    samples of each class, a row for each of the --scales of guidance.  Guidance is classifier-free, or with
            --classifier by the gradient of that run's classifier of noisy data.  With --features (the directory of a
            run of a classifier) also a table and a plot of the share of samples recognised as their class, and of
            precision and recall
inpaint     examples, the same examples without their middle, and the middle filled in by RePaint; the model need not be
            trained for it
edit        examples, and image-to-image (SDEdit) results that start from them, a row for each of the --strengths
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from experiments import command_line
from genjax.tools import denoising


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(denoising.Options):
    """What is looked at, and how.

    Attributes:
      tool: what to look at.
    """

    tool: Literal[*denoising.TOOLS] = "trajectory"


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, Options())
    if given is not None:
        run, options = given
        print(denoising.TOOLS[options.tool](run, options).text())
    return 0


if __name__ == "__main__":
    command_line.run(main)
