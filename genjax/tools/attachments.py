"""Files that a prompt is about: pictures, and sound.

x, tokens = attachments.prompt_about(run, "what colour is the circle?", image=("scene.png",))
decoder, starts, _ = run.model.reader(run.state, x, tokens[None], None)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from genjax.config import ConfigError
from genjax.data import CaptionedImages, Interleaved, SpokenTexts
from genjax.data.fitting import PictureFile
from genjax.model import DescribesPictures
from genjax.training import Run


def hears(run: Run) -> bool:
    """Whether a run writes down what it hears."""
    return isinstance(run.model, DescribesPictures) and isinstance(run.experiment.data, SpokenTexts)


def check_files(run: Run, image: Sequence[PictureFile] | None, audio: str | Path | None) -> None:
    """Raises ConfigError if a run is given a picture that it cannot see, or a sound that it cannot hear."""
    hearing, kind = hears(run), type(run.model).__name__
    if image is not None and (hearing or not isinstance(run.model, DescribesPictures)):
        instead = "give a sound by --audio=FILE" if hearing else "leave --image out"
        raise ConfigError(f"{run.workdir} is a run of {kind}, which sees no pictures; {instead}")
    if audio is not None and not hearing:
        raise ConfigError(f"{run.workdir} is a run of {kind}, which hears nothing; leave --audio out")


def prompt_about(
    run: Run, text: str, image: Sequence[PictureFile] | None = None, audio: str | Path | None = None
) -> tuple[jax.Array | None, np.ndarray]:
    """What a model reads of files and a text about them; see `picture_prompt` and `sound_prompt`."""
    check_files(run, image, audio)
    return sound_prompt(run, text, audio) if hears(run) else picture_prompt(run, text, image)


def sound_prompt(run: Run, text: str, audio: str | Path | None) -> tuple[jax.Array, np.ndarray]:
    """What a model reads of a sound and the first words of its text.

    Args:
      run: a run of a model that hears.
      text: the prompt.
      audio: the WAV file, or None.

    Returns:
      Log-mel features float32 [1, F, M], and the tokens [P].

    Raises:
      ConfigError: there is no file.
      DataError: the file cannot be read or has another sample rate than the data, or the text has a symbol that is not
        known.
    """
    data = run.experiment.data
    if audio is None:
        raise ConfigError(
            f"{run.workdir} is a run of {type(run.model).__name__}, which writes down what it hears; give a sound by "
            "--audio=FILE"
        )
    return data.read_sound(audio), data.beginning(text)


def picture_prompt(run: Run, text: str, image: Sequence[PictureFile] | None) -> tuple[jax.Array | None, np.ndarray]:
    """What a model reads of pictures and a text about them.

    Args:
      run: a run of a model that writes about pictures.
      text: the prompt.
      image: the pictures, or None.

    Returns:
      The pictures float32 [1, H, W, C], or [1, N, H, W, C] between words, or None; and the tokens [P].

    Raises:
      ConfigError: the run has no data of pictures, or there are too many pictures, or none where one is needed.
      DataError: a picture cannot be read, or the text has words that are not known.
    """
    data, model = run.experiment.data, run.model
    if isinstance(data, Interleaved):
        x, tokens = data.read_prompt(text, image or ())
        return x, tokens[0]
    if not isinstance(data, CaptionedImages):
        raise ConfigError(f"{run.workdir} was not trained on pictures with texts (data.name={data.name})")
    if image is None and model.needs_pictures:
        raise ConfigError(
            f"{run.workdir} is a run of {type(model).__name__}, which writes about a picture; give one by --image=FILE"
        )
    if image is not None and len(image) > 1:
        names = ",".join(map(str, image))
        raise ConfigError(
            f"{run.workdir} was trained on texts about one picture each, and --image={names} are {len(image)}"
        )
    tokens = data.beginning(text, image is not None)
    return None if image is None else data.read_picture(image[0]), tokens
