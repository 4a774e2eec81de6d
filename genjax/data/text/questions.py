"""Questions about texts, answered by spans of them: SQuAD files of the user, or made facts.

    SPLIT.json as SQuAD 1.1 or 2.0 has it (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822)
    row        [start] question [separator] window of the text [separator]

A text that is longer than a row is read in windows, whose beginnings are `stride` tokens apart.  If a window does not
hold the whole answer, or the question has no answer, both places of the answer are the first token (Devlin et al. 2019,
section 4.3).  The answer to a question comes from the window that gives it the largest probability.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genjax.data.base import ArrayExamples, DataError, Examples
from genjax.data.files import find_file, read_utf8
from genjax.data.text import tasks as text_tasks
from genjax.data.text.base import SPLIT_NAMES
from genjax.data.text.labelled import LabelledData, made_examples, write_lines
from genjax.data.text.tokenizer import check_unicode


class Question(NamedTuple):
    """A question, the text that it is about, and answers, each with the place of its first character in that text."""

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswering(LabelledData):
    """Windows of texts with questions: `tokens` [B, T], `mask`, `types`, and `span` [B, 2], first and last place of the
    answer.

    `context` [B, T] is True at the text's tokens, `question` [B] is the question's number, and `shift` [B] is the
    number to add to a place in the window to get the token's place in the whole text.

    Attributes:
      name: facts, made texts; or squad, JSON files at data.dir.
      stride: tokens between the beginnings of two windows of a text; by default half of a window.
    """

    name: str = "facts"
    sequence_length: int = 96
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride is not None and self.stride < 1:
            raise DataError(f"data.stride={self.stride} must be at least 1")

    def questions(self, split: str) -> list[Question]:
        """The questions of a split."""
        return _questions(self, split)

    def documents(self, split: str) -> list[str]:
        return [text for q in self.questions(split) for text in (q.question, q.context)]

    def references(self, split: str) -> list[tuple[str, ...]]:
        """The right answers to each question; none where it has no answer."""
        return [tuple(answer for answer, _ in q.answers) for q in self.questions(split)]

    def load_split(self, split: str) -> Examples:
        tokenizer = self.make_tokenizer()
        texts, spans, numbers, shifts = [], [], [], []
        for number, (question, context, answers) in enumerate(self.questions(split)):
            # The question may take half of the row.
            asked = tokenizer.encode(question)[: self.sequence_length // 2]
            ids = tokenizer.encode(context)
            size = self.sequence_length - len(asked) - 3
            stride = min(self.stride or max(size // 2, 1), size)
            answer = self._answer_tokens(context, *answers[0]) if answers else None
            for start in range(0, max(len(ids) - size, 0) + stride, stride):
                texts.append([asked, ids[start : start + size]])
                shifts.append(start - len(asked) - 2)
                inside = answer is not None and start <= answer[0] and answer[1] < start + size
                spans.append([token - shifts[-1] for token in answer] if inside else [0, 0])
                numbers.append(number)
        arrays = self.joined(texts)
        places = np.arange(self.sequence_length)[None]
        first = np.array([len(asked) + 2 for asked, _ in texts])
        behind = first + np.array([len(window) for _, window in texts])
        return ArrayExamples(
            {
                **arrays,
                "span": np.array(spans, np.int32),
                "context": (places >= first[:, None]) & (places < behind[:, None]),
                "question": np.array(numbers, np.int32),
                "shift": np.array(shifts, np.int32),
            }
        )

    def _answer_tokens(self, context: str, answer: str, place: int) -> tuple[int, int] | None:
        """First and last token of an answer in the whole text; None if the answer has no token."""
        spans = self.make_tokenizer().spans(context)
        inside = np.flatnonzero((spans[:, 1] > place) & (spans[:, 0] < place + len(answer)))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None

    @property
    def has_unanswerable(self) -> bool:
        """Whether questions of the training split may have no answer, as in SQuAD 2.0."""
        return any(not question.answers for question in self.questions("train"))

    def answers(
        self,
        split: str,
        question: np.ndarray,
        shift: np.ndarray,
        spans: np.ndarray,
        scores: np.ndarray,
        none: np.ndarray,
    ) -> list[str]:
        """The answer to each question: the text of the likeliest span in any of its windows.

        Args:
          split: split of the questions.
          question: number of each window's question, [N], in any order.
          shift: `shift` of each window, [N].
          spans: first and last place of the likeliest answer in each window, [N, 2].
          scores: score of the likeliest answer, [N].
          none: score of having no answer, [N].

        Returns:
          An answer for each question with a window here, in the order of their numbers.  In sets with unanswerable
          questions an answer is empty if having no answer scores higher in every window.
        """
        asked, tokenizer, found = self.questions(split), self.make_tokenizer(), []
        may_be_none = self.has_unanswerable
        for number in np.unique(question):
            own = np.flatnonzero(question == number)
            best = own[scores[own].argmax()]
            context = asked[number].context
            characters = tokenizer.spans(context)
            if not len(characters) or (may_be_none and none[own].min() > scores[best]):
                found.append("")
                continue
            first, last = spans[best] + shift[best]
            found.append(context[characters[first, 0] : characters[last, 1]].strip())
        return found

    def protocol(self) -> str:
        return f"tokenizer {self.tokenizer_name}, windows of {self.sequence_length} tokens with their questions"

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes drawn places, one draw a line."""
        return write_lines(stem, [" ".join(map(str, np.atleast_1d(row))) for row in np.asarray(samples)])


