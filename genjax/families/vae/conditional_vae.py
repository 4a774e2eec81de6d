"""The conditional variational autoencoder (Kingma et al. 2014, arXiv:1406.5298, M2 with observed labels; Sohn et al.
2015).

    log p(x | c) >= E_q[log p(x | z, c)] - KL(q(z | x, c) || N(0, I)),    q and p both see the condition c.

A condition is any set of entries of the batch: classes as one-hot vectors, everything else as flattened numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from genjax.batch import Array, Batch, check_label_range, one_hot_classes
from genjax.errors import UserError
from genjax.families.vae.vae import VAE
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionalVAE(VAE):
    """VAE of x given other entries of the batch.

    Attributes:
      condition_keys: names of the batch's entries to condition on; `label` is one-hot encoded, others
        [B, ...] are used as numbers.
      num_classes: number of classes of `label`; None takes the data set's.
    """

    condition_keys: tuple[str, ...] = ("label",)
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if not self.condition_keys:
            raise UserError("model.condition_keys=() must name an entry of the batch; the model without one is VAE")

    def condition(self, batch: Batch) -> Array:
        """The vector c of each example, shape [B, C].

        Raises:
          UserError: an entry is missing, or `num_classes` is not known.
        """
        parts = []
        for name in self.condition_keys:
            if name not in batch:
                raise UserError(
                    f"the model is conditional on {name!r}, which is not among {', '.join(batch)}; "
                    "give model.condition_keys"
                )
            value = jnp.asarray(batch[name])
            if name == "label":
                parts.append(one_hot_classes(value, self.num_classes))
            else:
                parts.append(value.reshape(value.shape[0], -1).astype(jnp.float32))
        return jnp.concatenate(parts, axis=-1)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return self.condition_keys

    def check_labels(self, label: Array) -> None:
        """Refuses labels outside of the classes.

        Raises:
          UserError: the model is not conditional on classes, or there is no such class.
        """
        if "label" not in self.condition_keys:
            raise UserError(f"this model is conditional on {', '.join(self.condition_keys)} and not on label")
        check_label_range(label, self.num_classes)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step; it keeps one condition, for samples without a given condition."""
        state = super().init(key, batch)
        kept = {name: jnp.array(batch[name][:1]) for name in self.condition_keys if name != "label"}
        return state.replace(extra={"example_condition": kept})

    def _filled(self, state: TrainState, condition: dict[str, Any], count: int) -> Array:
        unknown = set(condition) - set(self.condition_keys)
        if unknown:
            raise UserError(
                f"{', '.join(unknown)} is not a condition of the model; it has {', '.join(self.condition_keys)}"
            )
        filled = {}
        for name in self.condition_keys:
            if name in condition:
                value = jnp.asarray(condition[name])
                # One condition for all samples, or one for each.
                filled[name] = jnp.broadcast_to(value, (count,)) if name == "label" and value.ndim == 0 else value
            elif name == "label":
                filled[name] = jnp.arange(count) % (self.num_classes or 1)
            else:
                kept = state.extra["example_condition"][name]
                filled[name] = jnp.broadcast_to(kept, (count, *kept.shape[1:]))
        return self.condition(filled)

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Decodes draws from the prior given conditions by name, e.g. label=[num_samples] or one class for all.

        By default, labels run through all classes in turn, and other conditions come from the example that `init` saw.

        Returns:
          Samples, shape [num_samples, *data_shape].
        """
        return self._generate(state, key, num_samples, self._filled(state, condition, num_samples))

    def decode(self, state: TrainState, latents: Array, **condition: Any) -> Array:
        """Mean of p(x | z, c) for latents [B, latent_dim] and conditions as `sample` takes, shape [B, *data_shape]."""
        filled = self._filled(state, condition, latents.shape[0])
        return self.output.mean(self.output_parameters(state.eval_params, latents, filled))
