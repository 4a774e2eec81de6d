"""Chats as text and tokens: the chat templates that checkpoints of the library transformers carry.

    text, spans = ChatTemplate(source).render(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    )

A template is a program in the language of jinja2, which is rendered in its immutable sandbox.  What stands between
{% generation %} and {% endgeneration %} is written by the assistant, and is what a model learns.  A template without
these marks is rendered up to each answer and past it; the answer is what comes in between.

Control tokens are strings such as <|im_end|>.  Where a message has such a string, it is a part of the message's text
and is encoded as text, whoever wrote it: only the template can begin or end a turn.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genjax.data.base import DataError
from genjax.data.files import read_utf8
from genjax.data.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
#: Place in a text: the first character, and the character after the last.
Span = tuple[int, int]

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
BUILT_IN = "the built-in ChatML"
#: ChatML: <|im_start|>, the role, a new line, the text, <|im_end|>, a new line.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: The day that a template is told in training, so that data do not depend on when a run is started.
TRAINING_DAY = datetime.datetime(2024, 7, 26)
#: Private characters stand for the marks of a text while it is rendered.
_PRIVATE = range(0xF0000, 0xFFFFE)


class Rendered(NamedTuple):
    """A chat as text.

    Attributes:
      text: the text.
      trained: places that the assistant wrote, up to the end of the turn.
      literal: places of strings that look like control tokens and are text of a message.
    """

    text: str
    trained: tuple[Span, ...]
    literal: tuple[Span, ...]


class ChatTemplate:
    """A chat template.

    Attributes:
      source: the template.
      name: where it comes from, for messages about it.
      special: strings by name that the template may ask for, such as bos_token.
      control: strings that are control tokens.
    """

    def __init__(
        self,
        source: str = CHATML,
        name: str = BUILT_IN,
        special: Mapping[str, str] | None = None,
        control: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    ) -> None:
        self.source, self.name, self.special = source, name, dict(special or {})
        # Longer ones first, for a token that begins with another.
        self.control = tuple(sorted((c for c in control if c), key=lambda c: (-len(c), c)))
        self.marks_answers = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source) is not None

    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        now: datetime.datetime = TRAINING_DAY,
        **settings: Any,
    ) -> Rendered:
        """A chat as text, with the places to learn.

        Args:
          messages: role and content of each turn.
          add_generation_prompt: end with the beginning of the assistant's next turn.
          tools: schemas of functions that the assistant may call.
          now: the time that the template is told.
          **settings: further names that the template reads, such as enable_thinking.

        Raises:
          DataError: the template refuses the messages; or it marks no answers, and writes earlier turns in another way
            once there are later turns, so that answers cannot be found.
        """
        options = {"tools": tools, "now": now, **settings}
        whole = self._render(messages, add_generation_prompt, options)
        if self.marks_answers:
            return whole._replace(trained=tuple(self._with_end_of_turn(whole, whole.trained)))
        spans = []
        for place, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self._render(messages[:place], True, options).text
            after = self._render(messages[: place + 1], False, options).text
            if not (after.startswith(before) and whole.text.startswith(after)):
                raise DataError(
                    f"{self.name} writes the turns before an answer in another way once it is there, "
                    "and does not mark answers with {% generation %}, so that what to learn is not known; "
                    "give a template with these marks: --data.chat_template=FILE"
                )
            # What follows the last control token, as a new line, begins the next turn.
            ends = [match.end() for match in self._controls(after[len(before) :], ())]
            spans.append((len(before), len(before) + ends[-1] if ends else len(after)))
        return whole._replace(trained=tuple(spans))

    def _with_end_of_turn(self, rendered: Rendered, spans: Sequence[Span]) -> Iterator[Span]:
        """Spans with the control token that stands right behind them, if they do not have one."""
        controls = [match.span() for match in self._controls(rendered.text, rendered.literal)]
        for start, end in spans:
            written = rendered.text[start:end].rstrip()
            follows = next((stop for first, stop in controls if first == end), None)
            yield start, follows if follows is not None and not written.endswith(self.control) else end

    def _controls(self, text: str, literal: Sequence[Span]) -> list[re.Match[str]]:
        """Control tokens in a text, but for those that are text of a message."""
        if not self.control:
            return []
        starts = {start for start, _ in literal}
        pattern = "|".join(map(re.escape, self.control))
        return [match for match in re.finditer(pattern, text) if match.start() not in starts]

    def _render(self, messages: Messages, add_generation_prompt: bool, options: dict[str, Any]) -> Rendered:
        everything = json.dumps([messages, options["tools"]], ensure_ascii=False, default=str)
        free = (chr(code) for code in _PRIVATE if chr(code) not in everything)
        begin, end, *stands_for = (next(free) for _ in range(2 + len(self.control)))
        hidden = dict(zip(self.control, stands_for))
        now = options["now"]
        try:
            text = _compiled(self.source, begin, end).render(
                messages=[_reasoned(_replaced(message, hidden)) for message in messages],
                tools=_replaced(options["tools"], hidden),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=now.strftime,
                **self.special,
                **{name: value for name, value in options.items() if name not in ("now", "tools")},
            )
        except Exception as error:  # a template may raise any error of Python too
            raise DataError(f"{self.name} refuses the messages: {error}") from None
        shown = {char: control for control, char in hidden.items()}
        parts, place, opened, trained, literal = [], 0, 0, [], []
        for part in re.split(f"([{begin}{end}{''.join(stands_for)}])", text):
            if part == begin:
                opened = place
            elif part == end:
                trained.append((opened, place))
            else:
                if part in shown:
                    part = shown[part]
                    literal.append((place, place + len(part)))
                parts.append(part)
                place += len(part)
        return Rendered("".join(parts), tuple(trained), tuple(literal))

    def without_control(self, text: str) -> str:
        """A text without its control tokens."""
        return re.sub("|".join(map(re.escape, self.control)), "", text) if self.control else text

    def encode(
        self, tokenizer: Tokenizer, control_ids: Mapping[str, int], rendered: Rendered
    ) -> tuple[np.ndarray, ...]:
        """A rendered chat as tokens.

        Args:
          tokenizer: encodes the text between control tokens.
          control_ids: ids of the control tokens.
          rendered: the chat.

        Returns:
          Ids int32 [N]; whether each is learned, bool [N]; and their places in the text, int [N, 2].
        """
        if tokenizer is not None and tokenizer.kind == "file" and not rendered.literal:
            ids, spans = tokenizer.encode_with_control_tokens(rendered.text)
        else:
            ids, spans = self._encode_parts(tokenizer, control_ids, rendered)
        trained = np.zeros(len(ids), bool)
        for start, end in rendered.trained:
            trained |= (spans[:, 0] < end) & (spans[:, 1] > start)
        return ids, trained, spans

    def _encode_parts(
        self, tokenizer: Tokenizer, control_ids: Mapping[str, int], rendered: Rendered
    ) -> tuple[np.ndarray, np.ndarray]:
        ids, spans, place = [], [], 0
        for match in (*self._controls(rendered.text, rendered.literal), None):
            part = rendered.text[place : None if match is None else match.start()]
            if part:
                part_ids, part_spans = tokenizer.encode_as_text(part)
                ids.append(part_ids)
                spans.append(part_spans + place)
            if match is not None:
                ids.append(np.array([control_ids[match[0]]], np.int32))
                spans.append(np.array([match.span()]))
                place = match.end()
        if not ids:
            return np.zeros(0, np.int32), np.zeros((0, 2), int)
        return np.concatenate(ids), np.concatenate(spans)


def _replaced(value: Any, hidden: Mapping[str, str]) -> Any:
    """A value of JSON in which private characters stand for control tokens."""
    if isinstance(value, str):
        for control, char in hidden.items():
            value = value.replace(control, char)
        return value
    if isinstance(value, Mapping):
        return {name: _replaced(each, hidden) for name, each in value.items()}
    return [_replaced(each, hidden) for each in value] if isinstance(value, list | tuple) else value


def _reasoned(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its reasoning under both names that templates read."""
    names = ("reasoning_content", "thinking", "reasoning")
    found = next((message[name] for name in names if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


@functools.lru_cache(maxsize=32)
def _compiled(source: str, begin: str, end: str) -> Any:
    """A compiled template that puts `begin` and `end` around what the assistant writes."""
    try:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise DataError("chat templates are rendered by the package jinja2: pip install 'genjax[chat]'") from None

    class Generation(jinja2.ext.Extension):
        """The block {% generation %} ... {% endgeneration %}."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

        def marked(self, caller: Any) -> str:
            return f"{begin}{caller()}{end}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    # Unlike jinja2's own filter, this one leaves the characters of HTML as they are.
    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


# ----------------------------------------------------------------------------------------------------------------------
# Files


def read_template(file: str | Path | None, tokenizer: Tokenizer | None, beside: str | Path | None) -> ChatTemplate:
    """The template of a file; or of the folder of a tokenizer; or the built-in one.

    Args:
      file: a template, or a folder with chat_template.jinja or tokenizer_config.json; None for `beside`.
      tokenizer: the tokenizer, whose control tokens the template writes; None where ours is still to be trained.
      beside: a file in the folder that the tokenizer comes from, or None.

    Raises:
      DataError: there is no such file, or the tokenizer lacks the tokens of the built-in template.
    """
    folder = None if beside is None else Path(beside).expanduser().parent
    if file is not None and not Path(file).expanduser().exists():
        raise DataError(f"data.chat_template={file} is neither a template nor a folder with {TEMPLATE_FILE}")
    place = folder if file is None else Path(file).expanduser()
    special = {} if folder is None else _special_strings(folder)
    control = (tokenizer and tokenizer.control_tokens) or {"<|im_start|>": 0, "<|im_end|>": 0}
    if place is not None and place.is_file():
        return ChatTemplate(read_utf8(place), str(place), special, tuple(control))
    if place is not None and (source := _template_of(place)) is not None:
        return ChatTemplate(source[0], str(source[1]), special, tuple(control))
    if file is not None:
        raise DataError(f"data.chat_template={file} has neither {TEMPLATE_FILE} nor a chat_template in {CONFIG_FILE}")
    if tokenizer is not None and tokenizer.kind == "file" and not {"<|im_start|>", "<|im_end|>"} <= set(control):
        raise DataError(
            f"the tokenizer in {folder} has no chat template beside it, "
            f"and lacks <|im_start|> and <|im_end|> of {BUILT_IN}; give a template: --data.chat_template=FILE"
        )
    return ChatTemplate(special=special, control=tuple(control))


def _template_of(folder: Path) -> tuple[str, Path] | None:
    """The template of a folder, and its file."""
    if (path := folder / TEMPLATE_FILE).is_file():
        return read_utf8(path), path
    path = folder / CONFIG_FILE
    found = _read_config(folder).get("chat_template")
    if isinstance(found, list):
        named = {each["name"]: each["template"] for each in found}
        found = named.get("default", next(iter(named.values()), None))
    return None if found is None else (found, path)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_utf8(path))
    except ValueError:
        raise DataError(f"{path} is damaged: it is not JSON") from None
    return content if isinstance(content, dict) else {}


def _special_strings(folder: Path) -> dict[str, str]:
    """Special tokens by name that templates ask for, from tokenizer_config.json."""
    strings = {}
    for name, value in _read_config(folder).items():
        if name.endswith("_token") and value is not None and not isinstance(value, bool):
            strings[name] = value["content"] if isinstance(value, dict) else str(value)
    return strings
