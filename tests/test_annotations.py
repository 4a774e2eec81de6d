"""Public functions say the types of what they take and give, which `make lint` checks."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Public functions of a module, and public methods of its public classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and (
            not node.name.startswith("_") or node.name in ("__init__", "__call__")
        ):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body)


def unannotated(function: ast.FunctionDef) -> list[str]:
    """Names of the parameters without a type, and `return`."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = [p.arg for p in parameters if p is not None and p.annotation is None and p.arg not in ("self", "cls")]
    return names if function.returns is not None else [*names, "return"]


def test_public_functions_are_annotated():
    missing = []
    for path in sorted((ROOT / "genjax").rglob("*.py")):
        for function in functions(ast.parse(path.read_text(encoding="utf-8")).body):
            if names := unannotated(function):
                missing.append(f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {', '.join(names)}")
    assert missing == []
