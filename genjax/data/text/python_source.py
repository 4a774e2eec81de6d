"""Texts with a label at each token: Python's own sources by lexical class, which need no file."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import keyword
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from genjax.data.base import ArrayExamples, Data, DataError, Examples, check_split
from genjax.data.files import with_ending

CLASSES = ("space", "name", "keyword", "number", "string", "comment", "operator")
_MODULES = {
    "train": ("argparse", "ast", "bisect", "calendar", "cmd", "configparser", "copy", "csv", "dataclasses", "difflib",
              "enum", "fractions", "functools", "glob", "gzip", "heapq", "inspect", "ipaddress", "locale", "mimetypes",
              "netrc", "operator", "optparse", "pdb", "pickle", "pprint", "queue", "random", "sched"),
    "validation": ("shlex", "statistics"),
    "test": ("textwrap", "zipfile"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonSource(Data):
    """Windows of characters `tokens` int32 [B, T] with `token_labels` int32 [B, T], the places in `CLASSES`.

    Attributes:
      name: python_source, modules of the standard library.
      sequence_length: characters T of a window.
    """

    name: str = "python_source"
    sequence_length: int = 128

    def load_split(self, split: str) -> Examples:
        if self.name != "python_source":
            raise DataError(f"data.name={self.name} is not a set of labelled texts: python_source")
        check_split(split, tuple(_MODULES), self.name)
        parts = [lexical_classes(_source(module)) for module in _MODULES[split]]
        tokens, labels = (np.concatenate(rows) for rows in zip(*parts))
        count = len(tokens) // self.sequence_length
        if not count:
            raise DataError(
                f"the split {split} of {self.name} has {len(tokens)} characters, fewer than one window of "
                f"data.sequence_length={self.sequence_length}"
            )
        window = lambda a: a[: count * self.sequence_length].reshape(count, -1)
        return ArrayExamples({"tokens": window(tokens), "token_labels": window(labels)})

    def spec(self) -> dict[str, Any]:
        """vocab_size, num_classes and sequence_length."""
        return {"vocab_size": 128, "num_classes": len(CLASSES), "sequence_length": self.sequence_length}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes the classes of a sample by their first letters, one sample a line."""
        path = with_ending(stem, ".txt")
        letters = np.array([name[0] for name in CLASSES])
        path.write_text("".join("".join(letters[row]) + "\n" for row in np.asarray(samples)))
        return [path]

    def protocol(self) -> str:
        return f"windows of {self.sequence_length} ASCII characters of Python modules, each with a lexical class"


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise DataError(f"this Python carries no source of the module {module}")
    return Path(spec.origin).read_text(encoding="utf-8")


def lexical_classes(source: str) -> tuple[np.ndarray, np.ndarray]:
    """ASCII codes of a source (others are 127) and the class of each character, int32 [N] both."""
    lines = list(io.StringIO(source))  # as the tokenizer divides them, which does not end a line at a form feed
    starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    labels = np.zeros(len(source), np.int32)
    kinds = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.OP: "operator"}
    for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"):  # Python 3.12
        if hasattr(tokenize, name):
            kinds[getattr(tokenize, name)] = "string"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = kinds.get(token.type)
        if token.type == tokenize.NAME:
            kind = "keyword" if keyword.iskeyword(token.string) else "name"
        if kind is not None:
            (row, column), (last_row, last_column) = token.start, token.end
            labels[starts[row - 1] + column : starts[last_row - 1] + last_column] = CLASSES.index(kind)
    codes = np.array([min(ord(c), 127) for c in source], np.int32)
    return codes, labels
