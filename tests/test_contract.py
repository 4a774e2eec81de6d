"""Models do what the protocols of genjax.model say that they do."""

import inspect

from genjax import config
from genjax.model import TakesConditions


def test_samples_take_the_conditions_that_models_name():
    models = {type(model): model for model in (entry.build().model for entry in config.import_experiments().values())}
    for model in models.values():
        parameters = inspect.signature(model.sample).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if isinstance(model, TakesConditions):
            assert takes_any or set(model.conditions) <= set(parameters), type(model).__name__
        else:
            assert not {"label", "source", "condition", "prompt", "tokens"} & set(parameters), type(model).__name__
