"""Models do what the protocols of genjax.model say that they do."""

import inspect

from genjax import config
from genjax.model import TakesConditions


def test_samples_take_the_conditions_that_models_name():
    models = {type(model): model for model in (entry.build().model for entry in config.import_experiments().values())}
    for model in models.values():
        names = {p.name: p.kind for p in inspect.signature(model.sample).parameters.values()}
        if isinstance(model, TakesConditions):
            assert inspect.Parameter.VAR_KEYWORD in names.values() or set(model.conditions) <= set(names), type(model)
        else:
            named = {name for name, kind in names.items() if kind != inspect.Parameter.VAR_KEYWORD}
            assert not {"label", "source", "condition", "prompt", "tokens"} & named, type(model)
