"""What a text must look like: a regular expression, JSON of a schema, or the call of a tool."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from genjax.decoding.json_schema import ANY_OBJECT, escaped, pattern_of_schema
from genjax.errors import UserError
from genjax.serving.bodies import Body, RequestError, shown

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Format(NamedTuple):
    """What the texts of a request must look like.

    Attributes:
      pattern: regular expression of the whole text, or None.
      tools: names of the tools that may be called; empty where none may.
      schemas: the tools as the request describes them, for the template of the chat.
    """

    pattern: str | None = None
    tools: tuple[str, ...] = ()
    schemas: tuple[Any, ...] = ()


class Call(NamedTuple):
    """The call of a tool: its name, and its arguments as JSON."""

    name: str
    arguments: str


def format_of(body: Body) -> Format:
    """The format that a request asks for.

    Raises:
      RequestError: it is none that is known, or two are asked for.
      UserError: a schema has what no automaton can check.
    """
    given = body.object("response_format") or {"type": "text"}
    kind = given.get("type")
    tools = _tools(body)
    if kind not in ("text", "json_object", "json_schema"):
        raise RequestError("response_format.type must be text, json_object or json_schema", param="response_format")
    patterns = [] if "regex" not in body.fields else [body.text("regex")]
    if kind == "json_object":
        patterns.append(ANY_OBJECT)
    if kind == "json_schema":
        described = given.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if not isinstance(schema, dict):
            raise RequestError("response_format.json_schema.schema must be an object", param="response_format")
        patterns.append(_pattern(schema, "response_format"))
    choice = body.fields.get("tool_choice", "auto" if tools else "none")
    if choice == "none":
        tools = {}
    elif not tools:
        raise RequestError("tool_choice needs tools", param="tool_choice")
    elif choice != "auto":
        patterns.append(_pattern_of_call(tools, choice))
    if len(patterns) > 1:
        raise RequestError("give one of regex, response_format and tool_choice, and not several", param="regex")
    schemas = tuple(tool for tool, _ in tools.values())
    return Format(patterns[0] if patterns else None, tuple(tools), schemas)


def call_of(text: str, form: Format) -> Call | None:
    """The call that a text is, or None if it is none of a tool that may be called."""
    if not form.tools or not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"name", "arguments"} or value["name"] not in form.tools:
        return None
    if not isinstance(value["arguments"], dict):
        return None
    return Call(value["name"], json.dumps(value["arguments"], ensure_ascii=False))


def _tools(body: Body) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each tool as it is described, and the schema of its arguments, by name."""
    given = body.fields.get("tools", [])
    if not isinstance(given, list) or len(given) > 128:
        raise RequestError("tools must be a list of at most 128 functions", param="tools")
    found = {}
    for place, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RequestError(
                f"tools[{place}] must have the type function, and a function with a name of letters, digits, _ and -",
                param="tools",
            )
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        if name in found or not isinstance(schema, dict):
            raise RequestError(f"tools[{place}] must have a name of its own and parameters of an object", param="tools")
        found[name] = (tool, schema)
    return found


def _pattern_of_call(tools: dict[str, tuple[Any, dict[str, Any]]], choice: Any) -> str:
    """A pattern of calls: of any tool, or of the one that is chosen."""
    names = list(tools)
    if choice != "required":
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if name not in names:
            raise RequestError(
                f"tool_choice must be none, auto, required, or a function out of {shown(', '.join(names))}",
                param="tool_choice",
            )
        names = [name]
    calls = (
        rf'\{{"name": "{escaped(name)}", "arguments": {_pattern(tools[name][1], f"the tool {name}")}\}}'
        for name in names
    )
    return f"({'|'.join(calls)})"


def _pattern(schema: dict[str, Any], what: str) -> str:
    try:
        return pattern_of_schema(schema)
    except UserError as error:
        raise RequestError(f"the schema of {what} cannot be obeyed: {error}", param=what) from None
