"""Likelihoods of token sequences, and tables that grow with the vocabulary, shared by every token model."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax.batch import Array, Batch, Metrics, cross_device_mean
from genjax.errors import UserError
from genjax.metrics import Ratio
from genjax.nn import sharding

#: The `dot_general` of an output map: logits are float32, whatever type the network computes in.  Rounded to bfloat16,
#: the two likeliest tokens are equal at one place in eighty.
logits_product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


def check_tokens(tokens: Array, vocab_size: int, what: str = "the prompt") -> None:
    """Raises UserError if an id lies outside the vocabulary, where values are known (not while a
    function is traced).
    """
    if isinstance(tokens, jax.core.Tracer) or not getattr(tokens, "is_fully_addressable", True):
        return
    ids = np.asarray(tokens)
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if bad.size:
        raise UserError(f"{what} has the token {bad[0]}, which lies outside the vocabulary of {vocab_size} tokens")


def token_weights(batch: Batch) -> Array:
    """1 at targets that count, float32 [B, T].

    0 at padding, at targets where `loss_mask` is False (a prompt), and at first tokens of packed documents.
    """
    tokens = batch["tokens"]
    weights = jnp.ones_like(tokens[:, 1:], jnp.float32)
    for name in ("mask", "loss_mask"):
        if name in batch:
            weights = weights * batch[name][:, 1:].astype(jnp.float32)
    if "segment_ids" in batch:
        segments = batch["segment_ids"]
        weights = weights * (segments[:, 1:] == segments[:, :-1])
    return weights


def with_token_mean(batch: Batch) -> Batch:
    """The batch with a float `loss_mask` that turns a mean over rows into a mean over all tokens that count.

    A loss that sums w_bt l_bt / (B T), as the losses of token models do, becomes sum w_bt l_bt / sum w_bt over the
    whole batch: the weights are multiplied by B T / sum w.  Call it in `train_step` with the step's whole batch, before
    it is divided into microbatches: the result then depends neither on accumulation, nor on devices, nor on padding.
    """
    weights = token_weights(batch)
    total = cross_device_mean(weights.sum())
    scaled = weights * (weights.size / jnp.where(total > 0, total, 1.0))
    return {**batch, "loss_mask": jnp.pad(scaled, ((0, 0), (1, 0)))}


def token_log_probs(logits: Array, targets: Array, temperature: float = 1.0) -> Array:
    """Log-probability of each target in nats, float32; [B, T, V], [B, T] -> [B, T]."""
    return -token_nll(logits if temperature == 1.0 else logits.astype(jnp.float32) / temperature, targets)


def seen_tokens(batch: Batch) -> Array | None:
    """True at tokens that a causal model reads, bool as `mask`; None where the batch has no mask.

    Padding follows the last token of the mask.  All tokens before it are context, whether they count or not.
    """
    if "mask" not in batch:
        return None
    return jax.lax.cummax(batch["mask"].astype(jnp.int32), axis=1, reverse=True).astype(bool)


def token_nll(logits: Array, targets: Array) -> Array:
    """Negative log-probability of each target in nats, float32; [B, T, V], [B, T] -> [B, T]."""
    logits = logits.astype(jnp.float32)
    if sharding.is_split("tensor"):
        # To index an axis that is split would gather it.
        here = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
        return jax.nn.logsumexp(logits, axis=-1) - jnp.where(here, logits, 0.0).sum(-1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def sequence_metrics(nll: Array, weights: Array, batch: Batch) -> Metrics:
    """Per example: `nll` in nats, `num_tokens`, and `num_characters` or `num_frames` where the
    batch has it; each [B].
    """
    metrics = {"nll": (nll * weights).sum(1), "num_tokens": weights.sum(1)}
    for name in ("num_characters", "num_frames"):
        if name in batch:
            metrics[name] = batch[name].astype(jnp.float32)
    return metrics


def summarize(means: dict[str, float]) -> dict[str, float]:
    """Adds ratios of means: nll_per_token (nats), bits_per_token, perplexity, bits_per_character,
    nll_per_frame (nats).
    """
    per_token = Ratio(means["nll"], means["num_tokens"]).value()
    means = {
        **means,
        "nll_per_token": per_token,
        "bits_per_token": per_token / math.log(2.0),
        "perplexity": math.exp(min(per_token, 700.0)),
    }
    if means.get("num_characters"):
        means["bits_per_character"] = means["nll"] / means["num_characters"] / math.log(2.0)
    if means.get("num_frames"):
        means["nll_per_frame"] = means["nll"] / means["num_frames"]
    return means


def with_more_tokens(array: Array, shape: tuple[int, ...], num_last: int = 0) -> Array:
    """Enlarges a parameter that has an entry for each token to a larger vocabulary.

    New rows are the mean of the old rows, so that new logits begin at the mean of the logits; old rows do not change.

    Args:
      array: table, output map or bias of the old vocabulary.
      shape: shape for the new vocabulary; it differs along one axis.
      num_last: number of old tokens that stay at the end, as sentinels do, so that new tokens come before them.
    """
    (axis,) = (i for i, (old, new) in enumerate(zip(array.shape, shape)) if old != new)
    split = array.shape[axis] - num_last
    first, last = jnp.split(array, [split], axis=axis)
    mean = array.astype(jnp.float32).mean(axis, keepdims=True).astype(array.dtype)
    return jnp.concatenate([first, jnp.repeat(mean, shape[axis] - array.shape[axis], axis), last], axis)
