"""Experiments as dataclass trees: a registry of names, typed flags, overrides, and JSON.

A configuration is a frozen dataclass.  Its fields are numbers, strings, enums, tuples of numbers or strings, other
frozen dataclasses, or a choice between dataclasses (a union of them, or a base class with subclasses).  From the
annotations alone this package makes one absl flag per field, replaces fields by path (`model.latent_dim`), and writes
and reads JSON.
"""

from genjax.config.annotations import ConfigError, check_at_least, check_named, suggestion
from genjax.config.command_line import (
    define_flags,
    from_flags,
    help_text,
    options_help,
    with_choices,
)
from genjax.config.registry import Entry, add_package, find_experiment, import_experiments, register
from genjax.config.trees import apply_overrides, check_types, differences, fill_none, from_json, override, to_json

__all__ = [
    "ConfigError",
    "Entry",
    "add_package",
    "apply_overrides",
    "check_at_least",
    "check_named",
    "check_types",
    "define_flags",
    "differences",
    "fill_none",
    "find_experiment",
    "from_flags",
    "from_json",
    "help_text",
    "import_experiments",
    "options_help",
    "override",
    "register",
    "suggestion",
    "to_json",
    "with_choices",
]
