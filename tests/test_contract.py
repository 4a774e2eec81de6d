"""The contract file holds every capability that is asked for, and no other."""

import ast
import inspect
from pathlib import Path

import pytest

import genjax
import genjax.model
from experiments import configs  # noqa: F401
from genjax import config
from genjax.model import TakesConditions

ROOT = Path(genjax.__file__).parents[1]
FILES = [path for folder in ("genjax", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]
CAPABILITIES = {
    name for name, value in vars(genjax.model).items()
    if getattr(value, "_is_protocol", False) and value.__module__ == "genjax.model" and name != "GenerativeModel"
}  # fmt: skip


def named_outside_of_imports(path):
    """Names that a file uses."""
    return {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}


def test_every_capability_is_asked_for():
    used = set().union(*(named_outside_of_imports(path) for path in FILES if path.name != "model.py"))
    asked = CAPABILITIES & (used | {"TakesConditions"})
    assert asked == CAPABILITIES, f"nobody asks for {CAPABILITIES - asked}"


@pytest.mark.parametrize("function", ["hasattr(model,", "hasattr(run.model,", "hasattr(data,", "signature(model."])
def test_what_a_model_can_do_is_not_found_out_by_its_names(function):
    places = [str(path.relative_to(ROOT)) for path in FILES if function in path.read_text()]
    allowed = {"genjax/interop/huggingface.py", "genjax/pretrained.py"} if function == "hasattr(model," else set()
    assert set(places) <= allowed, f"ask for a protocol of genjax.model in place of {function}...) in {places}"


def test_the_contract_is_short():
    assert len(inspect.getsource(genjax.model).splitlines()) <= 360


def test_samples_take_the_conditions_that_models_name():
    config.import_experiments()
    models = {type(entry.build().model): entry.build().model for entry in config.registered().values()}
    for model in models.values():
        parameters = inspect.signature(model.sample).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if isinstance(model, TakesConditions):
            assert takes_any or set(model.conditions) <= set(parameters), type(model).__name__
        else:
            assert not {"label", "source", "condition", "prompt", "tokens"} & set(parameters), type(model).__name__
