"""Prompts with answers in one text, for models that continue text: demonstrations to learn, and prompts to answer.

    sums      57+68=                      125          all sums of two numbers of two digits
    reviews   (empty)                     the film was not great
    table     tab-separated files at data.dir: a prompt and its answer in each line

A row is start, prompt, answer, end.  Its prompt is read and does not count, so that any model of text learns the
answers as it is; `prompt` and `answer` are there for methods that let the model answer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from typing import Any

import numpy as np

from genjax.data.base import ArrayExamples, DataError, Examples, check_split
from genjax.data.text import tasks as text_tasks
from genjax.data.text.base import DelimitedText
from genjax.data.text.labelled import judged_review, made_reviews
from genjax.data.text.pairs import check_columns, read_table_of_texts

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedText(DelimitedText):
    """Prompts and answers: `prompt` int32 [B, P] with `prompt_mask`, `answer` [B, A] with `answer_mask`, and both
    joined in `tokens` [B, P + A] with `mask` and `loss_mask`.

    A prompt begins with the start token, an answer ends with the end token.

    Attributes:
      name: sums, reviews or table.
      prompt_length: longest prompt P, the start token included.
      answer_length: longest answer A, the end token included.
      num_demonstrations: number of training examples, the first in a fixed random order; None for all.
      columns: columns of the table with prompt and answer, by their names in the heading or by their numbers from 1.
    """

    name: str = "sums"
    prompt_length: int = 8
    answer_length: int = 4
    num_demonstrations: int | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_columns(self.columns, 2, "prompt and answer")
        for name in ("prompt_length", "answer_length", "num_demonstrations"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise DataError(f"data.{name}={getattr(self, name)} must be at least 1")

    def pairs(self, split: str) -> list[tuple[str, str]]:
        """Prompts and answers of a split as text."""
        return _pairs(self, split)

    def documents(self, split: str) -> list[str]:
        # The tokenizer does not depend on the number of demonstrations.
        return [text for pair in _pairs(dataclasses.replace(self, num_demonstrations=None), split) for text in pair]

    def load_split(self, split: str) -> Examples:
        encode = self.make_tokenizer().encode
        prompts, answers = [], []
        for prompt, answer in self.pairs(split):
            prompts.append([self.start_token, *encode(prompt)])
            answers.append([*encode(answer), self.separator_token])
        fits = [len(p) <= self.prompt_length and len(a) <= self.answer_length for p, a in zip(prompts, answers)]
        if not all(fits):
            told = f"data.prompt_length={self.prompt_length} and data.answer_length={self.answer_length}"
            if not any(fits):
                raise DataError(f"no example of the split {split} of {self.name} fits into {told}; give larger ones")
            _logger.warning("%d of %d examples of %s do not fit into %s and are left out",
                            len(fits) - sum(fits), len(fits), self.name, told)  # fmt: skip
        chosen = [pair for pair, fit in zip(zip(prompts, answers), fits) if fit]
        prompts, answers = ([pair[i] for pair in chosen] for i in range(2))
        prompt, prompt_mask = self.pad(prompts, self.prompt_length)
        answer, answer_mask = self.pad(answers, self.answer_length)
        tokens, mask = self.pad([p + a for p, a in chosen], self.prompt_length + self.answer_length)
        counted = mask & (np.arange(tokens.shape[1])[None] >= prompt_mask.sum(1)[:, None])
        arrays = {"prompt": prompt, "prompt_mask": prompt_mask, "answer": answer, "answer_mask": answer_mask}
        return ArrayExamples({**arrays, "tokens": tokens, "mask": mask, "loss_mask": counted})

    def spec(self) -> dict[str, Any]:
        """vocab_size, special tokens, sequence_length T, and max_new_tokens A."""
        length = self.prompt_length + self.answer_length - 1
        return {**super().spec(), "sequence_length": length, "max_new_tokens": self.answer_length}

    def judged(self, text: str) -> bool | None:
        """Whether a made review is good; None of any other text."""
        return judged_review(text) if self.name == "reviews" else None

    def protocol(self) -> str:
        return (
            f"tokenizer {self.tokenizer_name}, prompts of {self.prompt_length} and answers of {self.answer_length} "
            "tokens"
        )


@functools.lru_cache(maxsize=8)
def _pairs(data: PromptedText, split: str) -> list[tuple[str, str]]:
    if data.name == "table":
        pairs = read_table_of_texts(data.dir, ("prompt", "answer"), split, data.columns)
    elif data.name == "sums":
        check_split(split, ("train", "validation", "test"), data.name)
        numbers = itertools.product(range(10, 100), repeat=2)
        pairs = [(f"{a}+{b}=", str(a + b)) for a, b in numbers if text_tasks.split_of(f"sum: {a}+{b}") == split]
    elif data.name == "reviews":
        pairs = [("", text) for text, _ in made_reviews(split)]
    else:
        raise DataError(f"data.name={data.name} is not a set of prompts and answers: sums, reviews, table")
    if split == "train" and data.num_demonstrations is not None:
        order = np.random.default_rng(0).permutation(len(pairs))[: data.num_demonstrations]
        pairs = [pairs[i] for i in order]
    return pairs
