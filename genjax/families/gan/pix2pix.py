"""pix2pix: translation learned from pairs (Isola et al. 2017, arXiv:1611.07004).

With pairs of a source s and its picture x, a generator G(s, z) whose noise z is dropout, and a discriminator D(s, x)
that scores patches, the two minimise (eq. 4, with the generator's non-saturating form; `objective` chooses another)

    D   1/2 E [softplus(-D(s, x)) + softplus(D(s, G(s, z)))]
    G   E softplus(-D(s, G(s, z))) + w E |x - G(s, z)|
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.families.gan.objectives import Objective, discriminator_objective, generator_objective
from genjax.families.gan.translation import (
    PatchDiscriminator,
    Translator,
    UNetTranslator,
    check_domains,
    chosen_sources,
    mean_over_pixels,
)
from genjax.families.gan.turns import Turns
from genjax.model import TrainState
from genjax.optimizers import Adam, Optimizer

_NUM_KEPT = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pix2Pix:
    """Translates pictures `source` into pictures `x` in [-1, 1]; trained on pairs.

    Attributes:
      data_shape: shape (H, W, C) of a picture x; None takes the data set's.
      paired: whether the data are pairs, as they must be; None asks the data set.
      network: the generator.
      discriminator_channels: channels of the discriminator after each halving.
      objective: losses of generator and discriminator.
      l1_weight: weight w of the mean absolute error.
      compute_dtype: type that the networks compute in; parameters and losses are float32.
      generator_optimizer: optimizer of the generator.
      discriminator_optimizer: optimizer of the discriminator.
    """

    data_shape: tuple[int, ...] | None = None
    paired: bool | None = None
    network: Translator = UNetTranslator()
    discriminator_channels: tuple[int, ...] = (64, 128, 256)
    objective: Objective = "non_saturating"
    l1_weight: float = 100.0
    compute_dtype: ComputeDtype = "float32"
    generator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)
    discriminator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)

    def __post_init__(self) -> None:
        if self.objective.startswith("relativistic"):
            raise UserError(f"model.objective={self.objective} compares pictures, but the discriminator scores patches")
        if self.paired is False:
            raise UserError(
                "pix2pix learns from pairs of a source and its picture, and data.paired=false has none; "
                "choose --data.paired=true, or CycleGAN (--experiment=cycle_gan_sprites)"
            )

    def translate(self, params: PyTree, source: Array, keys: Array | None = None) -> Array:
        """G(s, z) of pictures [B, H, W, C'] with the generator's parameters, float32 [B, H,
        W, C]; no noise without keys.
        """
        module = self.network.build(filled(self, "data_shape")[-1], jnp.dtype(self.compute_dtype))
        return module.apply({"params": params}, source, keys)

    def score(self, params: PyTree, source: Array, x: Array) -> Array:
        """D(s, x) of each patch, float32 [B, h, w]."""
        return self._discriminator().apply({"params": params}, jnp.concatenate([source, x], axis=-1))

    def _discriminator(self) -> PatchDiscriminator:
        return PatchDiscriminator(self.discriminator_channels, jnp.dtype(self.compute_dtype))

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step; `extra` keeps some sources, so that samples need none.

        Raises:
          UserError: the batch does not have two domains, or their sizes do not fit the networks.
        """
        check_domains(batch, self.data_shape)
        generator_key, discriminator_key = jax.random.split(key)
        x, source = batch["x"], batch["source"]
        module = self.network.build(x.shape[-1], jnp.dtype(self.compute_dtype))
        params = {
            "generator": module.init(generator_key, source)["params"],
            "discriminator": self._discriminator().init(discriminator_key, jnp.concatenate([source, x], -1))["params"],
        }
        return TrainState.create(params, self._optimizers(), {"sources": source[:_NUM_KEPT]})

    def _optimizers(self) -> dict[str, Optimizer]:
        return {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the discriminator, then one of the generator.

        Metrics: `loss` (the generator's), `discriminator_loss`, `l1` (mean absolute error), `real_score`, `fake_score`.
        """
        discriminator_key, generator_key = jax.random.split(key)
        turns = Turns(state, self._optimizers())

        def discriminator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            fake = self.translate(turns.params["generator"], batch["source"], example_keys(key, batch))
            real_score = self.score(params, batch["source"], batch["x"])
            fake_score = self.score(params, batch["source"], fake)
            loss = 0.5 * discriminator_objective(self.objective, real_score, fake_score).mean()
            return loss, {"real_score": real_score.mean(), "fake_score": fake_score.mean()}

        def generator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            fake = self.translate(params, batch["source"], example_keys(key, batch))
            score = self.score(turns.params["discriminator"], batch["source"], fake)
            l1 = jnp.abs(batch["x"] - fake).mean()
            return generator_objective(self.objective, score).mean() + self.l1_weight * l1, {"l1": l1}

        turns.update("discriminator", discriminator_loss, batch, discriminator_key)
        turns.update("generator", generator_loss, batch, generator_key)
        return turns.finish(loss="generator")

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: `l1`, the mean absolute error of the translation, and mean
        scores `real_score`, `fake_score`.
        """
        params, source = state.eval_params, batch["source"]
        fake = self.translate(params["generator"], source, example_keys(key, batch))
        return {
            "l1": mean_over_pixels(jnp.abs(batch["x"] - fake)),
            "real_score": mean_over_pixels(self.score(params["discriminator"], source, batch["x"])),
            "fake_score": mean_over_pixels(self.score(params["discriminator"], source, fake)),
        }

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("source",)

    def sample(self, state: TrainState, key: Array, num_samples: int, source: Array | None = None) -> Array:
        """Translates `source` [num_samples, H, W, C'], or the kept sources in turn; [num_samples, *data_shape]."""
        source = chosen_sources(state.extra, num_samples, source)
        return self.translate(state.eval_params["generator"], source, jax.random.split(key, num_samples))

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """The translation of each example's source, the shape of x."""
        return self.translate(state.eval_params["generator"], batch["source"], example_keys(key, batch))
