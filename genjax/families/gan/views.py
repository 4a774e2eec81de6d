"""The discriminator's view of examples in training: an augmentation, and noise inside the discriminator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, example_keys
from genjax.families.gan.augmentation import Augmentation
from genjax.model import TrainState


class View(NamedTuple):
    """The augmentation of examples, or None; and keys [B] of noise inside the discriminator, or None."""

    augment: Callable[[Array], Array] | None = None
    noise_keys: Array | None = None


#: No augmentation and no noise.
UNCHANGED = View()


def view_of(augmentation: Augmentation | None, state: TrainState, batch: Batch, key: Array) -> View:
    """The view of a batch's examples with a random key, and with the state's probability of augmentation."""
    # No example has the index 2^32 - 1.
    keys, noise_keys = example_keys(key, batch), example_keys(jax.random.fold_in(key, 2**32 - 1), batch)
    if augmentation is None:
        return View(None, noise_keys)
    probability = state.extra.get("augmentation_probability", jnp.float32(1.0))
    return View(lambda x: augmentation(x, keys, probability), noise_keys)
