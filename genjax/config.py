"""Experiments as dataclass trees: a registry of names, typed flags, overrides, and JSON.

A configuration is a frozen dataclass whose fields are numbers, strings, enums, tuples of these, other frozen
dataclasses, or a choice between dataclasses (a union of them, or a base class with subclasses).  From the annotations
alone this file makes one absl flag per field, replaces fields by path (`model.latent_dim`), and writes and reads JSON.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from absl import flags


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one sentence for the user."""


# ----------------------------------------------------------------------------------------------------------------------
# Registry


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered experiment.

    Attributes:
      name: what `--experiment` takes.
      build: returns the experiment with its defaults.
      source: the paper, or where the set-up comes from.
      expected: the numbers that it is expected to reach, with their units.
      shrunk: overrides by path that make it run in seconds on embedded data, for tests.
    """

    name: str
    build: Callable[[], Any]
    source: str
    expected: str
    shrunk: Mapping[str, Any]


_registry: dict[str, Entry] = {}


def register(
    name: str, *, source: str, expected: str, shrunk: Mapping[str, Any] | None = None
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a function that returns an experiment; its docstring states command, run time and numbers.

    Args:
      name: what `--experiment` takes, unique.
      source: citation.
      expected: expected result in a few words.
      shrunk: overrides by path that make the experiment run in seconds on embedded data.

    Raises:
      ConfigError: another function has the name already.
    """

    def decorate(build: Callable[[], Any]) -> Callable[[], Any]:
        if name in _registry and _registry[name].build.__code__.co_filename != build.__code__.co_filename:
            raise ConfigError(f"two experiments are registered under the name {name!r}")
        _registry[name] = Entry(name, build, source, expected, shrunk or {})
        return build

    return decorate


def import_experiments(package: str = "experiments.configs") -> dict[str, Entry]:
    """Imports every module of `package`, and returns what is registered, by name."""
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"{package}.{info.name}")
    return dict(sorted(_registry.items()))


def load_file(path: str | Path) -> types.ModuleType:
    """Imports a Python file that lies outside the project, once."""
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; an experiment of your own is given as path/to/file.py:function")
    # A name made of the path, so that annotations resolve and a second file of the same name does not collide.
    name = f"genjax_experiment_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def find_experiment(name: str) -> Entry:
    """The experiment registered under a name, or the one of `path/to/file.py:function`.

    Raises:
      ConfigError: there is none of that name; the closest names are told.
    """
    if ".py" in name:
        path, _, function = name.partition(":")
        module = load_file(path)
        candidates = [
            n for n, v in vars(module).items() if isinstance(v, types.FunctionType) and v.__module__ == module.__name__
        ]
        if function not in candidates:
            raise ConfigError(
                f"{path} has no function {function or '(none named)'!r}; give path/to/file.py:function, "
                f"with one of {', '.join(candidates) or '(no function is defined there)'}"
            )
        build = getattr(module, function)
        registered = next((e for e in _registry.values() if e.build is build), None)
        return registered or Entry(name, build, "", "", {})
    entries = import_experiments()
    if name not in entries:
        raise ConfigError(f"there is no experiment {name!r}{_suggest(name, entries)}; --list prints them all")
    return entries[name]


def _suggest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


# ----------------------------------------------------------------------------------------------------------------------
# Types


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _members(hint: Any) -> tuple[Any, ...]:
    """Members of a union, or the hint alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_dataclass_type(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


def snake_case(name: str) -> str:
    """VectorQuantizer -> vector_quantizer; SGD -> sgd."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def choices(hint: Any) -> dict[str, type]:
    """The dataclasses that a field may hold, by the name that its flag takes."""
    found = {}
    for member in _members(hint):
        if _is_dataclass_type(member):
            for cls in _subclasses(member):
                if not (cls.__name__.startswith("_") or inspect.isabstract(cls)):
                    found[snake_case(cls.__name__)] = cls
    return found


