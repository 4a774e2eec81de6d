"""Questions about pictures: what a message says of them, and what the model reads.

    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
                                 {"type": "text", "text": "what colour is the circle?"}]}

Pictures stand in the request itself.  No file and no other host is opened for one.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

from genjax.data import CaptionedImages, Interleaved
from genjax.data.interleaved import IMAGE, MOST
from genjax.decoding import Decoder
from genjax.errors import UserError
from genjax.families.multimodal.captioner import Captioner
from genjax.model import DescribesPictures
from genjax.serving.bodies import RequestError, shown
from genjax.tools import attachments
from genjax.training import Run

#: Formats of pictures, and the largest number of pixels of one.
FORMATS, MOST_PIXELS = ("PNG", "JPEG", "WEBP", "GIF", "BMP"), 2**24
_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40};base64,", re.ASCII)


class Attached(io.BytesIO):
    """The content of a picture, with its place in the request as its name."""

    def __init__(self, content: bytes, place: str) -> None:
        super().__init__(content)
        self.place = place

    def __str__(self) -> str:
        return self.place

    __repr__ = __str__


class Question(NamedTuple):
    """A text and the pictures that it is about; in the text of a run of interleaved data each is written <image>."""

    text: str
    pictures: tuple[Attached, ...]


class Looked(NamedTuple):
    """What a model reads: tokens [P], and what makes the decoder that has seen the pictures."""

    tokens: np.ndarray
    decoder: Callable[[], Decoder]


def most_pictures(run: Run) -> int:
    """Largest number of pictures of a text; 0 if the run writes no texts about pictures.

    A `Captioner` with an encoder of questions is not served, as its memory is as long as the question.
    """
    model, data = run.model, run.experiment.data
    if isinstance(model, Captioner) and model.questions is not None:
        return 0
    if not isinstance(model, DescribesPictures) or not isinstance(data, CaptionedImages | Interleaved):
        return 0
    return MOST if isinstance(data, Interleaved) else 1


def blank_decoder(run: Run) -> Decoder:
    """A decoder whose pictures are black, where there is no text without pictures: it goes on with any text."""
    model = run.model
    x = jnp.zeros((1, *run.experiment.data.spec()["data_shape"])) if model.needs_pictures else None
    start = jnp.full((1, 1), model.start_token, jnp.int32)
    return model.reader(run.state, x, start, None)[0]


def question_of(messages: Any, run: Run) -> Question:
    """The only one of a chat's messages, of the user, whose content is a text or parts of the types text and image_url.

    Raises:
      RequestError: there are several messages, another part, more pictures than the model sees, or one that is no
        picture.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of one message with role and content", param="messages")
    if len(messages) > 1:
        raise RequestError(
            f"messages has {len(messages)} messages, and {run.name} was trained on single questions; send the last one "
            "alone",
            param="messages",
        )
    message, place = messages[0], "messages[0]"
    if not isinstance(message, Mapping) or message.get("role") != "user":
        raise RequestError(f"{place} must be an object with the role user and content", param=place)
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise RequestError(f"{place}.content must be a text, or a list of parts", param=place)
    most, pictures, texts = most_pictures(run), [], []
    in_place = isinstance(run.experiment.data, Interleaved)
    for number, part in enumerate(parts):
        own = f"{place}.content[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image_url":
            if len(pictures) == most:
                raise RequestError(f"{own} is picture {most + 1}, and {run.name} sees at most {most} a text", param=own)
            pictures.append(_picture(part.get("image_url"), own))
            texts += [f" {IMAGE} "] if in_place else []
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise RequestError(f"{own} must be a part of the type text or image_url", param=own)
    return Question("".join(texts).strip(), tuple(pictures))


def _picture(given: Any, place: str) -> Attached:
    """The picture of a data URL."""
    url = given.get("url") if isinstance(given, Mapping) else None
    found = _URL.match(url) if isinstance(url, str) else None
    if found is None:
        raise RequestError(
            f"{place}.image_url.url must be data:image/png;base64,... with the picture itself, and not "
            f"{shown(url)}; no other address is opened",
            param=place,
        )
    try:
        attached = Attached(base64.b64decode(url[found.end() :], validate=True), place)
    except (binascii.Error, ValueError):
        raise RequestError(f"{place}.image_url.url is not base64 behind its comma", param=place) from None
    try:
        with Image.open(attached, formats=FORMATS) as picture:
            width, height = picture.size
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        known = ", ".join(FORMATS)
        raise RequestError(f"{place} is not a readable picture; it must be one of {known}", param=place) from None
    if width * height > MOST_PIXELS:
        raise RequestError(
            f"{place} is a picture of {width} x {height}, and at most {MOST_PIXELS} pixels are read", param=place
        )
    attached.seek(0)
    return attached


def look(run: Run, question: Question) -> Looked:
    """What the model reads of a question.

    Raises:
      UserError: a picture is missing or damaged, or the text has words that the run does not know.
    """
    try:
        x, tokens = attachments.picture_prompt(run, question.text, question.pictures or None)
    except UserError as error:
        raise RequestError(str(error), param="messages") from None
    if x is not None and isinstance(run.experiment.data, Interleaved):
        # All rows of a pool have as many pictures; what no token stands for is never seen.
        x = jnp.pad(x, [(0, 0), (0, MOST - x.shape[1]), *[(0, 0)] * 3])
    rows, lengths = jnp.asarray(tokens)[None], jnp.array([len(tokens)], jnp.int32)
    return Looked(tokens, lambda: run.model.reader(run.state, x, rows, lengths)[0])
