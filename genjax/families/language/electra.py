"""ELECTRA: an encoder that finds replaced tokens (Clark et al. 2020, arXiv:2003.10555).

    m_1 .. m_k ~ places of x,   x^masked = x with [MASK] at m
    x^c_i ~ p_G(. | x^masked)  for i in m,   x^c_i = x_i elsewhere                      (section 2)
    L = L_MLM(G) + 50 L_Disc(D),   L_Disc = mean_i -log p(y_i | x^c),   y_i = 1 where x^c_i differs from x_i

The generator G is a small encoder on the token embeddings of the discriminator D, by a linear map to its width (section
3.2).  It learns by its own loss only: no gradient flows through the tokens that it draws.  A place where it
draws the original token counts as not replaced.  D has the parameters of a `BERT`, so that BERT's tasks can
start from a run of this model:

    --training.init_from=RUN --training.init_prefix=embedding,stack
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genjax.batch import Array, Batch, Metrics
from genjax.errors import UserError
from genjax.families.language.bert import BERT, EncoderNetwork
from genjax.families.language.encoder_tasks import (
    Heads,
    MaskedLanguageModel,
    Outputs,
    Task,
    Vocabulary,
    counted_tokens,
    dense,
    token_mask,
)
from genjax.families.language.networks import bert_network
from genjax.metrics import Ratio
from genjax.nn.dropout import fold_in
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.transformer import ACTIVATIONS, TokenEmbedding, Transformer, TransformerStack


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedTokenDetection(MaskedLanguageModel):
    """Masked language modelling by the generator, and detection of its tokens by the discriminator.

    Attributes:
      weight: weight of the discriminator's loss.
    """

    replaced: float = 1.0
    randomized: float = 0.0
    weight: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.next_sentence:
            raise UserError("task.next_sentence is no part of ELECTRA; leave it false")

    @property
    def linear(self) -> tuple[tuple[str, int], ...]:
        return (("replaced", 1),)

    def prepare(self, batch: Batch, keys: Array, vocabulary: Vocabulary) -> Batch:
        """Masks `tokens`, and adds `places`, `targets`, `weights` [B, K] and the generator's `draw_keys` [B]."""
        return {**super().prepare(batch, keys, vocabulary), "draw_keys": fold_in(keys, 1)}

    def outputs(
        self, heads: Heads, embedding: TokenEmbedding, hidden: Array, pooled: Array | None, batch: Batch, keys: Any
    ) -> Outputs:
        raise UserError("the task replaced_token_detection has two networks; it is the model ELECTRA that has them")

    @staticmethod
    def _detection(outputs: Outputs, batch: Batch) -> tuple[Array, Array, Array]:
        """Nats, hits and weights of each place, [B, T]."""
        labels, real = outputs["labels"], counted_tokens(batch).astype(jnp.float32)
        nll = optax.sigmoid_binary_cross_entropy(outputs["replaced"], labels)
        return nll * real, ((outputs["replaced"] > 0) == (labels > 0)) * real, real

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        loss, metrics = super().loss(outputs, batch)
        nll, hits, real = self._detection(outputs, batch)
        metrics["detection_nll"] = Ratio(nll.sum(), real.sum())
        metrics["detection_accuracy"] = Ratio(hits.sum(), real.sum())
        return loss + self.weight * nll.sum() / real.size, metrics

    def measures(self, outputs: Outputs, batch: Batch) -> Metrics:
        """Metrics of masked tokens for the generator; for the discriminator `detection_nll` in nats a token and shares.

        Compare `detection_accuracy` with 1 - `replaced_share`, the accuracy of a discriminator that finds no token
        replaced.  `detection_auc` is the share of pairs, of a replaced token and an original token of one text, that
        the logits order rightly; compare it with 1/2.
        """
        nll, hits, real = self._detection(outputs, batch)
        count = real.sum(1)
        logits, labels = outputs["replaced"], outputs["labels"]
        pairs = (labels * real)[:, :, None] * ((1.0 - labels) * real)[:, None]  # [B, T, T]
        ordered = 0.5 + 0.5 * jnp.sign(logits[:, :, None] - logits[:, None])
        return {
            **super().measures(outputs, batch),
            "detection_nll": Ratio(nll.sum(1), count),
            "detection_accuracy": Ratio(hits.sum(1), count),
            "detection_auc": Ratio((pairs * ordered).sum((1, 2)), pairs.sum((1, 2))),
            "replaced_share": Ratio((labels * real).sum(1), count),
        }