def type_name(hint: Any) -> str:
    """A type as a user reads it."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(m.name.lower() for m in hint)
    if options := choices(hint):
        return "one of " + ", ".join(options) + (", none" if type(None) in _members(hint) else "")
    members = _members(hint)
    if len(members) > 1:
        return " or ".join("none" if m is type(None) else type_name(m) for m in members)
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        if args[-1] is Ellipsis:
            return f"comma-separated {type_name(args[0])} values"
        return f"{len(args)} comma-separated values ({', '.join(map(type_name, args))})"
    return getattr(hint, "__name__", str(hint))


def parse(hint: Any, text: str) -> Any:
    """Reads a value of a type from a command line.

    Raises:
      ConfigError: the text is not of that type.
    """
    members = _members(hint)
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
        # 1e5 is how people write a number of steps.
        value = float(text) if re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d+", text) else int(text)
        if value != int(value):
            raise ValueError
        return int(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            if text.lower() in (member.name.lower(), str(member.value).lower()):
                return member
        raise ValueError
    if hint in (float, str):
        return hint(text)
    raise ValueError


def check(hint: Any, value: Any) -> bool:
    """Whether a Python value fits an annotation."""
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    members = _members(hint)
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


# ----------------------------------------------------------------------------------------------------------------------
# Trees of dataclasses


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (path, annotation, value) of every field that is no dataclass, and of every choice between dataclasses."""
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        value, hint, path = getattr(config, field.name), hints[field.name], prefix + field.name
        options = choices(hint)
        if not dataclasses.is_dataclass(value) or len(options) > 1 or (options and type(None) in _members(hint)):
            yield path, hint, value
        if dataclasses.is_dataclass(value):
            yield from leaves(value, path + ".")


def override(config: Any, path: str, value: Any, *, text: bool = False) -> Any:
    """Returns a copy with the field at `path` replaced.

    Args:
      config: a dataclass.
      path: field names joined by dots.
      value: the new value; a string is read as the command line reads it, if `text` or the field holds no string.
      text: whether the value comes from a command line.

    Raises:
      ConfigError: there is no such field, or the value is not of its type.
    """
    return _override(config, path, path, value, text)


