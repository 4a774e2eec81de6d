"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661) with their best-known objectives and penalties.

With scores r = D(x) of data and f = D(G(z)) of samples, z ~ N(0, I), the discriminator and the generator minimise

    minimax           E softplus(-r) + E softplus(f)          -E softplus(f)          (2014, eq. 1)
    non_saturating    the same                                 E softplus(-f)         (2014, section 3)
    least_squares     1/2 E (r - 1)^2 + 1/2 E f^2              1/2 E (f - 1)^2        (Mao et al. 2017, arXiv:1611.04076)
    hinge             E relu(1 - r) + E relu(1 + f)            -E f                   (Miyato et al. 2018, arXiv:1802.05957)
    wasserstein       E f - E r                                -E f                   (Arjovsky et al. 2017, arXiv:1701.07875)

    wgan_gp   w E (|grad D(u)| - 1)^2,  u = e x + (1 - e) G(z),  e ~ U(0, 1)          (Gulrajani et al. 2017, arXiv:1704.00028)
    r1        w / 2 E |grad D(x)|^2                                                   (Mescheder et al. 2018, arXiv:1801.04406)
    r2        w / 2 E |grad D(G(z))|^2
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from genjax.model import (
    Array,
    Batch,
    Metrics,
    PyTree,
    TrainState,
    batch_size,
    ema_update,
    example_keys,
    gradient_update,
)
from genjax.nn.encoder_decoder import MLPNetwork, Network
from genjax.optimizers import Adam, Optimizer

Objective = Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein"]
Penalty = Literal["none", "wgan_gp", "r1", "r2"]


def discriminator_objective(name: Objective, real: Array, fake: Array) -> Array:
    """What the discriminator minimises, for each pair of scores [B] of data and samples, shape [B]."""
    match name:
        case "minimax" | "non_saturating":
            return jax.nn.softplus(-real) + jax.nn.softplus(fake)
        case "least_squares":
            return 0.5 * (real - 1.0) ** 2 + 0.5 * fake**2
        case "hinge":
            return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)
        case "wasserstein":
            return fake - real
    raise ValueError(f"unknown objective {name!r}; choose one of {', '.join(Objective.__args__)}")


def generator_objective(name: Objective, fake: Array) -> Array:
    """What the generator minimises, for each score [B] of a sample, shape [B]."""
    match name:
        case "minimax":
            return -jax.nn.softplus(fake)
        case "non_saturating":
            return jax.nn.softplus(-fake)
        case "least_squares":
            return 0.5 * (fake - 1.0) ** 2
        case "hinge" | "wasserstein":
            return -fake
    raise ValueError(f"unknown objective {name!r}; choose one of {', '.join(Objective.__args__)}")