class ElectraNetwork(EncoderNetwork):
    """The discriminator with its head, and the generator on the same embeddings."""

    generator_config: Transformer | None = None

    def setup(self) -> None:
        super().setup()
        self.generator_input = dense(self.generator_config.width, self.generator_config, self.dtype)
        refuse_experts(self.generator_config.experts)
        self.generator = TransformerStack(self.generator_config, self.dtype)
        self.detection = dense(self.config.width, self.config, self.dtype)

    def generator_logits(self, batch: Batch, dropout_keys: Array | None = None) -> Array:
        """The generator's float32 logits at `places` [B, K, V]; at all places, [B, T, V], if none are given."""
        x = self.generator_input(self.embed(batch))
        key_mask = token_mask(batch) if "mask" in batch else None
        hidden = self.generator(x, key_mask=key_mask, dropout_keys=fold_in(dropout_keys, 300)).x
        if "places" in batch:
            hidden = jnp.take_along_axis(hidden, batch["places"][:, :, None], axis=1)
        return self.heads.tokens(hidden, self.embedding)

    def find(self, batch: Batch, dropout_keys: Array | None = None) -> Array:
        """The discriminator's float32 logits that a token was replaced, [B, T]."""
        hidden, _ = self.encode(batch, dropout_keys)
        hidden = ACTIVATIONS[self.config.activation](self.detection(hidden))
        return self.heads("replaced", hidden)[:, :, 0]

    def __call__(self, batch: Batch, dropout_keys: Array | None = None) -> Outputs:
        """`replaced` [B, T]; for a prepared batch also the generator's `logits` [B, K, V],
        `tokens` and `labels` [B, T].
        """
        if "places" not in batch:
            if self.is_initializing():
                self.generator_logits(batch)
            return {"replaced": self.find(batch, dropout_keys)}
        logits = self.generator_logits(batch, dropout_keys)
        drawn = jax.vmap(jax.random.categorical)(batch["draw_keys"], jax.lax.stop_gradient(logits))
        drawn = jnp.where(batch["weights"] > 0, drawn, batch["targets"]).astype(batch["tokens"].dtype)
        put = jax.vmap(lambda row, places, values: row.at[places].set(values))
        tokens = put(batch["tokens"], batch["places"], drawn)
        labels = put(jnp.zeros(tokens.shape), batch["places"], (drawn != batch["targets"]).astype(jnp.float32))
        found = self.find({**batch, "tokens": tokens}, dropout_keys)
        return {"replaced": found, "logits": logits, "tokens": tokens, "labels": labels}

    def token_logits(self, batch: Batch) -> Array:
        """Float32 logits [B, T, V] of the generator."""
        return self.generator_logits(batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ELECTRA(BERT):
    """Generator and discriminator; the discriminator gives features and embeddings, the generator fills masks.

    Attributes: see `BERT`, and
      generator: the generator's stack, a quarter to a half as wide as the discriminator's.
    """

    generator: Transformer = bert_network(12, 256, 4)
    task: Task = ReplacedTokenDetection()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator.causal:
            raise UserError("model.generator.causal=true hides what follows from a generator that fills masked tokens")
        if not isinstance(self.task, ReplacedTokenDetection):
            raise UserError("model.task of ELECTRA is replaced_token_detection; the model BERT has the other tasks")

    def module(self) -> ElectraNetwork:
        """The Linen module."""
        return self._network(ElectraNetwork, generator_config=self.generator)
