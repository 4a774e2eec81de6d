"""Opens what a path holds and asks it; messages of LangChain become requests, and answers become messages."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    convert_to_openai_image_block,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk
from pydantic import BaseModel, ConfigDict, Field, model_validator

from genjax.config import ConfigError, suggestion
from genjax.serving.batching import BusyError
from genjax.serving.local import LocalTexts
from genjax.tools.embedding import Embedder
from genjax.tools.opened import opened, opened_embedder
from genjax.tools.retrieval import Index
from genjax.training import Run

Result = TypeVar("Result")

#: Where the model may stand instead.
MODEL_VARIABLE = "GENJAX_MODEL"
_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
#: Parts of a message that are no text of it: calls stand in `tool_calls`, and thoughts are not told again.
_NO_TEXT = frozenset(
    ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "thinking", "redacted_thinking", "reasoning")
)


# What paths hold.


class _Opened:
    """What was opened in this process, each once."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make, self._lock, self._found = make, threading.Lock(), dict[Any, Any]()

    def __call__(self, *paths: str | None) -> Any:
        key = tuple(None if path is None else os.path.realpath(Path(path).expanduser()) for path in paths)
        with self._lock:
            if key not in self._found:
                self._found[key] = self._make(*paths)
            return self._found[key]

    def clear(self) -> list[Any]:
        """Forgets everything; what was open."""
        with self._lock:
            found = list(self._found.values())
            self._found.clear()
        return found


def _open_index(index: str, encoder: str | None) -> Index:
    return Index.open(index, None if encoder is None else embedder_at(encoder))


_runs, _texts = _Opened(opened), _Opened(lambda path: LocalTexts(run_at(path)))
_embedders, _indices = _Opened(opened_embedder), _Opened(_open_index)


def run_at(path: str) -> Run:
    """The run at a path, opened once."""
    return _runs(path)


def texts_at(path: str) -> LocalTexts:
    """What writes texts of the run at a path, opened once."""
    return _texts(path)


def embedder_at(path: str) -> Embedder:
    """The encoder at a path, opened once."""
    return _embedders(path)


def index_at(index: str, encoder: str | None) -> Index:
    """The index in a folder, opened once."""
    return _indices(index, encoder)


def close_all() -> None:
    """Ends the threads of all runs that were opened, and forgets everything; what is asked later is opened again."""
    for texts in _texts.clear():
        texts.close()
    for opened_things in (_runs, _embedders, _indices):
        opened_things.clear()


# Settings.


class Asking(BaseModel):
    """Settings of a text, which the chat model and the LLM share.

    Attributes:
      model: folder of a run, or of a model of the library transformers, or a GGUF file; by default $GENJAX_MODEL.
      temperature: 0 takes the likeliest token; None takes the run's.
      top_p: probability mass of the likeliest tokens that are kept; None takes the run's.
      max_tokens: largest number of new tokens; by default the rest of the context, and 256 at most.
      stop: texts that end an answer before them.
      seed: the same seed gives the same text; None takes another one each time.
      n: number of texts.
      logprobs: whether log-probabilities of the tokens are told, in nats.
      top_logprobs: number of likeliest tokens that are told in each place.
      timeout: seconds in which an answer must have come.
      max_retries: how often it is tried again when too many texts wait.
      streaming: whether `invoke` streams too, so that callbacks see the tokens.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    seed: int | None = None
    n: int = Field(default=1, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = None
    timeout: float | None = Field(default=None, gt=0)
    max_retries: int = Field(default=2, ge=0)
    streaming: bool = False

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        """Fills in the model, leaves out a key, which no model in this process asks for, and refuses unknown names."""
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name != "api_key"}
            if "model" not in values:
                if not os.environ.get(MODEL_VARIABLE):
                    raise ConfigError(f"give {cls.__name__} a model: the folder of a run, here or as ${MODEL_VARIABLE}")
                values["model"] = os.environ[MODEL_VARIABLE]
            for name in values:
                if name not in cls.model_fields:
                    raise ConfigError(f"{cls.__name__} has no setting {name!r}{suggestion(name, cls.model_fields)}")
        return values

    def fields(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The model that is asked, and the fields of the request but its text.

        Args:
          stop: texts of the call that take the place of the settings'.
          given: fields of the call that take the place of the settings'.
        """
        own = ("temperature", "top_p", "max_tokens", "seed", "top_logprobs")
        fields: dict[str, Any] = {name: getattr(self, name) for name in own}
        fields |= {"n": self.n, "logprobs": self.logprobs or None, "stop": list(stop or self.stop or [])}
        fields |= given
        model = fields.pop("model", None) or self.model
        fields.pop("stream", None)
        return model, {name: value for name, value in fields.items() if value is not None}

    def identity(self) -> dict[str, Any]:
        """Everything that decides the texts."""
        names = ("model", "temperature", "top_p", "max_tokens", "stop", "seed", "n")
        return {name: getattr(self, name) for name in names}

    def trying(self, ask: Callable[[], Result]) -> Result:
        """The result of a call, which is tried again while too many texts wait."""
        for attempt in range(self.max_retries):
            with contextlib.suppress(BusyError):
                return ask()
            time.sleep(0.5 * 2**attempt)
        return ask()


