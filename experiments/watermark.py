"""Measures how well a watermark in the texts or pictures of a run is found again:

    python -m experiments.watermark --workdir=runs/gpt_text
    python -m experiments.watermark --workdir=runs/edm_digits --radius=2

texts     false alarms on windows of human text, and detection in marked texts by length and after edits
pictures  of a diffusion model: detection with and without the mark, as they are, after JPEG, noise, a turn and a cut

docs/misuse.md explains both marks.  `experiments.generate --watermark_seed` puts the mark into a text.
"""

from __future__ import annotations

from experiments import command_line
from genjax.tools import watermarks


def main(arguments: list[str]) -> int:
    given = command_line.run_and_options(arguments, __doc__, watermarks.Options())
    if given is not None:
        run, options = given
        print(watermarks.measure(run, options).text())
    return 0


if __name__ == "__main__":
    command_line.run(main)