def _override(config: Any, rest: str, path: str, value: Any, text: bool) -> Any:
    name, _, rest = rest.partition(".")
    names = [f.name for f in dataclasses.fields(config)]
    if name not in names:
        raise ConfigError(
            f"{type(config).__name__} has no field {name!r} (in {path}){_suggest(name, names)}; "
            f"its fields are {', '.join(names)}"
        )
    hint, current = _hints(type(config))[name], getattr(config, name)
    if rest:
        if not dataclasses.is_dataclass(current):
            raise ConfigError(f"{path}: {name} is {current!r} and has no fields")
        new = _override(current, rest, path, value, text)
    elif isinstance(value, str) and choices(hint) and not check(hint, value):
        new = _choose(hint, current, path, value)
    elif isinstance(value, str) and (text or not check(hint, value)):
        try:
            new = parse(hint, value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    elif check(hint, value):
        new = value
    else:
        raise ConfigError(f"{path}: {value!r} is not {type_name(hint)}")
    return dataclasses.replace(config, **{name: new})


def _choose(hint: Any, current: Any, path: str, name: str) -> Any:
    if name.lower() == "none" and type(None) in _members(hint):
        return None
    options = choices(hint)
    chosen = next((c for n, c in options.items() if n.replace("_", "") == name.lower().replace("_", "")), None)
    if chosen is None:
        raise ConfigError(f"{path}: {name!r} is not one of {', '.join(options)}{_suggest(name, options)}")
    if type(current) is chosen:
        return current
    # What was set on purpose and exists in both stays: a new optimizer keeps the learning rate.
    kept = {}
    if current is not None:
        names = {f.name for f in dataclasses.fields(chosen) if f.init}
        for field in dataclasses.fields(current):
            value = getattr(current, field.name)
            if field.name in names and value != field.default:
                kept[field.name] = value
    try:
        return chosen(**kept)
    except TypeError as error:
        raise ConfigError(f"{path}={name} needs fields that have no default ({error})") from None


def apply_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Applies overrides by path, shorter paths first, so that a choice comes before the fields of what is chosen."""
    for path in sorted(overrides, key=lambda p: p.count(".")):
        config = override(config, path, overrides[path])
    return config


def fill_none(config: Any, values: Mapping[str, Any]) -> Any:
    """Returns a copy in which every field that is None and whose name is in `values` takes that value, at any depth."""
    changes = {}
    for field in dataclasses.fields(config):
        current = getattr(config, field.name)
        if current is None and field.name in values:
            changes[field.name] = values[field.name]
        elif dataclasses.is_dataclass(current):
            filled = fill_none(current, values)
            if filled is not current:
                changes[field.name] = filled
    return dataclasses.replace(config, **changes) if changes else config


def differences(old: Any, new: Any) -> list[str]:
    """The fields in which two configurations differ, one sentence part each, e.g. 'model.latent_dim (16, now 32)'."""

    def flat(config: Any) -> dict[str, Any]:
        rows = {"": type(config).__name__}
        for path, _, value in leaves(config):
            rows[path] = type(value).__name__ if dataclasses.is_dataclass(value) else value
        return rows

    a, b = flat(old), flat(new)
    return [
        f"{path or 'class'} ({a.get(path, 'absent')}, now {b.get(path, 'absent')})"
        for path in {**a, **b}
        if a.get(path, "absent") != b.get(path, "absent")
    ]


# ----------------------------------------------------------------------------------------------------------------------
# JSON


def to_json(value: Any) -> Any:
    """A configuration as JSON values; dataclasses carry the place of their class."""
    if dataclasses.is_dataclass(value):
        module = type(value).__module__
        if module.startswith("genjax_experiment_"):
            module = sys.modules[module].__file__
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{module}:{type(value).__qualname__}", **fields}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    return value


def from_json(value: Any, hint: Any = Any) -> Any:
    """The inverse of `to_json`.

    Raises:
      ConfigError: a class or a field does not exist any more.
    """
    if isinstance(value, dict) and "class" in value:
        place, _, name = value["class"].partition(":")
        try:
            module = load_file(place) if place.endswith(".py") else importlib.import_module(place)
            cls = functools.reduce(getattr, name.split("."), module)
        except (ImportError, AttributeError):
            raise ConfigError(f"the saved configuration names {value['class']}, which does not exist here") from None
        hints = _hints(cls)
        unknown = set(value) - set(hints) - {"class"}
        if unknown:
            raise ConfigError(f"the saved configuration has fields that {name} does not know: {', '.join(unknown)}")
        return cls(**{k: from_json(v, hints[k]) for k, v in value.items() if k != "class"})
    if isinstance(value, list):
        for member in _members(hint):
            if typing.get_origin(member) is tuple:
                args = typing.get_args(member)
                inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
                return tuple(from_json(v, h) for v, h in zip(value, inner, strict=True))
        return tuple(from_json(v) for v in value)
    for member in _members(hint):
        if isinstance(member, type) and issubclass(member, enum.Enum) and isinstance(value, str):
            return member[value]
    return value


# ----------------------------------------------------------------------------------------------------------------------
# Flags


class _Parser(flags.ArgumentParser):
    def __init__(self, hint: Any) -> None:
        self._hint = hint
        self.syntactic_help = type_name(hint)

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        if choices(self._hint):
            return argument
        return parse(self._hint, argument)

    def flag_type(self) -> str:
        return type_name(self._hint)


def _field_help(config: Any, name: str) -> str:
    """What the class docstring says of a field under `Attributes:`, here or in a base class."""
    for cls in type(config).__mro__:
        match = re.search(rf"^\s*{name}: (.*?)(?=^\s*\w+: |\Z)", cls.__doc__ or "", re.MULTILINE | re.DOTALL)
        if match:
            return " ".join(match.group(1).split())
    return ""


def define_flags(config: Any, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one typed flag per field of a dataclass tree, named by its path; all of them default to None."""
    for path, hint, value in leaves(config):
        if path in flag_values:
            continue
        *parents, name = path.split(".")
        owner = functools.reduce(getattr, parents, config)
        shown = snake_case(type(value).__name__) if dataclasses.is_dataclass(value) else value
        text = f"{_field_help(owner, name)} ({type_name(hint)}; here {shown})"
        if hint is bool:
            flags.DEFINE_boolean(path, None, text, flag_values=flag_values)
        else:
            flags.DEFINE(_Parser(hint), path, None, text, flag_values=flag_values, serializer=None)


def flag_overrides(config: Any, arguments: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> Any:
    """Defines flags for a configuration, chosen dataclasses included, and parses a command line into a new one.

    Args:
      config: the configuration whose values are the defaults.
      arguments: command line with the program's name first.
      flag_values: where the flags are defined; other flags (`--experiment`) may be there already.

    Returns:
      The configuration with the command line's values.

    Raises:
      absl.flags.Error: an unknown flag or a value of the wrong type.
      ConfigError: a choice that does not exist.
    """
    # Choices first, outermost first: which flags exist depends on them.
    given = {}
    for i, argument in enumerate(arguments[1:], start=1):
        match = re.fullmatch(r"--?([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if match:
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            given[match.group(1)] = match.group(2) if match.group(2) is not None else following
    for _ in range(8):
        chosen = config
        for path, hint, value in leaves(config):
            if path in given and choices(hint):
                current = snake_case(type(value).__name__) if value is not None else "none"
                if given[path] != current:
                    chosen = override(chosen, path, given[path], text=True)
        if chosen == config:
            break
        config = chosen
    define_flags(config, flag_values)
    # Unknown flags are an error here; absl suggests the closest names.
    remaining = flag_values(arguments)
    if len(remaining) > 1:
        raise ConfigError(f"unexpected argument {remaining[1]!r}; flags are written --name=value")
    for path, hint, _ in list(leaves(config)):
        if path in flag_values and flag_values[path].present and not choices(hint):
            config = override(config, path, flag_values[path].value)
    return config
