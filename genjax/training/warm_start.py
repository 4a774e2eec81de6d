"""Parameters of another run as the first parameters of a run: all of them, or those below some paths."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import traverse_util

from genjax import buckets
from genjax.config import ConfigError
from genjax.model import HasExtraTokens, HasVocabulary, MergesUpdates
from genjax.nn.tokens import with_more_tokens
from genjax.training.checkpoints import Checkpoints, Parameters, flatten, unflatten
from genjax.training.experiment import load_config


def warm_start(params: Any, workdir: str, prefixes: tuple[str, ...], model: Any = None) -> Any:
    """Replaces parameters by the parameters of another run.

    Args:
      params: parameters after initialisation.
      workdir: the other run; its low-rank updates are added to its parameters if `params` have none.
      prefixes: paths below which parameters are taken; empty for all of them, but for low-rank updates that the other
        run does not have.
      model: the model of `params`; if it has more tokens than the other run's model, rows of the new tokens are made
        from the old rows (`genjax.nn.tokens.with_more_tokens`).

    Raises:
      ConfigError: nothing fits, or a shape differs.
    """
    checkpoints = Checkpoints(buckets.workdir(workdir), writable=False)
    step = checkpoints.agreed_latest()
    if step is None:
        raise ConfigError(f"training.init_from={workdir} holds no checkpoint")
    parameters, target = checkpoints.parameters(step), flatten(params)
    merged = None if any(name.startswith("lora/") for name in target) else _merged(parameters, workdir)
    shapes = parameters.shapes if merged is None else merged
    chosen = [n for n in target if not prefixes or any(n == p or n.startswith(p + "/") for p in prefixes)]
    if not prefixes and not any(name.startswith("lora/") for name in shapes):
        # New low-rank updates are 0, so that the network is the other run's.
        chosen = [name for name in chosen if not name.startswith("lora/")]
    if not chosen:
        known = ", ".join(sorted({n.split("/")[0] for n in target}))
        raise ConfigError(f"no parameter is below training.init_prefix={','.join(prefixes)}; the model has {known}")
    grown = {}
    for name in chosen:
        if name not in shapes:
            raise ConfigError(
                f"training.init_from={workdir} has no parameter {name}; name what to take with init_prefix"
            )
        old, new = shapes[name].shape, target[name].shape
        if old == new:
            continue
        grown[name] = _num_last(model, workdir, old, new)
        if grown[name] is None:
            raise ConfigError(f"parameter {name} has shape {old} in {workdir}, and {new} here")
    # What keeps its shape goes to its devices at once; no process ever holds all of it.
    same = {name: target[name].sharding for name in chosen if name not in grown}
    whole = parameters.on_host(grown) if merged is None else merged
    taken = parameters.read(same) if merged is None else {n: jax.device_put(merged[n], same[n]) for n in same}
    for name, num_last in grown.items():
        rows = with_more_tokens(whole[name], target[name].shape, num_last=num_last)
        taken[name] = jax.device_put(rows, target[name].sharding)
    return unflatten(params, {**target, **taken})


def _merged(parameters: Parameters, workdir: str) -> dict[str, np.ndarray] | None:
    """Parameters of another run with its low-rank updates added, for a model that has none; None if it has no such
    updates.
    """
    if not any(name.startswith("lora/") for name in parameters.shapes):
        return None
    model = load_config(buckets.workdir(workdir))[1].model
    if not isinstance(model, MergesUpdates):
        return None
    source = traverse_util.unflatten_dict(parameters.on_host(parameters.shapes), sep="/")
    whole = traverse_util.flatten_dict(model.merged_params(source), sep="/")
    return {name: np.asarray(leaf) for name, leaf in whole.items()}


def _num_last(model: Any, workdir: str, old: tuple[int, ...], new: tuple[int, ...]) -> int | None:
    """Number of rows behind the data's tokens in a parameter that gets rows for a model's additional tokens; None if
    the shapes differ for another reason.
    """
    differing = [sizes for sizes in zip(old, new) if sizes[0] != sizes[1]]
    if not _num_tokens(model)[0] or len(differing) != 1 or len(old) != len(new):
        return None
    known = load_config(buckets.workdir(workdir))[1].model
    (tokens, last), (new_tokens, new_last) = map(_num_tokens, (known, model))
    if last != new_last or new_tokens < tokens or differing != [(tokens + last, new_tokens + last)]:
        return None
    return last


def _num_tokens(model: Any) -> tuple[int, int]:
    """Number of a model's tokens that are the data's tokens, and number of tokens behind them; 0 if there are none."""
    known = model.vocab_size if isinstance(model, HasVocabulary) else None
    return known or 0, model.extra_tokens if isinstance(model, HasExtraTokens) else 0
