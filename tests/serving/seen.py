"""Runs that see pictures, and messages to them."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from genjax.data.scenes.making import make_scene
from genjax.data.scenes.pictures import render

QUESTION = "what colour is the circle?"
#: Experiments, prompts, and how many pictures they are about.
RUNS = {
    "captions_scenes": ("a small", 1),
    "git_scenes": ("a small", 1),
    "questions_scenes": (QUESTION, 1),
    "llava_scenes": (QUESTION, 1),
    "flamingo_scenes": ("<image> first <image> second what colour is the first?", 2),
}


def write_pictures(folder: Path, count: int = 3) -> list[Path]:
    """Pictures of different scenes."""
    paths = [folder / f"{i}.png" for i in range(count)]
    for path, levels in zip(paths, render([make_scene("test", 0, i) for i in range(count)])):
        Image.fromarray(levels).save(path)
    return paths


def as_base64(path: Path) -> str:
    """The content of a file."""
    return base64.b64encode(path.read_bytes()).decode()


def part(content: bytes) -> dict[str, Any]:
    """A part of a message with a picture."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(content).decode()}"}}


def parts(text: str, pictures: Sequence[Any]) -> list[Any]:
    """The parts of a message with its pictures before the text, or where the text says <image>."""
    if "<image>" not in text:
        return [*pictures, {"type": "text", "text": text}]
    first, *rest = text.split("<image>")
    content = [{"type": "text", "text": first}]
    for picture, words in zip(pictures, rest):
        content += [picture, {"type": "text", "text": words}]
    return content
