"""Answers that a policy writes inside the compiled step, and their scores under any parameters of it.

A batch of Q prompts gives R = Q G answers, the G answers to a prompt one after the other: a group lies whole on one
device.  A GPT continues `prompt` [Q, P] with `prompt_mask`; an encoder-decoder answers `source` [Q, S] with
`source_mask`.

A prompt is read once for all answers of its group.

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
from genjax.families.language.gpt import GPT
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
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params)
    options = {"sampling": sampling or policy.sampling}
    if isinstance(policy, EncoderDecoder):
        ends = decoding.end_tokens(policy.end_token) or (1,)
        decoder = policy.answer_decoder(state, asked.tokens, asked.mask)
        start = jnp.full((asked.tokens.shape[0], 1), policy.answer_start, jnp.int32)
        out = decoding.generate(decoder, keys, start, max_new_tokens, end_token=ends, **options)
    else:
        ends = decoding.end_tokens(policy.end_token)
        decoder = policy.token_decoder(state)
        options |= {"lengths": asked.lengths, "end_token": ends}
        out = decoding.generate(decoder, keys, asked.tokens, max_new_tokens, **options)
    out = jax.lax.stop_gradient(out)
    prompts, mask, lengths = decoding.repeat_rows((asked.tokens, asked.mask, asked.lengths), count)
    last = jnp.take_along_axis(out.tokens, out.lengths[:, None] - 1, axis=1)[:, 0]
    ended = is_end(last, ends) if ends else jnp.zeros(last.shape, bool)
    if isinstance(policy, EncoderDecoder):
        real = jnp.arange(max_new_tokens)[None] < out.lengths[:, None]
        starts = decoding.repeat_rows(start, count)
        tokens = jnp.concatenate([starts, jnp.where(real, out.tokens, 0)], axis=1)
        mask_of_tokens = jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
        rows = {"source": prompts, "source_mask": mask, "tokens": tokens, "mask": mask_of_tokens}
    else:
        rows = decoding.joined(prompts, lengths, out.tokens, out.lengths)
    return Rollouts(rows, prompts, lengths, out.tokens, out.lengths, ended)


def answer_log_probs(
    policy: Policy, params: PyTree, rows: Batch, prompt_lengths: Array, size: int, group: int = 1
) -> Array:
    """Log-probabilities of the tokens of answers in nats, float32 [R, N], without dropout; noise behind their ends.

    Args:
      policy: the model; its sampling's temperature divides the logits, as when answers are drawn.
      params: its parameters.
      rows, prompt_lengths: see `Rollouts`.
      size: longest answer N.
      group: number of successive rows that have one prompt, which is read once for all of them where that is faster.
    """
    temperature = policy.sampling.temperature
    if "source" in rows:
        return policy.token_log_probs(params, _with_sources(policy, rows, group), temperature)
    if _shared(policy, rows, size, group):
        return policy.answer_log_probs(params, *_prompts_and_answers(rows, prompt_lengths, size, group), temperature)
    return decoding.of_answers(policy.token_log_probs(params, rows, temperature), prompt_lengths, size)


def answer_features(
    policy: Policy, params: PyTree, rows: Batch, prompt_lengths: Array, size: int, group: int = 1
) -> Array:
    """Features of the place before each token of answers, from which the token is predicted, [R, N, C]."""
    if "source" in rows:
        return policy.token_features(params, _with_sources(policy, rows, group))
    if _shared(policy, rows, size, group):
        return policy.answer_features(params, *_prompts_and_answers(rows, prompt_lengths, size, group))
    return decoding.of_answers(policy.token_features(params, rows), prompt_lengths, size)


def _with_sources(policy: EncoderDecoder, rows: Batch, group: int) -> Batch:
    """The rows with each source once, [R / group, S]; experts' load depends on how often a token is read."""
    if policy.encoder.experts is not None:
        return rows
    return {**rows, "source": rows["source"][::group], "source_mask": rows["source_mask"][::group]}


def _shared(policy: GPT, rows: Batch, size: int, group: int) -> bool:
    return group > 1 and policy.shares_prompts(rows["tokens"].shape[1] - size, size)


def _prompts_and_answers(rows: Batch, prompt_lengths: Array, size: int, group: int) -> tuple[Array, Array, Array]:
    """Prompts [R / group, P], their lengths and the answers [R, N] of joined rows."""
    index = prompt_lengths[:, None] + jnp.arange(size)[None]
    answers = jnp.take_along_axis(rows["tokens"], index, axis=1)
    return rows["tokens"][::group, :-size], prompt_lengths[::group], answers
