"""The autoencoder of latent diffusion with a weak divergence and a discriminator of patches (Rombach et al. 2022,
arXiv:2112.10752, section 3.1 and appendix G).

The encoder gives moments of a Gaussian at each place of a small map, q(z | x) = N(m, s^2); the decoder G learns

    L_rec     |x - G(z)|,  summed over pixels, and w_p perceptual(x, G(z)) for each pixel
    L         L_rec + b KL(q(z | x) | N(0, I)) + w_gan a L_gan,    b = 1e-6
    L_gan     - mean D(G(z)),    a = |grad L_rec| / (|grad L_gan| + 1e-4) at the last layer  (2012.09841, eq. 7)
    D         1/2 mean relu(1 - D(x)) + 1/2 mean relu(1 + D(G(z))),    after gan_start updates

The divergence only keeps codes from growing without limit.  A diffusion model learns the codes, and needs them at unit
variance: see diffusion/latent_diffusion.py.  Without the GAN, `gan_weight` is 0, and there is no discriminator.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, cross_device_mean, example_keys
from genjax.errors import UserError, filled
from genjax.evaluation.inception import InceptionV3, prepare
from genjax.families.gan.objectives import discriminator_objective
from genjax.families.gan.translation import PatchDiscriminator
from genjax.families.gan.turns import Turns
from genjax.families.vae.checkpoints import AUTOENCODER_KL
from genjax.families.vae.picture_autoencoder import PictureDecoder, PictureEncoder, PictureNetwork
from genjax.interop.architecture import Architecture
from genjax.interop.inception import inception_params
from genjax.model import TrainState
from genjax.nn.distributions import DiagonalGaussian, gaussian_log_prob
from genjax.nn.encoder_decoder import check_picture_shape
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKL:
    """Autoencoder of pictures in [-1, 1] whose code is a map of Gaussians.

    Attributes:
      data_shape: shape (H, W, C) of one picture; None takes the data set's.
      network: sizes of encoder and decoder.
      latent_channels: channels of the code.
      scaling_factor: factor on codes before a diffusion model learns them; None takes 1 / their standard deviation.
      shift_factor: what is subtracted from codes before that factor.
      reconstruction: l1, the absolute error; gaussian, -log N(x; G(z), 1) in nats.
      kl_weight: weight b of the divergence.
      perceptual_weight: weight w_p of the squared distance of Inception's features of unit length.
      perceptual_file: file of the Inception weights for perceptual_weight.
      gan_weight: weight w_gan of the discriminator's judgement; 0 for none.
      gan_start: number of updates before the discriminator begins.
      discriminator_channels: channels of the discriminator after each halving.
      compute_dtype: type that the networks compute in; parameters, moments and losses are float32.
      optimizer: optimizer of encoder and decoder.
      discriminator_optimizer: optimizer of the discriminator.
    """

    architectures: ClassVar[tuple[Architecture, ...]] = (AUTOENCODER_KL,)

    data_shape: tuple[int, ...] | None = None
    network: PictureNetwork = PictureNetwork()
    latent_channels: int = 4
    scaling_factor: float | None = None
    shift_factor: float = 0.0
    reconstruction: Literal["l1", "gaussian"] = "l1"
    kl_weight: float = 1e-6
    perceptual_weight: float = 0.0
    perceptual_file: str | None = None
    gan_weight: float = 0.0
    gan_start: int = 0
    discriminator_channels: tuple[int, ...] = (64, 128)
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=1e-3, ema_decay=0.999)
    discriminator_optimizer: Optimizer = Adam(learning_rate=1e-4, b1=0.5)

    def support(self) -> Support:
        """Pictures in [-1, 1]."""
        return Support(name="AutoencoderKL", remedy="data.preprocessing to signed", low=-1.0, high=1.0)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, D) of a code.

        Raises:
          UserError: the pictures' size is not known, or cannot be halved often enough.
        """
        height, width, channels = filled(self, "data_shape")
        check_picture_shape((height, width, channels), len(self.network.channels) - 1)
        return height // self.network.factor, width // self.network.factor, self.latent_channels

    def encoder(self) -> PictureEncoder:
        """The module from pictures to moments."""
        return PictureEncoder(self.network, 2 * self.latent_channels, jnp.dtype(self.compute_dtype))

    def decoder(self) -> PictureDecoder:
        """The module from codes to pictures."""
        channels = 3 if self.data_shape is None else self.data_shape[-1]
        return PictureDecoder(self.network, channels, jnp.dtype(self.compute_dtype))

    def discriminator(self) -> PatchDiscriminator:
        """The module from pictures to scores of patches."""
        return PatchDiscriminator(self.discriminator_channels, jnp.dtype(self.compute_dtype))

    def autoencoder_params(self, key: Array, x: Array) -> dict[str, PyTree]:
        """Parameters of encoder and decoder before the first step, for pictures [B, H, W, C]."""
        encoder_key, decoder_key = jax.random.split(key)
        code = jnp.zeros((1, *self.code_shape))
        return {
            "encoder": self.encoder().init(encoder_key, x[:1])["params"],
            "decoder": self.decoder().init(decoder_key, code)["params"],
        }

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the pictures have another shape than `data_shape`, or cannot be halved often enough.
        """
        autoencoder_key, discriminator_key = jax.random.split(key)
        if self.code_shape and batch["x"].shape[1:] != tuple(self.data_shape):
            raise UserError(
                f"examples have the shape {batch['x'].shape[1:]}, but model.data_shape is {self.data_shape}"
            )
        params = {"autoencoder": self.autoencoder_params(autoencoder_key, batch["x"])}
        if self.gan_weight:
            params["discriminator"] = self.discriminator().init(discriminator_key, batch["x"][:1])["params"]
        extra = {}
        if self.perceptual_weight:
            if self.perceptual_file is None:
                raise UserError(
                    "model.perceptual_weight needs --model.perceptual_file, a file of the Inception network's weights"
                )
            extra["inception"] = jax.tree.map(jnp.asarray, inception_params(self.perceptual_file))
        return TrainState.create(params, self._optimizers(), extra)

    def _optimizers(self) -> dict[str, Optimizer]:
        found = {"autoencoder": self.optimizer}
        return {**found, "discriminator": self.discriminator_optimizer} if self.gan_weight else found

    # ------------------------------------------------------------------------------------------------------------------
    # Codes; `params` are those of encoder and decoder

    def posterior(self, params: PyTree, x: Array) -> DiagonalGaussian:
        """q(z | x) of pictures [B, H, W, C], at each place [B, h, w, D]; log-variances lie in [-30, 20]."""
        mean, log_variance = jnp.split(self.encoder().apply({"params": params["encoder"]}, x), 2, axis=-1)
        return DiagonalGaussian(mean, 0.5 * jnp.clip(log_variance, -30.0, 20.0))

    def decode_maps(self, params: PyTree, z: Array) -> Array:
        """G(z) of codes [B, h, w, D], [B, H, W, C]."""
        return self.decoder().apply({"params": params["decoder"]}, z)

    def code_maps(self, state: TrainState, batch: Batch) -> Array:
        """Means of q(z | x), [B, h, w, D]."""
        return self.posterior(state.eval_params["autoencoder"], batch["x"]).mean

    def merged_params(self, params: PyTree) -> PyTree:
        """Encoder and decoder without the discriminator, as they are written to a folder."""
        return {"autoencoder": params["autoencoder"]}

    # ------------------------------------------------------------------------------------------------------------------
    # Learning

    def reconstruction_error(self, extra: PyTree, x: Array, y: Array) -> Array:
        """L_rec of pictures and their reconstructions [B, H, W, C], [B]."""
        error = jnp.abs(x - y) if self.reconstruction == "l1" else -gaussian_log_prob(x, y, jnp.zeros(()))
        total = error.reshape(x.shape[0], -1).sum(-1)
        if self.perceptual_weight:
            total += self.perceptual_weight * x[0].size * self._perceptual(extra["inception"], x, y)
        return total

    @staticmethod
    def _perceptual(params: PyTree, x: Array, y: Array) -> Array:
        """Squared distance of the features of two pictures, each of length 1, [B]."""
        features = [InceptionV3().apply({"params": params}, prepare(0.5 * (a + 1.0), "tensorflow"))[0] for a in (x, y)]
        first, second = (f / jnp.linalg.norm(f, axis=-1, keepdims=True) for f in features)
        return jnp.square(first - second).sum(-1)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of encoder and decoder, then one of the discriminator.

        Metrics: loss, reconstruction (L_rec of an example), kl in nats of an example, mean_squared_error; with a GAN
        generator_score, gan_factor = a, real_score and discriminator_loss.  The factor a is of the microbatch.
        """
        turns = Turns(state, self._optimizers())
        x_of = lambda batch: batch["x"]
        begun = (state.step >= self.gan_start).astype(jnp.float32)

        def drawn(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array]:
            posterior = self.posterior(params, x_of(batch))
            shape = posterior.mean.shape[1:]
            noise = jax.vmap(lambda k: jax.random.normal(k, shape))(example_keys(key, batch))
            return posterior.sample(noise), posterior.kl_to_standard_normal().reshape(len(noise), -1).sum(-1)

        def loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            x, decoder = x_of(batch), self.decoder()
            z, kl = drawn(params, batch, key)
            apply = lambda inputs, method: decoder.apply({"params": params["decoder"]}, inputs, method=method)
            features = apply(z, "features")
            y = apply(features, "picture")
            reconstruction = lambda y: self.reconstruction_error(state.extra, x, y).mean()
            error = reconstruction(y)
            value = error + self.kl_weight * kl.mean()
            metrics = {"reconstruction": error, "kl": kl.mean(), "mean_squared_error": jnp.square(x - y).mean()}
            if self.gan_weight:
                judge = lambda y: self.score(turns.params["discriminator"], y).mean()
                factor = self._gan_factor(params, features, y, reconstruction, lambda y: -judge(y))
                score = judge(y)
                value -= begun * self.gan_weight * factor * score
                metrics |= {"generator_score": score, "gan_factor": factor}
            return value, metrics

        def discriminator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            z, _ = drawn(turns.params["autoencoder"], batch, key)
            fake = jax.lax.stop_gradient(self.decode_maps(turns.params["autoencoder"], z))
            real, fake = self.score(params, x_of(batch)), self.score(params, fake)
            return begun * 0.5 * discriminator_objective("hinge", real, fake).mean(), {"real_score": real.mean()}

        turns.update("autoencoder", loss, batch, key)
        if self.gan_weight:
            turns.update("discriminator", discriminator_loss, batch, key)
        return turns.finish(loss="autoencoder")

    def score(self, params: PyTree, x: Array) -> Array:
        """D of each patch with the discriminator's parameters, float32 [B, h, w]."""
        return self.discriminator().apply({"params": params}, x)

    def _gan_factor(self, params: PyTree, features: Array, y: Array, reconstruction: Any, judgement: Any) -> Array:
        """|grad L_rec| / |grad L_gan| at the kernel of the decoder's last layer, a scalar without a gradient."""
        rest = {name: part for name, part in params["decoder"].items() if name != "output"}

        def last(output: PyTree) -> Array:
            whole = {"params": {**rest, "output": output}}
            return self.decoder().apply(whole, jax.lax.stop_gradient(features), method="picture")

        _, pull = jax.vjp(last, params["decoder"]["output"])

        def norm(function: Any) -> Array:
            gradient = cross_device_mean(pull(jax.grad(function)(jax.lax.stop_gradient(y)))[0]["kernel"])
            return jnp.sqrt(jnp.square(gradient).sum())

        factor = norm(reconstruction) / (norm(judgement) + 1e-4)
        return jax.lax.stop_gradient(jnp.clip(factor, 0.0, 1e4))

    # ------------------------------------------------------------------------------------------------------------------
    # Evaluation and samples

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B] each, of the decoded mean m.

        `reconstruction` (L_rec), `kl` in nats, `mean_squared_error`, and `psnr` in decibels of pictures in [-1, 1]: 10
        log10(4 / mean_squared_error).
        """
        del key
        x, params = batch["x"], state.eval_params["autoencoder"]
        posterior = self.posterior(params, x)
        y = self.decode_maps(params, posterior.mean)
        error = jnp.square(x - y).reshape(x.shape[0], -1).mean(-1)
        return {
            "reconstruction": self.reconstruction_error(state.extra, x, y),
            "kl": posterior.kl_to_standard_normal().reshape(x.shape[0], -1).sum(-1),
            "mean_squared_error": error,
            "psnr": 10.0 * jnp.log10(4.0 / jnp.maximum(error, 1e-12)),
        }

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Decodes codes from N(0, I), [num_samples, *data_shape].

        With a small kl_weight the codes of data are distributed otherwise, so these are no samples of the data: train
        a diffusion model of the codes for them.
        """
        return self.decode_maps(
            state.eval_params["autoencoder"], jax.random.normal(key, (num_samples, *self.code_shape))
        )

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """G at the mean of q(z | x), the shape of x."""
        del key
        params = state.eval_params["autoencoder"]
        return self.decode_maps(params, self.posterior(params, batch["x"]).mean)
