"""Adversarial autoencoder: the codes are made to follow a prior by a discriminator of codes (Makhzani et al. 2016,
arXiv:1511.05644).

With codes h = encoder(x), a decoder p(x | h), draws z of a prior p(z), and a discriminator D of codes, each step makes
three updates (section 2):

    reconstruction   encoder and decoder   -log p(x | h)
    regularisation   D                     softplus(-D(z)) + softplus(D(h)) + w/2 (|grad D(z)|^2 + |grad D(h)|^2)
                     encoder               softplus(-D(h))

The paper has no penalty (w = 0).  Without a penalty, D soon separates the codes of a small set from the prior
perfectly, and its gradient does not show where codes should go (Mescheder et al. 2018, arXiv:1801.04406).

`CodeMatching` is the regularisation alone; it works with the codes of any encoder, also of sequences or molecules.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, batch_size, check_data_shape, example_keys
from genjax.errors import UserError, filled
from genjax.families.gan.objectives import (
    Objective,
    centred_penalty,
    discriminator_objective,
    generator_objective,
)
from genjax.families.gan.turns import Turns
from genjax.families.gan.vae_gan import normal_latents
from genjax.model import TrainState
from genjax.nn.distributions import Bernoulli, OutputDistribution
from genjax.nn.encoder_decoder import MLPNetwork, Network, OutputDecoder
from genjax.nn.mlp import MLP, Activation
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support, only_of_support


@dataclasses.dataclass(frozen=True)
class CodePrior(abc.ABC):
    """Prior distribution of the codes."""

    @abc.abstractmethod
    def draw(self, key: Array, batch: Batch, dim: int) -> Array:
        """One draw for each example of a batch, [B, dim]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalPrior(CodePrior):
    """N(0, scale^2 I).

    Attributes:
      scale: standard deviation.
    """

    scale: float = 1.0

    def draw(self, key: Array, batch: Batch, dim: int) -> Array:
        return self.scale * normal_latents(key, batch, dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RingPrior(CodePrior):
    """Equal normal distributions around a circle in the first two dimensions (section 2.3); the other
    dimensions are N(0, scale^2).

    Attributes:
      num_modes: number of distributions.
      radius: radius of the circle.
      scale: standard deviation of each distribution.
    """

    num_modes: int = 10
    radius: float = 2.0
    scale: float = 0.2

    def draw(self, key: Array, batch: Batch, dim: int) -> Array:
        if dim < 2:
            raise UserError(f"a ring needs codes of at least two dimensions, not latent_dim={dim}")
        mode_key, noise_key = jax.random.split(key)
        mode = jax.vmap(lambda k: jax.random.randint(k, (), 0, self.num_modes))(example_keys(mode_key, batch))
        angle = 2.0 * jnp.pi * mode / self.num_modes
        centre = self.radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return self.scale * normal_latents(noise_key, batch, dim) + jnp.pad(centre, ((0, 0), (0, dim - 2)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeMatching:
    """Makes the codes of an encoder follow a prior.

    Attributes:
      prior: distribution that the codes shall follow.
      hidden_dims: widths of the discriminator of codes.
      activation: activation of the discriminator's hidden layers.
      objective: losses of discriminator and encoder.
      penalty_weight: weight w of the gradient penalty of the discriminator.
    """

    prior: CodePrior = NormalPrior()
    hidden_dims: tuple[int, ...] = (256, 256)
    activation: Activation = "leaky_relu"
    objective: Objective = "non_saturating"
    penalty_weight: float = 0.0

    def _module(self) -> MLP:
        return MLP((*self.hidden_dims, 1), self.activation)

    def init(self, key: Array, dim: int) -> PyTree:
        """Parameters of the discriminator of codes [B, dim]."""
        return self._module().init(key, jnp.zeros((1, dim)))["params"]

    def score(self, params: PyTree, codes: Array) -> Array:
        """D of codes [B, dim], float32 [B]."""
        return self._module().apply({"params": params}, codes)[:, 0].astype(jnp.float32)

    def discriminator_loss(self, params: PyTree, codes: Array, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean loss of D for codes [B, dim] of a batch, and the mean scores of prior and codes."""
        draws = self.prior.draw(key, batch, codes.shape[-1])
        prior_score, code_score = self.score(params, draws), self.score(params, codes)
        loss = discriminator_objective(self.objective, prior_score, code_score).mean()
        loss += centred_penalty(self.penalty_weight, lambda y: self.score(params, y), draws, codes)
        return loss, {"prior_score": prior_score.mean(), "code_score": code_score.mean()}

    def encoder_loss(self, params: PyTree, codes: Array, batch: Batch, key: Array) -> Array:
        """Mean loss of the encoder for its codes [B, dim]."""
        prior_score = self.score(params, self.prior.draw(key, batch, codes.shape[-1]))
        return generator_objective(self.objective, self.score(params, codes), prior_score).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialAutoencoder:
    """Autoencoder with deterministic codes that follow a prior.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      latent_dim: number of dimensions of the code.
      network: encoder and decoder.
      output: distribution of the data given the decoder's output; -log p(x | h) is the reconstruction error.
      matching: how the codes are made to follow a prior.
      compute_dtype: type that encoder and decoder compute in; parameters and losses are float32.
      reconstruction_optimizer: optimizer of encoder and decoder for the reconstruction.
      encoder_optimizer: optimizer of the encoder against the discriminator.
      discriminator_optimizer: optimizer of the discriminator of codes.
    """

    data_shape: tuple[int, ...] | None = None
    latent_dim: int = 8
    network: Network = MLPNetwork()
    output: OutputDistribution = Bernoulli()
    matching: CodeMatching = CodeMatching()
    compute_dtype: ComputeDtype = "float32"
    reconstruction_optimizer: Optimizer = Adam(learning_rate=1e-3)
    encoder_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)
    discriminator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)

    def __post_init__(self) -> None:
        if self.encoder_optimizer.ema_decay is not None:
            raise UserError(
                "model.encoder_optimizer.ema_decay averages nothing, as the encoder has two learning rules; "
                "model.reconstruction_optimizer.ema_decay averages encoder and decoder after both"
            )

    def support(self) -> Support:
        """The values that the output distribution scores."""
        return self.output.support()

    def _encoder(self) -> Any:
        return self.network.encoder(self.latent_dim, jnp.dtype(self.compute_dtype))

    def _decoder(self) -> Any:
        return OutputDecoder(self.network, self.output, self.data_shape, jnp.dtype(self.compute_dtype))

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`.
        """
        check_data_shape(batch["x"], filled(self, "data_shape"))
        encoder_key, decoder_key, discriminator_key = jax.random.split(key, 3)
        codes = jnp.zeros((batch_size(batch), self.latent_dim))
        params = {
            "autoencoder": {
                "encoder": self._encoder().init(encoder_key, batch["x"])["params"],
                "decoder": self._decoder().init(decoder_key, codes)["params"],
            },
            "discriminator": self.matching.init(discriminator_key, self.latent_dim),
        }
        state = TrainState.create(
            params, {"autoencoder": self.reconstruction_optimizer, "discriminator": self.discriminator_optimizer}
        )
        encoder = self.encoder_optimizer.build().init(params["autoencoder"]["encoder"])
        return state.replace(opt_state={**state.opt_state, "encoder": encoder})

    def codes(self, params: PyTree, x: Array) -> Array:
        """h with the encoder's parameters, float32 [B, latent_dim]."""
        return self._encoder().apply({"params": params}, x).astype(jnp.float32)

    def reconstruction_error(self, params: PyTree, codes: Array, x: Array) -> Array:
        """-log p(x | h) in nats with the decoder's parameters, [B]; NaN for values of x that have no likelihood."""
        parameters = self._decoder().apply({"params": params}, codes)
        log_prob = self.output.log_prob(parameters, x).reshape(x.shape[0], -1).sum(-1)
        return -only_of_support(self.support(), log_prob, x)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """The three updates.

        Metrics: `loss` (reconstruction, nats), `discriminator_loss`, `encoder_loss`, `prior_score`, `code_score`.
        """
        optimizers = {
            "autoencoder": self.reconstruction_optimizer,
            "discriminator": self.discriminator_optimizer,
            "encoder": self.encoder_optimizer,
        }
        turns = Turns(state, optimizers)
        discriminator_key, encoder_key = jax.random.split(key)

        def reconstruction_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            codes = self.codes(params["encoder"], batch["x"])
            return self.reconstruction_error(params["decoder"], codes, batch["x"]).mean(), {}

        def discriminator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            codes = self.codes(turns.params["autoencoder"]["encoder"], batch["x"])
            return self.matching.discriminator_loss(params, codes, batch, key)

        def encoder_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            codes = self.codes(params, batch["x"])
            return self.matching.encoder_loss(turns.params["discriminator"], codes, batch, key), {}

        turns.update("autoencoder", reconstruction_loss, batch, key)
        turns.update("discriminator", discriminator_loss, batch, discriminator_key)
        turns.params["encoder"] = turns.params["autoencoder"]["encoder"]
        turns.update("encoder", encoder_loss, batch, encoder_key)
        turns.params["autoencoder"] = {**turns.params["autoencoder"], "encoder": turns.params.pop("encoder")}
        return turns.finish(loss="autoencoder")

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: `reconstruction` = -log p(x | h) in nats, and the scores `code_score` and `prior_score`."""
        params = state.eval_params
        codes = self.codes(params["autoencoder"]["encoder"], batch["x"])
        prior = self.matching.prior.draw(key, batch, self.latent_dim)
        return {
            "reconstruction": self.reconstruction_error(params["autoencoder"]["decoder"], codes, batch["x"]),
            "code_score": self.matching.score(params["discriminator"], codes),
            "prior_score": self.matching.score(params["discriminator"], prior),
        }

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for values that have no likelihood under `output`, outside of `jit`.

        Raises:
          UserError: naming them.
        """
        self.support().check(batch["x"])

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Decodes draws from the prior, shape [num_samples, *data_shape]."""
        index = {"example_index": jnp.arange(num_samples)}
        return self.decode(state, self.matching.prior.draw(key, index, self.latent_dim))

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """The code of each example, shape [B, latent_dim]."""
        return self.codes(state.eval_params["autoencoder"]["encoder"], batch["x"])

    def decode(self, state: TrainState, latents: Array) -> Array:
        """Mean of p(x | h), shape [B, *data_shape]."""
        return self.output.mean(self._decoder().apply({"params": state.eval_params["autoencoder"]["decoder"]}, latents))

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Mean of p(x | h) at the code of x, the shape of x."""
        del key
        return self.decode(state, self.encode(state, batch))
