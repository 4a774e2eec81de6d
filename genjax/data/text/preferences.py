"""Pairs of answers of which one was preferred: JSON lines of the user, or made reviews with a known strength.

    {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...], "margin": 0.5}

Texts become start, prompt, answer, end.  Prompt and answer are encoded apart, so that no token spans their border.
Messages are written by the chat template (chat.py).  The made reviews have the reward s for a good review and 0 for a
bad one, and the first of two is preferred with the probability of Bradley and Terry (1952), sigma(r_1 - r_2).

Pairs of reviews say nothing of other texts, to which a policy may then move.  With `texts`, a file of what the policy
writes before it learns (experiments.sample), the pairs are of these texts, and a text that is no review has the
reward 0: such pairs reach every text that the policy has mass on.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from genjax.data.base import ArrayExamples, DataError, Examples, check_split
from genjax.data.files import read_lines
from genjax.data.text import tasks
from genjax.data.text.base import DelimitedText
from genjax.data.text.chat import TemplatedText, as_messages, first_text, read_json_lines
from genjax.data.text.labelled import _review, judged_review, write_lines

_logger = logging.getLogger(__name__)

#: A prompt and an answer, whole: ids, and which of them belong to the answer.
Row = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences(TemplatedText):
    """Pairs of answers to one prompt: `tokens` [B, T + 1], `mask` and `loss_mask` of the chosen answer behind its
    prompt, and `rejected`, `rejected_mask` and `rejected_loss_mask` of the other; `margin` [B] where the file has it.

    Rows end with the token that ends the answer, which is learned.

    Attributes:
      name: sentiment, made reviews; or pairs, JSON lines: a file at data.dir, which is divided, or SPLIT.jsonl in a
        folder.
      source_length: longest prompt S, which then stands in `source` [B, S] with `source_mask` for an encoder-decoder;
        None puts prompt and answer into one row.
      strength: reward s of a good made review; the reward of a bad one is 0.
      num_made: made training pairs; validation has a tenth as many, and test half as many.
      texts: file of texts, one a line, that the made pairs are drawn from, as experiments.sample writes them of the run
        that the policy starts from; lines of dashes do not count.  None makes reviews.
    """

    name: str = "sentiment"
    sequence_length: int = 32
    source_length: int | None = None
    strength: float = 1.0
    num_made: int = 20_000
    texts: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_made < 10 or not math.isfinite(self.strength):
            raise DataError(
                f"data.num_made={self.num_made} must be at least 10, and data.strength={self.strength} finite"
            )
        if self.source_length is not None and self.source_length < 2:
            raise DataError(f"data.source_length={self.source_length} must be at least 2")
        if self.texts is not None and self.name != "sentiment":
            raise DataError(f"data.texts are judged as made reviews: give data.name=sentiment, and not {self.name}")

    def pairs(self, split: str) -> list[dict[str, Any]]:
        """`prompt`, `chosen` and `rejected` of each pair, texts or messages, and perhaps `margin` and `tools`."""
        return _pairs(self, split)

    def documents(self, split: str) -> list[str]:
        texts = []
        for pair in self.pairs(split):
            for name in ("prompt", "chosen", "rejected"):
                value = pair[name]
                texts += [value] if isinstance(value, str) else [f"{m['role']}\n{m['content']}\n" for m in value]
        return texts

    def answered(self, prompt: Any, answer: Any, tools: Any = None) -> Row:
        """A prompt with an answer, both texts or both messages, as a row up to the end of the answer.

        Raises:
          DataError: the template writes the prompt in another way once it is answered.
        """
        if isinstance(prompt, str) and isinstance(answer, str):
            encode = self.make_tokenizer().encode
            before = self._begun(encode(prompt))
            after = np.append(encode(answer), self.separator_token)
            return np.concatenate([before, after]).astype(np.int32), np.arange(len(before) + len(after)) >= len(before)
        prompt, answer = as_messages(prompt, "user", "the prompt"), as_messages(answer, "assistant", "the answer")
        begun = self.template.render(prompt, tools=tools).text
        whole = self.template.render([*prompt, *answer], tools=tools).text
        if not whole.startswith(begun):
            raise DataError(
                f"{self.template.name} writes a prompt in another way once it is answered, so that two answers to one "
                "prompt would follow different texts; give another template: --data.chat_template=FILE"
            )
        ids, trained, spans = self.turns_as_tokens([*prompt, *answer], tools=tools)
        trained &= spans[:, 0] >= len(begun)
        last = np.flatnonzero(trained)
        # What follows the end of the turn, as a new line, is no part of the answer.
        size = last[-1] + 1 if len(last) else len(ids)
        return ids[:size], trained[:size]

    def _begun(self, ids: np.ndarray) -> np.ndarray:
        """Ids of a prompt behind what a text of this tokenizer begins with."""
        tokenizer = self.make_tokenizer()
        if tokenizer.kind == "file":
            begun = np.append(tokenizer.frame[0], ids)
            # A first token is needed to predict the next from.
            return begun if len(begun) else np.array([self.start_token])
        return np.append(self.start_token, ids)

    def load_split(self, split: str) -> Examples:
        rows: list[tuple[Row, Row, float | None]] = []
        pairs = self.pairs(split)
        for pair in pairs:
            chosen, rejected = (
                self.answered(pair["prompt"], pair[name], pair.get("tools")) for name in ("chosen", "rejected")
            )
            if self._fits(chosen) and self._fits(rejected):
                rows.append((chosen, rejected, pair.get("margin")))
        if not rows:
            raise DataError(
                f"none of the {len(pairs)} pairs of {self.name} ({split}) fits into "
                f"data.sequence_length={self.sequence_length} with its prompt and both answers; give a larger one"
            )
        if len(rows) < len(pairs):
            _logger.warning(
                "%d of %d pairs of %s (%s) do not fit into data.sequence_length=%d with both answers and are left out",
                len(pairs) - len(rows), len(pairs), self.name, split, self.sequence_length,
            )  # fmt: skip
        arrays = self._arrays([row[0] for row in rows])
        other = self._arrays([row[1] for row in rows])
        arrays |= {
            "rejected": other["tokens"],
            "rejected_mask": other["mask"],
            "rejected_loss_mask": other["loss_mask"],
        }
        if all(row[2] is not None for row in rows):
            arrays["margin"] = np.array([row[2] for row in rows], np.float32)
        return ArrayExamples(arrays)

    def _fits(self, row: Row) -> bool:
        ids, answer = row
        if self.source_length is None:
            return len(ids) <= self.sequence_length + 1 and bool(answer[1:].any())
        return (~answer).sum() < self.source_length and answer.sum() <= self.sequence_length

    def _arrays(self, rows: list[Row]) -> dict[str, np.ndarray]:
        length = self.sequence_length + 1
        if self.source_length is None:
            tokens, mask, loss_mask = self.rows(rows, length)
            return {"tokens": tokens, "mask": mask, "loss_mask": loss_mask}
        targets = [np.append(self.start_token, ids[answer]) for ids, answer in rows]
        sources = [np.append(ids[~answer], self.separator_token) for ids, answer in rows]
        tokens, mask = self.pad(targets, length)
        source, source_mask = self.pad(sources, self.source_length)
        loss_mask = mask & (np.arange(length) > 0)[None]
        return {"tokens": tokens, "mask": mask, "loss_mask": loss_mask, "source": source, "source_mask": source_mask}

    def spec(self) -> dict[str, Any]:
        """vocab_size, special tokens, sequence_length T, and source_length S if there is one."""
        spec = super().spec() if self.name == "pairs" else {**super().spec(), "end_token": self.separator_token}
        return spec if self.source_length is None else {**spec, "source_length": self.source_length}

    def decode(self, tokens: np.ndarray) -> str:
        """Text of a row [T]: a made review, or what a template wrote."""
        return super().decode(tokens) if self.name == "pairs" else DelimitedText.decode(self, tokens)

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes texts, or the rewards of texts, one a line."""
        if np.ndim(samples) != 1:
            return super().write_samples(samples, stem)
        return write_lines(stem, [f"{float(reward):.4f}" for reward in samples])

    def judged(self, text: str) -> bool | None:
        """Whether a made review is good; None of any other text."""
        return judged_review(text) if self.name == "sentiment" else None

    def protocol(self) -> str:
        made = f", Bayes rate {self.bayes_rate():.4f} of made pairs" if self.name == "sentiment" else ""
        return f"tokenizer {self.tokenizer_name}, rows of {self.sequence_length + 1} tokens{made}"

    def bayes_rate(self) -> float:
        """Expected share of the made pairs in which the chosen review is the one with the larger reward; ties count
        half.

        No reward can be more accurate.
        """
        if self.name != "sentiment":
            raise DataError(
                "data.name=pairs has no known rewards; a Bayes rate is known of made pairs (sentiment) alone"
            )
        # Half of the reviews are good, so half of the pairs are ties.
        differ = 0.5
        if self.texts is not None:
            good = [[_is_good(pair[name]) for name in ("chosen", "rejected")] for pair in self.pairs("test")]
            differ = sum(one != other for one, other in good) / len(good)
        return 0.5 * (1.0 - differ) + differ / (1.0 + math.exp(-abs(self.strength)))


