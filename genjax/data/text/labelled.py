"""Texts with something to predict: a class, or a tag for each word (questions.py has spans that answer questions).

Files of the user, by split (train, validation or dev, test), or made sets that need no file:

    classification   SPLIT.tsv: text, or two texts, and a label with tabs between them       made: sentiment
    tags             SPLIT.txt or SPLIT.conll in columns: word first, tag last, empty lines between sentences (CoNLL)
                                                                                             made: entities

In the made sentiment a negation turns the adjective around, so that no bag of words solves it.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genjax.data.base import ArrayExamples, DataError, Examples, check_split
from genjax.data.class_names import check_classes, read_classes, save_classes
from genjax.data.files import find_file, read_lines, with_ending
from genjax.data.text import tasks as text_tasks
from genjax.data.text.base import SPLIT_NAMES, DelimitedText
from genjax.data.text.pairs import check_columns, read_table_of_texts

_logger = logging.getLogger(__name__)

#: In tables with at least this many rows, fewer different texts than labels are taken for a mistake.
_FEW_ROWS = 20
#: Adjectives of made reviews.
_ADJECTIVES = {"good": ("fine", "great", "lovely", "superb"), "bad": ("poor", "awful", "dull", "weak")}
_MADE_SIZES = {"train": 6000, "validation": 500, "test": 1000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledData(DelimitedText):
    """Base of sets of texts with targets.

    Attributes:
      sequence_length: tokens T of a row; longer texts are cut.
    """

    sequence_length: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length < 8:
            raise DataError(f"data.sequence_length={self.sequence_length} must be at least 8")

    def spec(self) -> dict[str, Any]:
        """vocab_size, special tokens, sequence_length T."""
        return {**super().spec(), "sequence_length": self.sequence_length}

    def joined(self, texts: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
        """Rows of one or two encoded texts as `tokens`, `mask` and `types`; if two texts do not fit, the longer one is
        cut.
        """
        whole, texts = texts, [self._fitting(parts) for parts in texts]
        num_cut = sum(sum(map(len, old)) > sum(map(len, new)) for old, new in zip(whole, texts))
        if num_cut:
            _logger.warning(
                "%d of %d rows of %s are longer than data.sequence_length=%d tokens and are cut",
                num_cut, len(texts), self.name, self.sequence_length,
            )  # fmt: skip
        rows = [[self.start_token, *(i for part in parts for i in (*part, self.separator_token))] for parts in texts]
        tokens, mask = self.pad(rows, self.sequence_length)
        second = np.array([len(parts[0]) + 2 if len(parts) > 1 else self.sequence_length for parts in texts])
        types = (np.arange(self.sequence_length)[None] >= second[:, None]) & mask
        return {"tokens": tokens, "mask": mask, "types": types.astype(np.int32)}

    def _fitting(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """One or two texts, cut to fit into a row with its special tokens; the longer text is cut first, then both in
        turns.
        """
        room = self.sequence_length - 1 - len(parts)
        if len(parts) == 1:
            return [parts[0][:room]]
        first, second = parts
        size = max(room - len(second), min(len(first), room - room // 2))
        return [first[:size], second[: room - min(size, len(first))]]

    def protocol(self) -> str:
        return f"tokenizer {self.tokenizer_name}, texts cut at {self.sequence_length} tokens"


def made_examples(
    split: str, name: str, make: Callable[[np.random.Generator], Any], text: Callable[[Any], str]
) -> list[Any]:
    """Made examples of a split, drawn anew until their text belongs to it: no text is in two splits."""
    check_split(split, tuple(_MADE_SIZES), name)
    examples = []
    for i in range(_MADE_SIZES[split]):
        rng = np.random.default_rng([list(_MADE_SIZES).index(split), i])
        example = make(rng)
        while text_tasks.split_of(text(example)) != split:
            example = make(rng)
        examples.append(example)
    return examples


# ----------------------------------------------------------------------------------------------------------------------
# Classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifiedData(LabelledData):
    """Base of sets whose targets are named classes.  A run keeps the names of its class numbers for all later data.

    Attributes:
      class_names: names of the classes in the order of their numbers; None takes the classes of the
        training split in sorted order, or the classes of the run that a command looks at.
    """

    class_names: tuple[str, ...] | None = None

    @abc.abstractmethod
    def names(self, split: str) -> set[str]:
        """Names that a split has."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes in the order of their numbers."""
        return sorted(self.names("train")) if self.class_names is None else list(self.class_names)

    def numbers(self, split: str) -> dict[str, int]:
        """Number of each class.

        Raises:
          DataError: the split has a class that is not in `classes`.
        """
        number = {name: i for i, name in enumerate(self.classes)}
        unknown = sorted(self.names(split) - set(number))
        if unknown:
            learned = f"is none of {', '.join(map(repr, number))}" if self.class_names else "the training split has not"
            raise DataError(f"the split {split} has the class {unknown[0]!r}, which {learned}")
        return number

    def spec(self) -> dict[str, Any]:
        """vocab_size, special tokens, sequence_length T, num_classes."""
        return {**super().spec(), "num_classes": len(self.classes)}

    def save(self, workdir: Path) -> None:
        """Writes tokenizer and classes beside the run, where they are not there.

        Raises:
          DataError: the run has others.
        """
        super().save(workdir)
        save_classes(workdir, self.classes)

    def beside(self, workdir: Path) -> ClassifiedData:
        """The same data with tokenizer and classes of a run, where it has them.

        Raises:
          DataError: `class_names` are others.
        """
        data, learned = super().beside(workdir), read_classes(workdir)
        if self.class_names is not None:
            check_classes(workdir, self.class_names)
        return data if learned is None else dataclasses.replace(data, class_names=learned)

    def going_on(self, workdir: Path) -> ClassifiedData:
        # Classes come from the data, so that `save` can compare them with the run's classes.
        return dataclasses.replace(super().going_on(workdir), class_names=self.class_names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledText(ClassifiedData):
    """Texts or pairs of texts with a class: `tokens` [B, T], `mask`, `types` and `label` [B].

    Attributes:
      name: sentiment, made reviews; or table, tab-separated files at data.dir.
      text_pairs: whether the table has two texts in each line.
      columns: columns of the table with text, second text (if any) and label, by their names in the heading or by their
        numbers from 1; empty if the table has no other columns.
    """

    name: str = "sentiment"
    text_pairs: bool = False
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_columns(self.columns, len(self._wanted), " and ".join(self._wanted))

    @property
    def _wanted(self) -> tuple[str, ...]:
        return ("text", "second text", "label") if self.text_pairs else ("text", "label")

    def rows(self, split: str) -> list[tuple[str, ...]]:
        """Texts and label of each example."""
        return _labelled_rows(self, split)

    def documents(self, split: str) -> list[str]:
        return [text for row in self.rows(split) for text in row[:-1]]

    def names(self, split: str) -> set[str]:
        return {row[-1] for row in self.rows(split)}

    def load_split(self, split: str) -> Examples:
        rows, tokenizer, number = self.rows(split), self.make_tokenizer(), self.numbers(split)
        arrays = self.joined([[tokenizer.encode(text) for text in row[:-1]] for row in rows])
        return ArrayExamples({**arrays, "label": np.array([number[row[-1]] for row in rows], np.int32)})

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes texts, or the names of drawn classes, one a line."""
        if np.ndim(samples) != 1:
            return super().write_samples(samples, stem)
        return write_lines(stem, [self.classes[int(i)] for i in samples])


@functools.lru_cache(maxsize=8)
def _labelled_rows(data: LabelledText, split: str) -> list[tuple[str, ...]]:
    if data.name == "table":
        rows = read_table_of_texts(data.dir, data._wanted, split, data.columns)
        texts, labels = ({row[place] for row in rows} for place in (0, -1))
        if not data.columns and len(rows) >= _FEW_ROWS and len(labels) > len(texts):
            raise DataError(
                f"the last column of {data.dir} has {len(labels)} different values and the first one {len(texts)}, "
                f"so the label does not seem to stand last; say where text and label stand: --data.columns=2,1"
            )
        return rows
    if data.name != "sentiment":
        raise DataError(f"data.name={data.name} is not a set of labelled texts: sentiment, table")
    return made_reviews(split)


@functools.lru_cache(maxsize=4)
def made_reviews(split: str) -> list[tuple[str, str]]:
    """Made reviews of a split, each with its class, good or bad."""
    return made_examples(split, "sentiment", _review, lambda row: row[0])


def _review(rng: np.random.Generator) -> tuple[str, str]:
    """A made review and its class."""
    pick = lambda words: words[int(rng.integers(len(words)))]
    label, negated = pick(("good", "bad")), bool(rng.integers(2))
    other = "bad" if label == "good" else "good"
    adjective = pick(_ADJECTIVES[other if negated else label])
    subject = pick(("film", "meal", "book", "song", "trip"))
    # The aside praises or blames something else, which does not count.
    aside = pick(("", f" my {pick(_ADJECTIVES['good'])} friend said", f" my {pick(_ADJECTIVES['bad'])} friend said"))
    verb = pick(("is", "was", "seems")) + pick(("", " really", " quite"))
    return f"the {subject}{aside} {verb}{' not' if negated else ''} {adjective}", label


def judged_review(text: str) -> bool | None:
    """Whether a made review is good, read from its words; None if it is no whole review."""
    words = "|".join((*_ADJECTIVES["good"], *_ADJECTIVES["bad"]))
    found = re.fullmatch(
        rf"the \w+(?: my (?:{words}) friend said)? (?:is|was|seems)(?: really| quite)?( not)? ({words})", text
    )
    return None if found is None else (found[2] in _ADJECTIVES["good"]) != bool(found[1])


# ----------------------------------------------------------------------------------------------------------------------
# Tags


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTokens(ClassifiedData):
    """Sentences with a tag for each word: `tokens` [B, T], `mask`, and `token_labels` [B, T], -1 except at the first
    token of each word.

    Attributes:
      name: entities, made sentences; or columns, CoNLL files at data.dir.
    """

    name: str = "entities"

    def sentences(self, split: str) -> list[list[tuple[str, str]]]:
        """Words and tags of each sentence."""
        return _sentences(self, split)

    def documents(self, split: str) -> list[str]:
        return [" ".join(word for word, _ in sentence) for sentence in self.sentences(split)]

    def names(self, split: str) -> set[str]:
        return {tag for sentence in self.sentences(split) for _, tag in sentence}

    def load_split(self, split: str) -> Examples:
        sentences, tokenizer, number = self.sentences(split), self.make_tokenizer(), self.numbers(split)
        labels = np.full((len(sentences), self.sequence_length), -1, np.int32)
        texts = []
        for row, sentence in zip(labels, sentences):
            words = [tokenizer.encode(" " * (i > 0) + word) for i, (word, _) in enumerate(sentence)]
            places = 1 + np.cumsum([0, *map(len, words)])
            for place, ids, (_, tag) in zip(places, words, sentence):
                # A word may have no token, for instance if it consists of control characters; it then takes the next
                # word's place.
                if len(ids) and place < self.sequence_length - 1:
                    row[place] = number[tag]
            texts.append([np.concatenate(words)])
        return ArrayExamples({**self.joined(texts), "token_labels": labels})

    def tags(self, labels: np.ndarray, predicted: np.ndarray) -> list[list[str]]:
        """Tags of each sentence from numbers [N, T], read where `labels` [N, T] has one."""
        names = np.array(self.classes)
        return [names[row[own >= 0]].tolist() for row, own in zip(np.asarray(predicted), np.asarray(labels))]

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes drawn tags, one sentence a line."""
        names = [*self.classes, "?"]
        return write_lines(stem, [" ".join(names[min(int(i), len(names) - 1)] for i in row) for row in samples])


@functools.lru_cache(maxsize=8)
def _sentences(data: LabelledTokens, split: str) -> list[list[tuple[str, str]]]:
    if data.name == "columns":
        names = [f"{name}.{ending}" for name in SPLIT_NAMES.get(split, (split,)) for ending in ("txt", "conll")]
        return read_columns(find_file(data.dir, names, "data.name=columns"))
    if data.name != "entities":
        raise DataError(f"data.name={data.name} is not a set of tagged sentences: entities, columns")
    return made_examples(split, data.name, _tagged_sentence, lambda sentence: " ".join(word for word, _ in sentence))


def _tagged_sentence(rng: np.random.Generator) -> list[tuple[str, str]]:
    """A made sentence about a person and a place, with tags."""
    person = str(rng.choice(text_tasks.NAMES))
    # A family name may be the name of a city: only its place tells.
    family = [str(rng.choice((*text_tasks.CITIES, "Smith", "Stone")))] if rng.integers(2) else []
    city = str(rng.choice(text_tasks.CITIES))
    who = [(person, "B-PER"), *((name, "I-PER") for name in family)]
    plain = lambda text: [(word, "O") for word in text.split()]
    where = [*([("New", "B-LOC"), (city, "I-LOC")] if rng.integers(2) else [(city, "B-LOC")])]
    form = rng.integers(3)
    if form == 0:
        return [*who, *plain("lives in"), *where]
    if form == 1:
        return [*plain("in"), *where, *plain("I met"), *who]
    return [*plain("the train to"), *where, *plain("left without"), *who]


def read_columns(file: Path) -> list[list[tuple[str, str]]]:
    """Words and tags of the sentences of a file in columns, with tabs between them where a line has tabs, else blanks.

    A line that begins a sentence with # and a blank is a comment if its last column is no tag of other lines.

    Raises:
      DataError: a line has one column alone, the file has no sentence, or it is one of CoNLL-U or CoNLL-2012.
    """
    lines = [_cells(line) for line in read_lines(file)]
    tags = {cells[-1] for cells in lines if cells and not cells[0].startswith("#")}
    sentences: list[list[tuple[str, str]]] = [[]]
    for number, cells in enumerate(lines, 1):
        if not cells:
            sentences.append([])
        elif cells[:2] == ["#begin", "document"]:
            raise DataError(f"{file} is in the columns of CoNLL-2012; give a file with the word first and the tag last")
        elif not sentences[-1] and cells[0].split(" ")[0] == "#" and (len(cells) < 2 or cells[-1] not in tags):
            continue
        elif cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise DataError(f"line {number} of {file} has no tag: {cells[0][:60]!r}; word first, tag last")
            sentences[-1].append((cells[0], cells[-1]))
    sentences = [s for s in sentences if s]
    if not sentences:
        raise DataError(f"{file} has no sentences")
    numbers = [[word for word, _ in sentence if word.isdecimal()] for sentence in sentences]
    counted = all(row == [str(i + 1) for i in range(len(row))] for row in numbers)
    if counted and 2 * sum(map(len, numbers)) > sum(map(len, sentences)):
        raise DataError(
            f"{file} numbers its words in the first column, as CoNLL-U does; "
            "give a file with the word first and the tag last"
        )
    return sentences


def _cells(line: str) -> list[str]:
    """The columns of a line; other blanks than these, such as one that breaks no line, are parts of words."""
    if "\t" not in line:
        return [cell for cell in line.split(" ") if cell]
    cells = [cell.strip(" ") for cell in line.split("\t")]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def write_lines(stem: Path, lines: list[str]) -> list[Path]:
    """Writes one text file; returns its path."""
    path = with_ending(stem, ".txt")
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [path]
