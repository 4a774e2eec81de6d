"""A small convolutional classifier after LeNet (LeCun et al. 1998), whose features measure the
quality of samples.

    h(x) = relu(W1 conv(x) + b1)        the features
    p(c | x) = softmax(W2 h(x) + b2)    the class probabilities
    loss = -E log p(c | shift(x)),  shift a random translation (filled up with zeros), h under dropout

Its samples are not draws from a distribution: they show the classifier's idea of each class, by gradient ascent on

    log p(c | x) - w |x|^2,  0 <= x <= 1                            (Simonyan et al. 2014, arXiv:1312.6034, eq. 1)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, check_label_range, example_keys
from genjax.errors import UserError
from genjax.gradients import gradient_step
from genjax.model import TrainState
from genjax.nn.convolution import Convolution, Downsample
from genjax.nn.dropout import dropout
from genjax.nn.encoder_decoder import check_picture_shape
from genjax.nn.tokens import logits_product
from genjax.optimizers import Adam, Cosine, Optimizer


class FeatureNetwork(nn.Module):
    """Pictures [B, H, W, C] to features [B, num_features] and logits [B, num_classes].

    Attributes:
      num_classes: number of classes.
      channels: numbers of channels of the feature maps after each halving.
      num_features: number of features.
      dropout_rate: rate of dropout of the features, if keys are given.
      dtype: type to compute in.
    """

    num_classes: int
    channels: tuple[int, ...]
    num_features: int
    dropout_rate: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dropout_keys: Array | None = None) -> tuple[Array, Array]:
        check_picture_shape(x.shape[1:], len(self.channels))
        for channels in self.channels:
            x = nn.relu(Downsample(channels, self.dtype)(x))
            x = nn.relu(Convolution(channels, self.dtype)(x))
        features = nn.relu(nn.Dense(self.num_features, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        output = nn.Dense(self.num_classes, dtype=self.dtype, dot_general=logits_product)
        logits = output(dropout(features, self.dropout_rate, dropout_keys))
        return features.astype(jnp.float32), logits


def shift_pictures(x: Array, offsets: Array, largest: int) -> Array:
    """Translates pictures [B, H, W, C] by offsets [B, 2] in {-largest, ..., largest} (down,
    right), filled up with zeros.
    """
    margin = ((0, 0), (largest, largest), (largest, largest), (0, 0))

    def crop(picture: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(picture, (largest - offset[0], largest - offset[1], 0), x.shape[1:])

    return jax.vmap(crop)(jnp.pad(x, margin), offsets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNet:
    """Classifier whose last hidden layer gives the features; wants pictures in [0, 1] (data.preprocessing=unit).

    Attributes:
      data_shape: shape (H, W, C) of one picture; None takes the data set's.
      num_classes: number of classes; None takes the data set's.
      channels: numbers of channels of the feature maps after each halving of height and width.
      num_features: number of features.
      dropout_rate: share of the features that are set to 0 in training.
      largest_shift: training pictures are shifted at random by at most this many pixels in each direction.
      num_ascent_steps: number of steps of the gradient ascent in `sample`.
      ascent_decay: weight w of the squared norm in the gradient ascent.
      compute_dtype: type that the network computes in; parameters and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    channels: tuple[int, ...] = (16, 32)
    num_features: int = 128
    dropout_rate: float = 0.4
    largest_shift: int = 2
    num_ascent_steps: int = 40
    ascent_decay: float = 0.01
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=2e-3, schedule=Cosine())

    def network(self) -> FeatureNetwork:
        """The Linen module.

        Raises:
          UserError: the number of classes is not known.
        """
        if self.num_classes is None:
            raise UserError("FeatureNet.num_classes is None; give it, or train on a labelled set")
        return FeatureNetwork(
            self.num_classes, self.channels, self.num_features, self.dropout_rate, jnp.dtype(self.compute_dtype)
        )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have no labels.
        """
        if "label" not in batch:
            raise UserError("a feature net is a classifier and needs a labelled set; this one has no labels")
        return TrainState.create(self.network().init(key, batch["x"])["params"], self.optimizer)

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean cross-entropy in nats of translated pictures under dropout; metric `accuracy`."""
        shift_key, dropout_key = jax.random.split(key)
        low, high = -self.largest_shift, self.largest_shift + 1
        draw = jax.vmap(lambda k: jax.random.randint(k, (2,), low, high))
        x = shift_pictures(batch["x"], draw(example_keys(shift_key, batch)), self.largest_shift)
        _, logits = self.network().apply({"params": params}, x, example_keys(dropout_key, batch))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, {"accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32).mean()}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss (cross-entropy, nats) and accuracy, both of pictures as trained on."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: cross_entropy in nats, accuracy (0 or 1)."""
        del key
        _, logits = self.features(state, batch["x"])
        return {
            "cross_entropy": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
        }

    def features(self, state: TrainState, x: Array) -> tuple[Array, Array]:
        """Features [B, num_features] and logits [B, num_classes] of pictures [B, *data_shape] in [0, 1]."""
        return self.network().apply({"params": state.eval_params}, x)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("label",)

    def check_labels(self, label: Array) -> None:
        """Refuses labels outside of the classes; inside of compiled functions their values are not known.

        Raises:
          UserError: there is no such class.
        """
        check_label_range(label, self.num_classes)

    def sample(self, state: TrainState, key: Array, num_samples: int, label: Array | None = None) -> Array:
        """Pictures that the classifier takes for classes `label` [num_samples], or for one; all in turn by default.

        They are not draws from a distribution.

        Returns:
          [num_samples, *data_shape] in [0, 1].

        Raises:
          UserError: a label is no class.
        """
        if label is None:
            label = jnp.arange(num_samples) % self.num_classes
        self.check_labels(label)
        label = jnp.broadcast_to(jnp.asarray(label), (num_samples,))
        start = 0.1 * jax.random.uniform(key, (num_samples, *self.data_shape))

        def negative(x: Array) -> Array:
            _, logits = self.features(state, x)
            fit = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return jnp.sum(fit + self.ascent_decay * (x**2).reshape(num_samples, -1).sum(-1))

        def ascend(x: Array, _: None) -> tuple[Array, None]:
            gradient = jax.grad(negative)(x)
            size = jnp.abs(gradient).reshape(num_samples, -1).max(-1).reshape(-1, 1, 1, 1)
            return jnp.clip(x - 0.1 * gradient / (size + 1e-8), 0.0, 1.0), None

        return jax.lax.scan(ascend, start, None, length=self.num_ascent_steps)[0]