@functools.lru_cache(maxsize=8)
def _pairs(data: Preferences, split: str) -> list[dict[str, Any]]:
    if data.name == "sentiment":
        sizes = {"train": data.num_made, "validation": data.num_made // 10, "test": data.num_made // 2}
        check_split(split, tuple(sizes), data.name)
        return _made_pairs(split, sizes[split], data.strength, data.texts)
    if data.name != "pairs":
        raise DataError(f"data.name={data.name} is not a set of preferences: sentiment, pairs")
    found = []
    for where, row in read_json_lines(
        data.dir, split, "data.name=pairs", first_text, '{"prompt": ..., "chosen": ..., "rejected": ...}'
    ):
        missing = [name for name in ("chosen", "rejected") if name not in row]
        if missing:
            raise DataError(f"{where} has no {missing[0]}; a pair has prompt, chosen and rejected")
        if "prompt" not in row:
            row = {**row, **_divided(row["chosen"], row["rejected"], where)}
        for name in ("chosen", "rejected"):
            value = row[name]
            texts = (
                [value] if isinstance(value, str) else [m["content"] for m in as_messages(value, "assistant", where)]
            )
            if not any(texts):
                raise DataError(f"{where} has an empty {name} answer, from which nothing can be learned")
        if row["chosen"] == row["rejected"]:
            raise DataError(f"{where} has the same chosen and rejected answer, so that neither was preferred")
        found.append(row)
    return found


def _divided(chosen: Any, rejected: Any, where: str) -> dict[str, Any]:
    """Prompt and answers of two chats that begin with the same turns."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise DataError(f"{where} has no prompt; a pair of texts has prompt, chosen and rejected")
    chosen, rejected = as_messages(chosen, "user", where), as_messages(rejected, "user", where)
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    if not same:
        raise DataError(f"{where} has no prompt, and its two chats begin with different turns")
    return {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


def _made_pairs(split: str, count: int, strength: float, file: str | None) -> list[dict[str, Any]]:
    """Pairs of reviews of a split, or of texts of a file; the first of them do not depend on their number."""
    rng = np.random.default_rng([("train", "validation", "test").index(split), 7])
    given = None if file is None else _texts_of(file, split)

    def draw() -> str:
        if given is not None:
            return given[rng.integers(len(given))]
        while True:
            text, _ = _review(rng)
            if tasks.split_of(text) == split:
                return text

    pairs = []
    for _ in range(count):
        first, second = draw(), draw()
        while second == first:
            second = draw()
        difference = strength * (_is_good(first) - _is_good(second))
        if rng.random() >= 1.0 / (1.0 + math.exp(-difference)):
            first, second = second, first
        pairs.append({"prompt": "", "chosen": first, "rejected": second})
    return pairs


def _is_good(text: str) -> bool:
    return judged_review(text) is True


def _texts_of(file: str, split: str) -> list[str]:
    """Texts of a file that belong to a split: of ten lines, one each is for validation and test.

    Lines are divided by their places, so that every split has its texts as often as the policy writes them.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"data.texts={file} is no file; experiments.sample writes one of a run: --num_samples=20000")
    texts = [line for line in read_lines(path) if line.strip("-")]
    place = {"validation": (8,), "test": (9,)}.get(split, range(8))
    found = [text for i, text in enumerate(texts) if i % 10 in place]
    if len(set(found)) < 2:
        raise DataError(f"{file} has fewer than two different texts for the split {split}, of which pairs are made")
    return found
