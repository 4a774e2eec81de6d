"""Training pairs for encoder-decoders: given pairs, or pairs made of a text that has to be restored.

span corruption    x = a b c d e f g   ->   source a b <0> e <1>,  target <0> c d <1> f g      (T5, Raffel et al. 2020)
text infilling     x = a b c d e f g   ->   source a _ d e _ f _,  target a b c d e f g        (BART, Lewis et al. 2020)
                   where _ stands for a span of Poisson(3) tokens, perhaps of none
sentence permutation, document rotation: the source has its sentences in random order, or begins elsewhere   (BART)

Everything is drawn from one key for each example, in arrays of fixed shape, so that it runs inside the compiled step.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, Batch
from genjax.errors import UserError


class SpecialTokens(NamedTuple):
    """Tokens for corruption: the start of targets, the end of texts, padding, mask, and the first sentinel.

    `num_sentinels` is the number of sentinels, whose ids go down from the first; None if it is not known.
    """

    start: int
    end: int
    padding: int
    mask: int | None
    first_sentinel: int
    num_sentinels: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """Origin of `source` [B, S] with `source_mask`, and of `tokens` [B, T + 1] with `mask`."""

    @abc.abstractmethod
    def prepare(self, batch: Batch, keys: Array, special: SpecialTokens) -> Batch:
        """The batch with source and targets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Objective):
    """Sources and targets that the batch has already: translation, summaries, answers, any text-to-text task.

    Targets begin with the model's start token, which in BART's checkpoints differs from the tokenizer's.
    """

    def prepare(self, batch: Batch, keys: Array, special: SpecialTokens) -> Batch:
        return {**batch, "tokens": jnp.asarray(batch["tokens"]).at[:, 0].set(special.start)}


# ----------------------------------------------------------------------------------------------------------------------
# Span corruption


def span_counts(length: Array | int, density: float, mean_span: float) -> tuple[Any, Any]:
    """Number of noise tokens and number of spans in a text of `length` >= 2 tokens."""
    numpy = jnp if isinstance(length, jax.Array) else np
    noise = numpy.clip(numpy.round(length * density), 1, length - 1)
    spans = numpy.clip(numpy.round(noise / mean_span), 1, numpy.minimum(noise, length - noise))
    return noise, spans


def most_spans(size: int, density: float, mean_span: float) -> int:
    """Largest number of spans in a text of up to `size` tokens."""
    return max(int(span_counts(n, density, mean_span)[1]) for n in range(2, max(size, 2) + 1))


def random_parts(key: Array, total: Array, count: Array, size: int, most: int) -> Array:
    """Divides `total` <= size into `count` <= most parts of at least 1, all divisions equally likely; int32 [most]."""
    places = jnp.arange(size)
    # count - 1 of the total - 1 possible places end a part.
    score = jnp.where(places < total - 1, jax.random.uniform(key, (size,)), 2.0)
    ends = jnp.argsort(jnp.argsort(score)) < count - 1
    part = jnp.cumsum(ends) - ends
    return jnp.zeros(most, jnp.int32).at[jnp.where(places < total, part, most)].add(1, mode="drop")


def noise_spans(key: Array, length: Array, size: int, density: float, mean_span: float) -> tuple[Array, Array]:
    """Draws the spans of one text of `length` <= size tokens.

    Returns:
      Whether each place is noise, bool [size]; and the number of its span, [size], where noise spans and kept spans are
      counted together.  A text begins with a kept span.
    """
    noise, spans = span_counts(length, density, mean_span)
    most = most_spans(size, density, mean_span)
    noise_key, rest_key = jax.random.split(key)
    lengths = jnp.stack(
        [
            random_parts(rest_key, length - noise, spans, size, most),
            random_parts(noise_key, noise, spans, size, most),
        ],
        axis=1,
    ).reshape(-1)
    ends = jnp.cumsum(lengths)
    number = jnp.searchsorted(ends, jnp.arange(size), side="right")
    return (number % 2 == 1) & (jnp.arange(size) < length), number


