"""What CLIP and SigLIP share: two encoders into one space, trained so that pairs are found among the pairs of a batch.

A batch has `x` [B, H, W, C] and `tokens` [B, T] (with `mask`); the other examples of the batch are the negatives, on
all devices and in all microbatches, except examples with the same text or the same picture, which are right answers
too.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import (
    Array,
    Batch,
    ComputeDtype,
    Metrics,
    PyTree,
    counted_examples,
    cross_device_gather,
    example_keys,
)
from genjax.errors import UserError, filled
from genjax.gradients import BatchLoss, gradient_step
from genjax.model import TrainState
from genjax.nn.contrast import equal_rows
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW, Cosine, Optimizer


def normalized(x: Array) -> Array:
    """Rows of length 1 in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True))


def ending_at(config: Transformer, layer: int, final_norm: bool, name: str = "layer") -> Transformer:
    """A stack that ends after a block, counted from the end: -1 is the last, -2 the one before; `name` is what messages
    call the block's number.

    Raises:
      UserError: there is no such block.
    """
    if not -config.num_layers <= layer <= -1:
        raise UserError(
            f"{name}={layer} is no block of a stack of {config.num_layers}, counted from the end by -1, -2, ..."
        )
    return dataclasses.replace(config, num_layers=config.num_layers + 1 + layer, final_norm=final_norm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairEncoders(abc.ABC):
    """Base of contrastive encoders of pictures and texts.

    Attributes:
      data_shape: shape (H, W, C) of the pictures; None takes the data set's.
      vocab_size: number of tokens; None takes the data set's.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
      ascent_steps: steps of gradient ascent that make a picture for a text.
    """

    data_shape: tuple[int, ...] | None = None
    vocab_size: int | None = None
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = AdamW(
        learning_rate=5e-4, b2=0.98, eps=1e-6, weight_decay=0.2, schedule=Cosine(warmup_steps=2000)
    )
    ascent_steps: int = 64

    @abc.abstractmethod
    def module(self) -> Any:
        """The Linen module, with the methods encode_text, encode_image, text_features and image_features."""

    @abc.abstractmethod
    def with_layer(self, layer: int, final_norm: bool) -> PairEncoders:
        """The model whose encoders end after a block (see `ending_at`)."""

    @abc.abstractmethod
    def pair_scores(self, embeddings: tuple[Array, Array], excluded: Array) -> tuple[Array, Array]:
        """The loss of each pair, whose mean is the loss, and whether its picture finds its text, [B] each.

        Args:
          embeddings: of pictures and of texts, [B, D] each, whose products are the logits.
          excluded: bool [B, B], True at pairs of a picture and another example's text that are no negatives.
        """

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the batch has no captions.
        """
        if "tokens" not in batch or "x" not in batch:
            raise UserError(
                f"{type(self).__name__} learns from pairs of a picture and a text, and the batch has only "
                f"{', '.join(sorted(batch))}; choose --data=pairs"
            )
        params = self.module().init(key, batch["x"][:1], batch["tokens"][:1])["params"]
        return TrainState.create(params, self.optimizer)

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Logits of pictures and texts, float32 [B, B']."""
        image, text = self._embeddings(state.eval_params, batch)
        return image @ text.T

    def _embeddings(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> tuple[Array, Array]:
        return self.module().apply({"params": params}, batch["x"], batch["tokens"], batch.get("mask"), dropout_keys)

    def encode_text(self, state: TrainState, tokens: Array, mask: Array | None = None) -> Array:
        """Embeddings of texts, [B, T] -> [B, D] of length 1."""
        return self.module().apply({"params": state.eval_params}, tokens, mask, method="encode_text")

    def encode_image(self, state: TrainState, x: Array) -> Array:
        """Embeddings of pictures, [B, H, W, C] -> [B, D] of length 1."""
        return self.module().apply({"params": state.eval_params}, x, method="encode_image")

    def text_features(
        self, state: TrainState, tokens: Array, mask: Array | None = None, layer: int = -1, final_norm: bool = True
    ) -> Array:
        """Features of every token [B, T, C] after a block, -1 for the last; Stable Diffusion 2 reads -2 and norm."""
        module = self.with_layer(layer, final_norm).module()
        return module.apply({"params": state.eval_params}, tokens, mask, method="text_features")

    def image_features(
        self, state: TrainState, x: Array, layer: int = -2, final_norm: bool = False, class_token: bool = False
    ) -> Array:
        """Features of every patch [B, N, C] after a block, as LLaVA reads them; with the class token [B, 1 + N, C]."""
        module = self.with_layer(layer, final_norm).module()
        features = module.apply({"params": state.eval_params}, x, method="image_features")
        return features if class_token or not module.has_class_token else features[:, 1:]

    def _scores(self, embeddings: tuple[Array, Array], batch: Batch) -> tuple[Array, Array]:
        tokens = jnp.where(batch["mask"], batch["tokens"], -1) if "mask" in batch else batch["tokens"]
        embeddings, tokens, x = cross_device_gather((embeddings, tokens, batch["x"]))
        excluded = equal_rows(tokens, tokens) | equal_rows(x, x)
        counted = counted_examples(batch)
        if counted is not None:
            excluded |= ~counted[None]
        return self.pair_scores(embeddings, excluded)

    @property
    def loss(self) -> BatchLoss:
        """Contrast of the batch's pairs, and the share of pictures whose text is found."""

        def outputs(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array]:
            return self._embeddings(params, batch, example_keys(key, batch))

        def loss(embeddings: tuple[Array, Array], batch: Batch, key: Array) -> tuple[Array, Metrics]:
            del key
            losses, found = self._scores(embeddings, batch)
            return losses.mean(), {"retrieval_accuracy": found.mean()}

        return BatchLoss(outputs, loss)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, retrieval_accuracy."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, among the batch: `nll`, the loss in nats, and `retrieval_accuracy` of the text."""
        del key
        losses, found = self._scores(self._embeddings(state.eval_params, batch), batch)
        return {"nll": losses, "retrieval_accuracy": found}

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("tokens", "mask")

    def sample(
        self, state: TrainState, key: Array, num_samples: int, tokens: Array | None = None, mask: Array | None = None
    ) -> Array:
        """Pictures in [-1, 1] that the encoder takes for texts [num_samples, T], by default for random places.

        They are made by ascent of the similarity from grey noise, and are not draws from a distribution.
        """
        noise_key, place_key = jax.random.split(key)
        x = 0.1 * jax.random.normal(noise_key, (num_samples, *filled(self, "data_shape")))
        if tokens is None:
            width = jax.eval_shape(lambda: self.encode_image(state, x[:1])).shape[-1]
            wanted = normalized(jax.random.normal(place_key, (num_samples, width)))
        else:
            wanted = self.encode_text(state, tokens, mask)

        def ascend(x: Array, _: None) -> tuple[Array, None]:
            slope = jax.grad(lambda x: jnp.sum(self.encode_image(state, x) * wanted))(x)
            size = jnp.sqrt(jnp.square(slope).mean(tuple(range(1, x.ndim)), keepdims=True)) + 1e-12
            return jnp.clip(x + 0.05 * slope / size, -1.0, 1.0), None

        return jax.lax.scan(ascend, x, None, length=self.ascent_steps)[0]
