"""The first state of a run: from its last checkpoint, from another run or library, or new."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from genjax import buckets
from genjax.config import ConfigError
from genjax.data import Data
from genjax.model import ChecksStart, HasParts, HasPretrained, StartsFromParts, TrainState
from genjax.training.checkpoints import Checkpoints, flatten, unflatten
from genjax.training.engine import Engine
from genjax.training.experiment import load_config, part_sources
from genjax.training.warm_start import warm_start


def first_state(engine: Engine, checkpoints: Checkpoints, quiet: bool = True) -> TrainState:
    """The first state of a run on the mesh.

    It is taken from the run's own last checkpoint, else from another library's checkpoint or another run, else new.

    Args:
      engine: the engine of the run.
      checkpoints: the run's own checkpoints.
      quiet: do not print which checkpoint the run goes on from.
    """
    training = engine.experiment.training
    step = checkpoints.agreed_latest()
    if step is not None:
        state = checkpoints.restore(step, engine.abstract_state)
        if not quiet:
            print(f"going on from the checkpoint of step {step} in {checkpoints.directory}", flush=True)
        return engine.distribute(state)
    model, source = engine.experiment.model, training.init_from
    if isinstance(model, ChecksStart):
        model.check_start(None if source is None else load_config(buckets.workdir(source))[1].model)
    state = engine.init()
    if isinstance(model, HasPretrained) and model.pretrained is not None:
        plain = engine.collect(state)
        state = _started(engine, plain, model.pretrained_params(plain.params))
    if isinstance(model, StartsFromParts):
        plain = engine.collect(state)
        sources = part_sources(engine.experiment.data)._replace(params_of=_params_of)
        state = _started(engine, plain, model.start_params(plain.params, sources))
    if source is not None:
        plain = engine.collect(state)
        taken = warm_start(plain.params, source, training.init_prefix, model)
        if plain.learned and not training.init_prefix:
            plain = plain.replace(learned=warm_start(plain.learned, source, (), model))
        state = _started(engine, plain, taken)
    if isinstance(model, HasParts):
        plain = engine.collect(state)
        extra = {**plain.extra, **parts_of(model, plain.extra, engine.experiment.data)}
        state = engine.distribute(plain.replace(extra=extra))
    return state


def parts_of(model: HasParts, places: dict[str, Any], data: Data) -> dict[str, Any]:
    """The frozen parts of a model by name, on the devices of the arrays in `places`.

    Raises:
      ConfigError: a run that a part is taken from has no checkpoint, or another network than its configuration says.
    """
    parts = model.make_parts(part_sources(data)._replace(params_of=_params_of))
    place = lambda value, target: jax.device_put(np.asarray(value, target.dtype), target.sharding)
    return {name: jax.tree.map(place, part, places[name]) for name, part in parts.items()}


def _params_of(run: str, like: Any) -> Any:
    """The averaged parameters of a run, in a tree of arrays of their shapes."""
    checkpoints = Checkpoints(buckets.workdir(run), writable=False)
    step = checkpoints.agreed_latest()
    if step is None:
        raise ConfigError(f"the run {run}, whose network is taken, has no checkpoint yet")
    parameters, wanted = checkpoints.parameters(step), flatten(like)
    for name, leaf in wanted.items():
        if name not in parameters.shapes or parameters.shapes[name].shape != leaf.shape:
            raise ConfigError(f"the checkpoint of the run {run} has no parameter {name} of shape {leaf.shape}")
    return unflatten(like, parameters.on_host(wanted))


def _started(engine: Engine, plain: TrainState, params: Any) -> TrainState:
    """The first state with other parameters, on its devices."""
    # Copied, because the step donates its state and one buffer cannot be donated twice.
    ema = plain.ema_params
    if ema is not None:
        ema = jax.tree.map(lambda a: a.copy(), _at_places(params, ema))
    return engine.distribute(plain.replace(params=params, ema_params=ema))


def _at_places(params: Any, places: Any) -> Any:
    """The parameters in the places that a part of their tree has."""
    return {n: _at_places(params[n], place) for n, place in places.items()} if isinstance(places, dict) else params
