"""Pairs of texts: translation files, a table of sources and targets, and the made mixture of checkable tasks."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, DataError, Examples, check_split
from genjax.data.files import find_file, read_lines
from genjax.data.text import tasks as text_tasks
from genjax.data.text.base import SPLIT_NAMES, DelimitedText

_logger = logging.getLogger(__name__)

_HELD_OUT_SIZES = {"validation": 1200, "test": 3000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToText(DelimitedText):
    """Sources `source` int32 [B, S] with `source_mask`, and `tokens` [B, T + 1] with `mask`: start, target, end.

    Sources and targets end with the separator, and have the tokens around them that a checkpoint's tokenizer adds.
    Training pairs that do not fit are left out.  Pairs of other splits are cut, but `references` are whole.

    Attributes:
      name: mixture, made tasks whose answers a program checks; files, sentences line by line in
        data.dir/SPLIT.LANGUAGE, as in Multi30k; or table, a file data.dir of a source, a tab and a target a line.
      source_length: longest source S, its end token included.
      target_length: longest target T, its end token included.
      source_language: ending of the files of sources.
      target_language: ending of the files of targets.
      columns: columns of the table with source and target, by their names in the heading or by their numbers from 1;
        empty for a table of two columns.
      prefix: beginning of each source, which tells a text-to-text model its task.
      lowercase: turn all texts into lower case.
      tasks: tasks of the mixture; a task that is named twice has twice the share of training examples (other splits
        take each task once).
      num_made: training examples of the mixture; validation has 1200 and test 3000.
    """

    name: str = "mixture"
    source_length: int = 64
    target_length: int = 32
    source_language: str = "de"
    target_language: str = "en"
    columns: tuple[str, ...] = ()
    prefix: str = ""
    lowercase: bool = False
    tasks: tuple[str, ...] = text_tasks.TASKS
    num_made: int = 60_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("source_length", "target_length", "num_made"):
            if getattr(self, field) < 2:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least 2")
        check_columns(self.columns, 2, "source and target")
        unknown = [task for task in self.tasks if task not in text_tasks.TASKS]
        if unknown or not self.tasks:
            raise DataError(f"data.tasks={','.join(self.tasks)} must be some of {', '.join(text_tasks.TASKS)}")

    @property
    def distinct_tasks(self) -> tuple[str, ...]:
        """The tasks without repetition, which take turns in the held-out splits; `task` in a batch counts in them."""
        return tuple(dict.fromkeys(self.tasks))

    def pairs(self, split: str) -> list[tuple[str, str]]:
        """Sources and targets of a split as text.

        Raises:
          DataError: there are no such files, or their lines do not belong together.
        """
        return _pairs(self, split)

    def documents(self, split: str) -> list[str]:
        return [text for pair in self.pairs(split) for text in pair]

    def references(self, split: str) -> list[str]:
        """The targets of a split's examples as text, in their order."""
        targets = [target for _, target in self.pairs(split)]
        return targets if split != "train" else [targets[i] for i in self._fitting(self._encoded(split))]

    def _encoded(self, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
        encode = self.make_tokenizer().encode
        return [(encode(source), encode(target)) for source, target in self.pairs(split)]

    def _fitting(self, encoded: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Numbers of the pairs that fit into a row without a cut."""
        marks = len(self.framed(np.zeros(0, np.int32), 8))
        longest = (self.source_length - marks, self.target_length - marks)
        return np.flatnonzero([len(s) <= longest[0] and len(t) <= longest[1] for s, t in encoded])

    def load_split(self, split: str) -> Examples:
        encoded = self._encoded(split)
        index = np.arange(len(encoded))
        if split == "train":
            index = self._fitting(encoded)
            if not len(index):
                raise DataError(
                    f"no training pair of {self.name} fits into data.source_length={self.source_length} and "
                    f"data.target_length={self.target_length}; give larger ones"
                )
            if len(index) < len(encoded):
                _logger.warning(
                    "%d of %d training pairs of %s do not fit into data.source_length=%d and data.target_length=%d and "
                    "are left out",
                    len(encoded) - len(index), len(encoded), self.name, self.source_length, self.target_length,
                )  # fmt: skip
        sources = [self.framed(encoded[i][0], self.source_length) for i in index]
        targets = [[self.start_token, *self.framed(encoded[i][1], self.target_length)] for i in index]
        source, source_mask = self.pad(sources, self.source_length)
        tokens, mask = self.pad(targets, self.target_length + 1)
        arrays = {"source": source, "source_mask": source_mask, "tokens": tokens, "mask": mask}
        if self.name == "mixture":
            tasks = self.tasks if split == "train" else self.distinct_tasks
            numbers = np.array([self.distinct_tasks.index(task) for task in tasks], np.int32)
            arrays["task"] = numbers[index % len(tasks)]
        return ArrayExamples(arrays)

    def source_ids(self, text: str) -> list[int]:
        return super().source_ids(self._folded(self.prefix + text.strip()))

    def _folded(self, text: str) -> str:
        return text.lower() if self.lowercase else text

    def spec(self) -> dict[str, Any]:
        """vocab_size, special tokens, source_length S and sequence_length T."""
        return {**super().spec(), "source_length": self.source_length, "sequence_length": self.target_length}

    def protocol(self) -> str:
        parts = [
            f"tokenizer {self.tokenizer_name}",
            f"sources and targets cut at {self.source_length} and {self.target_length}",
        ]
        return ", ".join(parts + ["lower case"] * self.lowercase)


@functools.lru_cache(maxsize=8)
def _pairs(data: TextToText, split: str) -> list[tuple[str, str]]:
    if data.name == "mixture":
        sizes = {"train": data.num_made, **_HELD_OUT_SIZES}
        check_split(split, tuple(sizes), data.name)
        tasks = data.tasks if split == "train" else data.distinct_tasks
        pairs = [text_tasks.make_example(split, i, tasks)[1:] for i in range(sizes[split])]
    elif data.name == "files":
        names = SPLIT_NAMES.get(split, (split,))
        file = find_file(data.dir, [f"{name}.{data.source_language}" for name in names], "data.name=files")
        other = find_file(data.dir, [f"{file.stem}.{data.target_language}"], "data.name=files")
        first, second = (read_lines(f) for f in (file, other))
        if len(first) != len(second):
            raise DataError(
                f"{file} has {len(first)} lines and {other} has {len(second)}; line n must translate line n"
            )
        if not any(line.strip() for line in first + second):
            raise DataError(f"{file} and {other} have no texts")
        pairs = list(zip(first, second))
    elif data.name == "table":
        pairs = read_table_of_texts(data.dir, ("source", "target"), split, data.columns)
    else:
        raise DataError(f"data.name={data.name} is not a set of text pairs: mixture, files, table")
    fold = data._folded
    return [(fold(data.prefix + source.strip()), fold(target.strip())) for source, target in pairs]


#: Names of columns by which the first line of a table is known to be its heading, in lower case without _ and digits.
_TEXT_NAMES = {"text", "texts", "sentence", "source", "target", "premise", "hypothesis", "question", "answer", "review"}
_LABEL_NAMES = {"label", "labels", "class", "category", "sentiment"}


def check_columns(columns: tuple[str, ...], count: int, what: str) -> None:
    """Raises DataError unless `columns` are none, or as many different ones as `what` needs."""
    if columns and not len(columns) == len(set(columns)) == count:
        raise DataError(f"data.columns={','.join(columns)} must name {count} different columns, of {what}")
    if "0" in columns:
        raise DataError(f"data.columns={','.join(columns)}: columns are counted from 1")


def read_table_of_texts(
    path: str | None, wanted: tuple[str, ...], split: str, columns: tuple[str, ...] = ()
) -> list[tuple[str, ...]]:
    """Rows of a file with tabs between the columns, or of SPLIT.tsv in a folder.

    One file is divided by a hash of each row's texts, without the target or label, a tenth each for validation and
    test: a row keeps its split when other rows come and go, and equal texts are in one split.

    The first line is a heading if it holds only usual names of columns, or if `columns` are names.

    Args:
      path: file or folder.
      wanted: the meanings of the columns, such as text and label.
      split: train, validation, test, or the name of another file.
      columns: names or numbers (from 1) of the columns, in the order of `wanted`; empty if the table has no
        other columns.

    Raises:
      DataError: there is no such file, a line has another number of columns, a cell is empty, or the columns are
        others.
    """
    if path and buckets.folder(path).is_file():
        file = buckets.folder(path)
    else:
        names = SPLIT_NAMES.get(split, (split,))
        file = find_file(path, [f"{name}.tsv" for name in names], "a table of texts")
    lines = [(number, line) for number, line in enumerate(read_lines(file), 1) if line.strip()]
    heading = [cell.strip() for cell in lines[0][1].split("\t")] if lines else []
    numbered = all(name.isdecimal() for name in columns)
    if columns and not numbered:
        missing = [name for name in columns if name not in heading]
        if missing:
            raise DataError(f"the first line of {file} names the columns {', '.join(heading)}, and not {missing[0]}")
        places = [heading.index(name) for name in columns]
    else:
        places = [int(name) - 1 for name in columns] or list(range(len(wanted)))
    if not numbered:
        lines = lines[1:]
    elif _is_heading(heading):
        _logger.warning("the first line of %s is taken for its heading: %s", file, ", ".join(heading))
        if not columns:
            _check_order(heading, wanted, file)
        lines = lines[1:]
    rows = []
    for number, line in lines:
        cells = [cell.strip() for cell in line.split("\t")]
        while len(cells) > len(places) and not cells[-1]:
            cells.pop()
        if len(cells) <= max(places) or (not columns and len(cells) != len(places)):
            raise DataError(
                f"line {number} of {file} has {len(cells)} columns with tabs between them, "
                f"and {' and '.join(wanted)} are looked for{' in ' * bool(columns) + ' and '.join(columns)}; "
                "say in which columns: --data.columns=2,1"
            )
        row = tuple(cells[place] for place in places)
        if not all(row):
            raise DataError(f"line {number} of {file} has no {wanted[row.index('')]}")
        rows.append(row)
    if not rows:
        raise DataError(f"{file} has no lines with texts")
    if file == buckets.folder(path):
        check_split(split, ("train", "validation", "test"), str(file))
        own = [row for row in rows if text_tasks.split_of("\t".join(row[:-1])) == split]
        if not own:
            raise DataError(
                f"none of the {len(rows)} rows of {file} falls into the split {split}, a tenth of them; add rows"
            )
        return own
    return rows


def _is_heading(cells: list[str]) -> bool:
    names = [cell.lower().replace("_", "").rstrip("0123456789") for cell in cells if cell]
    return len(names) > 1 and all(name in _TEXT_NAMES | _LABEL_NAMES | {"id", "idx", "index"} for name in names)


def _check_order(heading: list[str], wanted: tuple[str, ...], file: Path) -> None:
    """Raises DataError if a heading names a label, but not in the last column, where labels are looked for."""
    labels = [cell for cell in heading if cell.lower() in _LABEL_NAMES]
    if "label" in wanted and labels and heading[-1] not in labels:
        raise DataError(
            f"{file} has its labels in the column {labels[0]} and not in the last one; "
            f"name the columns of {', '.join(wanted)} in this order: --data.columns=..."
        )
