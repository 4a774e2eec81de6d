"""Methods that all models of token sequences share: likelihoods from logits, and generation with a `Decoder`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.decoding.base import Decoder, Generation
from genjax.decoding.generate import generate
from genjax.errors import UserError, filled
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.scores import TokenScores, scores_of_logits
from genjax.nn.tokens import check_tokens, sequence_metrics, summarize, token_log_probs, token_weights


class TokenModel:
    """Mixin for a dataclass with the fields vocab_size, sequence_length, start_token, end_token and sampling.

    The dataclass defines `_target_logits(params, batch) -> [B, T, V]`, the logits of the targets tokens[:, 1:] without
    dropout, and `token_decoder(state)`.
    """

    def _target_logits(self, params: PyTree, batch: Batch) -> Array:
        raise NotImplementedError

    def _target_scores(self, params: PyTree, batch: Batch) -> TokenScores:
        """Scores of the targets, for which a model with a large vocabulary need not make all logits at once."""
        return scores_of_logits(self._target_logits(params, batch), batch["tokens"][:, 1:])

    def token_decoder(self, state: TrainState) -> Decoder:
        """The model in the form that the functions of `genjax.decoding` take."""
        raise NotImplementedError

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: `nll` of its targets in nats, and their number `num_tokens`; see `summarize`.

        `accuracy` is the share of targets to which the model gives the largest probability.
        """
        del key
        check_tokens(batch["tokens"], self.vocab_size, "the batch")
        scores, weights = self._target_scores(state.eval_params, batch), token_weights(batch)
        hits = (scores.best == batch["tokens"][:, 1:]) * weights
        return {
            **sequence_metrics(scores.nll, weights, batch),
            "accuracy": Ratio(hits.sum(1), weights.sum(1)),
        }

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds ratios to means of `evaluate`: nll_per_token (nats), perplexity and others; see
        `nn.tokens.summarize`.
        """
        return summarize(means)

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Log-probability of the targets given the first token, in nats, [B].

        Raises:
          UserError: a token lies outside the vocabulary.
        """
        check_tokens(batch["tokens"], self.vocab_size, "the batch")
        return -(self._target_scores(state.eval_params, batch).nll * token_weights(batch)).sum(1)

    def token_log_probs(self, params: PyTree, batch: Batch, temperature: float = 1.0) -> Array:
        """Log-probability of each target tokens[:, 1:] given the tokens before it in nats, float32 [B, T].

        Targets that do not count are scored too; multiply by `nn.tokens.token_weights(batch)`.
        """
        if temperature == 1.0:
            return -self._target_scores(params, batch).nll
        return token_log_probs(self._target_logits(params, batch), batch["tokens"][:, 1:], temperature)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("prompt",)

    def check_condition(self, prompt: Array | None = None, **options: Any) -> None:
        """Raises UserError if the condition `prompt` of `sample` has a token outside the vocabulary."""
        del options
        if prompt is not None:
            check_tokens(prompt, self.vocab_size)

    def generate(
        self,
        state: TrainState,
        key: Array,
        prompts: Array,
        max_new_tokens: int,
        lengths: Array | None = None,
        **options: Any,
    ) -> Generation:
        """Continues prompts [B, P]; `options` are keyword arguments of `decoding.generate`.

        Raises:
          UserError: a token of the prompt lies outside the vocabulary, or the prompt with the new tokens is too long.
        """
        check_tokens(prompts, self.vocab_size)
        options = {"sampling": self.sampling, "end_token": self.end_token, **options}
        return generate(self.token_decoder(state), key, prompts, max_new_tokens, lengths=lengths, **options)

    def sample(
        self, state: TrainState, key: Array, num_samples: int, prompt: Array | None = None, **options: Any
    ) -> Array:
        """Draws token sequences [num_samples, T + 1] that begin with the start token, or with `prompt` [P].

        Places after an end token are filled with the first of the model's end tokens.
        """
        if prompt is None:
            prompt = jnp.full((1,), self.start_token or 0, jnp.int32)
        total = filled(self, "sequence_length") + 1
        if prompt.shape[0] >= total:
            raise UserError(f"the prompt has {prompt.shape[0]} tokens, and a sample only {total}")
        prompts = jnp.broadcast_to(prompt.astype(jnp.int32)[None], (num_samples, prompt.shape[0]))
        out = self.generate(state, key, prompts, total - prompt.shape[0], **options)
        return jnp.concatenate([prompts, out.tokens], axis=1)
