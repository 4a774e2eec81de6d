"""Changes a picture by a diffusion model: image to image, or with --mask the part of it that is white there.

    python -m experiments.edit --pretrained=FOLDER --image=photo.png --prompt="a red house" --strength=0.6
    python -m experiments.edit --pretrained=FOLDER --image=photo.png --mask=mask.png --prompt="a dog" --strength=1
    python -m experiments.edit --workdir=runs/text_to_image_scenes --image=scene.png --prompt="a small red circle"

FOLDER holds a pipeline of the library diffusers (model_index.json), whose network may see masks, with --lora=FILE for
low-rank updates; a run is of a diffusion model of pictures, which fills masks in by RePaint.
"""

from __future__ import annotations

from experiments import command_line
from genjax.tools import edits


def main(arguments: list[str]) -> int:
    if command_line.first_flags(arguments, {"pretrained": True}):
        options = command_line.options_only(arguments, __doc__, edits.Options())
        if options is not None:
            print(edits.write_from_folder(options))
        return 0
    given = command_line.run_and_options(arguments, __doc__, edits.Options())
    if given is not None:
        print(edits.write(*given))
    return 0


if __name__ == "__main__":
    command_line.run(main)