def squared_gradient_norm(score: Callable[[Array], Array], x: Array) -> Array:
    """|grad D(x)|^2 of each example, for `score` of [B, ...] to [B] that treats examples separately, shape [B]."""
    gradient = jax.grad(lambda y: score(y).sum())(x)
    return (gradient.astype(jnp.float32) ** 2).reshape(x.shape[0], -1).sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GAN:
    """Generator and discriminator that are trained in turns.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      latent_dim: number of latent dimensions.
      network: its decoder is the generator, its encoder the discriminator.
      objective: what the two minimise.
      penalty: gradient penalty of the discriminator.
      penalty_weight: weight w of the penalty.
      clip_weights: bound on the size of every weight of the discriminator (the first WGAN), or None.
      num_discriminator_steps: updates of the discriminator before each one of the generator, on fresh samples.
      compute_dtype: type that the networks compute in; parameters and losses are float32.
      generator_optimizer: learning rule of the generator.
      discriminator_optimizer: learning rule of the discriminator.
    """

    data_shape: tuple[int, ...] | None = None
    latent_dim: int = 32
    network: Network = MLPNetwork(hidden_dims=(128, 128), activation="relu")
    objective: Objective = "non_saturating"
    penalty: Penalty = "none"
    penalty_weight: float = 10.0
    clip_weights: float | None = None
    num_discriminator_steps: int = 1
    compute_dtype: str = "float32"
    generator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)
    discriminator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)

    def __post_init__(self) -> None:
        if self.num_discriminator_steps < 1:
            raise ValueError(f"model.num_discriminator_steps={self.num_discriminator_steps} must be at least 1")

    def generator(self) -> Any:
        """The Linen module (z, condition) -> [B, *data_shape]."""
        if self.data_shape is None:
            raise ValueError("GAN.data_shape is None; give it, or resolve the experiment")
        return self.network.decoder(self.data_shape, jnp.dtype(self.compute_dtype))

    def discriminator(self) -> Any:
        """The Linen module (x, condition) -> [B, 1]."""
        return self.network.encoder(1, jnp.dtype(self.compute_dtype))

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          ValueError: the examples have another shape than `data_shape`.
        """
        if self.data_shape is not None and batch["x"].shape[1:] != tuple(self.data_shape):
            raise ValueError(
                f"examples have the shape {batch['x'].shape[1:]}, but model.data_shape is {self.data_shape}"
            )
        generator_key, discriminator_key = jax.random.split(key)
        latents = jnp.zeros((batch_size(batch), self.latent_dim))
        params = {
            "generator": self.generator().init(generator_key, latents)["params"],
            "discriminator": self._clipped(self.discriminator().init(discriminator_key, batch["x"])["params"]),
        }
        optimizers = {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}
        return TrainState.create(params, optimizers)

    def generate(self, params: PyTree, latents: Array) -> Array:
        """G(z) of latents [B, latent_dim] with the generator's parameters, float32 [B, *data_shape]."""
        return self.generator().apply({"params": params}, latents).astype(jnp.float32)

    def score(self, params: PyTree, x: Array) -> Array:
        """D(x) with the discriminator's parameters: a logit, or the critic's value, float32 [B]."""
        return self.discriminator().apply({"params": params}, x)[:, 0].astype(jnp.float32)

    def latents(self, key: Array, batch: Batch) -> Array:
        """Standard normal latents that belong to the examples, [B, latent_dim]."""
        return jax.vmap(lambda k: jax.random.normal(k, (self.latent_dim,)))(example_keys(key, batch))

    def _clipped(self, params: PyTree) -> PyTree:
        if self.clip_weights is None:
            return params
        return jax.tree.map(lambda p: jnp.clip(p, -self.clip_weights, self.clip_weights), params)

    def gradient_penalty(self, params: PyTree, x: Array, fake: Array, mixture: Array) -> Array:
        """The penalty's mean over examples [B, ...]; `mixture` [B] in [0, 1] is e of wgan_gp."""
        score = lambda y: self.score(params, y)  # noqa: E731
        match self.penalty:
            case "wgan_gp":
                e = mixture.reshape(-1, *[1] * (x.ndim - 1))
                # The gradient of a norm is not finite at 0.
                norm = jnp.sqrt(squared_gradient_norm(score, e * x + (1.0 - e) * fake) + 1e-12)
                return self.penalty_weight * jnp.mean((norm - 1.0) ** 2)
            case "r1":
                return 0.5 * self.penalty_weight * squared_gradient_norm(score, x).mean()
            case "r2":
                return 0.5 * self.penalty_weight * squared_gradient_norm(score, fake).mean()
        return jnp.zeros(())

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """`num_discriminator_steps` updates of the discriminator and one of the generator.

        Metrics: `loss` (the generator's), `discriminator_loss`, `penalty`, `real_score`, `fake_score`.
        """
        generator, discriminator = state.params["generator"], state.params["discriminator"]
        opt_state, ema = dict(state.opt_state), state.ema_params

        def discriminator_loss(params, batch, key):
            latent_key, mixture_key = jax.random.split(key)
            fake = self.generate(generator, self.latents(latent_key, batch))
            mixture = jax.vmap(jax.random.uniform)(example_keys(mixture_key, batch))
            real_score, fake_score = self.score(params, batch["x"]), self.score(params, fake)
            penalty = self.gradient_penalty(params, batch["x"], fake, mixture)
            loss = discriminator_objective(self.objective, real_score, fake_score).mean() + penalty
            return loss, {"penalty": penalty, "real_score": real_score.mean(), "fake_score": fake_score.mean()}

        for i in range(self.num_discriminator_steps):
            discriminator, opt_state["discriminator"], critic_metrics, _ = gradient_update(
                discriminator_loss,
                self.discriminator_optimizer,
                discriminator,
                opt_state["discriminator"],
                batch,
                jax.random.fold_in(key, i + 1),
            )
            discriminator = self._clipped(discriminator)

        def generator_loss(params, batch, key):
            fake = self.generate(params, self.latents(key, batch))
            return generator_objective(self.objective, self.score(discriminator, fake)).mean(), {}

        generator, opt_state["generator"], metrics, _ = gradient_update(
            generator_loss,
            self.generator_optimizer,
            generator,
            opt_state["generator"],
            batch,
            jax.random.fold_in(key, 0),
        )
        params = {"generator": generator, "discriminator": discriminator}
        if ema is not None:
            decays = {
                "generator": self.generator_optimizer.ema_decay,
                "discriminator": self.discriminator_optimizer.ema_decay,
            }
            ema = {name: ema_update(ema[name], params[name], decays[name], state.step) for name in ema}
        metrics["discriminator_loss"] = critic_metrics.pop("loss")
        metrics["discriminator_gradient_norm"] = critic_metrics.pop("gradient_norm")
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema)
        return state, {**critic_metrics, **metrics}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: `real_score` D(x), `fake_score` D(G(z)), and both objectives at them."""
        params = state.eval_params
        real = self.score(params["discriminator"], batch["x"])
        fake = self.score(params["discriminator"], self.generate(params["generator"], self.latents(key, batch)))
        return {
            "real_score": real,
            "fake_score": fake,
            "discriminator_objective": discriminator_objective(self.objective, real, fake),
            "generator_objective": generator_objective(self.objective, fake),
        }

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws from the generator, shape [num_samples, *data_shape]."""
        latents = jax.random.normal(key, (num_samples, self.latent_dim))
        return self.generate(state.eval_params["generator"], latents)
