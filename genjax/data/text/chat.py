"""Chats for a language model to learn the answers of: JSON lines of messages, or made instructions.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    {"prompt": "Hi", "completion": "Hello."}

A chat becomes tokens by a template (chat_template.py): the one of the checkpoint that the model starts from, or
`chat_template`, or ChatML, whose control tokens are our tokenizers' start and separator.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, DataError, Examples, check_split
from genjax.data.files import find_file, read_objects
from genjax.data.text import instructions, tasks
from genjax.data.text.base import SPLIT_NAMES, TOKENIZER_FILE, DelimitedText
from genjax.data.text.chat_template import CONFIG_FILE, TEMPLATE_FILE, ChatTemplate, Messages, read_template
from genjax.data.text.labelled import made_examples

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplatedText(DelimitedText):
    """Base of sets of texts in turns, which a template writes.

    Attributes:
      sequence_length: tokens T of a row that are predicted, at most; longer chats are cut behind them.
      chat_template: file of a template, or folder of a checkpoint that has one; None takes the template beside
        tokenizer_file, or else ChatML.
    """

    sequence_length: int = 128
    chat_template: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length < 2:
            raise DataError(f"data.sequence_length={self.sequence_length} must be at least 2")

    @property
    def template(self) -> ChatTemplate:
        """The template."""
        return _template(self)

    def control_ids(self) -> dict[str, int]:
        """Ids of the control tokens, by the strings that the template writes."""
        own = {"<|im_start|>": self.start_token, "<|im_end|>": self.separator_token}
        return self.make_tokenizer().control_tokens or own

    def turns_as_tokens(self, messages: Messages, **options: Any) -> tuple[np.ndarray, ...]:
        """Ids of a chat, int32 [N]; whether each is learned, bool [N]; and places in its text, int [N, 2].

        `options` are those of `ChatTemplate.render`.
        """
        return self.template.encode(
            self.make_tokenizer(), self.control_ids(), self.template.render(messages, **options)
        )

    def prompt_ids(self, messages: Messages, **options: Any) -> np.ndarray:
        """A chat that ends with a question, and the beginning of the answer to it, as tokens, int32 [N]."""
        return self.turns_as_tokens(messages, add_generation_prompt=True, **options)[0]

    def end_of_turn(self) -> int:
        """The token that ends an answer: the last that is learned of one."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        ids, trained, _ = self.turns_as_tokens(probe)
        controls = set(self.control_ids().values())
        ends = [int(i) for i in ids[trained] if int(i) in controls]
        return ends[-1] if ends else self.separator_token

    def spec(self) -> dict[str, Any]:
        """vocab_size, special tokens, sequence_length T; `end_token` ends a turn."""
        return {**super().spec(), "sequence_length": self.sequence_length, "end_token": self.end_of_turn()}

    def rows(
        self, chats: Sequence[tuple[np.ndarray, np.ndarray]], length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and which are learned, cut to `length` and padded: `tokens`, `mask` and `loss_mask`, [N, length]."""
        tokens, mask = self.pad([ids[:length] for ids, _ in chats], length)
        loss_mask = np.zeros(tokens.shape, bool)
        for row, (_, trained) in zip(loss_mask, chats):
            row[: len(trained)] = trained[:length]
        return tokens, mask, loss_mask

    def save(self, workdir: Path) -> None:
        """Writes the tokenizer and the template's files beside the run, where they are not there."""
        super().save(workdir)
        template = Path(workdir) / TEMPLATE_FILE
        if not template.is_file() and self.template.source != ChatTemplate().source:
            template.write_text(self.template.source, encoding="utf-8")
        if self.tokenizer_file is not None:
            config = Path(self.tokenizer_file).expanduser().with_name(CONFIG_FILE)
            if config.is_file() and not (Path(workdir) / CONFIG_FILE).is_file():
                shutil.copyfile(config, Path(workdir) / CONFIG_FILE)

    def beside(self, workdir: Path) -> Self:
        """The same data with the tokenizer and the template of a run, where it has them."""
        data = super().beside(workdir)
        return dataclasses.replace(data, chat_template=None) if (Path(workdir) / TOKENIZER_FILE).is_file() else data

    def going_on(self, workdir: Path) -> Self:
        return dataclasses.replace(super().going_on(workdir), chat_template=self.chat_template)

    def decode(self, tokens: np.ndarray) -> str:
        """Text of a row [T] up to its padding, with control tokens as the template writes them."""
        names = {i: string for string, i in self.control_ids().items()}
        ids = [int(i) for i in np.asarray(tokens)]
        while ids and ids[-1] == self.padding_token:
            ids.pop()
        parts: list[str] = []
        plain: list[int] = []
        for i in (*ids, None):
            if i is not None and i not in names:
                plain.append(i)
                continue
            parts.append(self._show(plain))
            plain = []
            parts.append("" if i is None else names[i])
        return "".join(parts)

    def protocol(self) -> str:
        return f"tokenizer {self.tokenizer_name}, {self.template.name}, rows cut at {self.sequence_length + 1} tokens"


@functools.lru_cache(maxsize=8)
def _template(data: TemplatedText) -> ChatTemplate:
    return read_template(data.chat_template, data.make_tokenizer(), data.tokenizer_file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(TemplatedText):
    """Chats: `tokens` [B, T + 1] with `mask`, and `loss_mask` that is True at what the assistant wrote.

    Attributes:
      name: instructions, made ones; or chats, JSON lines of messages: a file at data.dir, which is divided, or
        SPLIT.jsonl in a folder.
      learn: answers alone, with the ends of their turns; or everything.
      packed: put several chats in a row, which do not see each other (`segment_ids`).
    """

    name: str = "instructions"
    learn: Literal["answers", "everything"] = "answers"
    packed: bool = False

    def conversations(self, split: str) -> list[dict[str, Any]]:
        """The chats of a split: `messages`, and perhaps `tools`."""
        return _conversations(self, split)

    def documents(self, split: str) -> list[str]:
        """What the tokenizer has to know: the text of the chats without their control tokens."""
        template = self.template_of_text
        texts = (template.render(chat["messages"], tools=chat.get("tools")).text for chat in self.conversations(split))
        return [template.without_control(text) for text in texts]

    @property
    def template_of_text(self) -> ChatTemplate:
        """The template, before there is a tokenizer."""
        return read_template(self.chat_template, None, None) if self.tokenizer_file is None else self.template

    def load_split(self, split: str) -> Examples:
        length = self.sequence_length + 1
        chats = []
        for chat in self.conversations(split):
            ids, trained, _ = self.turns_as_tokens(chat["messages"], tools=chat.get("tools"))
            chats.append((ids, trained if self.learn == "answers" else np.ones(len(ids), bool)))
        chats = with_something_to_learn(chats, length, self.name, split)
        if self.packed and split == "train":
            return ArrayExamples(self._packed(chats, length))
        tokens, mask, loss_mask = self.rows(chats, length)
        return ArrayExamples({"tokens": tokens, "mask": mask, "loss_mask": loss_mask})

    def _packed(self, chats: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> dict[str, np.ndarray]:
        """Rows of several chats; each chat is put into the first row that has room, longer chats first."""
        parts = [(ids[:length], trained[:length]) for ids, trained in chats]
        rows: list[list[int]] = []
        room: list[int] = []
        for number in sorted(range(len(parts)), key=lambda i: (-len(parts[i][0]), i)):
            size = len(parts[number][0])
            place = next((i for i, left in enumerate(room) if left >= size), None)
            if place is None:
                place = len(rows)
                rows.append([])
                room.append(length)
            rows[place].append(number)
            room[place] -= size
        joined = [tuple(np.concatenate([parts[i][part] for i in row]) for part in (0, 1)) for row in rows]
        tokens, mask, loss_mask = self.rows(joined, length)
        segments = np.zeros(tokens.shape, np.int32)
        for place, row in zip(segments, rows):
            numbers = np.repeat(np.arange(1, len(row) + 1), [len(parts[i][0]) for i in row])
            place[: len(numbers)] = numbers
        return {"tokens": tokens, "mask": mask, "loss_mask": loss_mask, "segment_ids": segments}


def with_something_to_learn(
    chats: Sequence[tuple[np.ndarray, np.ndarray]], length: int, name: str, split: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The chats that have a token to learn among their first `length` tokens.

    The first token of a row is predicted from nothing, and is not learned.

    Raises:
      DataError: none has.
    """
    kept = [(ids, trained) for ids, trained in chats if trained[1:length].any()]
    cut = sum(len(ids) > length for ids, _ in kept)
    if not kept:
        raise DataError(
            f"none of the {len(chats)} chats of {name} ({split}) has a token to learn within "
            f"data.sequence_length={length - 1}: give a larger one, or chats with answers"
        )
    if len(kept) < len(chats) or cut:
        _logger.warning(
            "%d of %d chats of %s (%s) have no token to learn within data.sequence_length=%d and are left out, "
            "and %d are cut",
            len(chats) - len(kept), len(chats), name, split, length - 1, cut,
        )  # fmt: skip
    return kept


@functools.lru_cache(maxsize=8)
def _conversations(data: Chat, split: str) -> list[dict[str, Any]]:
    if data.name == "instructions":
        first = lambda chat: chat["messages"][0]["content"]
        return made_examples(split, data.name, lambda rng: {"messages": instructions.make_chat(rng)}, first)
    if data.name != "chats":
        raise DataError(f"data.name={data.name} is not a set of chats: instructions, chats")
    found = []
    for where, row in read_json_lines(data.dir, split, "data.name=chats", first_text, '{"messages": [...]}'):
        if "prompt" in row and "completion" in row:
            row = {
                **row,
                "messages": [
                    *as_messages(row["prompt"], "user", where),
                    *as_messages(row["completion"], "assistant", where),
                ],
            }
        if "messages" not in row:
            raise DataError(f"{where} has neither messages nor prompt and completion; it has {', '.join(row)}")
        messages = as_messages(row["messages"], "user", where)
        if not any(message["role"] == "assistant" for message in messages):
            raise DataError(f"{where} has no turn of the assistant, so that there is nothing to learn")
        # A turn that calls a tool, or thinks, may have no content.
        if any(m["role"] == "assistant" and not any(m[name] for name in m if name != "role") for m in messages):
            raise DataError(f"{where} has an empty answer of the assistant, from which nothing can be learned")
        found.append({"messages": messages, "tools": row.get("tools")})
    return found


def first_text(row: dict[str, Any]) -> str:
    """The first text of a line of messages or of a prompt, which decides the line's split."""
    found = row.get("messages", row.get("prompt", row.get("chosen", "")))
    return str(found[0].get("content") if isinstance(found, list) and found and isinstance(found[0], dict) else found)


def as_messages(value: Any, role: str, where: str) -> list[dict[str, Any]]:
    """A list of messages, or a text as one message of a role.

    Raises:
      DataError: it is neither.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} must have a text, or a list of messages with role and content")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise DataError(f"{where} has a message without role and content: {str(message)[:60]}")
    return value


def read_json_lines(
    path: str | None, split: str, what: str, first: Any, like: str
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Objects of a file of JSON lines, each with its place for messages about it.

    One file is divided by a hash of each line's first text, a tenth each for validation and test.

    Args:
      path: a file, or a folder of SPLIT.jsonl.
      split: train, validation, test, or the name of another file.
      what: the setting that needs the file.
      first: function from an object to the text that decides its split.
      like: an object as it should be, for messages.

    Raises:
      DataError: there is no such file, a line is no object, or the split is empty.
    """
    whole = path is not None and buckets.folder(path).is_file()
    file = buckets.folder(str(path)) if whole else find_file(
        path, [f"{name}.{ending}" for name in SPLIT_NAMES.get(split, (split,)) for ending in ("jsonl", "json")], what
    )  # fmt: skip
    if whole:
        check_split(split, ("train", "validation", "test"), str(file))
    rows = [(place, row) for place, row in read_objects(file, like) if not whole or tasks.split_of(first(row)) == split]
    if not rows:
        raise DataError(f"{file} has no lines for the split {split}")
    return rows