def compact(values: Array, keep: Array, size: int, fill: int, end: int | None = None) -> tuple[Array, Array]:
    """Moves the kept values to the front, followed by an end token if given, [N] -> [size]; with a mask."""
    place = jnp.where(keep, jnp.cumsum(keep) - 1, size)
    out = jnp.full(size, fill, values.dtype).at[place].set(values, mode="drop")
    count = keep.sum()
    if end is not None:
        out = out.at[count].set(end, mode="drop")
        count = count + 1
    return out, jnp.arange(size) < count


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(Objective):
    """Span corruption: sentinels replace spans, and the target lists the spans (Raffel et al. 2020, section 3.3.4).

    A start token and an end token around `tokens` are removed first.

    Attributes:
      noise_density: share of the tokens that are in spans.
      mean_span_length: mean number of tokens in a span.
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self) -> None:
        if not 0.0 < self.noise_density < 1.0 or self.mean_span_length < 1.0:
            raise UserError("objective.noise_density must lie in (0, 1), and objective.mean_span_length be at least 1")

    def sizes(self, size: int) -> tuple[int, int]:
        """Largest length of source and target for a text of at most `size` tokens, end tokens included."""
        counts = [(n, *span_counts(n, self.noise_density, self.mean_span_length)) for n in range(2, max(size, 2) + 1)]
        return int(max(n - m + s for n, m, s in counts)) + 1, int(max(m + s for _, m, s in counts)) + 1

    def prepare(self, batch: Batch, keys: Array, special: SpecialTokens) -> Batch:
        tokens = batch["tokens"]
        size = tokens.shape[1]
        most = most_spans(size, self.noise_density, self.mean_span_length)
        if special.num_sentinels is not None and most > special.num_sentinels:
            raise UserError(
                f"texts of {size} tokens have up to {most} spans and the model has {special.num_sentinels} sentinels "
                f"for them: give at least --model.extra_tokens={most}, or shorter texts"
            )
        source_size, target_size = self.sizes(size)
        mask, counted = _masks(batch)

        def corrupt(key: Array, row: Array, real: Array, counted: Array) -> tuple[Array, ...]:
            (counted, _), (row, real) = _content(row, real, special, counted), _content(row, real, special, row)
            enough = real.sum() > 1  # Texts of one token or none cannot be restored, and do not count.
            length = jnp.maximum(real.sum(), 2)
            noise, number = noise_spans(key, length, size, self.noise_density, self.mean_span_length)
            inside = jnp.arange(size) < length
            first = jnp.concatenate([jnp.ones(1, bool), number[1:] != number[:-1]])
            sentinel = special.first_sentinel - number // 2
            source = compact(
                jnp.where(noise, sentinel, row), inside & (~noise | first), source_size, special.padding, special.end
            )
            # Each noise span follows a kept span; its first place makes room for the sentinel.
            target = compact(
                jnp.where(noise, row, sentinel), inside & (noise | first), target_size, special.padding, special.end
            )
            # Sentinels and the end token count in the loss.
            weights, _ = compact(~noise | counted, inside & (noise | first), target_size, True)
            return *source, target[0], target[1] & enough, weights

        source, source_mask, target, target_mask, counted = jax.vmap(corrupt)(keys, tokens, mask, counted)
        others = _others(batch)
        # The count of characters is of the whole text, not of its spans.
        others.pop("num_characters", None)
        targets = {**_targets(target, target_mask, special), **_counted(batch, counted)}
        return {**others, "source": source, "source_mask": source_mask, **targets}


# ----------------------------------------------------------------------------------------------------------------------
# BART's corruptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """The whole text restored from a corrupted one (Lewis et al. 2020, section 2.2).

    The first and the last token stay where they are.

    Attributes:
      mask_rate: share of the tokens that are in infilled spans; 0 for none.
      mean_span_length: mean of the Poisson distribution of span lengths.
      permute_sentences: put sentences into random order.
      sentence_end_tokens: tokens that end a sentence; if empty, the end token.
      rotate: let the source begin at a random token.
    """

    mask_rate: float = 0.3
    mean_span_length: float = 3.0
    permute_sentences: bool = True
    sentence_end_tokens: tuple[int, ...] = ()
    rotate: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.mask_rate < 1.0 or self.mean_span_length <= 0.0:
            raise UserError("objective.mask_rate must lie in [0, 1), and objective.mean_span_length be positive")

    def prepare(self, batch: Batch, keys: Array, special: SpecialTokens) -> Batch:
        tokens = batch["tokens"]
        mask, counted = _masks(batch)
        if self.mask_rate and special.mask is None:
            raise UserError("text infilling needs mask_token, the token that stands for a span")

        def corrupt(key: Array, row: Array, real: Array) -> tuple[Array, Array]:
            order_key, turn_key, span_key = jax.random.split(key, 3)
            length = real.sum()
            if self.permute_sentences:
                row = permute_sentences(order_key, row, length, self.sentence_end_tokens or (special.end,))
            if self.rotate:
                row = rotate(turn_key, row, length)
            if not self.mask_rate:
                return row, real
            return infill(span_key, row, length, self.mask_rate, self.mean_span_length, special.mask, special.padding)

        source, source_mask = jax.vmap(corrupt)(keys, tokens, mask)
        targets = {**_targets(tokens, mask, special), **_counted(batch, counted)}
        return {**_others(batch), "source": source, "source_mask": source_mask, **targets}


def _inner(row: Array, length: Array) -> Array:
    places = jnp.arange(row.shape[0])
    return (places > 0) & (places < length - 1)


def permute_sentences(key: Array, row: Array, length: Array, ends: tuple[int, ...]) -> Array:
    """Sentences of a text [T] in random order; the first and the last token stay."""
    inner, places = _inner(row, length), jnp.arange(row.shape[0])
    is_end = (row[:, None] == jnp.asarray(ends)[None]).any(1) & inner
    sentence = jnp.cumsum(is_end) - is_end
    score = jax.random.uniform(key, row.shape)[sentence]
    score = jnp.where(inner, score, jnp.where(places == 0, -1.0, 2.0))
    return row[jnp.lexsort((places, sentence, score))]


def rotate(key: Array, row: Array, length: Array) -> Array:
    """A text [T] that begins at a random token, with its old beginning at the end; the first and
    the last token stay.
    """
    inner, places = _inner(row, length), jnp.arange(row.shape[0])
    count = jnp.maximum(length - 2, 1)
    turn = jax.random.randint(key, (), 0, count)
    return jnp.where(inner, row[1 + (places - 1 + turn) % count], row)


def infill(
    key: Array, row: Array, length: Array, rate: float, mean_span: float, mask_token: int, padding: int
) -> tuple[Array, Array]:
    """Replaces spans of the text [T] by one mask token each; a span of length 0 is an inserted mask token.

    round(rate length) tokens are in spans.  The places of spans are distinct and otherwise uniform;
    spans without a place are joined.
    """
    size = row.shape[0]
    most = max(1, round(rate * size * max(1.0, 2.0 / mean_span)))
    length_key, place_key = jax.random.split(key)
    lengths = jax.random.poisson(length_key, mean_span, (most,))
    total = jnp.minimum(jnp.round(rate * length).astype(jnp.int32), jnp.maximum(length - 2, 0))
    before = jnp.cumsum(lengths) - lengths
    used = before < total  # as many spans as the tokens allow; the last span is cut
    lengths = jnp.where(used, jnp.minimum(lengths, total - before), 0)
    kept = length - lengths.sum()
    count = jnp.minimum(used.sum(), jnp.minimum(kept - 1, size - kept))
    lengths = jnp.zeros_like(lengths).at[jnp.minimum(jnp.arange(most), count - 1)].add(lengths)
    # Span i is in the gap before kept token number gap_i, after the first and before the last kept token.
    gaps = jnp.arange(size)
    free = (gaps > 0) & (gaps < kept)
    chosen = jnp.argsort(jnp.argsort(jnp.where(free, jax.random.uniform(place_key, (size,)), 2.0))) < count
    chosen = chosen & free
    order = jnp.cumsum(chosen) - chosen  # length of the span in a chosen gap
    in_gap = jnp.where(chosen, lengths[jnp.clip(order, 0, most - 1)], 0)
    shift = jnp.cumsum(in_gap)  # tokens in spans up to this gap, included
    masks = jnp.cumsum(chosen)
    rank = gaps < kept
    # Kept token number r moves from r + shift_r to r + masks_r; a mask goes in front of it.
    out = jnp.full(size, padding, row.dtype)
    out = out.at[jnp.where(rank, gaps + masks, size)].set(row[jnp.clip(gaps + shift, 0, size - 1)], mode="drop")
    out = out.at[jnp.where(chosen, gaps + masks - 1, size)].set(mask_token, mode="drop")
    return out, gaps < kept + chosen.sum()


# ----------------------------------------------------------------------------------------------------------------------


def _masks(batch: Batch) -> tuple[Array, Array]:
    """Which tokens of a text are no padding, and which of them count in the loss, bool [B, T] each."""
    everywhere = jnp.ones(batch["tokens"].shape, bool)
    return tuple(batch[name].astype(bool) if name in batch else everywhere for name in ("mask", "loss_mask"))


def _content(row: Array, real: Array, special: SpecialTokens, values: Array) -> tuple[Array, Array]:
    """Values [T] of a text's tokens without the start token and the end token, and their mask."""
    last = jnp.maximum(real.sum() - 1, 0)
    keep = real.at[last].set(real[last] & (row[last] != special.end))
    keep = keep.at[0].set(keep[0] & (row[0] != special.start))
    return compact(values, keep, row.shape[0], special.padding)


def _after(first: int | bool, rest: Array) -> Array:
    """Rows [B, T + 1] that begin with one value."""
    return jnp.concatenate([jnp.full_like(rest[:, :1], first), rest], axis=1)


def _targets(target: Array, mask: Array, special: SpecialTokens) -> Batch:
    """Tokens [B, T + 1] with the start token in front, and their mask."""
    return {"tokens": _after(special.start, target), "mask": _after(True, mask)}


def _counted(batch: Batch, counted: Array) -> Batch:
    """Which targets count, [B, T + 1], if the batch has `loss_mask`."""
    return {"loss_mask": _after(True, counted)} if "loss_mask" in batch else {}


def _others(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name in ("example_index", "num_characters", "label")}
