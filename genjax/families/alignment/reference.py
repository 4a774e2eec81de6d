"""The reference of a policy: the network that a run starts from, which does not learn and which the policy stays near.

    state   = with_reference(model, state)                     in `init`
    params, kept = reference_params(state)                     in `train_step`; `kept` goes back into `extra`

The state keeps copies of the trained parameters alone, as `extra["reference"]`: frozen ones are the policy's own.  With
low-rank updates (LoRA) the copy is one of the updates, a few kilobytes, and the reference is exactly the network that
the run starts from, whether or not that has updates already.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, PyTree
from genjax.errors import UserError
from genjax.model import HasTokenLogProbs, TrainState, copies_of_start
from genjax.nn import lora as adaptation
from genjax.nn.tokens import token_weights

NAME = "reference"


def with_reference(model: Any, state: TrainState) -> TrainState:
    """The state before the first step with a place for the reference; `model` is a `FineTuned`.

    Raises:
      UserError: the model does not score tokens.
    """
    if not isinstance(model, HasTokenLogProbs):
        raise UserError(f"{type(model).__name__} has no log-probabilities of tokens; align a GPT or an encoder-decoder")
    copies = jax.tree.map(jnp.copy, model.trained_params(state.params))
    return state.replace(extra={**state.extra, NAME: copies})


def reference_params(state: TrainState) -> tuple[PyTree, PyTree]:
    """All parameters of the reference, and the new `extra["reference"]`.

    At step 0 the reference is a copy of the parameters that the run starts from, which may have come from another run
    or from a checkpoint after `init`.
    """
    kept = copies_of_start(state, [NAME])[NAME]
    return adaptation.join(state.params, kept), kept


def answer_log_probs(model: HasTokenLogProbs, params: PyTree, batch: Batch) -> tuple[Array, Array]:
    """log p(answer | prompt) in nats, [B], the sum over targets that count; and the number of these targets, [B]."""
    weights = token_weights(batch)
    # Selected, so that a target with the probability 0 under a mask gives no NaN.
    scored = jnp.where(weights > 0, model.token_log_probs(params, batch) * weights, 0.0)
    return scored.sum(1), weights.sum(1)
