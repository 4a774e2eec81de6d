"""CycleGAN: translation learned without pairs (Zhu et al. 2017, arXiv:1703.10593).

With pictures s of one domain and x of another, generators G(s) and F(x) and judges of patches D_x and D_s (least
squares):

    G, F   1/2 E (D_x(G(s)) - 1)^2 + 1/2 E (D_s(F(x)) - 1)^2                                               (section 4)
           + c (E |F(G(s)) - s| + E |G(F(x)) - x|)                                                         (eq. 2)
           + c i (E |G(x) - x| + E |F(s) - s|), where the domains have the same channels                   (section 5.2)
    D_x    1/2 E (D_x(x) - 1)^2 + 1/2 E D_x(pool(G(s)))^2, and D_s in the same way

The paper's generators minimise twice this loss, so that the paper's weight of 10 is c = 5.

pool is a memory of earlier translations (Shrivastava et al. 2017, arXiv:1612.07828, section 2.3).  Until it is full, it
keeps each picture and returns it.  Then, with probability 1/2, it returns an earlier picture and
keeps the new one in its place.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, cross_device_gather, own_part
from genjax.errors import UserError
from genjax.families.gan.objectives import Objective, discriminator_objective, generator_objective
from genjax.families.gan.translation import (
    PatchDiscriminator,
    ResNetTranslator,
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


def pool_init(size: int, shape: tuple[int, ...]) -> dict[str, Array]:
    """An empty pool of pictures [size, *shape]; `count` is the number of pictures in it."""
    return {"pictures": jnp.zeros((size, *shape)), "count": jnp.zeros((), jnp.int32)}


def pool_exchange(pool: dict[str, Array], pictures: Array, key: Array) -> tuple[dict[str, Array], Array]:
    """Hands pictures to the pool one after the other.

    Args:
      pool: a pool, as from `pool_init`; a pool of size 0 returns the given pictures.
      pictures: [B, *shape].
      key: random key of the exchanges.

    Returns:
      The new pool, and pictures [B, *shape] out of the old and the new ones.
    """
    size = pool["pictures"].shape[0]
    if size == 0:
        return pool, pictures

    def hand_over(pool: dict[str, Array], given: tuple[Array, Array]) -> tuple[dict[str, Array], Array]:
        picture, key = given
        coin_key, place_key = jax.random.split(key)
        full = pool["count"] >= size
        exchanged = full & jax.random.bernoulli(coin_key)
        place = jnp.where(full, jax.random.randint(place_key, (), 0, size), pool["count"])
        old = pool["pictures"][place]
        kept = jnp.where(exchanged | ~full, picture, old)
        new = {"pictures": pool["pictures"].at[place].set(kept), "count": jnp.minimum(pool["count"] + 1, size)}
        return new, jnp.where(exchanged, old, picture)

    return jax.lax.scan(hand_over, pool, (pictures, jax.random.split(key, pictures.shape[0])))


def _global_exchange(pool: dict[str, Array], pictures: Array, key: Array) -> tuple[dict[str, Array], Array]:
    """`pool_exchange` of the pictures of all devices of the `pmap` mode; every device has the same pool."""
    pool, given = pool_exchange(pool, cross_device_gather(pictures), key)
    return pool, own_part(given, pictures.shape[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleGAN:
    """Translates pictures `source` into pictures `x` and back, all in [-1, 1]; trained without pairs.

    Attributes:
      data_shape: shape (H, W, C) of a picture x; None takes the data set's.
      source_shape: shape (H, W, C') of a source; None takes the data set's.
      network: both generators; a U-Net needs dropout_rate 0.
      discriminator_channels: channels of both discriminators after each halving.
      objective: losses of generators and discriminators.
      cycle_weight: weight c of the error of translating there and back.
      identity_weight: weight i, times c, of the change to pictures that are in the target domain already; 0 for none.
      pool_size: number of translations in each discriminator's memory; 0 for no memory.
      compute_dtype: type that the networks compute in; parameters and losses are float32.
      generator_optimizer: optimizer of both generators.
      discriminator_optimizer: optimizer of both discriminators.
    """

    data_shape: tuple[int, ...] | None = None
    source_shape: tuple[int, ...] | None = None
    network: Translator = ResNetTranslator()
    discriminator_channels: tuple[int, ...] = (64, 128, 256)
    objective: Objective = "least_squares"
    cycle_weight: float = 5.0
    identity_weight: float = 0.5
    pool_size: int = 50
    compute_dtype: ComputeDtype = "float32"
    generator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)
    discriminator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)

    def __post_init__(self) -> None:
        if self.objective.startswith("relativistic"):
            raise UserError(
                f"model.objective={self.objective} needs pairs of a picture and a sample, and has none here"
            )
        if isinstance(self.network, UNetTranslator) and self.network.dropout_rate:
            raise UserError(
                f"model.network.dropout_rate={self.network.dropout_rate} would never be drawn, "
                "as CycleGAN's translations have no noise; give 0"
            )
        if self.pool_size < 0:
            raise UserError(f"model.pool_size={self.pool_size} must not be negative")

    def _translator(self, to: str) -> Any:
        shape = {"x": self.data_shape, "source": self.source_shape}[to]
        if shape is None:
            raise UserError(f"CycleGAN knows no shape of {to}; give model.data_shape and model.source_shape")
        return self.network.build(shape[-1], jnp.dtype(self.compute_dtype))

    def _discriminator(self) -> PatchDiscriminator:
        return PatchDiscriminator(self.discriminator_channels, jnp.dtype(self.compute_dtype))

    def to_x(self, params: PyTree, source: Array) -> Array:
        """G(s) with the generators' parameters, float32 [B, *data_shape]."""
        return self._translator("x").apply({"params": params["to_x"]}, source)

    def to_source(self, params: PyTree, x: Array) -> Array:
        """F(x) with the generators' parameters, float32 [B, *source_shape]."""
        return self._translator("source").apply({"params": params["to_source"]}, x)

    def score(self, params: PyTree, domain: str, pictures: Array) -> Array:
        """D_x or D_s (`domain` x or source) of each patch, float32 [B, h, w]."""
        return self._discriminator().apply({"params": params[domain]}, pictures)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step, with empty pools.

        Raises:
          UserError: the batch has not two domains, or their sizes do not fit the networks.
        """
        check_domains(batch, self.data_shape)
        keys, x, source = jax.random.split(key, 4), batch["x"], batch["source"]
        params = {
            "generators": {
                "to_x": self._translator("x").init(keys[0], source)["params"],
                "to_source": self._translator("source").init(keys[1], x)["params"],
            },
            "discriminators": {
                "x": self._discriminator().init(keys[2], x)["params"],
                "source": self._discriminator().init(keys[3], source)["params"],
            },
        }
        extra = {
            "sources": source[:_NUM_KEPT],
            "pool_x": pool_init(self.pool_size, x.shape[1:]),
            "pool_source": pool_init(self.pool_size, source.shape[1:]),
        }
        return TrainState.create(params, self._optimizers(), extra)

    def _optimizers(self) -> dict[str, Optimizer]:
        return {"generators": self.generator_optimizer, "discriminators": self.discriminator_optimizer}

    def generator_loss(self, params: PyTree, discriminators: PyTree, batch: Batch) -> tuple[Array, Metrics]:
        """Mean over examples of what the generators minimise, with metrics `cycle_l1` and `identity_l1`."""
        x, source = batch["x"], batch["source"]
        fake_x, fake_source = self.to_x(params, source), self.to_source(params, x)
        deceived = generator_objective(self.objective, self.score(discriminators, "x", fake_x)).mean()
        deceived += generator_objective(self.objective, self.score(discriminators, "source", fake_source)).mean()
        cycle = (
            jnp.abs(self.to_source(params, fake_x) - source).mean() + jnp.abs(self.to_x(params, fake_source) - x).mean()
        )
        loss, metrics = deceived + self.cycle_weight * cycle, {"cycle_l1": cycle, "adversarial": deceived}
        if self.identity_weight and x.shape == source.shape:
            identity = (
                jnp.abs(self.to_x(params, x) - x).mean() + jnp.abs(self.to_source(params, source) - source).mean()
            )
            loss += self.cycle_weight * self.identity_weight * identity
            metrics["identity_l1"] = identity
        return loss, metrics

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of both generators, then one of both discriminators on pictures out of the pools.

        Metrics: `loss` (the generators'), `discriminators_loss`, `cycle_l1` and `identity_l1` (sums over both
        directions).
        """
        turns = Turns(state, self._optimizers())
        # Parameters before the update, so that these are the translations that the generators were judged by.
        generators = turns.params["generators"]
        extra = dict(state.extra)
        x_key, source_key = jax.random.split(key)
        extra["pool_x"], fake_x = _global_exchange(extra["pool_x"], self.to_x(generators, batch["source"]), x_key)
        extra["pool_source"], fake_source = _global_exchange(
            extra["pool_source"], self.to_source(generators, batch["x"]), source_key
        )
        batch = {**batch, "fake_x": fake_x, "fake_source": fake_source}

        def generator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            return self.generator_loss(params, turns.params["discriminators"], batch)

        def discriminator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            loss = 0.0
            for domain in ("x", "source"):
                real = self.score(params, domain, batch[domain])
                fake = self.score(params, domain, batch[f"fake_{domain}"])
                loss += discriminator_objective(self.objective, real, fake).mean()
            return loss, {}

        turns.update("generators", generator_loss, batch, key)
        turns.update("discriminators", discriminator_loss, batch, key)
        return turns.finish(loss="generators", extra=extra)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B], of data that are pairs.

        Mean absolute errors: `l1` and `source_l1` of the two translations (meaningless if the data are no pairs);
        `unchanged_l1` of pictures left as they are (if both domains have the same channels); `cycle_l1` of pictures
        translated there and back.
        """
        del key
        params, x, source = state.eval_params["generators"], batch["x"], batch["source"]
        fake_x, fake_source = self.to_x(params, source), self.to_source(params, x)
        error = lambda a, b: mean_over_pixels(jnp.abs(a - b))
        cycle = error(self.to_source(params, fake_x), source) + error(self.to_x(params, fake_source), x)
        metrics = {"l1": error(fake_x, x), "source_l1": error(fake_source, source), "cycle_l1": cycle}
        return {**metrics, "unchanged_l1": error(source, x)} if x.shape == source.shape else metrics

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("source",)

    def sample(self, state: TrainState, key: Array, num_samples: int, source: Array | None = None) -> Array:
        """Translates `source` [num_samples, *source_shape], or the kept sources in turn; [num_samples, *data_shape]."""
        del key
        source = chosen_sources(state.extra, num_samples, source)
        return self.to_x(state.eval_params["generators"], source)

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """The translation of each example's source, the shape of x."""
        del key
        return self.to_x(state.eval_params["generators"], batch["source"])
