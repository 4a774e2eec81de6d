"""Entry points define their flags where they are imported, so a process of the tests holds one of them at a time."""

import importlib
import sys
from types import ModuleType

from absl import flags


def entry_point(name: str) -> ModuleType:
    """The module experiments.`name`, imported anew; flags of the entry point before it are forgotten."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments."):
            # A copy, since deletion shortens the list, in which what was deleted under another module may still stand.
            for flag in list(defined):
                if flag.name in flags.FLAGS:
                    delattr(flags.FLAGS, flag.name)
            sys.modules.pop(module, None)
    return importlib.import_module(f"experiments.{name}")
