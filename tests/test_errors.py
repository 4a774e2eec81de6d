"""What a user can mend is told in one sentence; a defect, ours or a library's, keeps its traceback."""

import ast
import importlib
from pathlib import Path

import pytest

import genjax
from experiments import command_line
from genjax.errors import Interrupted, UserError

ROOT = Path(genjax.__file__).parents[1]
FILES = [path for folder in ("genjax", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]


def ending(error, capsys):
    """Exit status and printed words of a command that ends with an error."""

    def main(arguments):
        raise error

    with pytest.raises(SystemExit) as stopped:
        command_line.run(main)
    out, err = capsys.readouterr()
    return stopped.value.code, out + err


def test_what_a_user_can_mend_is_one_sentence(capsys):
    assert ending(UserError("width=3\nis odd; give\n  4"), capsys) == (1, "error: width=3 is odd; give 4\n")
    assert ending(Interrupted("stopped at step 3", 15), capsys) == (143, "stopped at step 3\n")


@pytest.mark.parametrize("error", [ValueError("a library's"), OSError("disk"), KeyError("x")])
def test_any_other_error_keeps_its_traceback(error, capsys):
    with pytest.raises(type(error)):
        ending(error, capsys)


def test_every_error_that_we_raise_for_a_wrong_value_is_a_user_error():
    raised = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            # `raise ValueError` without a sentence is a word between a parser and its caller.
            called = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(called, ast.Call) and getattr(called.func, "id", "") in ("ValueError", "OSError"):
                raised.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not raised, "raise genjax.errors.UserError there"


@pytest.mark.parametrize(
    "place",
    [
        "config.ConfigError",
        "data.base.DataError",
        "data.text.tokenizer.UnknownSymbolError",
        "families.flow.bijections.base.LayerError",
        "interop.architecture.UnsupportedError",
        "interop.safetensors.CheckpointFileError",
        "training.CheckpointError",
        "training.NonFiniteError",
    ],
)
def test_our_own_error_classes_are_user_errors(place):
    module, _, name = f"genjax.{place}".rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), UserError)
