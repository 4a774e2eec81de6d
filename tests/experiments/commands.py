"""Commands as a user runs them, in the process of the tests."""

import contextlib
import dataclasses
import importlib
import io

from experiments import command_line


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def call(name: str, *arguments: str) -> Ended:
    """Runs experiments.`name` to its end; an error that is no user's is raised."""
    main = importlib.import_module(f"experiments.{name}").main
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            command_line.run(lambda _: main([name, *arguments]))
        except SystemExit as ended:
            return Ended(ended.code, output.getvalue(), errors.getvalue())
