"""Runs a command by its name, or lists the commands: `python -m experiments`, or `genjax` where the project is
installed.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

from experiments import command_line
from genjax import config


def commands() -> dict[str, str]:
    """What each command does, by name: the first line of a module that has a `main`; no module is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        if path.stem != "__main__" and "main" in defined:
            found[path.stem] = ast.get_docstring(module).partition("\n")[0].rstrip(":.")
    return found


def listing() -> str:
    """The commands, a line each, and how to learn more of one."""
    width = max(map(len, commands()))
    return "\n".join(
        [
            "Commands, each with its flags by `python -m experiments.COMMAND --help` or `genjax COMMAND --help`:",
            *(f"  {name:<{width}}  {text}" for name, text in commands().items()),
        ]
    )


def run_command(arguments: list[str]) -> int | None:
    """Runs the command that the first argument names.

    Raises:
      ConfigError: there is no such command.
    """
    name = arguments[1] if len(arguments) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(listing())
        return 0
    if name not in commands():
        close = config.suggestion(name, commands())
        raise config.ConfigError(f"there is no command {name!r}; `python -m experiments` lists them{close}")
    module = importlib.import_module(f"experiments.{name}")
    sys.argv = [module.__name__, *arguments[2:]]
    return module.main(sys.argv)


def main() -> None:
    """What `python -m experiments` and the script `genjax` run."""
    # As with `python -m`, a file of the user's finds the modules beside it, but none of them
    # stands before the project's.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    command_line.run(run_command)


if __name__ == "__main__":
    main()
