"""Looks at the hidden states of a trained run and writes pictures into its directory:

    python -m experiments.states --workdir=runs/hmm_chords

transition.png   the matrix of transitions, states in the order of their stationary probability (hidden Markov models)
paths.png        the most likely state of each frame, of the first sequences of the evaluation split
ellipses.png     components over the data, at one and two standard deviations (Gaussian mixtures of points)

For a linear Gaussian model it prints the damping and the period of each hidden motion.
"""

from __future__ import annotations

import math

from experiments import command_line
from genjax.tools import states


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, states.Options())
    if given is None:
        return 0
    run, options = given
    motions = states.motions(run)
    if motions is None:
        print("written to " + ", ".join(map(str, states.draw(run, options))))
        return 0
    for modulus, period in motions:
        turns = f"turns once in {period:.2f} frames" if math.isfinite(period) else "does not turn"
        print(f"{turns}, {modulus:.4f} of it is left after a frame")
    return 0


if __name__ == "__main__":
    command_line.run(main)
