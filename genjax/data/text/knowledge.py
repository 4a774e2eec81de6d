"""Questions with the documents that may answer them, and one of which does: for retrievers and for models that read.

    world    made facts "the NOUN of NAME is WORD .": 200 names, 3 nouns, 30 words for each noun
    file     data.dir/SPLIT.jsonl of the user: {"question": ..., "answer": ..., "documents": [...], "relevant": 0}

In the world, every question comes with its own document and with others: those of the same name, then those of the same
noun.  The validation split asks what the facts of the first world are, and the test split asks the same questions after
all facts have changed, each to another word, and the documents with them.  A model that learned the facts by heart is
right before and wrong after; a model that reads is right both times.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from genjax.data.base import ArrayExamples, DataError, Examples, check_split
from genjax.data.files import find_file, read_objects
from genjax.data.text.base import SPLIT_NAMES, DelimitedText

NUM_NAMES, NUM_WORDS = 200, 30
NOUNS = ("colour", "home", "friend")
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "ti", "vo", "zu")


def _made_words(count: int, num_syllables: int, seed: int) -> list[str]:
    """Different words of syllables."""
    rng, found = np.random.default_rng(seed), dict[str, None]()
    while len(found) < count:
        found["".join(rng.choice(_SYLLABLES, num_syllables))] = None
    return list(found)


NAMES = [word.capitalize() for word in _made_words(NUM_NAMES, 3, 0)]
WORDS = np.array(_made_words(NUM_WORDS * len(NOUNS), 2, 1)).reshape(len(NOUNS), NUM_WORDS)
NUM_FACTS = NUM_NAMES * len(NOUNS)


def world(changed: bool) -> np.ndarray:
    """Number of the word of each fact, [200, 3], before or after all facts have changed."""
    rng = np.random.default_rng(2)
    before = rng.integers(0, NUM_WORDS, (NUM_NAMES, len(NOUNS)))
    return (before + rng.integers(1, NUM_WORDS, before.shape)) % NUM_WORDS if changed else before


def question_of(name: int, noun: int) -> str:
    return f"what is the {NOUNS[noun]} of {NAMES[name]} ?"


def document_of(name: int, noun: int, word: int) -> str:
    return f"the {NOUNS[noun]} of {NAMES[name]} is {WORDS[noun, word]} ."


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question with the documents that may answer it.

    Attributes:
      question: the question.
      answer: the right answer.
      documents: texts of the documents.
      relevant: place of the document that holds the answer, or -1 if none of them does.
    """

    question: str
    answer: str
    documents: tuple[str, ...]
    relevant: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnowledgeQuestions(DelimitedText):
    """Questions `source` int32 [B, S], answers `tokens` [B, T + 1] (start, answer, end), and `documents` [B, M, L].

    Their masks are `source_mask`, `mask` and `documents_mask`; a document that is missing has no token in its mask.
    `relevant` [B] is the place of the document that holds the answer, -1 if none of the M does.

    Attributes:
      name: world, made facts; or file, JSON lines of the user at data.dir.
      num_documents: number M of documents of a question in the world: its own and others.
      facts: one world for all training examples; or facts drawn anew for each of them, so that only the documents tell.
      withheld: leave the document with the answer out, and take one more of the others.
      num_made: training examples of the world.
      source_length: longest question S.
      target_length: longest answer T, its end token included.
      document_length: longest document L.
    """

    name: str = "world"
    tokenizer: Literal["characters", "bytes", "words", "bpe", "unigram"] = "words"
    num_documents: int = 8
    facts: Literal["fixed", "redrawn"] = "redrawn"
    withheld: bool = False
    num_made: int = 20_000
    source_length: int = 16
    target_length: int = 8
    document_length: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("num_documents", 1), ("num_made", 1), ("source_length", 4), ("target_length", 2),
                             ("document_length", 4)):  # fmt: skip
            if getattr(self, field) < least:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least {least}")
        if self.num_documents > NUM_NAMES:
            raise DataError(f"data.num_documents={self.num_documents} must be at most {NUM_NAMES}")

    def asked(self, split: str) -> list[Asked]:
        """The questions of a split."""
        return _asked(self, split)

    def documents(self, split: str) -> list[str]:
        if self.name != "world":
            return [text for each in self.asked(split) for text in (each.question, each.answer, *each.documents)]
        facts = [(name, noun) for name in range(NUM_NAMES) for noun in range(len(NOUNS))]
        # Every word stands in some document, whatever the facts are.
        return [question_of(*fact) for fact in facts] + [
            document_of(name, noun, (name + 7 * noun) % NUM_WORDS) for name, noun in facts
        ]

    def references(self, split: str) -> list[str]:
        """The right answers."""
        return [each.answer for each in self.asked(split)]

    def load_split(self, split: str) -> Examples:
        asked, encode = self.asked(split), functools.lru_cache(maxsize=None)(self.make_tokenizer().encode)
        source, source_mask = self.pad(
            [self.enclosed(encode(each.question), self.source_length) for each in asked], self.source_length
        )
        # With a blank before it, a word of the answer is the token that it is in the documents.
        answers = [[self.start_token, *self.framed(encode(f" {each.answer}"), self.target_length)] for each in asked]
        tokens, mask = self.pad(answers, self.target_length + 1)
        most = max(len(each.documents) for each in asked)
        rows = [
            self.enclosed(encode(each.documents[i]), self.document_length) if i < len(each.documents) else []
            for each in asked
            for i in range(most)
        ]
        documents, documents_mask = self.pad(rows, self.document_length)
        return ArrayExamples(
            {
                "source": source,
                "source_mask": source_mask,
                "tokens": tokens,
                "mask": mask,
                "documents": documents.reshape(len(asked), most, -1),
                "documents_mask": documents_mask.reshape(len(asked), most, -1),
                "relevant": np.array([each.relevant for each in asked], np.int32),
            }
        )

    def spec(self) -> dict[str, Any]:
        """vocab_size, special tokens, sequence_length T of answers, source_length S, document_length L."""
        lengths = {"sequence_length": self.target_length, "source_length": self.source_length}
        return {**super().spec(), **lengths, "document_length": self.document_length}

    def protocol(self) -> str:
        own = "without the document that answers" if self.withheld else "with the document that answers"
        return f"tokenizer {self.tokenizer_name}, {self.num_documents} documents a question, {own}"


