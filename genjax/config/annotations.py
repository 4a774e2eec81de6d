"""Annotations of dataclass fields: how a value is named, read from a command line, and checked."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Union

from genjax.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be used; the message is one sentence for the user."""


def check_at_least(options: Any, **bounds: float) -> None:
    """Checks that fields of a dataclass are not below their smallest values; fields that are None pass.

    Raises:
      ConfigError: a field is below its bound.
    """
    for name, bound in bounds.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ConfigError(f"{name}={value} must be at least {bound}")


def check_named(options: Any, *names: str) -> None:
    """Checks that fields with the names of files are not empty; fields that are None pass.

    Raises:
      ConfigError: a field is empty, or has an empty name.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not (value and all(value)):
            raise ConfigError(f"--{name}= names no file; write --{name}=FILE")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Text to append to an error about an unknown word: the closest known words, or nothing."""
    return _did_you_mean(difflib.get_close_matches(word, list(known), n=3, cutoff=0.5))


def path_suggestion(path: str, known: Iterable[str]) -> str:
    """`suggestion` for a path of names: known paths that share its last name, are close, or
    have it as initials or word.

    model.lr -> model.optimizer.learning_rate; steps -> training.num_steps.
    """
    known = list(known)
    name = path.rpartition(".")[2]
    words = {other: other.rpartition(".")[2].split("_") for other in known}
    guesses = (
        lambda: [other for other in known if "_".join(words[other]) == name],
        lambda: difflib.get_close_matches(path, known, n=3, cutoff=0.9),
        lambda: [other for other in known if "".join(word[:1] for word in words[other]) == name],
        lambda: [other for other in known if name in words[other]],
        lambda: difflib.get_close_matches(path, known, n=3, cutoff=0.6),
    )
    found = next(filter(None, (guess() for guess in guesses)), [])
    # Paths in the same part of the experiment come first, then the shortest paths.
    part = path.partition(".")[0]
    found.sort(key=lambda other: (other.partition(".")[0] != part, other.count("."), len(words[other])))
    return _did_you_mean(found[:3])


def _did_you_mean(words: list[str]) -> str:
    return f"; did you mean {' or '.join(words)}?" if words else ""


#: Annotations of a class by field name, resolved.
type_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def union_members(hint: Any) -> tuple[Any, ...]:
    """Members of a union, or the hint alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_dataclass_type(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


def snake_case(name: str) -> str:
    """VectorQuantizer -> vector_quantizer; SGD -> sgd."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def choice_name(cls: type) -> str:
    """The value of a flag that chooses a dataclass: its own `flag_name` if it has one (lora for
    LoRA), else snake case.
    """
    return vars(cls).get("flag_name") or snake_case(cls.__name__)


def former_names(cls: type) -> tuple[str, ...]:
    """Names that a class had in older saved configurations, from its `former_names`."""
    return vars(cls).get("former_names", ())


def choices(hint: Any) -> dict[str, type]:
    """The dataclasses that a field may hold, by the name that its flag takes."""
    found = {}
    for member in union_members(hint):
        if is_dataclass_type(member):
            for cls in _subclasses(member):
                if not (cls.__name__.startswith("_") or inspect.isabstract(cls)):
                    found[choice_name(cls)] = cls
    return found


_PLAIN_TYPES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "integers", float: "numbers", str: "words"}


def type_name(hint: Any) -> str:
    """A type as a user reads it."""
    if typing.get_origin(hint) is Literal:
        return "one of " + _options(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(m.name.lower() for m in hint)
    if options := choices(hint):
        return "one of " + ", ".join(options) + (", none" if type(None) in union_members(hint) else "")
    members = union_members(hint)
    if len(members) > 1:
        words = {type(None): ["none"], bool: ["true", "false"]}
        words |= {m: list(map(str, typing.get_args(m))) for m in members if typing.get_origin(m) is Literal}
        *names, last = [name for member in members for name in words.get(member, [type_name(member)])]
        return f"{', '.join(names)} or {last}"
    if typing.get_origin(hint) is tuple:
        return _tuple_name(typing.get_args(hint))
    return str(_PLAIN_TYPES.get(hint) or getattr(hint, "__name__", hint))


def _options(hint: Any) -> str:
    return ", ".join(map(str, typing.get_args(hint)))


def _tuple_name(args: tuple[Any, ...]) -> str:
    first, *rest = args
    if rest == [Ellipsis] and typing.get_origin(first) is Literal:
        return f"any of {_options(first)}, separated by commas"
    if first in _PLURALS and set(rest) <= {first, Ellipsis}:
        count = "" if rest == [Ellipsis] else f"{len(args)} "
        return f"{count}{_PLURALS[first]} separated by commas"
    return f"{len(args)} values separated by commas: {', '.join(map(type_name, args))}"


def format_value(value: Any) -> str:
    """A value as a flag takes it."""
    if dataclasses.is_dataclass(value):
        return choice_name(type(value))
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return ",".join(map(format_value, value)) or "()"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value) or "''"


def parse(hint: Any, text: str) -> Any:
    """Reads a value of a type from a command line.

    Raises:
      ConfigError: the text is not of that type.
    """
    members = union_members(hint)
    if type(None) in members and text.lower() in ("none", "null"):
        return None
    for member in members:
        if member is type(None):
            continue
        try:
            return _parse_one(member, text)
        except ValueError:
            continue
    raise ConfigError(f"{text!r} is not {type_name(hint)}")


def _parse_one(hint: Any, text: str) -> Any:
    if typing.get_origin(hint) is Literal:
        for option in typing.get_args(hint):
            if str(option) == text:
                return option
        raise ValueError
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        parts = [p.strip() for p in text.strip().strip("()[]").split(",") if p.strip()]
        if args[-1] is Ellipsis:
            return tuple(parse(args[0], p) for p in parts)
        if len(parts) != len(args):
            raise ValueError
        return tuple(parse(a, p) for a, p in zip(args, parts, strict=True))
    if hint is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ValueError
        return words[text.lower()]
    if hint is int:
        # People write a number of steps as 1e5.
        value = float(text) if re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d+", text) else int(text)
        if not -(2**63) <= value < 2**63 or value != int(value):
            raise ValueError
        return int(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            if text.lower() in (member.name.lower(), str(member.value).lower()):
                return member
        raise ValueError
    if hint is float:
        value = float(text)
        if math.isnan(value):
            raise ValueError
        return value
    if hint is str:
        return text
    raise ValueError


def check(hint: Any, value: Any) -> bool:
    """Whether a Python value fits an annotation."""
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    members = union_members(hint)
    if len(members) > 1:
        return any(check(m, value) for m in members)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(check(args[0], v) for v in value)
        return len(args) == len(value) and all(check(a, v) for a, v in zip(args, value, strict=True))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) and not getattr(hint, "_is_protocol", False) else True
