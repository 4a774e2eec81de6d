"""What all models share that write texts about pictures: captions, or answers to questions.

    loss = mean of -log p(y_t | y_<t, x) over the tokens that count

A batch has pictures `x` [B, H, W, C] and `tokens` [B, T] with `mask`: the start token, the caption and the end token.
With questions it has `loss_mask` too, which is True at the answer and its end, and False at the question before them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, Metrics, PyTree, example_keys
from genjax.errors import UserError, filled
from genjax.fine_tuning import FineTuned
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.tokens import sequence_metrics, summarize, token_nll, token_weights


class DescribesPictures(FineTuned):
    """Mixin for a dataclass with the fields data_shape, vocab_size, sequence_length, start_token, end_token,
    max_new_tokens, num_beams, length_penalty, label_smoothing and sampling.

    The dataclass defines `_logits(params, batch, dropout_keys) -> [B, T - 1, V]`, the logits of tokens[:, 1:], and
    `description_decoder(state, x)`.

    Attributes:
      what: what x is, for messages.
      needs_pictures: whether there is no text without x.
    """

    what: ClassVar[str] = "pictures"
    needs_pictures: ClassVar[bool] = True

    def _logits(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Array:
        raise NotImplementedError

    def description_decoder(self, state: TrainState, x: Array | None) -> decoding.Decoder:
        """A decoder for `genjax.decoding` that continues texts about pictures [B, H, W, C]; each is encoded once."""
        raise NotImplementedError

    def reader(
        self, state: TrainState, x: Array | None, prompts: Array, lengths: Array | None
    ) -> tuple[decoding.Decoder, Array, Array | None]:
        """The decoder of pictures and prompts [B, P], and what it continues, by default the prompts themselves."""
        return self.description_decoder(state, x), prompts, lengths

    # Likelihood.

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the smoothed nats of all tokens that count, divided by T - 1; and metrics."""
        logits = self._logits(params, batch, example_keys(key, batch))
        nll, weights = token_nll(logits, batch["tokens"][:, 1:]), token_weights(batch)
        objective = nll
        if self.label_smoothing:
            spread = jax.nn.log_softmax(logits).mean(-1)
            objective = (1.0 - self.label_smoothing) * nll - self.label_smoothing * spread
        return (objective * weights).mean(), {"nll_per_token": Ratio((nll * weights).sum(), weights.sum())}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B], given the picture and the question: `nll` in nats, `num_tokens`, `accuracy`, `exact_match`.

        A token is right if it is the likeliest one after the true tokens before it.  `exact_match` is 1 if all tokens
        that count are right; then the likeliest token at each place writes this text.
        """
        del key
        logits = self._logits(state.eval_params, batch)
        targets, weights = batch["tokens"][:, 1:], token_weights(batch)
        hits = logits.argmax(-1) == targets
        return {
            **sequence_metrics(token_nll(logits, targets), weights, batch),
            "accuracy": Ratio((hits * weights).sum(1), weights.sum(1)),
            "exact_match": (hits | (weights == 0)).all(1).astype(jnp.float32),
        }

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token (nats), bits_per_token and perplexity to means of `evaluate`."""
        return summarize(means)

    # Generation.

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("source", "prompts", "prompt_lengths")

    def check_condition(
        self, source: Array | None = None, prompts: Array | None = None, prompt_lengths: Array | None = None
    ) -> None:
        """Raises UserError if pictures have another shape, or `prompts` a token outside the vocabulary."""
        del prompt_lengths
        shape = tuple(filled(self, "data_shape"))
        if source is not None and tuple(source.shape[1:]) != shape:
            raise UserError(f"the model sees {self.what} of the shape {shape}, and not {tuple(source.shape[1:])}")
        if prompts is not None:
            decoding.check_tokens(prompts, filled(self, "vocab_size"), "the question")

    def with_source(self, batch: Batch, key: Array) -> Batch:
        """The batch with its pictures as `source`, and the beginnings of its texts as conditions of `sample`."""
        del key
        prompts, lengths = self.prompts_of(batch)
        return {**batch, "source": batch["x"], "prompts": prompts, "prompt_lengths": lengths}

    def prompts_of(self, batch: Batch) -> tuple[Array, Array]:
        """What comes before the text that counts: the start token, and the question if there is one.

        Returns:
          `prompts` int32 [B, P], padded on the right, and their lengths [B].
        """
        tokens = batch["tokens"]
        if "loss_mask" not in batch:
            return tokens[:, :1], jnp.ones(len(tokens), jnp.int32)
        # A row without an answer has its whole text as prompt.
        seen = batch["mask"] if "mask" in batch else jnp.ones_like(tokens, bool)
        counted = batch["loss_mask"].astype(bool) & seen
        lengths = jnp.where(counted.any(1), counted.argmax(1), seen.sum(1))
        return tokens[:, :-1], jnp.clip(lengths, 1, tokens.shape[1] - 1).astype(jnp.int32)

    def _num_new(self, given: int | None = None) -> int:
        wanted = self.max_new_tokens if given is None else given
        if wanted is None and self.sequence_length is None:
            raise UserError(f"{type(self).__name__} does not know how long its texts may be; give max_new_tokens")
        return self.sequence_length - 1 if wanted is None else wanted

    def _starts(self, count: int) -> Array:
        return jnp.full((count, 1), filled(self, "start_token"), jnp.int32)

    def describe(
        self,
        state: TrainState,
        x: Array,
        prompts: Array | None = None,
        prompt_lengths: Array | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
    ) -> Array:
        """Likeliest captions of pictures, or answers to the questions in `prompts`, by beam search.

        Args:
          state: the state.
          x: pictures, [B, H, W, C].
          prompts: start token and question, int32 [B, P] padded on the right; None for the start token alone.
          prompt_lengths: number of tokens of each prompt, [B]; None if all have P.
          num_beams: number of hypotheses; with one, each token is the likeliest one.
          max_new_tokens: tokens of the longest text, its end included; None takes the model's.

        Returns:
          New tokens, int32 [B, N]; the end token fills rows.
        """
        self.check_condition(x, prompts)
        prompts = self._starts(len(x)) if prompts is None else prompts
        decoder, prompts, lengths = self.reader(state, x, prompts, prompt_lengths)
        return decoding.likeliest(
            decoder,
            prompts,
            self._num_new(max_new_tokens),
            num_beams=num_beams or self.num_beams,
            end_token=filled(self, "end_token"),
            lengths=lengths,
            alpha=self.length_penalty,
        )

    def generate(
        self,
        state: TrainState,
        key: Array,
        x: Array,
        prompts: Array | None = None,
        prompt_lengths: Array | None = None,
        **options: Any,
    ) -> decoding.Generation:
        """Draws texts about pictures [B, H, W, C]; `options` are keyword arguments of `decoding.generate`."""
        options = {"sampling": self.sampling, "end_token": filled(self, "end_token"), **options}
        prompts = self._starts(len(x)) if prompts is None else prompts
        decoder, prompts, lengths = self.reader(state, x, prompts, prompt_lengths)
        return decoding.generate(decoder, key, prompts, self._num_new(), lengths=lengths, **options)

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        source: Array | None = None,
        prompts: Array | None = None,
        prompt_lengths: Array | None = None,
    ) -> Array:
        """Draws texts [num_samples, 1 + N], the start token first, about pictures `source` [num_samples, H, W, C].

        Without pictures, texts are about uniform noise.
        """
        if source is None:
            source = jax.random.uniform(jax.random.fold_in(key, 1), (num_samples, *filled(self, "data_shape")))
        out = self.generate(state, key, source, prompts, prompt_lengths)
        return jnp.concatenate([self._starts(num_samples), out.tokens], axis=1)
