"""The perceptrons of the first adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661, section 5).

    generator      z -> [dense, relu]* -> dense -> sigmoid
    discriminator  dropout of x -> [dense to p pieces of every unit, their largest, dropout]* -> dense to the score

Maxout (Goodfellow et al. 2013, arXiv:1302.4389): a unit is max_k (W_k x + b_k) over its pieces k.  Dropout (Srivastava
et al. 2014) sets inputs to zero with a probability p in training, and divides the others by 1 - p.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.gan.layers import Dense
from genjax.families.gan.networks import Conditioning, GANNetwork, Head, PlainGenerator
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.encoder_decoder import MLPNetwork, append_condition
from genjax.nn.mlp import Activation


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxoutNetwork(GANNetwork):
    """Perceptrons on flattened arrays of any shape; the defaults come from the authors' code for MNIST.

    Attributes:
      generator_dims: widths of the generator's hidden layers.
      output_activation: activation of the generator's outputs; sigmoid keeps pictures in [0, 1], tanh in [-1, 1].
      discriminator_dims: numbers of units of the discriminator's hidden layers.
      num_pieces: number of linear pieces of each unit of the discriminator's hidden layers.
      input_dropout: probability that a value of x is dropped before the discriminator; the class is never dropped.
      dropout: probability that a unit's output is dropped.
      spectral: divide the discriminator's weights by their largest singular values (not in the paper).
    """

    generator_dims: tuple[int, ...] = (1200, 1200)
    output_activation: Activation = "sigmoid"
    discriminator_dims: tuple[int, ...] = (240, 240)
    num_pieces: int = 5
    input_dropout: float = 0.2
    dropout: float = 0.5
    spectral: bool = False

    def __post_init__(self) -> None:
        if self.num_pieces < 1:
            raise UserError(f"network.num_pieces={self.num_pieces} must be at least 1")
        for name in ("input_dropout", "dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"network.{name}={getattr(self, name)} must be a probability below 1")

    def generator(self, data_shape: tuple[int, ...], dtype: Any) -> nn.Module:
        # A decoder has an encoder's widths in reverse.
        network = MLPNetwork(hidden_dims=self.generator_dims[::-1], activation="relu")
        return PlainGenerator(network, data_shape, dtype, self.output_activation)

    def discriminator(self, conditioning: Conditioning, dtype: Any) -> nn.Module:
        return _Discriminator(self, conditioning, dtype)


class _Discriminator(nn.Module):
    network: MaxoutNetwork
    conditioning: Conditioning
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array | None = None,
        training: bool = False,
        keys: Array | None = None,
        counted: Array | None = None,
    ) -> Array:
        network = self.network
        layer = functools.partial(
            Dense, kernel_init=nn.initializers.lecun_normal(), spectral=network.spectral, dtype=self.dtype
        )
        x = dropout(x.reshape(x.shape[0], -1), network.input_dropout, fold_in(keys, 0))
        x = append_condition(x, condition if self.conditioning == "concatenation" else None)
        for i, units in enumerate(network.discriminator_dims, start=1):
            x = layer(units * network.num_pieces)(x).reshape(-1, units, network.num_pieces).max(-1)
            x = dropout(x, network.dropout, fold_in(keys, i))
        return Head(self.conditioning, layer)(x, condition)
