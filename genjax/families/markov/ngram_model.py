"""n-grams as a model that trains: a step adds the n-grams of its batch to sorted tables; it sees each example once.

For the equations, and for the numbering of n-grams by their places in a table, see `ngram.py`.  Here the tables are
arrays of a fixed `capacity` in the state, filled up with a key that is larger than all others, so that a step is a
sort.  A key is a pair (place of the context, last token); pairs are sorted by the first number, then by the second:

    keys of order n (renumbered by what the batch added to order n - 1)  +  n-grams of the batch  ->  sort, count equals

Nothing is optimised, so a run is one epoch: give each window of the text once.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_gather
from genjax.errors import UserError
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.tokens import check_tokens

#: Both numbers of the key of a free row of a table.
_FREE = np.int32(2**31 - 1)


def _first_not_below(keys: Array, context: Array, token: Array) -> Array:
    """The first row of pairs in order [2, N] that is not below (context, token), N where all are; the shape of both."""
    contexts, tokens = keys
    size = len(contexts)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = jnp.minimum((low + high) // 2, size - 1)
        below = (contexts[middle] < context) | ((contexts[middle] == context) & (tokens[middle] < token))
        below &= low < high
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    start = jnp.zeros(context.shape, jnp.int32), jnp.full(context.shape, size, jnp.int32)
    return jax.lax.fori_loop(0, size.bit_length(), halve, start)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NGramModel:
    """n-grams over `tokens` [B, T + 1], whose first token is context only, ragged by `mask`.

    Attributes:
      order: largest n; 1 takes no context.
      smoothing: method that gives probability to unseen n-grams.
      pseudo_count: pseudo-count of additive smoothing.
      capacity: largest number of different n-grams of one order in a table; further n-grams are
        lost, and counted in the metrics.
      vocab_size: number V of tokens; None takes the data set's.
      sequence_length: number T of tokens of a sample; None takes the data set's.
      start_token: first token of samples; None takes the data set's.
      end_token: token that ends a sample early; None takes the data set's, if it has one.
    """

    order: int = 5
    smoothing: Literal["additive", "witten_bell", "kneser_ney"] = "kneser_ney"
    pseudo_count: float = 1.0
    capacity: int = 2**20
    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | None = None

    def __post_init__(self) -> None:
        if self.order < 1:
            raise UserError(f"order={self.order} must be at least 1")
        if not 0 < self.capacity < 2**31 - 1:
            raise UserError(f"capacity={self.capacity} must lie between 1 and 2^31 - 2")

    def _check(self, batch: Batch) -> None:
        tokens = batch["tokens"]
        check_tokens(jnp.where(batch["mask"], tokens, 0) if "mask" in batch else tokens, self.vocab_size, "the batch")

    def _size(self, n: int) -> int:
        """Number of rows in the table of order n; the table of single tokens has a row for each token."""
        return self.vocab_size**n if n < 2 else min(self.capacity, self.vocab_size**n)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step: no n-gram but the single tokens, none of them counted."""
        every = jnp.arange(self.vocab_size, dtype=jnp.int32)
        keys, counts = [jnp.stack([jnp.zeros_like(every), every])], [jnp.zeros(self.vocab_size, jnp.int32)]
        for n in range(2, self.order + 1):
            keys.append(jnp.full((2, self._size(n)), _FREE))
            counts.append(jnp.zeros(self._size(n), jnp.int32))
        tables = {"keys": keys, "counts": counts}
        return TrainState.create({**tables, **self._smoothing(tables)})

    def _find(self, params: PyTree, n: int, context: Array, token: Array) -> Array:
        """Places of n-grams in the table of order n; -1 if they, or their contexts, are not in it."""
        keys, token = params["keys"][n - 1], token.astype(jnp.int32)
        place = jnp.minimum(_first_not_below(keys, context, token), keys.shape[1] - 1)
        found = (keys[0][place] == context) & (keys[1][place] == token) & (context >= 0) & (context < _FREE)
        return jnp.where(found, place, -1)

    def _shift(self, place: Array, n: int) -> Array:
        """Contexts of the next order at each position [B, T + 1] from the places of n-grams that end there."""
        before = jnp.pad(place[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        return jnp.where(jnp.arange(place.shape[1])[None] >= n, before, -1)

    def _count(self, params: PyTree, batch: Batch) -> tuple[PyTree, Array]:
        """Tables with the n-grams of a batch added, and the number of n-grams that did not fit."""
        tokens, mask = batch["tokens"], batch.get("mask", jnp.ones(batch["tokens"].shape, bool))
        target = mask & (jnp.arange(tokens.shape[1]) > 0)[None]
        first = jnp.zeros(self.vocab_size, jnp.int32).at[tokens.reshape(-1)].add(target.reshape(-1).astype(jnp.int32))
        keys, counts, lost = [params["keys"][0]], [params["counts"][0] + first], jnp.zeros((), jnp.int32)
        renumbered, place = jnp.arange(self.vocab_size), tokens.astype(jnp.int32)
        for n in range(2, self.order + 1):
            (old, last), context = params["keys"][n - 1], self._shift(place, n - 1)
            moved = jnp.where(old == _FREE, -1, renumbered[jnp.minimum(old, len(renumbered) - 1)])
            # n-grams after a lost context are lost too.
            lost += ((old != _FREE) & (moved < 0)).sum()
            context = jnp.where(target, context, -1)
            contexts = jnp.concatenate([moved, context.reshape(-1)])
            used = contexts >= 0
            contexts = jnp.where(used, contexts, _FREE)
            lasts = jnp.where(used, jnp.concatenate([last, tokens.reshape(-1).astype(jnp.int32)]), _FREE)
            weight = jnp.where(used, jnp.concatenate([params["counts"][n - 1], jnp.ones(tokens.size, jnp.int32)]), 0)
            contexts, lasts, weight = jax.lax.sort((contexts, lasts, weight), num_keys=2)
            differs = (contexts[1:] != contexts[:-1]) | (lasts[1:] != lasts[:-1])
            new = jnp.append(True, differs) & (contexts != _FREE)
            row = jnp.where(contexts == _FREE, len(contexts), jnp.cumsum(new) - 1)
            size = len(old)
            keys.append(jnp.full((2, size), _FREE).at[:, row].set(jnp.stack([contexts, lasts]), mode="drop"))
            counts.append(jnp.zeros(size, jnp.int32).at[row].add(weight, mode="drop"))
            lost += jnp.maximum(new.sum() - size, 0)
            renumbered = self._find({"keys": keys}, n, moved, last)
            place = self._find({"keys": keys}, n, context, tokens)
        return {"keys": keys, "counts": counts}, lost

    def _smoothing(self, tables: PyTree) -> PyTree:
        """Totals and kinds of each context, and discounts, of all orders."""
        kneser_ney, numbers = self.smoothing == "kneser_ney", list(tables["counts"])
        suffix = jnp.zeros(self.vocab_size, jnp.int32)  # places of the n-grams without their first token
        for n in range(2, self.order + 1):
            context, last = tables["keys"][n - 1]
            free = context == _FREE
            inner = suffix[jnp.where(free, 0, context)] if n > 2 else jnp.zeros_like(context)
            suffix = self._find(tables, n - 1, jnp.where(free, -1, inner), last)
            if kneser_ney:
                kinds = jnp.zeros_like(numbers[n - 2])
                kinds = kinds.at[jnp.where(suffix < 0, len(kinds), suffix)].add(1, mode="drop")
                # The beginning of a text has no token before it; it counts once, as if a mark stood there.
                numbers[n - 2] = jnp.where(tables["counts"][n - 2] > 0, jnp.maximum(kinds, 1), 0)
        out: dict[str, list[Array]] = {"numbers": numbers, "totals": [], "kinds": [], "discounts": []}
        for n, ((context, _), number) in enumerate(zip(tables["keys"], numbers), 1):
            total = lambda values, context=context, n=n: jax.ops.segment_sum(values, context, self._size(n - 1))
            out["totals"].append(total(number))
            out["kinds"].append(
                jnp.stack([total((number == 1) * 1), total((number == 2) * 1), total((number > 2) * 1)])
            )
            n1, n2, n3, n4 = (jnp.maximum((number == c).sum(), 1).astype(jnp.float32) for c in (1, 2, 3, 4))
            y = n1 / (n1 + 2 * n2)
            raw = jnp.stack([0.0 * y, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
            # Tiny corpora can give estimates outside the possible range.
            out["discounts"].append(jnp.clip(raw, 0.0, jnp.array([0.0, 1.0, 2.0, 3.0])))
        return out

    def _step(self, params: PyTree, n: int, p: Array, context: Array, place: Array) -> Array:
        """p_n from p_{n-1}, elementwise."""
        c = jnp.maximum(context, 0)
        total = params["totals"][n - 1][c]
        known = (context >= 0) & (total > 0)
        number = jnp.where(place >= 0, params["numbers"][n - 1][jnp.maximum(place, 0)], 0)
        kinds = params["kinds"][n - 1][:, c].astype(jnp.float32)
        safe = jnp.maximum(total, 1).astype(jnp.float32)
        if self.smoothing == "additive":
            new = (number + self.pseudo_count) / (safe + self.pseudo_count * self.vocab_size)
        elif self.smoothing == "witten_bell":
            new = (number + kinds.sum(0) * p) / (safe + kinds.sum(0))
        else:
            d = params["discounts"][n - 1]
            taken = jnp.tensordot(d[1:], kinds, 1)
            new = (number - d[jnp.minimum(number, 3)] + taken * p) / safe
        return jnp.where(known, new, p)

    def token_log_prob(self, params: PyTree, tokens: Array) -> Array:
        """log p of each token but the first, given the tokens before it, in nats, [B, T + 1] -> [B, T]."""
        p, context = jnp.full(tokens.shape, 1.0 / self.vocab_size), jnp.zeros(tokens.shape, jnp.int32)
        for n in range(1, self.order + 1):
            place = self._find(params, n, context, tokens)
            p = self._step(params, n, p, context, place)
            context = self._shift(place, n)
        return jnp.log(p[:, 1:])

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """Counts a batch.  `loss` is nats a token of the batch under the counts before it.

        Raises:
          UserError: a token lies outside the vocabulary, where values are known.
        """
        self._check(batch)
        batch = cross_device_gather({name: batch[name] for name in ("tokens", "mask") if name in batch})
        mask = batch.get("mask", jnp.ones(batch["tokens"].shape, bool))[:, 1:]
        log_prob = self.token_log_prob(state.params, batch["tokens"])
        tables, lost = self._count(state.params, batch)
        metrics = {
            "loss": Ratio(-jnp.where(mask, log_prob, 0.0).sum(), mask.sum().astype(jnp.float32)),
            "num_ngrams": (tables["keys"][-1][0] != _FREE).sum().astype(jnp.float32),
            "lost_ngrams": lost.astype(jnp.float32),
        }
        return state.replace(step=state.step + 1, params={**tables, **self._smoothing(tables)}), metrics

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """log p of all tokens but the first of each row in nats, [B].

        Raises:
          UserError: a token lies outside the vocabulary, where values are known.
        """
        self._check(batch)
        log_prob = self.token_log_prob(state.params, batch["tokens"])
        mask = batch.get("mask", jnp.ones(batch["tokens"].shape, bool))[:, 1:]
        return jnp.where(mask, log_prob, 0.0).sum(1)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """`nll` in nats of a row and `num_tokens`; `summarize` makes nats a token of them."""
        mask = batch.get("mask", jnp.ones(batch["tokens"].shape, bool))[:, 1:]
        return {"nll": -self.log_prob(state, batch), "num_tokens": mask.sum(1).astype(jnp.float32)}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_token, all tokens of the split together."""
        return {**means, "nll_per_token": Ratio(means["nll"], means["num_tokens"]).value()}

    def next_token_probs(self, params: PyTree, contexts: Array) -> Array:
        """Probabilities [V] after a context whose last 0, 1, ..., order - 1 tokens have these places [order]."""
        every, p = jnp.arange(self.vocab_size), jnp.full(self.vocab_size, 1.0 / self.vocab_size)
        for n in range(1, self.order + 1):
            context = jnp.full(self.vocab_size, contexts[n - 1])
            p = self._step(params, n, p, context, self._find(params, n, context, every))
        return p

    def _append(self, params: PyTree, contexts: Array, token: Array) -> Array:
        """Places [order] of the contexts after one more token."""
        places = [self._find(params, n, contexts[n - 1], token) for n in range(1, self.order)]
        return jnp.stack([jnp.zeros((), jnp.int32), *places])

    def logits(self, state: TrainState, tokens: Array) -> Array:
        """log p of every next token after each prefix, [B, T] -> [B, T, V].

        Raises:
          UserError: a token lies outside the vocabulary, where values are known.
        """
        check_tokens(tokens, self.vocab_size, "the text")
        start = jnp.full(self.order, -1).at[0].set(0)

        def step(contexts: Array, token: Array) -> tuple[Array, Array]:
            contexts = self._append(state.params, contexts, token)
            return contexts, jnp.log(self.next_token_probs(state.params, contexts))

        return jax.vmap(lambda row: jax.lax.scan(step, start, row)[1])(tokens)

    def transition_matrix(self, state: TrainState) -> Array:
        """p(next token | token) of a chain of first order, [V, V]; `inference` has its stationary distribution and
        mixing.

        Raises:
          UserError: the order is larger than 2, so that a single token is no state.
        """
        if self.order > 2:
            raise UserError(
                f"the states of a chain of order={self.order} are not single tokens; train one with order=2"
            )
        return jnp.exp(self.logits(state, jnp.arange(self.vocab_size)[:, None])[:, 0])

    def sample(self, state: TrainState, key: Array, num_samples: int, num_tokens: int | None = None) -> Array:
        """Draws sequences [num_samples, T + 1] that begin with the start token; places after the
        end token repeat it.
        """
        if num_tokens is None and self.sequence_length is None:
            raise UserError("how long samples are is not known: give num_tokens or sequence_length")
        first = jnp.asarray(self.start_token or 0, jnp.int32)
        contexts = self._append(state.params, jnp.full(self.order, -1).at[0].set(0), first)

        def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            contexts, last = carry
            token = jax.random.categorical(key, jnp.log(self.next_token_probs(state.params, contexts)))
            token = token.astype(jnp.int32)
            if self.end_token is not None and self.end_token != self.start_token:
                token = jnp.where(last == self.end_token, self.end_token, token)
            return (self._append(state.params, contexts, token), token), token

        def one(key: Array) -> Array:
            keys = jax.random.split(key, num_tokens or self.sequence_length)
            return jnp.append(first, jax.lax.scan(step, (contexts, first), keys)[1])

        return jax.vmap(one)(jax.random.split(key, num_samples))
