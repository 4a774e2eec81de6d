"""Answers that a policy writes inside the compiled step, and their scores under any parameters of it.

A batch of Q prompts gives R = Q G answers, the G answers to a prompt one after the other: a group lies whole on one
device.  A GPT continues `prompt` [Q, P] with `prompt_mask`; an encoder-decoder answers `source` [Q, S] with
`source_mask`.

The key of answer g of a prompt is fold_in(example key, g), so that the number of devices changes nothing.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, PyTree, example_keys
from genjax.decoding.base import is_end
from genjax.errors import UserError
from genjax.families.alignment.base import Policy
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.model import TrainState


class Rollouts(flax.struct.PyTreeNode):
    """Answers to prompts.

    Attributes:
      rows: what a model of the policy's kind reads to score the answers: `tokens`, `mask` and `loss_mask` of joined
        rows [R, P + N] for a GPT; `source`, `source_mask`, `tokens` [R, 1 + N] and `mask` for an encoder-decoder.
      prompts: the prompts or sources, [R, P].
      prompt_lengths: number of their tokens, [R].
      tokens: the answers, [R, N].
      lengths: number of their tokens, the end token included, [R].
      ended: whether an answer ends with an end token, and was not cut off, [R].
    """

    rows: Batch
    prompts: Array
    prompt_lengths: Array
    tokens: Array
    lengths: Array
    ended: Array

    @property
    def mask(self) -> Array:
        """True at tokens of the answers, the end token included, [R, N]."""
        return jnp.arange(self.tokens.shape[1])[None] < self.lengths[:, None]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of a batch as decoding takes them; see `prompts_of`."""

    tokens: Array
    mask: Array

    @property
    def lengths(self) -> Array:
        return self.mask.sum(1).astype(jnp.int32)


def prompts_of(policy: Policy, batch: Batch) -> Prompts:
    """What the policy answers."""
    name = "source" if isinstance(policy, EncoderDecoder) else "prompt"
    tokens = batch[name]
    mask = batch.get(f"{name}_mask")
    return Prompts(tokens, jnp.ones_like(tokens, bool) if mask is None else mask.astype(bool))


def repeated(batch: Batch, count: int) -> Batch:
    """Each example `count` times, one after the other, without the places of examples."""
    return {name: jnp.repeat(a, count, axis=0) for name, a in batch.items() if name not in ("example_index", "padding")}


def check_room(policy: Policy, prompt_length: int, max_new_tokens: int) -> None:
    """Raises UserError if prompts and answers of these lengths do not fit into the policy's context."""
    if isinstance(policy, EncoderDecoder):
        policy.encoder.check_length(prompt_length, "the sources take", "model.policy.encoder")
        policy.decoder.check_length(max_new_tokens, "the answers take", "model.policy.decoder")
        return
    longest = policy.network.max_length
    if prompt_length + max_new_tokens - 1 > longest:
        raise UserError(
            f"prompts of {prompt_length} tokens leave no room for answers of {max_new_tokens}: "
            f"model.policy.network.max_length={longest} is the longest context"
        )


def roll_out(
    policy: Policy,
    params: PyTree,
    batch: Batch,
    key: Array,
    count: int,
    max_new_tokens: int,
    sampling: decoding.Sampling | None = None,
) -> Rollouts:
    """Draws `count` answers to each prompt of a batch from the policy with these parameters, not averaged ones.

    Args:
      policy: the model.
      params: its parameters.
      batch: `prompt` or `source`, with its mask.
      key: random key of the step.
      count: number G of answers to each prompt.
      max_new_tokens: longest answer N, its end token included.
      sampling: how tokens are chosen; None takes the policy's.
    """
    keys = jax.vmap(lambda k: jax.vmap(jax.random.fold_in, in_axes=(None, 0))(k, jnp.arange(count)))(
        example_keys(key, batch)
    ).reshape(-1)
    asked = prompts_of(policy, batch)
    prompts, mask = (jnp.repeat(a, count, axis=0) for a in (asked.tokens, asked.mask))
    lengths = mask.sum(1).astype(jnp.int32)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params)
    options = {"sampling": sampling or policy.sampling}
    if isinstance(policy, EncoderDecoder):
        ends = decoding.end_tokens(policy.end_token) or (1,)
        decoder = policy.answer_decoder(state, prompts, mask)
        start = jnp.full((prompts.shape[0], 1), policy.answer_start, jnp.int32)
        out = decoding.generate(decoder, keys, start, max_new_tokens, end_token=ends, **options)
    else:
        ends = decoding.end_tokens(policy.end_token)
        decoder = policy.token_decoder(state)
        out = decoding.generate(decoder, keys, prompts, max_new_tokens, lengths=lengths, end_token=ends, **options)
    out = jax.lax.stop_gradient(out)
    last = jnp.take_along_axis(out.tokens, out.lengths[:, None] - 1, axis=1)[:, 0]
    ended = is_end(last, ends) if ends else jnp.zeros(last.shape, bool)
    if isinstance(policy, EncoderDecoder):
        real = jnp.arange(max_new_tokens)[None] < out.lengths[:, None]
        tokens = jnp.concatenate([start, jnp.where(real, out.tokens, 0)], axis=1)
        mask_of_tokens = jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
        rows = {"source": prompts, "source_mask": mask, "tokens": tokens, "mask": mask_of_tokens}
    else:
        rows = decoding.joined(prompts, lengths, out.tokens, out.lengths)
    return Rollouts(rows, prompts, lengths, out.tokens, out.lengths, ended)


def answer_log_probs(policy: Policy, params: PyTree, rows: Batch, prompt_lengths: Array, size: int) -> Array:
    """Log-probabilities of the tokens of answers in nats, float32 [R, N], without dropout; noise behind their ends.

    Args:
      policy: the model; its sampling's temperature divides the logits, as when answers are drawn.
      params: its parameters.
      rows, prompt_lengths: see `Rollouts`.
      size: longest answer N.
    """
    log_probs = policy.token_log_probs(params, rows, policy.sampling.temperature)
    return log_probs if "source" in rows else decoding.of_answers(log_probs, prompt_lengths, size)


def answer_features(policy: Policy, params: PyTree, rows: Batch, prompt_lengths: Array, size: int) -> Array:
    """Features of the place before each token of answers, from which the token is predicted, [R, N, C]."""
    features = policy.token_features(params, rows)
    return features if "source" in rows else decoding.of_answers(features, prompt_lengths, size)
