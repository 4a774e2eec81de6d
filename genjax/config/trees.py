"""Trees of dataclasses: their leaves by path, overrides, and JSON."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from genjax.config.annotations import (
    ConfigError,
    check,
    choices,
    former_names,
    parse,
    path_suggestion,
    snake_case,
    suggestion,
    type_hints,
    type_name,
    union_members,
)
from genjax.config.registry import load_file


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (path, annotation, value) of every field that is no dataclass, and of every choice between dataclasses."""
    hints = type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint, path = getattr(config, field.name), hints[field.name], prefix + field.name
        options = choices(hint)
        if not dataclasses.is_dataclass(value) or len(options) > 1 or (options and type(None) in union_members(hint)):
            yield path, hint, value
        if dataclasses.is_dataclass(value):
            yield from leaves(value, path + ".")


def renamed_fields(cls: type) -> dict[str, str]:
    """New names of fields by their names in older saved configurations, from `renamed` of a class and its bases."""
    return {old: new for base in cls.__mro__ for old, new in vars(base).get("renamed", {}).items()}


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
    return _apply(config, {path: value}, "", text)


def apply_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Applies overrides by path: a choice before the fields of the chosen dataclass, and all
    fields of a dataclass at once.

    So checks that relate two fields (in `__post_init__`) see both of them changed, in whatever order they are given.

    Raises:
      ConfigError: see `override`.
    """
    return _apply(config, overrides, "", text=False)


def _apply(config: Any, overrides: Mapping[str, Any], prefix: str, text: bool) -> Any:
    by_name: dict[str, dict[str, Any]] = {}
    for path, value in overrides.items():
        name, _, rest = path.partition(".")
        by_name.setdefault(name, {})[rest] = value
    hints, names = type_hints(type(config)), [f.name for f in dataclasses.fields(config)]
    changes = {}
    for name, below in by_name.items():
        path = prefix + name
        if name not in names:
            raise ConfigError(
                f"{type(config).__name__} has no field {name!r} (in "
                f"{'.'.join(filter(None, (path, next(iter(below)))))}){_remedy(config, name)}; "
                f"its fields are {', '.join(names)}"
            )
        new = getattr(config, name)
        if "" in below:
            new = _value(hints[name], new, path, below.pop(""), text)
        if below and not dataclasses.is_dataclass(new):
            raise ConfigError(f"{path}.{next(iter(below))}: {name} is {new!r} and has no fields")
        changes[name] = _apply(new, below, path + ".", text) if below else new
    return dataclasses.replace(config, **changes) if changes else config


def _remedy(config: Any, name: str) -> str:
    if name in renamed_fields(type(config)):
        return f"; it is called {renamed_fields(type(config))[name]} now"
    return path_suggestion(name, [path for path, *_ in leaves(config)])


def _value(hint: Any, current: Any, path: str, value: Any, text: bool) -> Any:
    if isinstance(value, str) and choices(hint) and not check(hint, value):
        return _choose(hint, current, path, value)
    if isinstance(value, str) and (text or not check(hint, value)):
        try:
            return parse(hint, value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    if not check(hint, value):
        raise ConfigError(f"{path}: {value!r} is not {type_name(hint)}")
    return value


def _choose(hint: Any, current: Any, path: str, name: str) -> Any:
    if name.lower() == "none" and type(None) in union_members(hint):
        return None
    options = choices(hint)
    chosen = next((c for n, c in options.items() if n.replace("_", "") == name.lower().replace("_", "")), None)
    if chosen is None:
        for option, cls in options.items():
            if name in map(snake_case, former_names(cls)):
                raise ConfigError(f"{path}: {name} is called {option} now")
        raise ConfigError(f"{path}: {name!r} is not one of {', '.join(options)}{suggestion(name, options)}")
    if type(current) is chosen:
        return current
    try:
        return chosen(**kept_fields(current, chosen))
    except TypeError as error:
        raise ConfigError(f"{path}={name} needs fields that have no default ({error})") from None


def kept_fields(current: Any, chosen: type) -> dict[str, Any]:
    """Fields that a dataclass hands on to the one that is chosen in its place: a new optimizer keeps the learning rate.

    Args:
      current: the dataclass, or None.
      chosen: the class that takes its place.

    Returns:
      Values by name of the fields that both have and that were changed from their defaults.
    """
    if current is None:
        return {}
    names = {field.name for field in dataclasses.fields(chosen) if field.init}
    values = {field.name: (getattr(current, field.name), field.default) for field in dataclasses.fields(current)}
    return {name: value for name, (value, default) in values.items() if name in names and value != default}


def check_types(config: Any, where: str) -> None:
    """Checks that every field of a tree of dataclasses has a value of its type.

    Args:
      config: the tree.
      where: where the values come from, for the message.

    Raises:
      ConfigError: a field has a value of another type.
    """
    for path, hint, value in leaves(config):
        if not check(hint, value):
            name = f"{snake_case(type(config).__name__)}.{path}"
            raise ConfigError(f"{where} gives {name} the value {value!r}, which is not {type_name(hint)}")


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


def to_json(value: Any) -> Any:
    """A configuration as JSON values; dataclasses carry the place of their class."""
    if dataclasses.is_dataclass(value):
        module = type(value).__module__
        if module.startswith("genjax_experiment_"):
            module = str(sys.modules[module].__file__)
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
            renamed_class = (
                c.__name__ for c in vars(module).values() if isinstance(c, type) and name in former_names(c)
            )
            cls: Any = functools.reduce(getattr, next(renamed_class, name).split("."), module)
        except (ImportError, AttributeError):
            raise ConfigError(f"the saved configuration names {value['class']}, which does not exist here") from None
        hints, renamed = type_hints(cls), renamed_fields(cls)
        fields = {renamed.get(k, k): v for k, v in value.items() if k != "class"}
        # A class may read configurations from before its fields changed their meaning.
        fields = getattr(cls, "from_saved", lambda fields: fields)(fields)
        unknown = set(fields) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"the saved configuration has fields that {name} does not know: {', '.join(unknown)}")
        return cls(**{k: from_json(v, hints[k]) for k, v in fields.items()})
    if isinstance(value, list):
        for member in union_members(hint):
            if typing.get_origin(member) is tuple:
                args = typing.get_args(member)
                inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
                return tuple(from_json(v, h) for v, h in zip(value, inner, strict=True))
        return tuple(from_json(v) for v in value)
    for member in union_members(hint):
        if isinstance(member, type) and issubclass(member, enum.Enum) and isinstance(value, str):
            return member[value]
    return value
