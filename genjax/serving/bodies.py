"""What the bodies of requests may say, and errors that say in one sentence what was wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from genjax.config import suggestion
from genjax.errors import UserError

#: Fields of the OpenAI interface that change nothing here.
IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
)


class RequestError(UserError):
    """A request that cannot be answered; `as_json` is the error in the form of the OpenAI interface.

    Attributes:
      status: status of HTTP.
      param: the field that is wrong, or None.
      code: a word for programs, or None.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 403: "permission_error", 503: "overloaded_error"}.get(self.status, kind)
        message = " ".join(str(self).split())
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


class Body:
    """The fields of a request, each taken with its type and its bounds."""

    def __init__(self, content: bytes, known: Collection[str] | None) -> None:
        """Reads an object of JSON.

        Args:
          content: the body.
          known: names of fields that may be there; None for any.

        Raises:
          RequestError: it is none, or has a field that is not `known`.
        """
        try:
            fields = json.loads(content, parse_constant=_refuse_constant)
        except RecursionError:
            raise RequestError("the body has arrays or objects within each other too deep to be read") from None
        except ValueError:
            raise RequestError("the body is not JSON") from None
        if not isinstance(fields, dict):
            raise RequestError(f"the body must be an object of JSON, and not {name_of(fields)}")
        # null stands for a field that is left out.
        self.fields = {name: value for name, value in fields.items() if value is not None}
        for name in self.fields:
            if known is not None and name not in known and name not in IGNORED:
                raise RequestError(f"there is no field {name!r}{suggestion(name, known)}", param=name)

    def text(self, name: str, default: str | None = None) -> Any:
        """A text.

        Raises:
          RequestError: it is something else, or missing without a default.
        """
        return self._of(name, str, "a text", default)

    def flag(self, name: str) -> bool:
        """True or false; false where it is left out."""
        return self._of(name, bool, "true or false", False)

    def integer(self, name: str, default: int | None, low: int, high: int) -> Any:
        """An integer between two bounds."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise RequestError(f"{name} must be an integer, and not {name_of(value)}", param=name)
        if value is not None and not low <= value <= high:
            raise RequestError(f"{name}={shown(value)} must be between {low} and {high}", param=name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number between two bounds."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError(f"{name} must be a number, and not {name_of(value)}", param=name)
        if not low <= value <= high:
            raise RequestError(f"{name}={shown(value)} must be between {low:g} and {high:g}", param=name)
        return float(value)

    def choice(self, name: str, default: str, options: Sequence[str]) -> str:
        """One of several words."""
        value = self.fields.get(name, default)
        if value not in options:
            raise RequestError(f"{name} must be one of {', '.join(options)}", param=name)
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """A text or a list of at most `most` texts, as a list; empty where it is left out."""
        value = self.fields.get(name, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise RequestError(f"{name} must be a text or a list of texts", param=name)
        if len(value) > most:
            raise RequestError(f"{name} has {len(value)} texts, and at most {most} are allowed", param=name)
        return value

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """A list of finite numbers, or None where it is left out."""
        if name not in self.fields:
            return None
        value = self.fields[name]
        is_number = lambda each: isinstance(each, int | float) and not isinstance(each, bool) and abs(each) <= 1e6
        if not isinstance(value, list) or not all(map(is_number, value)):
            raise RequestError(f"{name} must be a list of numbers between -1e6 and 1e6", param=name)
        return tuple(map(float, value))

    def object(self, name: str) -> dict[str, Any] | None:
        """An object, or None where it is left out."""
        return self._of(name, dict, "an object", {}) if name in self.fields else None

    def refuse(self, name: str, neutral: Any, reason: str) -> None:
        """Refuses a field of the interface that is not served, unless it asks for nothing."""
        if self.fields.get(name, neutral) != neutral:
            raise RequestError(f"{name} is not served: {reason}", param=name)

    def _of(self, name: str, kind: type, what: str, default: Any) -> Any:
        value = self.fields.get(name, default)
        if value is None:
            raise RequestError(f"{name} is missing; it is {what}", param=name)
        if not isinstance(value, kind):
            raise RequestError(f"{name} must be {what}, and not {name_of(value)}", param=name)
        return value


def messages_of(messages: Any) -> list[dict[str, Any]]:
    """The messages of a chat, each with role and content as text.

    Raises:
      RequestError: there are none, or a message has another role or another content.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message with role and content", param="messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _message(message: Any, place: str) -> dict[str, Any]:
    roles = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
    if not isinstance(message, Mapping):
        raise RequestError(f"{place} must be an object with role and content", param=place)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in roles:
        raise RequestError(f"{place}.role must be one of {', '.join(roles)}, and not {shown(role)}", param=place)
    if isinstance(content, list):
        content = "".join(_text_of(part, f"{place}.content[{number}]") for number, part in enumerate(content))
    called = message.get("tool_calls") or []
    if role == "assistant" and called:
        content = "\n".join([*([content] if content else []), *(_call(call, place) for call in called)])
    if not isinstance(content, str):
        raise RequestError(f"{place}.content must be a text, and not {name_of(content)}", param=place)
    return {"role": roles[role], "content": content}


def _text_of(part: Any, place: str) -> str:
    """The text of a part of a message."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RequestError(
            f"{place} must be a part of the type text, and not {shown(kind)}; the model reads text alone", param=place
        )
    return part["text"]


def _call(call: Any, place: str) -> str:
    """A call of a tool as the model writes it."""
    try:
        function = call["function"]
        return call_as_text(function["name"], json.loads(function["arguments"]))
    except (TypeError, KeyError, ValueError):
        raise RequestError(f"{place}.tool_calls must have functions with name and arguments", param=place) from None


def call_as_text(name: str, arguments: Any) -> str:
    """How a model writes the call of a tool."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def name_of(value: Any) -> str:
    """The type of a value of JSON, in words."""
    kinds = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return "nothing" if value is None else kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """The beginning of a value, for messages."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _refuse_constant(name: str) -> float:
    # NaN and Infinity are not JSON.
    raise ValueError


def finite(number: float) -> float | None:
    """A number for JSON, which has no infinities."""
    return number if math.isfinite(number) else None