def _candidates(
    data: KnowledgeQuestions, rng: np.random.Generator, name: int, noun: int
) -> tuple[list[tuple[int, int]], int]:
    """Names and nouns of a question's documents in any order, and the place of its own, -1 if it is withheld."""
    same_name = [(name, other) for other in range(len(NOUNS)) if other != noun]
    others = rng.permutation([other for other in range(NUM_NAMES) if other != name])
    own = [] if data.withheld else [(name, noun)]
    chosen = [*own, *same_name, *((int(other), noun) for other in others)][: data.num_documents]
    order = rng.permutation(len(chosen))
    return [chosen[i] for i in order], -1 if data.withheld else int(np.flatnonzero(order == 0)[0])


@functools.lru_cache(maxsize=8)
def _asked(data: KnowledgeQuestions, split: str) -> list[Asked]:
    if data.name == "file":
        return _of_file(data, split)
    if data.name != "world":
        raise DataError(f"there is no set {data.name!r} of questions with documents; take world or file")
    check_split(split, ("train", "validation", "test"), data.name)
    train = split == "train"
    words, asked = world(changed=split == "test"), []
    for i in range(data.num_made if train else NUM_FACTS):
        rng = np.random.default_rng([("train", "validation", "test").index(split), i])
        name, noun = divmod(i % NUM_FACTS, len(NOUNS))
        places, relevant = _candidates(data, rng, name, noun)
        if train and data.facts == "redrawn":
            words = rng.integers(0, NUM_WORDS, (NUM_NAMES, len(NOUNS)))
        texts = tuple(document_of(*place, int(words[place])) for place in places)
        asked.append(Asked(question_of(name, noun), str(WORDS[noun, words[name, noun]]), texts, relevant))
    return asked


def _of_file(data: KnowledgeQuestions, split: str) -> list[Asked]:
    file = find_file(
        data.dir, [f"{name}.jsonl" for name in SPLIT_NAMES.get(split, (split,))], "questions with documents"
    )
    asked = []
    wanted = '{"question": "...", "answer": "...", "documents": ["..."], "relevant": 0}'
    for place, row in read_objects(file, wanted, ("question", "answer", "documents")):
        try:
            each = Asked(row["question"], row["answer"], tuple(row["documents"]), int(row.get("relevant", -1)))
            texts = [each.question, each.answer, *each.documents]
            sound = all(isinstance(text, str) and text.strip() for text in texts)
        except (ValueError, TypeError):
            raise DataError(f"{place} is not like {wanted}: documents are texts, and relevant is a number") from None
        if not sound or not each.documents:
            raise DataError(f"{place} has an empty text or no document; it must be like {wanted}")
        if not -1 <= each.relevant < len(each.documents):
            raise DataError(
                f"{place}: relevant={each.relevant} must be a place among its {len(each.documents)} documents, or -1"
            )
        asked.append(each)
    if not asked:
        raise DataError(f"{file} holds no question")
    return asked
