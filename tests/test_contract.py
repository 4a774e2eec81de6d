"""The contract file holds every capability that is asked for, and models do what its protocols say."""

import ast
import inspect
from pathlib import Path

import pytest

import genjax.model
from genjax import config
from genjax.model import TakesConditions

ROOT = Path(genjax.model.__file__).parents[1]
FILES = [path for folder in ("genjax", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_capability_is_asked_for():
    known = vars(genjax.model).items()
    protocols = {
        name for name, value in known if getattr(value, "_is_protocol", False) and value.__module__ == "genjax.model"
    }
    calls = [node for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    asked = {
        name.id
        for call in calls
        if getattr(call.func, "id", "") == "isinstance"
        for name in ast.walk(call.args[1])
        if isinstance(name, ast.Name)
    }
    assert protocols - {"GenerativeModel"} <= asked


@pytest.mark.parametrize("question", ["hasattr(model,", "hasattr(run.model,", "hasattr(data,", "signature(model."])
def test_what_a_model_can_do_is_asked_of_the_contract(question):
    places = {str(path.relative_to(ROOT)) for path in FILES if question in path.read_text()}
    # These read fields by the names that other libraries give them.
    assert places <= {"genjax/interop/huggingface.py", "genjax/pretrained.py"}


def test_samples_take_the_conditions_that_models_name():
    models = {type(model): model for model in (entry.build().model for entry in config.import_experiments().values())}
    for model in models.values():
        names = {p.name: p.kind for p in inspect.signature(model.sample).parameters.values()}
        if isinstance(model, TakesConditions):
            assert inspect.Parameter.VAR_KEYWORD in names.values() or set(model.conditions) <= set(names), type(model)
        else:
            named = {name for name, kind in names.items() if kind != inspect.Parameter.VAR_KEYWORD}
            assert not {"label", "source", "condition", "prompt", "tokens"} & named, type(model)
