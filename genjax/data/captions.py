"""Captions of a folder of pictures, from the files that people keep them in:

    captions.jsonl    a line {"file_name": "a.png", "text": "a cat"} for each caption (or metadata.jsonl)
    captions.json     COCO's format: "images" with id and file_name, "annotations" with image_id and caption
    a.txt             beside a.png: a caption a line

The first two lie in the folder of the pictures, or where data.captions says.  A picture may have several captions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from genjax.data.base import DataError
from genjax.data.files import read_lines, read_objects, read_utf8
from genjax.data.folders import IMAGE_SUFFIXES
from genjax.errors import number_of

LISTS = ("captions.jsonl", "metadata.jsonl", "captions.json")
_FILE_KEYS = ("file_name", "file", "image")
_TEXT_KEYS = ("text", "caption", "captions")


def captions_of(base: Path, root: Path, paths: Sequence[Path], given: str | None) -> list[tuple[str, ...]]:
    """The captions of each picture, at least one.

    Args:
      base: the folder that the pictures of a split lie under.
      root: the folder of all splits.
      paths: the pictures.
      given: path of the list of captions, as it is or below `root`; None looks for one of LISTS in `base` and `root`,
        and then for text files beside the pictures.

    Raises:
      DataError: there are no captions, a picture has none or two pictures share a file of captions, a caption is empty
        or has no picture, or a list is damaged.
    """
    places = [base / name for name in LISTS] + [root / name for name in LISTS]
    if given is not None:
        places = [Path(given).expanduser(), root / given]
        if not any(place.is_file() for place in places):
            raise DataError(f"--data.captions={given} is not a file, here or in {root}")
    file = next((place for place in places if place.is_file()), None)
    return _beside(paths) if file is None else _listed(file, base, root, paths)


def _beside(paths: Sequence[Path]) -> list[tuple[str, ...]]:
    found: dict[Path, Path] = {}
    captions = []
    for path in paths:
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise DataError(
                f"{path} has no caption: there is neither {text.name} beside it nor one of {', '.join(LISTS)} in its "
                "folder"
            )
        if text in found:
            raise DataError(f"{found[text]} and {path} have one file of captions, {text.name}; rename one of them")
        found[text] = path
        lines = tuple(line.strip() for line in read_lines(text) if line.strip())
        if not lines:
            raise DataError(f"the caption of {path} in {text.name} is empty")
        captions.append(lines)
    for folder in dict.fromkeys(path.parent for path in paths):
        _check_pictures(folder)
    return captions


def _check_pictures(folder: Path) -> None:
    """Raises DataError if a text file in a folder has no picture of its name beside it."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    pictures = {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    alone = sorted(path for path in files if path.suffix == ".txt" and path.stem not in pictures)
    if alone:
        others = f" and {number_of(len(alone) - 1, 'other')}" if len(alone) > 1 else ""
        raise DataError(
            f"there is no picture beside the caption {alone[0]}{others}; add the picture, or move the text away"
        )


def _listed(file: Path, base: Path, root: Path, paths: Sequence[Path]) -> list[tuple[str, ...]]:
    entries = _coco(file) if file.suffix == ".json" else _lines(file)
    own, captions = {path.resolve() for path in paths}, {}
    folders = dict.fromkeys((file.parent, base, root))
    for name, text in entries:
        if not text.strip():
            raise DataError(f"{file} has an empty caption of {name}")
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found is None:
            raise DataError(f"{file} has a caption of {name}, and there is no such picture in {base}")
        # A list may hold the captions of other splits too.
        if found.resolve() in own:
            captions.setdefault(found.resolve(), []).append(" ".join(text.split()))
    missing = [path for path in paths if path.resolve() not in captions]
    if missing:
        others = f" and {number_of(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
        raise DataError(
            f"{file} has no caption of {missing[0].relative_to(root)}{others}; add it, or remove the picture"
        )
    return [tuple(captions[path.resolve()]) for path in paths]


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """File names and captions of a file of JSON lines."""
    like = '{"file_name": "a.png", "text": "a cat"}'
    for place, entry in read_objects(file, like):
        name = next((entry[key] for key in _FILE_KEYS if key in entry), None)
        text = next((entry[key] for key in _TEXT_KEYS if key in entry), None)
        if name is None or text is None:
            raise DataError(f"{place} is not like {like}: it has no {'file' if name is None else 'text'}")
        for caption in text if isinstance(text, list) else [text]:
            yield str(name), str(caption)


def _coco(file: Path) -> Iterator[tuple[str, str]]:
    """File names and captions of a file in COCO's format."""
    try:
        content = json.loads(read_utf8(file))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        pairs = [(entry["image_id"], str(entry["caption"])) for entry in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not a list of captions in COCO's format, with images and annotations ({type(error).__name__}: "
            f"{error})"
        ) from None
    for number, caption in pairs:
        if number not in names:
            raise DataError(f"{file} has a caption of the picture with the id {number!r}, which its images do not name")
        yield names[number], caption
