"""One typed absl flag for each field of a dataclass tree."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

from absl import flags

from genjax.config.annotations import ConfigError, choices, parse, snake_case, type_name
from genjax.config.trees import apply_overrides, leaves, override


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
    present = {
        path: flag_values[path].value
        for path, hint, _ in leaves(config)
        if path in flag_values and flag_values[path].present and not choices(hint)
    }
    return apply_overrides(config, present)
