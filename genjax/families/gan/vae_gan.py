"""VAE-GAN: an autoencoder whose error a discriminator measures (Larsen et al. 2016, arXiv:1512.09300).

With q(z | x) = N(m(x), s(x)^2), a decoder G, and a discriminator D(x) = a . f(x) + b whose hidden layer is f,

    L_prior    KL(q(z | x) | N(0, I))
    L_feature  1/2 |f(x) - f(G(z))|^2,  z ~ q(z | x)                                                       (eq. 7)
    L_gan      log D(x) + log(1 - D(G(z))) + log(1 - D(G(z_p))),  z_p ~ N(0, I)

    encoder        b L_prior + L_feature                                                                   (algorithm 1)
    decoder        w L_feature - log D(G(z)) - log D(G(z_p))       (the non-saturating form of - L_gan)
    discriminator  - L_gan + r / 2 E |grad D(x)|^2

The paper has b = 1, with thousands of features.  With a hundred features the error is so small that, at b = 1, codes
carry no information on x.  The paper has no penalty R1 (r = 0; Mescheder et al. 2018, arXiv:1801.04406).  Small sets
need it, as D learns them by heart.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, batch_size, check_data_shape, example_keys
from genjax.errors import filled
from genjax.families.gan.objectives import centred_penalty
from genjax.families.gan.turns import Turns
from genjax.model import TrainState
from genjax.nn.distributions import DiagonalGaussian
from genjax.nn.encoder_decoder import MLPNetwork, Network
from genjax.nn.mlp import Activation, activation_function
from genjax.optimizers import Adam, Optimizer


class FeatureDiscriminator(nn.Module):
    """A network's encoder as hidden layer f, and a score from f: x [B, ...] to f(x) [B, num_features] and logits [B].

    Attributes:
      network: network whose encoder is used.
      num_features: width of the hidden layer.
      num_outputs: number of scores of an example; one gives [B], more give [B, num_outputs].
      dtype: type to compute in.
    """

    network: Network
    num_features: int
    num_outputs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> tuple[Array, Array]:
        features = self.network.encoder(self.num_features, self.dtype)(x, condition)
        scores = nn.Dense(self.num_outputs, dtype=self.dtype)(nn.leaky_relu(features, 0.2)).astype(jnp.float32)
        return features.astype(jnp.float32), scores[:, 0] if self.num_outputs == 1 else scores


def normal_latents(key: Array, batch: Batch, dim: int) -> Array:
    """Standard normal vectors that belong to the examples, [B, dim]."""
    return jax.vmap(lambda k: jax.random.normal(k, (dim,)))(example_keys(key, batch))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEGAN:
    """Encoder, decoder and discriminator that are trained in turns.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      latent_dim: number of latent dimensions.
      network: encoder and decoder; the discriminator is a second encoder.
      num_features: width of the discriminator's hidden layer f.
      kl_weight: weight b of the divergence in the encoder's loss.
      feature_weight: weight w of the feature error in the decoder's loss.
      penalty_weight: weight r of the gradient penalty.
      output_activation: activation of the decoder's outputs; sigmoid keeps pictures in [0, 1].
      compute_dtype: type that the networks compute in; parameters and losses are float32.
      encoder_optimizer: optimizer of the encoder.
      decoder_optimizer: optimizer of the decoder.
      discriminator_optimizer: optimizer of the discriminator.
    """

    data_shape: tuple[int, ...] | None = None
    latent_dim: int = 32
    network: Network = MLPNetwork()
    num_features: int = 128
    kl_weight: float = 1.0
    feature_weight: float = 1.0
    penalty_weight: float = 0.0
    output_activation: Activation = "identity"
    compute_dtype: ComputeDtype = "float32"
    encoder_optimizer: Optimizer = Adam(learning_rate=3e-4)
    decoder_optimizer: Optimizer = Adam(learning_rate=3e-4, b1=0.5)
    discriminator_optimizer: Optimizer = Adam(learning_rate=3e-4, b1=0.5)

    def _modules(self) -> dict[str, Any]:
        dtype = jnp.dtype(self.compute_dtype)
        return {
            "encoder": self.network.encoder(2 * self.latent_dim, dtype),
            "decoder": self.network.decoder(self.data_shape, dtype),
            "discriminator": FeatureDiscriminator(self.network, self.num_features, 1, dtype),
        }

    def _optimizers(self) -> dict[str, Optimizer]:
        return {name: getattr(self, f"{name}_optimizer") for name in ("encoder", "decoder", "discriminator")}

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`.
        """
        check_data_shape(batch["x"], filled(self, "data_shape"))
        inputs = {
            "encoder": batch["x"],
            "decoder": jnp.zeros((batch_size(batch), self.latent_dim)),
            "discriminator": batch["x"],
        }
        keys = dict(zip(inputs, jax.random.split(key, 3), strict=True))
        params = {name: self._modules()[name].init(keys[name], inputs[name])["params"] for name in inputs}
        return TrainState.create(params, self._optimizers())

    def posterior(self, params: PyTree, x: Array) -> DiagonalGaussian:
        """q(z | x) with the encoder's parameters, shapes [B, latent_dim]."""
        outputs = self._modules()["encoder"].apply({"params": params}, x)
        return DiagonalGaussian(*jnp.split(outputs.astype(jnp.float32), 2, axis=-1))

    def generate(self, params: PyTree, latents: Array) -> Array:
        """G(z) with the decoder's parameters, float32 [B, *data_shape]."""
        outputs = self._modules()["decoder"].apply({"params": params}, latents).astype(jnp.float32)
        return activation_function(self.output_activation)(outputs)

    def discriminate(self, params: PyTree, x: Array) -> tuple[Array, Array]:
        """f(x) [B, num_features] and the logit of D(x) [B], with the discriminator's parameters."""
        return self._modules()["discriminator"].apply({"params": params}, x)

    def feature_error(self, params: PyTree, x: Array, again: Array) -> Array:
        """L_feature of examples and their reconstructions [B, ...], with the discriminator's parameters, [B]."""
        return 0.5 * ((self.discriminate(params, x)[0] - self.discriminate(params, again)[0]) ** 2).sum(-1)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of each network.

        Metrics: `loss` (the encoder's), `decoder_loss`, `discriminator_loss`, `kl` (nats), `feature_error`.
        """
        turns = Turns(state, self._optimizers())
        posterior_key, prior_key = jax.random.split(key)

        def reconstruction(encoder: PyTree, decoder: PyTree, batch: Batch) -> tuple[Array, DiagonalGaussian]:
            posterior = self.posterior(encoder, batch["x"])
            noise = normal_latents(posterior_key, batch, self.latent_dim)
            return self.generate(decoder, posterior.sample(noise)), posterior

        def samples(decoder: PyTree, batch: Batch) -> Array:
            return self.generate(decoder, normal_latents(prior_key, batch, self.latent_dim))

        def encoder_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            again, posterior = reconstruction(params, turns.params["decoder"], batch)
            kl = posterior.kl_to_standard_normal().sum(-1).mean()
            error = self.feature_error(turns.params["discriminator"], batch["x"], again).mean()
            return self.kl_weight * kl + error, {"kl": kl, "feature_error": error}

        def decoder_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            again, _ = reconstruction(turns.params["encoder"], params, batch)
            error = self.feature_error(turns.params["discriminator"], batch["x"], again).mean()
            scores = [self.discriminate(turns.params["discriminator"], x)[1] for x in (again, samples(params, batch))]
            return self.feature_weight * error + sum(jax.nn.softplus(-s).mean() for s in scores), {}

        def discriminator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            again, _ = reconstruction(turns.params["encoder"], turns.params["decoder"], batch)
            drawn = samples(turns.params["decoder"], batch)
            real, *fake = (self.discriminate(params, x)[1] for x in (batch["x"], again, drawn))
            loss = jax.nn.softplus(-real).mean() + sum(jax.nn.softplus(s).mean() for s in fake)
            loss += centred_penalty(self.penalty_weight, lambda y: self.discriminate(params, y)[1], batch["x"])
            return loss, {}

        turns.update("encoder", encoder_loss, batch, key)
        turns.update("decoder", decoder_loss, batch, key)
        turns.update("discriminator", discriminator_loss, batch, key)
        return turns.finish(loss="encoder")

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: `kl` in nats, `feature_error` and summed `squared_error` at the
        posterior's mean, `real_score`.
        """
        params, x = state.eval_params, batch["x"]
        posterior = self.posterior(params["encoder"], x)
        again = self.generate(params["decoder"], posterior.mean)
        return {
            "kl": posterior.kl_to_standard_normal().sum(-1),
            "feature_error": self.feature_error(params["discriminator"], x, again),
            "squared_error": ((x - again) ** 2).reshape(x.shape[0], -1).sum(-1),
            "real_score": self.discriminate(params["discriminator"], x)[1],
        }

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Decodes draws from the prior, shape [num_samples, *data_shape]."""
        return self.decode(state, jax.random.normal(key, (num_samples, self.latent_dim)))

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """Mean of q(z | x), shape [B, latent_dim]."""
        return self.posterior(state.eval_params["encoder"], batch["x"]).mean

    def decode(self, state: TrainState, latents: Array) -> Array:
        """G(z), shape [B, *data_shape]."""
        return self.generate(state.eval_params["decoder"], latents)

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """G at the mean of q(z | x), the shape of x."""
        del key
        return self.decode(state, self.encode(state, batch))
