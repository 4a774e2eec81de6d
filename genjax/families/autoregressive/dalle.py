"""DALL-E: pictures from texts by an autoregressive model of their codes (Ramesh et al. 2021, arXiv:2102.12092).

    -log p(x | text) <= -log p(x | z(x)) - log p(z(x) | text),    z(x) the map of codes of a fixed discrete VAE

The transformer of texts and codes is text_and_codes.py; vae/coded.py says how the autoencoder is given.  Guidance
(Ho & Salimans 2022, arXiv:2207.12598) extrapolates logits away from those of the empty text, which the model knows if
texts were dropped in training; the paper has none, and reranks candidates by CLIP (`experiments.sample --rerank`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genjax import decoding
from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.errors import UserError
from genjax.families.autoregressive.text_and_codes import TextAndCodes
from genjax.families.vae.coded import CodePrior
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.tokens import check_tokens, token_weights
from genjax.values import Support


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitGuidance:
    """Classifier-free guidance of logits.

    Attributes:
      scale: weight w; 0 draws from the model itself, with one evaluation a code (others write 1 + w).
    """

    scale: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DALLE(CodePrior):
    """A fixed autoencoder with discrete codes, and a transformer of texts and codes.

    Attributes:
      prior: the transformer and its optimizer; its num_codes and code_shape follow from the autoencoder.
      condition_dropout: probability that an example is trained with an empty text, as guidance needs.
      guidance: guidance of `sample`.
      sampling: how `sample` chooses codes: temperature, top_k and others.
    """

    prior: TextAndCodes = TextAndCodes()
    condition_dropout: float = 0.1
    guidance: LogitGuidance = LogitGuidance()
    sampling: decoding.Sampling = decoding.Sampling()

    def __post_init__(self) -> None:
        if not 0.0 <= self.condition_dropout < 1.0:
            raise UserError(f"model.condition_dropout={self.condition_dropout} must be at least 0 and below 1")
        if self.sampling.needs_seen:
            raise UserError("model.sampling.repetition_penalty is of texts; codes repeat: leave it at 1")

    def support(self) -> Support:
        """The values that the autoencoder scores."""
        return self.vq_vae.support()

    def check_guidance(self) -> None:
        """Refuses guidance of a model that was never trained without texts.

        Raises:
          UserError: the weight is not 0, and no text was dropped.
        """
        if self.guidance.scale and not self.condition_dropout:
            raise UserError(
                "guidance.scale leads away from the model without its text, which condition_dropout=0 never trains; "
                "train with condition_dropout=0.1, or give guidance.scale=0"
            )

    @property
    def guidance_scale(self) -> float:
        """Weight of the guidance."""
        return self.guidance.scale

    def with_guidance_scale(self, scale: float) -> DALLE:
        """The model with another weight of its guidance."""
        model = dataclasses.replace(self, guidance=LogitGuidance(scale=scale))
        model.check_guidance()
        return model

    def check_start(self, source: object) -> None:
        """Refuses an untrained autoencoder, and guidance that training leaves without a meaning."""
        super().check_start(source)
        self.check_guidance()

    def code_model(self) -> TextAndCodes:
        """The transformer with the sizes of the codes."""
        return dataclasses.replace(
            self.prior, num_codes=self.vq_vae.num_codes, code_shape=tuple(self.vq_vae.code_shape)
        )

    def codes(self, params: PyTree, batch: Batch) -> Batch:
        """The batch with its pictures' `codes` [B, h, w]."""
        return {**batch, "codes": self.coder.encode_codes(self.vq_state(params), batch)}

    # ------------------------------------------------------------------------------------------------------------------
    # Learning

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """The transformer's loss and metrics."""
        del step
        return self.code_model().loss(params["prior"], self.codes(params, batch), key)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the transformer.  Metrics: loss, text_nll_per_token and code_nll_per_code in nats."""
        batch = self.code_model().with_dropped_texts(batch, key, self.condition_dropout)
        return super().train_step(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example in nats: `text_nll` of the text and its end, `code_nll` = -log p(z | text), and beside them
        `text_nll_per_token` and `code_nll_per_code`; `reconstruction` = -log p(x | z) and `nll_bound`, the bound of
        -log p(x | text), with `bits_per_dim_bound`.
        """
        params = state.eval_params
        model, coded = self.code_model(), self.codes(params, batch)
        text, codes = (-log_prob for log_prob in model.log_prob(params["prior"], coded))
        return {
            "text_nll": text,
            "text_nll_per_token": Ratio(text, token_weights(batch).sum(1)),
            "code_nll": codes,
            "code_nll_per_code": codes / model.num_places,
            **self.bound_of_whole(codes, params, batch, key),
        }

    # ------------------------------------------------------------------------------------------------------------------
    # Samples

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("tokens", "mask", "negative_tokens", "negative_mask")

    def check_condition(
        self,
        tokens: Array | None = None,
        mask: Array | None = None,
        negative_tokens: Array | None = None,
        negative_mask: Array | None = None,
    ) -> None:
        """Refuses texts that the model cannot read, and texts to lead away from where there is no guidance.

        Raises:
          UserError: a text has another number of places than the model, or a token outside of its vocabulary.
        """
        del mask, negative_mask
        places, size = self.prior.sequence_length, self.prior.vocab_size
        for given in (tokens, negative_tokens):
            if given is not None and np.shape(given)[1] > places:
                raise UserError(f"a text has {np.shape(given)[1]} tokens, and the model has places for {places}")
            if given is not None:
                check_tokens(given, size, "the text")
        if negative_tokens is not None and not self.guidance.scale:
            raise UserError("negative_tokens are what guidance leads away from, and guidance.scale is 0")

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        tokens: Array | None = None,
        mask: Array | None = None,
        negative_tokens: Array | None = None,
        negative_mask: Array | None = None,
        cached: bool = True,
    ) -> Array:
        """Draws pictures of texts, [num_samples, *data_shape].

        Args:
          state: the trained state.
          key: random key.
          num_samples: how many.
          tokens, mask: texts [num_samples, T]; None draws them from the model.
          negative_tokens, negative_mask: texts that guidance leads away from; None for empty ones.
          cached: False draws codes by whole passes of the network; for comparison.

        Raises:
          UserError: guidance that the model cannot have, or texts that it cannot read.
        """
        self.check_guidance()
        self.check_condition(tokens, mask, negative_tokens, negative_mask)
        params, model = state.eval_params, self.code_model()
        text_key, code_key = jax.random.split(key)
        if tokens is None:
            texts = model.draw_texts(params["prior"], text_key, num_samples)
        else:
            texts = self._texts(tokens, mask)
        without = None if negative_tokens is None else self._texts(negative_tokens, negative_mask)
        options = (self.sampling, self.guidance.scale, without, cached)
        codes = model.draw_codes(params["prior"], code_key, *texts, *options)
        return self.coder.decode_codes(self.vq_state(params), codes)

    def _texts(self, tokens: Array, mask: Array | None) -> tuple[Array, Array]:
        """Texts with padding up to all places, int32 and bool [B, T]."""
        mask = jnp.ones_like(tokens, bool) if mask is None else jnp.asarray(mask, bool)
        more = ((0, 0), (0, self.prior.sequence_length - tokens.shape[1]))
        return jnp.pad(jnp.asarray(tokens, jnp.int32), more), jnp.pad(mask, more)
