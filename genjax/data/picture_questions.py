"""Questions about pictures with their answers: Scenes, or the files of VQA v2.

    row        start, question, separator, answer, separator
    loss_mask  True at the answer and the separator behind it

For a model that reads pictures in place of tokens, such as LLaVA, `picture_tokens` times the token of a picture stand
behind the start; it is a token of its own behind the vocabulary.

VQA v2 (Goyal et al. 2017, arXiv:1612.00837) has the pictures of a split in data.dir/SPLIT, and beside the folder
SPLIT_questions.json ("questions": image_id, question_id, question) and SPLIT_annotations.json ("annotations":
question_id, answer_type, multiple_choice_answer, answers of ten people).  The number at the end of a picture's file
name is its image_id.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, DataError, Examples
from genjax.data.captioned import CaptionedImages, with_arrays
from genjax.data.files import read_utf8
from genjax.data.fitting import fit_pictures
from genjax.data.folders import folder_files, folder_images
from genjax.data.images import Images
from genjax.data.scenes import questions as scene_questions
from genjax.data.scenes.grammar import COLOURS, RELATIONS, SHAPES
from genjax.data.scenes.pictures import render
from genjax.data.text.base import DelimitedText


class Asked(NamedTuple):
    """A question about a picture.

    Attributes:
      text: the question.
      kind: its kind, such as colour, or number.
      answer: the answer to learn.
      votes: all answers that were given, at least one.
    """

    text: str
    kind: str
    answer: str
    votes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureQuestions(CaptionedImages):
    """Pictures `x` with questions and answers: `tokens` int32 [B, T], `mask`, and `loss_mask`, True at the answer.

    Attributes:
      name: scenes, made pictures with balanced questions of six kinds; or vqa, the files of VQA v2 at data.dir.
      captions: not used.
      sequence_length: tokens T of a question and its answer with all special tokens; longer questions are cut.
      picture_tokens: number of tokens behind the start in whose place a model reads the picture; 0 writes none, but
        keeps their token in the vocabulary, for a language model that learns texts first; None for models that read
        the picture beside the text.
      learn_questions: whether the words of the question count too, as for a language model that learns texts.
      num_made: training questions of scenes.
      num_held_out: questions of each other split of scenes.
    """

    flag_name: ClassVar[str] = "picture_questions"
    names: ClassVar[tuple[str, ...]] = ("scenes", "vqa")

    sequence_length: int = 16
    picture_tokens: int | None = None
    learn_questions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.picture_tokens is not None and self.picture_tokens < 0:
            raise DataError(f"data.picture_tokens={self.picture_tokens} must not be negative")

    def spec(self) -> dict[str, Any]:
        """As of captions; with picture_tokens also image_token, and the length of rows with their picture tokens."""
        found = super().spec()
        if self.picture_tokens is None:
            return found
        return {
            **found,
            "vocab_size": self._image_token + 1,
            "image_token": self._image_token,
            "picture_tokens": self.picture_tokens,
            "sequence_length": self._row_length,
        }

    @property
    def _image_token(self) -> int:
        # Not the pictures' settings, which need the rows that this token is in.
        return DelimitedText.spec(self)["vocab_size"]

    @property
    def _row_length(self) -> int:
        return self.sequence_length + (self.picture_tokens or 0)

    @property
    def _picture(self) -> list[int]:
        return [self._image_token] * self.picture_tokens if self.picture_tokens else []

    def decode(self, tokens: np.ndarray) -> str:
        ids = np.asarray(tokens)
        return super().decode(ids[ids != self._image_token] if self.picture_tokens else ids)

    def asked(self, split: str) -> list[Asked]:
        """The questions of a split."""
        return _read(self, split)[1]

    def references(self, split: str) -> list[tuple[str, ...]]:
        """The answers to each question that people gave."""
        return [each.votes for each in self.asked(split)]

    def documents(self, split: str) -> list[str]:
        if self.name == "scenes":
            return _lexicon()
        # With a blank before it, an answer is made of the tokens that it is made of in a question.
        return [text for each in self.asked(split) for text in (each.text, f" {each.answer}")]

    def load_split(self, split: str) -> Examples:
        pictures, asked = _read(self, split)
        return with_arrays(self._prepared(pictures, split), self._rows(asked))

    def _rows(self, asked: Sequence[Asked]) -> dict[str, np.ndarray]:
        encode = functools.lru_cache(maxsize=None)(self.make_tokenizer().encode)
        rows, firsts, picture = [], [], self._picture
        for each in asked:
            answer = self.framed(encode(f" {each.answer}"), self.sequence_length // 2)
            question = self._question(encode(each.text), self.sequence_length - len(answer))
            rows.append([*question[:1], *picture, *question[1:], *answer])
            firsts.append(1 + len(picture) if self.learn_questions else len(picture) + len(question))
        tokens, mask = self.pad(rows, self._row_length)
        counted = np.arange(self._row_length)[None] >= np.array(firsts)[:, None]
        return {"tokens": tokens, "mask": mask, "loss_mask": mask & counted}

    def _question(self, ids: np.ndarray, length: int) -> list[int]:
        start = self._start
        return [*start, *self.framed(ids, length - len(start))]

    def opening(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Questions as a model reads them: `prompts` int32 [N, P], padded on the right, and their lengths [N].

        Raises:
          DataError: there is no question, or one has words that the tokenizer does not know or is too long.
        """
        rows = []
        for text in texts:
            if text is None or not text.strip():
                raise DataError("the run answers questions about pictures; give one by --question=TEXT")
            row = self._question(self.make_tokenizer().encode(text.strip()), 10**6)
            if len(row) > self.sequence_length - 2:
                raise DataError(
                    f"the question {text[:60]!r} takes {len(row)} tokens, and data.sequence_length="
                    f"{self.sequence_length} leaves {self.sequence_length - 2} for it"
                )
            rows.append([*row[:1], *self._picture, *row[1:]])
        prompts, mask = self.pad(rows, max(map(len, rows)))
        return prompts, mask.sum(1).astype(np.int32)

    def beginning(self, text: str, with_picture: bool = True) -> np.ndarray:
        """A question as a model reads it, [P], with the tokens of its picture if there is one.

        Raises:
          DataError: there is no question, or one has words that the tokenizer does not know or is too long.
        """
        if not text.strip():
            raise DataError("the run answers questions; give one by --prompt=TEXT")
        prompt = self.opening([text])[0][0]
        return prompt if with_picture else prompt[prompt != self._image_token]

    def answer_of(self, tokens: np.ndarray) -> str:
        """The answer in a row [T]: what stands behind its first separator."""
        ids = np.asarray(tokens).tolist()
        first = ids.index(self.separator_token) + 1 if self.separator_token in ids else 0
        return self.decode(np.asarray([self.start_token, *ids[first:]])).strip()

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return Images.augment(self, batch, key)

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return Images.transform(self, batch, key)

    def protocol(self) -> str:
        own = f"tokenizer {self.tokenizer_name}, questions with answers cut at {self.sequence_length} tokens"
        return f"{Images.protocol(self)}, {own}"