@functools.lru_cache(maxsize=8)
def _questions(data: QuestionAnswering, split: str) -> list[Question]:
    if data.name == "squad":
        names = [
            f"{name}{version}.json" for name in SPLIT_NAMES.get(split, (split,)) for version in ("", "-v1.1", "-v2.0")
        ]
        return read_squad(find_file(data.dir, names, "data.name=squad"))
    if data.name != "facts":
        raise DataError(f"data.name={data.name} is not a set of questions: facts, squad")
    return made_examples(split, data.name, _fact_question, lambda q: f"{q.question} {q.context}")


def _fact_question(rng: np.random.Generator) -> Question:
    """A question about one of two people of whom the text tells age and city."""
    people = [text_tasks.NAMES[i] for i in rng.choice(len(text_tasks.NAMES), 2, replace=False)]
    facts = [(name, str(rng.choice(text_tasks.CITIES)), str(rng.integers(10, 100))) for name in people]
    context = " ".join(f"{name} is {age} and lives in {city}." for name, city, age in facts)
    name, city, age = facts[int(rng.integers(2))]
    text, answer = (f"where is {name}?", city) if rng.integers(2) else (f"how old is {name}?", age)
    begin = context.index(f"{name} is")
    return Question(text, context, ((answer, context.index(answer, begin)),))


def read_squad(file: Path) -> list[Question]:
    """Questions of a SQuAD file.

    Raises:
      DataError: it is no such file, or an answer does not stand where the file says.
    """
    questions = []
    try:
        for article in json.loads(read_utf8(file))["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                check_unicode(context, f"a text of {file}")
                if not context.strip():
                    raise DataError(f"{file} has an empty text (context), so that nothing in it can answer")
                for entry in paragraph["qas"]:
                    check_unicode(entry["question"], f"a question of {file}")
                    # Some files write that there is no answer as an empty one.
                    answers = tuple((a["text"], a["answer_start"]) for a in entry["answers"] if a["text"])
                    for answer, place in answers:
                        if context[place : place + len(answer)] != answer:
                            raise DataError(
                                f"{file}: the answer {answer[:40]!r} does not stand at character {place} of its text"
                            )
                    questions.append(Question(entry["question"].strip(), context, answers))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not a SQuAD file ({type(error).__name__}: {error})") from None
    if not questions:
        raise DataError(f"{file} has no questions")
    return questions
