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

_logger = logging.getLogger(__name__)
_START, _END = "<|startoftext|>", "<|endoftext|>"
#: Contractions, letters, single digits, and runs of other signs (CLIP's published code).
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class PromptTokenizer:
    """The tokenizer of a folder with tokenizer.json, or with vocab.json and merges.txt.

    Args:
      folder: the folder.
      length: number of tokens of every prompt.
      new_tokens: names of tokens behind the vocabulary, such as those of textual inversion.

    Attributes:
      empty: tokens of the empty prompt.

    Raises:
      DataError: a file is missing or damaged, or the library tokenizers is not installed.
    """

    def __init__(self, folder: str | Path, length: int = 77, new_tokens: Sequence[str] = ()) -> None:
        self.folder, self.length = Path(folder), length
        self._library = self._opened()
        self._library.add_tokens(list(new_tokens))
        self._library.no_truncation()
        self._library.no_padding()
        self.start, self.end = (self._id(name) for name in (_START, _END))
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
                    return self._id(token)
        return self.end

    def _opened(self) -> Any:
        try:
            import tokenizers
            from tokenizers import models, normalizers, pre_tokenizers
        except ImportError:
            raise DataError("prompts need the library tokenizers: pip install 'genjax[text]'") from None
        if (self.folder / "tokenizer.json").is_file():
            try:
                return tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            except Exception:
                # The library raises its own plain Exception.
                raise DataError(f"{self.folder / 'tokenizer.json'} is damaged") from None
        vocabulary, merges = self.folder / "vocab.json", self.folder / "merges.txt"
        for path in (vocabulary, merges):
            if not path.is_file():
                raise DataError(
                    f"{self.folder} holds neither tokenizer.json nor {path.name}: it is no tokenizer of CLIP"
                )
        lines = merges.read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        model = models.BPE(
            vocab=_read_json(vocabulary),
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=_END,
        )
        found = tokenizers.Tokenizer(model)
        space = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
        found.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
        words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
        found.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        found.add_special_tokens([_START, _END])
        return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path} is damaged: it is not JSON") from None
    return content if isinstance(content, dict) else {}
