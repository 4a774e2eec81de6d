"""How a discriminator sees examples in training: through an augmentation, and with noise of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, example_keys
from genjax.families.gan.augmentation import Augmentation
from genjax.model import TrainState


class View(NamedTuple):
    """The augmentation of examples, and what noise inside of the discriminator is drawn from, [B]; or neither."""

    augment: Callable[[Array], Array] | None = None
    noise_keys: Array | None = None


#: Without either.
UNCHANGED = View()


def view_of(augmentation: Augmentation | None, state: TrainState, batch: Batch, key: Array) -> View:
    """How the examples of a batch are seen with the random numbers of a key, and the state's probability of a change."""
    # No example has the index 2^32 - 1.
    keys, noise_keys = example_keys(key, batch), example_keys(jax.random.fold_in(key, 2**32 - 1), batch)
    if augmentation is None:
        return View(None, noise_keys)
    probability = state.extra.get("augmentation_probability", jnp.float32(1.0))
    return View(lambda x: augmentation(x, keys, probability), noise_keys)
