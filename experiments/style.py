"""Gives one picture the style of another, by the feature maps of a trained classifier or of the Inception network:

    python -m experiments.style --features=inception.pth --content=house.png --style=waves.png --output=styled.png

--features is a file of Inception weights (see experiments.quality), for pictures of any size, or the working directory
of a classifier, for pictures of the size that the classifier was trained on.  The first argument may be the picture
--content alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments import command_line
from genjax.tools import style


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(style.Options):
    """Which pictures are joined, how, and where the result goes.

    Attributes:
      output: path of the result.
    """

    output: str = "styled.png"


def main(arguments: list[str]) -> int:
    options = command_line.options_only(arguments, __doc__, Options(), first="content")
    if options is None:
        return 0
    picture, terms = style.transfer(options)
    for name, values in terms.items():
        print(f"  {name:<12} {values[0]:.5g} -> {values[-1]:.5g}")
    path = Path(options.output).expanduser()
    style.write_picture(picture, path)
    print(path)
    return 0


if __name__ == "__main__":
    command_line.run(main)
