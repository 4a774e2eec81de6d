"""Prompts as tokens for the text encoder of CLIP, by the files of a folder's tokenizer.

A prompt is lower-cased, white space becomes single spaces, and words are cut into pieces that end in </w>; a start
token and an end token stand around it, and padding follows up to the encoder's length.  What is longer is cut off.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genjax.data.base import DataError
from genjax.data.files import read_utf8
from genjax.data.text.library import CLIP_END, CLIP_START, clip_library, opened_library

_logger = logging.getLogger(__name__)


class PromptTokenizer:
    """The tokenizer of a folder with tokenizer.json, or with vocab.json and merges.txt.

    Args:
      folder: the folder.
      length: number of tokens of every prompt.
      new_tokens: names of tokens behind the vocabulary, such as those of textual inversion.

    Attributes:
      empty: tokens of the empty prompt.
      num_known: number of the folder's tokens, which is the first of the new ones.

    Raises:
      DataError: a file is missing or damaged, the library tokenizers is not installed, or a new token is none.
    """

    def __init__(self, folder: str | Path, length: int = 77, new_tokens: Sequence[str] = ()) -> None:
        self.folder, self.length = Path(folder), length
        self._library = self._opened()
        self.num_known = self._library.get_vocab_size()
        for name in new_tokens:
            if self._library.token_to_id(name) is not None:
                raise DataError(
                    f"{name} is a token of {self.folder} already; give a new word another name, as <{name}>"
                )
            self._library.add_tokens([name])
        self.start, self.end = (self._id(name) for name in (CLIP_START, CLIP_END))
        self.padding = self._padding()
        self.empty = tuple(self.encode([""])[0].tolist())

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        """Tokens int32 [N, length]; a warning names the words that are cut off."""
        rows = []
        for prompt in prompts:
            found = self._library.encode(prompt, add_special_tokens=False)
            ids, room = found.ids, self.length - 2
            if len(ids) > room:
                lost = prompt[found.offsets[room][0] :]
                _logger.warning("the prompt has %d tokens and %d are read; cut off: %r", len(ids), room, lost)
            ids = [self.start, *ids[:room], self.end]
            rows.append(ids + [self.padding] * (self.length - len(ids)))
        return np.array(rows, np.int32).reshape(len(rows), self.length)

    def _id(self, token: str) -> int:
        found = self._library.token_to_id(token)
        if found is None:
            raise DataError(f"the tokenizer in {self.folder} has no token {token}, as that of CLIP has")
        return found

    def _padding(self) -> int:
        """The padding: what the folder's settings say, else the end token."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (self.folder / name).is_file():
                token = _read_json(self.folder / name).get("pad_token")
                token = token.get("content") if isinstance(token, dict) else token
                if token is not None:
                    return self._id(str(token))
        return self.end

    def _opened(self) -> Any:
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            return clip_library(self.folder)
        try:
            return opened_library(read_utf8(file))
        except DataError as error:
            raise DataError(f"{file} cannot be used: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path} is damaged: it is not JSON") from None
    return content if isinstance(content, dict) else {}