# Messages.


def as_requested(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Messages as a request has them; a message with pictures has a list of parts, any other a text.

    Raises:
      ConfigError: a message has a role that is not known, or parts that are neither text nor pictures.
    """
    return [_as_requested(message, f"message {number}") for number, message in enumerate(messages)]


def _as_requested(message: BaseMessage, place: str) -> dict[str, Any]:
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(message.type)
    if role is None:
        raise ConfigError(f"{place} is of the type {message.type}, and known are {', '.join(_ROLES)}")
    found: dict[str, Any] = {"role": role, "content": _content_of(message.content, place)}
    if isinstance(message, AIMessage) and message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["args"], ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    return found


def _content_of(content: str | Sequence[Any], place: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": part["text"]})
        elif kind in ("image", "image_url"):
            parts.append(_picture_of(part, place))
        elif kind not in _NO_TEXT:
            raise ConfigError(f"{place} has a part of the type {kind}, and the models read text and pictures alone")
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _picture_of(part: dict[str, Any], place: str) -> dict[str, Any]:
    """A picture of any form that LangChain knows as a request has it; its content is read with the request."""
    if isinstance(part.get("image_url"), str):
        part = {"type": "image_url", "image_url": {"url": part["image_url"]}}
    try:
        (block,) = HumanMessage([part]).content_blocks
        return convert_to_openai_image_block(dict(block))
    except ValueError:
        raise ConfigError(
            f"{place} has a picture without its content: give base64 and mime_type, or a data: URL"
        ) from None


def usage_of(answer: Mapping[str, Any]) -> UsageMetadata | None:
    """Numbers of tokens of an answer, or of the last chunk of one."""
    usage = answer.get("usage")
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        total_tokens=usage["total_tokens"],
    )


def as_message(choice: Mapping[str, Any], model: str, usage: UsageMetadata | None) -> AIMessage:
    """A choice of an answer as a message."""
    message = choice["message"]
    calls = [
        tool_call(name=call["function"]["name"], args=json.loads(call["function"]["arguments"]), id=call["id"])
        for call in message.get("tool_calls", ())
    ]
    return AIMessage(
        content=message["content"] or "",
        tool_calls=calls,
        usage_metadata=usage,
        response_metadata={"model_name": model, **told(choice)},
    )


def told(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a text beside it: why it has ended, and log-probabilities."""
    return {name: choice[name] for name in ("finish_reason", "logprobs") if choice.get(name) is not None}


def as_chunks(chunks: Iterator[Mapping[str, Any]], model: str) -> Iterator[tuple[AIMessageChunk, dict[str, Any]]]:
    """Chunks of an answer of one choice as messages, with what is told of each; the last has the numbers of tokens."""
    reader = ChunkReader(model)
    for chunk in chunks:
        yield from reader.read(chunk)
    yield reader.last()


class ChunkReader:
    """Reads the chunks of an answer of one choice as messages."""

    def __init__(self, model: str) -> None:
        self._ending: dict[str, Any] = {"model_name": model}
        self._usage: UsageMetadata | None = None

    def read(self, chunk: Mapping[str, Any]) -> list[tuple[AIMessageChunk, dict[str, Any]]]:
        """The message of a chunk, with what is told of it; none where nothing is new."""
        self._usage = usage_of(chunk) or self._usage
        if not chunk["choices"]:
            return []
        choice = chunk["choices"][0]
        if choice["finish_reason"] is not None:
            self._ending["finish_reason"] = choice["finish_reason"]
        delta, logprobs = choice["delta"], choice["logprobs"]
        calls = [
            tool_call_chunk(
                name=call["function"]["name"], args=call["function"]["arguments"], id=call["id"], index=call["index"]
            )
            for call in delta.get("tool_calls", ())
        ]
        if not delta.get("content") and not calls and logprobs is None:
            return []
        message = AIMessageChunk(content=delta.get("content") or "", tool_call_chunks=calls)
        return [(message, {} if logprobs is None else {"logprobs": logprobs})]

    def last(self) -> tuple[AIMessageChunk, dict[str, Any]]:
        """The end, which has the numbers of tokens."""
        message = AIMessageChunk(content="", usage_metadata=self._usage, chunk_position="last")
        return message, self._ending