@functools.lru_cache(maxsize=8)
def _read(data: PictureQuestions, split: str) -> tuple[Examples, list[Asked]]:
    """Pictures of a split in their stored levels, one for each question, and the questions."""
    if data.name == "vqa":
        return _of_files(data, split)
    made = [scene_questions.make_question(split, 0, i) for i in range(data.num_examples(split))]
    pictures = fit_pictures(render([each.scene for each in made]), data.image_size, data.channels, 255)
    asked = [Asked(each.text, each.kind, each.answer, (each.answer,)) for each in made]
    return ArrayExamples({"x": pictures}), asked


def _lexicon() -> list[str]:
    """Texts that together have every word of questions about Scenes and of answers."""
    pairs = [f"{colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]
    return [
        *(f"what colour is the {shape}?" for shape in SHAPES),
        *(f"what shape is the {colour} thing?" for colour in COLOURS),
        *(text for pair in pairs for text in (f"what size is the {pair}?", f"is there a {pair}?")),
        "how many things are there?",
        *(f"is the {pair} {name} the {pair}?" for name, pair in itertools.product(RELATIONS, pairs)),
        *(f" {answer}" for answer in scene_questions.ANSWERS),
    ]


def _of_files(data: PictureQuestions, split: str) -> tuple[Examples, list[Asked]]:
    base, files = folder_files(data.dir, split)
    root = buckets.folder(data.dir or "")
    asking = root / f"{split}_questions.json"
    questions = _listed(asking, "questions", ("image_id", "question_id", "question"))
    own = ("question_id", "multiple_choice_answer", "answers")
    file = root / f"{split}_annotations.json"
    notes = {note["question_id"]: note for note in _listed(file, "annotations", own)}
    pictures, paths = folder_images(data.dir, split, data.image_size, data.channels or 3, (), data.skip_corrupt)
    rows_of: dict[int, int] = {}
    for row, path in enumerate(paths):
        number = _number_of(path)
        if number in rows_of:
            raise DataError(f"{paths[rows_of[number]]} and {path} are both the picture number {number}")
        rows_of[number] = row
    # What data.skip_corrupt has left out.
    skipped = {_number_of(path) for path in set(files) - set(paths)}
    rows, asked = [], []
    for each in questions:
        note = notes.get(each["question_id"])
        if note is None:
            raise DataError(f"{file} has no answers to the question {each['question_id']}, {each['question']!r}")
        if each["image_id"] in skipped:
            continue
        if each["image_id"] not in rows_of:
            raise DataError(f"{base} has no picture {each['image_id']!r}, which {each['question']!r} asks about")
        question, answer = str(each["question"]).strip(), str(note["multiple_choice_answer"])
        if not question or not answer.strip():
            empty = "answer to the question" if question else "text of the question"
            raise DataError(f"{file if question else asking} has an empty {empty} {each['question_id']}")
        rows.append(rows_of[each["image_id"]])
        asked.append(Asked(question, str(note.get("answer_type", "any")), answer, _votes(note, file) or (answer,)))
    return _Chosen(pictures, np.array(rows)), asked


def _number_of(path: Path) -> int:
    """The image_id of a picture's file."""
    number = re.search(r"\d+$", path.stem)
    if number is None:
        raise DataError(f"{path} has no number of a picture at the end of its name, as in COCO_train_000000000009")
    return int(number[0])


def _votes(note: dict[str, Any], file: Path) -> tuple[str, ...]:
    """The answers of an annotation that people gave."""
    try:
        return tuple(str(vote["answer"]) for vote in note["answers"])
    except (TypeError, KeyError):
        raise DataError(
            f'{file}: "answers" of the question {note["question_id"]} must be a list of objects with answer'
        ) from None


def _listed(file: Path, name: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The list `name` of a JSON file, whose entries have all `keys`."""
    if not file.is_file():
        raise DataError(f"{file} is missing; VQA v2 has its {name} in it")
    try:
        entries = json.loads(read_utf8(file))[name]
        if not entries or not all(key in entry for entry in entries for key in keys):
            raise KeyError(name)
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{file} must be an object with a list "{name}" of objects with {", ".join(keys)}') from None
    return entries


class _Chosen:
    """Rows of other examples."""

    def __init__(self, examples: Examples, rows: np.ndarray) -> None:
        self._examples, self._rows = examples, rows

    def __len__(self) -> int:
        return len(self._rows)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        gathered = self._examples.gather(self._rows[indices])
        return {"x": gathered["x"]}

    def arrays(self) -> None:
        return None
