"""n-grams of tokens with sparse counts: additive, Witten-Bell, and modified Kneser-Ney smoothing (Chen & Goodman 1999).

With c a context of n - 1 tokens, c' the same without its first token, N(c) the number of different tokens
counted after c, p_0 = 1 / V:

    additive     p_n(w | c) = (#(c w) + a) / (#(c) + a V)
    Witten-Bell  p_n(w | c) = (#(c w) + N(c) p_{n-1}(w | c')) / (#(c) + N(c))
    Kneser-Ney   p_n(w | c) = (#(c w) - D(#(c w))) / #(c) + gamma(c) p_{n-1}(w | c')

In Kneser-Ney, counts below the highest order are numbers of different tokens before the n-gram (continuations), D
has one value each for counts 1, 2, and 3 or more, and gamma(c) is the mass that D takes away.  After a context that
was not seen, p_n = p_{n-1}.

An n-gram is numbered by its place in a sorted table of (place of its first n - 1 tokens) * V + (its last token), so
that memory grows with the number of different n-grams.  The model is a table of counts in numpy, and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from genjax.errors import UserError
from genjax.nn.tokens import check_tokens


class NGram:
    """Counts of a corpus.

    Args:
      documents: token sequences [T] of ints below `vocab_size`; n-grams do not cross documents.
      vocab_size: number V of tokens.
      order: largest n; 1 takes no context.
      smoothing: method that gives probability to unseen n-grams.
      pseudo_count: a of additive smoothing.

    Raises:
      UserError: order below 1, no token, or a token outside of the vocabulary.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        vocab_size: int,
        order: int = 5,
        smoothing: Literal["additive", "witten_bell", "kneser_ney"] = "kneser_ney",
        pseudo_count: float = 1.0,
    ) -> None:
        if order < 1:
            raise UserError(f"order={order} must be at least 1")
        if smoothing not in ("additive", "witten_bell", "kneser_ney"):
            raise UserError(f"smoothing={smoothing!r} is none of additive, witten_bell, kneser_ney")
        tokens, starts = _join(documents)
        if not len(tokens) or tokens.min() < 0 or tokens.max() >= vocab_size:
            raise UserError(f"n-grams need at least one token, and all of them from 0 to {vocab_size - 1}")
        self.vocab_size, self.order, self.smoothing, self.pseudo_count = vocab_size, order, smoothing, pseudo_count
        self._keys, self._counts = [], []
        contexts, below = _contexts(np.zeros(len(tokens), np.int32), starts, 0), None
        for n in range(1, order + 1):
            inside = np.flatnonzero(contexts >= 0).astype(np.int32)
            keys = contexts[inside].astype(np.int64) * vocab_size + tokens[inside]
            place, unique, example, counts = _count(keys, inside, len(tokens))
            if smoothing == "kneser_ney" and n > 1:
                # An n-gram continues its own last n - 1 tokens, which end at the same place.  The beginning of a
                # document has no token before
                # it, and counts once, as if a mark stood there.
                kinds = np.bincount(below[example], minlength=len(self._keys[-1]))
                self._counts[-1] = np.maximum(kinds, 1)
            self._keys.append(unique)
            self._counts.append(counts)
            contexts, below = _contexts(place, starts, n), place
        self._sum_contexts()

    def _sum_contexts(self) -> None:
        self._totals, self._kinds, self._discounts = [], [], []
        for n, (keys, counts) in enumerate(zip(self._keys, self._counts)):
            size = 1 if n == 0 else len(self._keys[n - 1])
            context = keys // self.vocab_size
            self._totals.append(np.bincount(context, counts, size))
            kinds = [np.bincount(context, counts == c, size) for c in (1, 2)]
            self._kinds.append([*kinds, np.bincount(context, counts > 2, size)])
            n1, n2, n3, n4 = (max(int((counts == c).sum()), 1) for c in (1, 2, 3, 4))
            y = n1 / (n1 + 2 * n2)
            raw = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
            # Tiny corpora can give estimates outside the possible range.
            self._discounts.append(np.clip(raw, 0.0, [0.0, 1.0, 2.0, 3.0]))

    @property
    def num_ngrams(self) -> list[int]:
        """Number of different n-grams of each order."""
        return [len(keys) for keys in self._keys]

    def _find(self, n: int, context: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Places of n-grams in the table of order n, -1 where they are not there."""
        keys, wanted = self._keys[n - 1], context.astype(np.int64) * self.vocab_size + tokens
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((context >= 0) & (keys[place] == wanted), place, -1)

    def _step(self, n: int, p: np.ndarray, context: np.ndarray, place: np.ndarray) -> np.ndarray:
        """p_n from p_{n-1}, elementwise."""
        known = context >= 0
        c = np.where(known, context, 0)
        total = self._totals[n - 1][c]
        count = np.where(place >= 0, self._counts[n - 1][np.maximum(place, 0)], 0)
        kinds = [k[c] for k in self._kinds[n - 1]]
        known &= total > 0
        safe = np.maximum(total, 1)
        if self.smoothing == "additive":
            a = self.pseudo_count
            return np.where(known, (count + a) / (safe + a * self.vocab_size), p)
        if self.smoothing == "witten_bell":
            return np.where(known, (count + sum(kinds) * p) / (safe + sum(kinds)), p)
        d = self._discounts[n - 1]
        taken = sum(d[i + 1] * k for i, k in enumerate(kinds))
        return np.where(known, (count - d[np.minimum(count, 3)] + taken * p) / safe, p)

    def token_log_prob(self, tokens: np.ndarray) -> np.ndarray:
        """log p of each token given the tokens before it in nats, [T]; the first tokens have shorter contexts.

        Raises:
          UserError: a token lies outside the vocabulary.
        """
        check_tokens(tokens, self.vocab_size, "the text")
        tokens, starts = _join([tokens])
        p = np.full(len(tokens), 1.0 / self.vocab_size)
        context = _contexts(np.zeros(len(tokens), np.int64), starts, 0)
        for n in range(1, self.order + 1):
            place = self._find(n, context, tokens)
            p = self._step(n, p, context, place)
            context = _contexts(place, starts, n)
        with np.errstate(divide="ignore"):
            return np.log(p)

    def log_prob(self, tokens: np.ndarray) -> float:
        """log p of a token sequence in nats."""
        return float(self.token_log_prob(tokens).sum())

    def next_token_probs(self, context: np.ndarray) -> np.ndarray:
        """Probabilities [V] of the token after a context [T].

        Raises:
          UserError: a token of the context lies outside the vocabulary.
        """
        check_tokens(context, self.vocab_size, "the context")
        context, every = np.asarray(context, np.int64), np.arange(self.vocab_size)
        p = np.full(self.vocab_size, 1.0 / self.vocab_size)
        for n in range(1, min(self.order, len(context) + 1) + 1):
            place = np.zeros(1, np.int64)
            for level, token in enumerate(context[len(context) - n + 1 :], 1):
                place = self._find(level, place, token)
            places = np.repeat(place, self.vocab_size)
            p = self._step(n, p, places, self._find(n, places, every))
        return p

    def sample(self, rng: np.random.Generator, num_tokens: int, prefix: Sequence[int] = ()) -> np.ndarray:
        """Draws a sequence [num_tokens], which goes on from a prefix."""
        out = list(prefix)
        for _ in range(num_tokens):
            p = self.next_token_probs(np.array(out[max(0, len(out) - self.order + 1) :], np.int64))
            out.append(int(rng.choice(self.vocab_size, p=p / p.sum())))
        return np.array(out[len(prefix) :])


def _join(documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens in one row, and the place of each in its document."""
    lengths = [len(d) for d in documents]
    if sum(lengths) >= 2**31:
        raise UserError(
            f"n-grams of {sum(lengths)} tokens cannot be counted: places are numbers of 32 bits; give a part of them"
        )
    tokens = np.concatenate([np.asarray(d, np.int32) for d in documents]) if lengths else np.zeros(0, np.int32)
    offsets = np.repeat((np.cumsum(lengths) - lengths).astype(np.int32), lengths)
    return tokens, np.arange(len(tokens), dtype=np.int32) - offsets


def _count(keys: np.ndarray, inside: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Place of each position's key among the different keys [size] (-1 without a key), the
    keys, a position of each, counts.

    Arrays as long as a corpus are freed as soon as possible.
    """
    order = np.argsort(keys)
    keys = keys[order]
    new = np.concatenate([[True], keys[1:] != keys[:-1]])
    order = inside[order]
    unique, example = keys[new], order[new]
    counts = np.diff(np.append(np.flatnonzero(new), len(keys)))
    del keys
    place = np.full(size, -1, np.int32)
    place[order] = np.cumsum(new, dtype=np.int32) - 1
    return place, unique, example, counts


def _contexts(place: np.ndarray, position: np.ndarray, length: int) -> np.ndarray:
    """Places of the contexts of `length` tokens before each token; -1 where the document has fewer."""
    if not length:
        return place
    context = np.concatenate([[-1], place[:-1]], dtype=np.int32)
    context[position < length] = -1
    return context
