"""One typed absl flag for each field of a dataclass tree."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import logging
import re
import textwrap
from collections.abc import Container
from typing import Any

from absl import flags

from genjax.config.annotations import (
    ConfigError,
    choices,
    format_value,
    parse,
    path_suggestion,
    type_hints,
    type_name,
    union_members,
)
from genjax.config.trees import apply_overrides, kept_fields, leaves, override, renamed_fields

_logger = logging.getLogger(__name__)


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


@functools.cache
def _attributes(cls: type) -> dict[str, str]:
    """The texts of a class docstring under `Attributes:` by field; a line may name several, as `low, high: text`."""
    block = re.search(r"^Attributes:.*\n((?:  .*\n|\n)*)", inspect.cleandoc(cls.__doc__ or "") + "\n", re.MULTILINE)
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in block.group(1).splitlines() if block else ():
        entry = re.match(r"  (\w+(?:, \w+)*): (.*)", line)
        names = entry.group(1).split(", ") if entry else names
        for name in names:
            texts[name] = f"{texts.get(name, '')} {entry.group(2) if entry else line}"
    return {name: " ".join(text.split()) for name, text in texts.items()}


def field_help(cls: type, name: str) -> str:
    """The text about a field in the docstring of a dataclass or of one of its bases; empty if there is none."""
    return next((_attributes(c)[name] for c in cls.__mro__ if name in _attributes(c)), "")


def _flag_help(config: Any, path: str, hint: Any, value: Any) -> str:
    *parents, name = path.split(".")
    text = field_help(type(functools.reduce(getattr, parents, config)), name)
    return f"{text.removesuffix('.')} ({type_name(hint)}; here {format_value(value)})"


def flag_line(name: str, text: str) -> str:
    """A flag with its help, wrapped and indented."""
    style: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "      ", "break_on_hyphens": False}
    return textwrap.fill(f"--{name}: {text}", 118, **style)


def help_text(config: Any, section: str = "") -> str:
    """The fields of a configuration as flags with their texts, in groups by the first part of their paths.

    Args:
      config: the configuration.
      section: a path; only the field at this path and the fields below it are shown.

    Raises:
      ConfigError: there is no field at `section`.
    """
    rows = list(leaves(config))
    chosen = [row for row in rows if not section or f"{row[0]}.".startswith(f"{section}.")]
    if not chosen:
        parts = {path.rsplit(".", depth)[0] for path, *_ in rows for depth in range(path.count(".") + 1)}
        raise ConfigError(f"there is no field {section!r}{path_suggestion(section, sorted(parts))}")
    lines, group = [], None
    for path, hint, value in chosen:
        if path.partition(".")[0] != group:
            group = path.partition(".")[0]
            lines += ["", f"{group} ({type(getattr(config, group)).__name__})"]
        lines.append(flag_line(path, _flag_help(config, path, hint, value)))
    return "\n".join(lines[1:])


def options_help(*options: Any) -> str:
    """The fields of dataclasses of options as flags with their texts, a line each, by name."""
    rows = [(path, _flag_help(each, path, hint, value)) for each in options for path, hint, value in leaves(each)]
    return "\n".join(flag_line(*row) for row in sorted(rows))


def define_flags(config: Any, flag_values: flags.FlagValues) -> None:
    """Defines one typed flag per field of a dataclass tree, named by its path; all of them default to None."""
    for path, hint, value in leaves(config):
        text = _flag_help(config, path, hint, value)
        if hint is bool:
            flags.DEFINE_boolean(path, None, text, flag_values=flag_values)
        else:
            # A flag that may be true, false or none needs no value either.
            boolean = bool in union_members(hint)
            flags.DEFINE(_Parser(hint), path, None, text, flag_values=flag_values, serializer=None, boolean=boolean)


def with_choices(config: Any, arguments: list[str]) -> Any:
    """The configuration with the dataclasses that a command line chooses, outermost first: other fields depend on them.

    Raises:
      ConfigError: a choice that does not exist.
    """
    given = {}
    for i, argument in enumerate(arguments[1:], start=1):
        match = re.fullmatch(r"--?([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if match:
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            given[match.group(1)] = match.group(2) if match.group(2) is not None else following
    for _ in range(8):
        chosen = config
        for path, hint, value in leaves(config):
            if path in given and choices(hint) and given[path] != format_value(value):
                chosen = override(chosen, path, given[path], text=True)
        if chosen == config:
            break
        config = chosen
    return config


def _tell_kept_fields(before: Any, chosen: Any, given: Container[str]) -> None:
    """Says which fields a part that was chosen has from the part that stood in its place."""
    parts = {path: value for path, _, value in leaves(before)}
    for path, hint, value in leaves(chosen):
        old = parts.get(path)
        if path not in given or not choices(hint) or type(old) is type(value) or old is None or value is None:
            continue
        kept = [
            f"{n}={format_value(v)}" for n, v in kept_fields(old, type(value)).items() if f"{path}.{n}" not in given
        ]
        if kept:
            _logger.warning("%s=%s keeps %s of %s", path, format_value(value), ", ".join(kept), format_value(old))


def from_flags(arguments: list[str], *configs: Any) -> tuple[Any, ...]:
    """Parses a command line whose flags are the fields of dataclass trees, by path, chosen dataclasses included.

    Args:
      arguments: command line with the program's name first.
      configs: the trees, such as the options of a command and an experiment; their values are the defaults.

    Returns:
      The trees with the command line's values.

    Raises:
      absl.flags.Error: a value of the wrong type.
      ConfigError: an unknown flag, or a choice that does not exist.
    """
    # A set of this call alone, so that one process can run several commands.
    flag_values = flags.FlagValues()
    before, configs = configs, tuple(with_choices(each, arguments) for each in configs)
    for each in configs:
        define_flags(each, flag_values)
    try:
        remaining = flag_values(arguments)
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown_flag(configs, error.flagname, list(flag_values))) from None
    if len(remaining) > 1:
        raise ConfigError(f"unexpected argument {remaining[1]!r}; flags are written --name=value")
    for old, each in zip(before, configs):
        _tell_kept_fields(old, each, {name for name in flag_values if flag_values[name].present})
    return tuple(
        apply_overrides(
            each,
            {
                path: flag_values[path].value
                for path, hint, _ in leaves(each)
                if flag_values[path].present and not choices(hint)
            },
        )
        for each in configs
    )


def _unknown_flag(configs: tuple[Any, ...], name: str, known: list[str]) -> str:
    """The error about a flag that does not exist."""
    reasons = filter(None, (_misused_path(config, name) for config in configs))
    return next(reasons, f"there is no flag --{name}{path_suggestion(name, known)}")


def _misused_path(config: Any, name: str) -> str | None:
    """The reason why a path is no flag of a tree, if it is nearly one; None if the tree does not know it at all."""
    *parents, last = name.split(".")
    owners = list(itertools.accumulate(parents, lambda owner, part: getattr(owner, part, None), initial=config))
    if dataclasses.is_dataclass(owners[-1]):
        renamed = renamed_fields(type(owners[-1]))
        if last in renamed:
            return f"--{name} is called --{'.'.join((*parents, renamed[last]))} now"
        group = getattr(owners[-1], last, None)
        if dataclasses.is_dataclass(group):
            other = "" if choices(type_hints(type(owners[-1]))[last]) else f"; another experiment has another {last}"
            return (
                f"--{name} takes no value: it is {type(group).__name__} here, and --{name}.NAME=VALUE sets its fields, "
                f"which --help={name} prints{other}"
            )
    if parents and dataclasses.is_dataclass(owners[-2]):
        options = choices(type_hints(type(owners[-2])).get(parents[-1]))
        having = [option for option, cls in options.items() if last in {f.name for f in dataclasses.fields(cls)}]
        if having:
            here = format_value(owners[-1])
            return f"--{name} needs --{'.'.join(parents)}={' or '.join(having)}, which is {here} here"
    return None
