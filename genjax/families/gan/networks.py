"""Interface of the networks of adversarial models, ways to make them conditional on
classes, and multilayer perceptrons.

A network is a frozen dataclass that builds two Linen modules:

    generator:      z [B, L], condition [B, K] or None, training, keys [B] or None  ->  [B, *data_shape]
    discriminator:  x [B, *data_shape], condition [B, K] or None, training, keys, counted  ->  [B, 1] or [B, 1 + K]

`condition` is the class as a one-hot vector.  `keys` are for noise inside the network.  `counted` [B] is True at
examples that others may be compared with, and False at padding of an evaluation; None counts all.  The discriminator's
first output is the score.  Conditioning on a class y:

    concatenation  both see y beside their input                            (Mirza & Osindero 2014, arXiv:1411.1784)
    auxiliary      the discriminator also classifies, outputs 1..K          (Odena et al. 2017, arXiv:1610.09585)
    projection     D(x, y) = psi(phi(x)) + <v_y, phi(x)>                    (Miyato & Koyama 2018, arXiv:1802.05637)
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.gan.layers import SPECTRAL, Dense
from genjax.nn.encoder_decoder import ConvNetwork, MLPNetwork, Network
from genjax.nn.mlp import Activation, activation_function

Conditioning = Literal["none", "concatenation", "auxiliary", "projection"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANNetwork(abc.ABC):
    """A generator and a discriminator."""

    @property
    def mixes_examples(self) -> bool:
        """Whether batch norm makes a discriminator's score in training depend on all other examples of the batch.

        Deviations within small groups of examples do not count: papers penalise gradients of such discriminators.
        """
        return False

    @abc.abstractmethod
    def generator(self, data_shape: tuple[int, ...], dtype: Any) -> nn.Module:
        """The module (z, condition, training, keys) -> [B, *data_shape]."""

    @abc.abstractmethod
    def discriminator(self, conditioning: Conditioning, dtype: Any) -> nn.Module:
        """The module (x, condition, training, keys, counted) -> [B, 1 + K] with conditioning=auxiliary, else [B, 1]."""


def with_label_maps(x: Array, condition: Array | None) -> Array:
    """Pictures [B, H, W, C] with a constant channel for each class, [B, H, W, C + K]."""
    if condition is None:
        return x
    maps = jnp.broadcast_to(condition[:, None, None].astype(x.dtype), (*x.shape[:3], condition.shape[-1]))
    return jnp.concatenate([x, maps], axis=-1)


def times_halved(data_shape: tuple[int, ...], smallest: int = 7) -> int:
    """Number of halvings of pictures (H, W, C) until the shorter side is at most `smallest`.

    Raises:
      UserError: the shape is not a picture's, a size on the way is odd, or the picture is too small to be halved.
    """
    if len(data_shape) != 3:
        raise UserError(f"a convolutional network needs pictures (H, W, C), not data of the shape {tuple(data_shape)}")
    height, width = data_shape[:2]
    if min(height, width) < 8:
        raise UserError(f"pictures of {height} x {width} are too small to be halved; use some of 8 pixels or more")
    count = 0
    while min(height, width) > smallest:
        if height % 2 or width % 2:
            raise UserError(
                f"pictures of {data_shape[0]} x {data_shape[1]} cannot be halved {count + 1} times, "
                f"as {height} x {width} is odd; use 28, 32 or 64 pixels, or pad them with data.pad_to"
            )
        height, width, count = height // 2, width // 2, count + 1
    return count


class Head(nn.Module):
    """Outputs of a discriminator from features [B, F]: score, and class logits if conditioning=auxiliary, [B, 1 (+ K)].

    Attributes:
      conditioning: how the class is used; concatenation is done by the layers before.
      layer: function from a number of features to an affine layer.
    """

    conditioning: Conditioning
    layer: Callable[..., nn.Module] = Dense

    @nn.compact
    def __call__(self, features: Array, condition: Array | None) -> Array:
        score = self.layer(1, name="score")(features)
        if condition is None:
            return score
        if self.conditioning == "projection":
            # The layer maps features to classes: with equalised learning rates, a layer from few classes
            # would be scaled for few inputs.
            products = self.layer(condition.shape[-1], use_bias=False, name="projection")(features)
            return score + jnp.sum(products * condition, axis=-1, keepdims=True)
        if self.conditioning == "auxiliary":
            return jnp.concatenate([score, self.layer(condition.shape[-1], name="classes")(features)], axis=-1)
        return score


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainNetwork(GANNetwork):
    """An autoencoder's network: its decoder is the generator, its encoder the discriminator.

    Attributes:
      network: the decoder and the encoder.
      output_activation: activation of the generator's outputs; sigmoid keeps pictures in [0, 1], tanh in [-1, 1].
      spectral: divide the discriminator's weights by their largest singular values.
    """

    network: MLPNetwork | ConvNetwork = MLPNetwork(hidden_dims=(128, 128), activation="relu")
    output_activation: Activation = "identity"
    spectral: bool = False

    def generator(self, data_shape: tuple[int, ...], dtype: Any) -> nn.Module:
        return PlainGenerator(self.network, data_shape, dtype, self.output_activation)

    def discriminator(self, conditioning: Conditioning, dtype: Any) -> nn.Module:
        return PlainDiscriminator(self.network, conditioning, dtype, self.spectral)


class PlainGenerator(nn.Module):
    """The decoder of an autoencoder's network as a generator."""

    network: Network
    data_shape: tuple[int, ...]
    dtype: Any
    output_activation: Activation = "identity"

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None, training: bool = False, keys: Any = None) -> Array:
        outputs = self.network.decoder(self.data_shape, self.dtype)(z, condition)
        return activation_function(self.output_activation)(outputs)


class PlainDiscriminator(nn.Module):
    """The encoder of an autoencoder's network as a discriminator."""

    network: Network
    conditioning: Conditioning
    dtype: Any
    spectral: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array | None = None,
        training: bool = False,
        keys: Array | None = None,
        counted: Array | None = None,
    ) -> Array:
        if self.conditioning == "projection":
            raise UserError("conditioning=projection needs a network of pictures, such as model.network=dcgan_network")
        auxiliary = self.conditioning == "auxiliary"
        encoder = self.network.encoder(1 + condition.shape[-1] if auxiliary else 1, self.dtype)
        arguments = (x, None if auxiliary else condition)
        if self.spectral:
            return nn.SpectralNorm(encoder, collection_name=SPECTRAL)(*arguments, update_stats=training)
        return encoder(*arguments)
