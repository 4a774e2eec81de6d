"""One causal transformer of a text and of a picture's codes behind it (Ramesh et al. 2021, arXiv:2102.12092, sec. 2.2).

    log p(text, codes) = sum_t log p(text_t | text_<t) + sum_i log p(code_i | text, code_<i)
    loss = 1/8 mean of -log p(text_t) + 7/8 mean of -log p(code_i)

Text and codes have vocabularies of their own, and each place has logits of its own kind alone, which is the softmax
over both with the other kind masked out.  A code has the sum of the embeddings of the code, its row and its column; a
text that is too short goes on with learned embeddings, one for each place, which codes see and nothing predicts.

Codes attend sparsely to earlier codes (nn/picture_masks.py), or to all.  The later form of such models (Chameleon,
arXiv:2405.09818; Emu3, arXiv:2409.18869) is one plain causal stack: code_attention="dense" with rotary positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, example_keys
from genjax.decoding.sampling import PLAIN, Sampling
from genjax.errors import UserError, filled
from genjax.metrics import Ratio
from genjax.model import TrainState
from genjax.nn.attention import MASKED
from genjax.nn.mixture_of_experts import refuse_experts
from genjax.nn.picture_masks import sparse_masks
from genjax.nn.tokens import token_nll, token_weights, with_token_mean
from genjax.nn.transformer import Cache, OutputMap, TokenEmbedding, Transformer, TransformerStack
from genjax.optimizers import AdamW, Optimizer


class TextAndCodesNetwork(nn.Module):
    """Embeddings, stack and output maps.

    Attributes:
      model: the sizes.
    """

    model: TextAndCodes

    def setup(self) -> None:
        model, dtype = self.model, jnp.dtype(self.model.compute_dtype)
        network = model.stack
        std = 0.02 if network.init_std is None else network.init_std
        init = nn.initializers.normal(std)
        embed = lambda count: nn.Embed(count, network.width, embedding_init=init)
        self.text_embedding = TokenEmbedding(model.vocab_size, network, dtype=dtype, config_name="model.prior.network")
        self.text_padding = self.param("text_padding", init, (model.sequence_length, network.width))
        self.code_embedding = embed(model.num_codes)
        if model.embeds_places:
            self.row_embedding, self.column_embedding = map(embed, model.code_shape)
        self.stack = TransformerStack(network, dtype)
        self.text_head = OutputMap(model.vocab_size, network.init_std, dtype)
        self.code_head = OutputMap(model.num_codes, network.init_std, dtype)

    def _text(self, tokens: Array, mask: Array, start: Array | None = None) -> Array:
        """Embeddings of text [B, n], of which `start` tokens came before, [B, n, C]."""
        first = jnp.zeros((), jnp.int32) if start is None else start
        padding = jax.lax.dynamic_slice_in_dim(self.text_padding, first, tokens.shape[1])
        return self.text_embedding(tokens, start=start, features=padding[None], replaced=~mask)

    def _codes(self, codes: Array, first: Array | int = 0) -> Array:
        """Embeddings of codes [B, n], of which `first` came before, [B, n, C]."""
        x = self.code_embedding(codes)
        if self.model.embeds_places:
            width = self.model.code_shape[1]
            place = first + jnp.arange(codes.shape[1])
            x = x + (self.row_embedding(place // width) + self.column_embedding(place % width))[None]
        return x.astype(jnp.dtype(self.model.compute_dtype))

    def _biases(self, start: Array | None, length: int) -> list[Array] | None:
        """What is added to the attention logits of `length` inputs of which `start` came before, for each layer."""
        masks = self.model.masks()
        if masks is None:
            return None
        tables = {id(mask): jnp.asarray(np.where(mask, 0.0, MASKED), jnp.float32)[None, None] for mask in masks}
        if start is not None:
            tables = {i: jax.lax.dynamic_slice_in_dim(table, start, length, axis=2) for i, table in tables.items()}
        return [tables[id(mask)] for mask in masks]

    def __call__(
        self, tokens: Array, mask: Array, codes: Array, dropout_keys: Array | None = None
    ) -> tuple[Array, Array]:
        """Logits of tokens[:, 1:] and of all codes.

        Args:
          tokens, mask: text [B, T], and where it is no padding.
          codes: codes in the order of rows, [B, P].
          dropout_keys: one key an example, or None in evaluation.

        Returns:
          float32 [B, T - 1, V] and [B, P, K].
        """
        last = tokens.shape[1] - 1
        x = jnp.concatenate([self._text(tokens, mask), self._codes(codes[:, :-1])], axis=1)
        x = self.stack(x, dropout_keys=dropout_keys, layer_biases=self._biases(None, x.shape[1])).x
        return self.text_head(x[:, :last]), self.code_head(x[:, last:])

    def read_text(self, tokens: Array, mask: Array, cache: Cache) -> tuple[Array, Array, Cache]:
        """Reads text [B, n]: logits of the text after it [B, n, V], logits of a code after it [B, K], new cache."""
        x = self._text(tokens, mask, cache.length)
        out = self.stack(x, cache=cache, layer_biases=self._biases(cache.length, x.shape[1]))
        return self.text_head(out.x), self.code_head(out.x[:, -1:])[:, 0], out.cache

    def read_code(self, codes: Array, place: Array, cache: Cache) -> tuple[Array, Cache]:
        """Reads the codes [B] at one place: logits of the next codes [B, K], and the new cache."""
        x = self._codes(codes[:, None], place)
        out = self.stack(x, cache=cache, layer_biases=self._biases(cache.length, 1))
        return self.code_head(out.x)[:, 0], out.cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextAndCodes:
    """A model of texts and of maps of codes that they describe.

    A batch has `tokens` [B, T] (start token, text, end token, padding), `mask` [B, T] and `codes` [B, h, w].

    Attributes:
      vocab_size: number of tokens of text; None takes the data set's.
      sequence_length: places T of text with its start and end; None takes the data set's.
      start_token: token before a text; None takes the data set's.
      end_token: token behind a text; None takes the data set's.
      num_codes: number K of codes; None takes the autoencoder's.
      code_shape: height and width of the map of codes; None takes the autoencoder's.
      network: the transformer stack, which is made causal.  Its positions are of text, and codes have embeddings of
        rows and columns, unless the attention itself knows positions (rotary, alibi, t5).
      code_attention: which earlier codes a code sees: sparse, by rows, columns and a convolution; or dense, all.
      convolution_size: height and width of the convolution of sparse attention, odd.
      text_weight: weight of the mean loss of a token of text.
      code_weight: weight of the mean loss of a code.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | None = None
    num_codes: int | None = None
    code_shape: tuple[int, int] | None = None
    network: Transformer = Transformer(num_layers=6, width=128, num_heads=4, max_length=256)
    code_attention: Literal["sparse", "dense"] = "sparse"
    convolution_size: int = 11
    text_weight: float = 1 / 8
    code_weight: float = 7 / 8
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = AdamW(
        learning_rate=4.5e-4, b2=0.96, eps=1e-8, weight_decay=4.5e-2, clip_norm=4.0, ema_decay=0.999
    )

    def __post_init__(self) -> None:
        if self.convolution_size < 1 or self.convolution_size % 2 == 0:
            raise UserError(
                f"model.prior.convolution_size={self.convolution_size} must be odd, so that it has a middle"
            )
        if min(self.text_weight, self.code_weight) < 0.0 or self.text_weight + self.code_weight == 0.0:
            raise UserError("model.prior.text_weight and code_weight must not be negative, nor both 0")

    # ------------------------------------------------------------------------------------------------------------------
    # Network

    @property
    def stack(self) -> Transformer:
        """The stack, causal and with layers of their own."""
        return dataclasses.replace(self.network, causal=True, cross_attention=False, scan_layers=False)

    @property
    def embeds_places(self) -> bool:
        """Whether codes have embeddings of their rows and columns."""
        return self.network.positions not in ("rotary", "alibi", "t5")

    @property
    def num_places(self) -> int:
        """Number P of codes of a picture."""
        height, width = filled(self, "code_shape")
        return height * width

    def masks(self) -> tuple[np.ndarray, ...] | None:
        """For each layer which inputs each input sees, bool [T + P - 1, T + P - 1]; None for all before it."""
        if self.code_attention == "dense":
            return None
        length = filled(self, "sequence_length")
        return sparse_masks(self.network.num_layers, length, *filled(self, "code_shape"), self.convolution_size)

    def module(self) -> TextAndCodesNetwork:
        """The Linen module."""
        filled(self, "vocab_size", "sequence_length", "num_codes", "code_shape")
        refuse_experts(self.network.experts)
        return TextAndCodesNetwork(self)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the batch has no captions, or they and the codes take more places than the positions serve.
        """
        if "tokens" not in batch:
            raise UserError(
                "a model of texts and pictures learns from pairs, and the batch has only "
                f"{', '.join(sorted(set(batch) - {'codes'}))}; choose --data=pairs"
            )
        length = batch["tokens"].shape[1]
        total = length if self.embeds_places else length + self.num_places - 1
        self.network.check_length(total, "the texts and codes take", "model.prior.network")
        tokens, codes = batch["tokens"][:1], jnp.zeros((1, self.num_places), jnp.int32)
        params = self.module().init(key, tokens, jnp.ones_like(tokens, bool), codes)["params"]
        return TrainState.create(params, self.optimizer)

    # ------------------------------------------------------------------------------------------------------------------
    # Likelihood

    def nll(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> tuple[Array, Array]:
        """-log p in nats of each target tokens[:, 1:], padding included, and of each code, [B, T - 1] and [B, P]."""
        codes = batch["codes"].reshape(len(batch["codes"]), -1)
        tokens, mask = batch["tokens"], _mask_of(batch)
        text, picture = self.module().apply({"params": params}, tokens, mask, codes, dropout_keys)
        return token_nll(text, tokens[:, 1:]), token_nll(picture, codes)

    def with_dropped_texts(self, batch: Batch, key: Array, rate: float) -> Batch:
        """The batch in which each text is empty with probability `rate`; such a text does not count in the loss.

        Called with the whole batch of a step, so that the loss of a token is a mean over all tokens that count.
        """
        if rate:
            keys = example_keys(jax.random.fold_in(key, 1), batch)
            dropped = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(keys)[:, None]
            tokens, mask = self.empty_text()
            batch = {
                **batch,
                "tokens": jnp.where(dropped, tokens[None], batch["tokens"]),
                "mask": jnp.where(dropped, mask[None], _mask_of(batch)),
                "loss_mask": jnp.broadcast_to(~dropped, batch["tokens"].shape),
            }
        return with_token_mean(batch)

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """The weighted sum of the mean nats of a token and of a code, and both; see `with_dropped_texts`."""
        text, codes = self.nll(params, batch, example_keys(key, batch))
        weights = token_weights(batch)
        loss = self.text_weight * (text * weights).mean() + self.code_weight * codes.mean()
        return loss, {
            "text_nll_per_token": Ratio((text * weights).sum(), weights.sum()),
            "code_nll_per_code": codes.mean(),
        }

    def log_prob(self, params: PyTree, batch: Batch) -> tuple[Array, Array]:
        """log p(text after its first token) and log p(codes | text) in nats, [B] each."""
        text, codes = self.nll(params, batch)
        return -(text * token_weights(batch)).sum(1), -codes.sum(1)

    # ------------------------------------------------------------------------------------------------------------------
    # Samples

    def empty_text(self) -> tuple[Array, Array]:
        """The tokens of a text without words, int32 [T], and their mask, bool [T]."""
        length, start, end = filled(self, "sequence_length", "start_token", "end_token")
        return jnp.full((length,), end, jnp.int32).at[0].set(start), jnp.arange(length) < 2

    def _start(self, params: PyTree, count: int) -> tuple[Any, Cache]:
        """The network with its parameters, and an empty cache of `count` rows."""
        module, total = self.module(), filled(self, "sequence_length") + self.num_places - 1
        cache = self.stack.init_cache(count, total, jnp.dtype(self.compute_dtype), whole=True)
        apply = lambda method, *inputs: module.apply({"params": params}, *inputs, method=method)
        return apply, cache

    def draw_texts(self, params: PyTree, key: Array, count: int) -> tuple[Array, Array]:
        """Draws texts: tokens int32 [count, T] and their mask; one without an end fills all places."""
        length, start, end = filled(self, "sequence_length", "start_token", "end_token")
        apply, cache = self._start(params, count)
        keys = jax.random.split(key, count)

        def body(place: Array, state: tuple[Array, Array, Cache]) -> tuple[Array, Array, Cache]:
            tokens, mask, cache = state
            at = lambda a: jax.lax.dynamic_slice_in_dim(a, place, 1, axis=1)
            logits, _, cache = apply("read_text", at(tokens), at(mask), cache)
            noise = PLAIN.noise(jax.vmap(jax.random.fold_in, (0, None))(keys, place), logits.shape[-1])
            ended = ~at(mask)[:, 0] | ((at(tokens)[:, 0] == end) & (place > 0))
            drawn = jnp.where(ended, end, PLAIN.draw(noise, logits[:, 0]))
            return tokens.at[:, place + 1].set(drawn), mask.at[:, place + 1].set(~ended), cache

        tokens = jnp.full((count, length), end, jnp.int32).at[:, 0].set(start)
        mask = jnp.broadcast_to(jnp.arange(length)[None] == 0, tokens.shape)
        tokens, mask, _ = jax.lax.fori_loop(0, length - 1, body, (tokens, mask, cache))
        return tokens, mask

    def draw_codes(
        self,
        params: PyTree,
        key: Array,
        tokens: Array,
        mask: Array,
        sampling: Sampling = PLAIN,
        scale: float = 0.0,
        without: tuple[Array, Array] | None = None,
        cached: bool = True,
    ) -> Array:
        """Draws maps of codes given texts, int32 [B, h, w].

        With guidance the logits are l(text) + scale (l(text) - l(other text)).

        Args:
          params: parameters.
          key: random key.
          tokens, mask: texts [B, T].
          sampling: how codes are chosen from their logits.
          scale: weight of the guidance; 0 draws from the model itself.
          without: tokens and mask [B, T] of the texts that guidance leads away from; None for empty ones.
          cached: False runs the whole network for every code, which is slow and gives the same draws.
        """
        count = len(tokens)
        keys = jax.random.split(key, count)
        if scale:
            empty = tuple(jnp.broadcast_to(a[None], tokens.shape) for a in self.empty_text())
            other = empty if without is None else without
            tokens, mask = jnp.concatenate([tokens, other[0]]), jnp.concatenate([mask, other[1]])

        def choose(logits: Array, place: Array | int) -> Array:
            if scale:
                given, other = logits[:count], logits[count:]
                logits = given + scale * (given - other)
            noise = sampling.noise(jax.vmap(jax.random.fold_in, (0, None))(keys, place), logits.shape[-1])
            drawn = sampling.draw(noise, sampling.filter(logits))
            return jnp.concatenate([drawn, drawn]) if scale else drawn

        codes = jnp.zeros((len(tokens), self.num_places), jnp.int32)
        apply, cache = self._start(params, len(tokens))
        if cached:
            _, logits, cache = apply("read_text", tokens, mask, cache)
            codes = codes.at[:, 0].set(choose(logits, 0))

            def body(place: Array, state: tuple[Array, Cache]) -> tuple[Array, Cache]:
                codes, cache = state
                before = jax.lax.dynamic_index_in_dim(codes, place - 1, axis=1, keepdims=False)
                logits, cache = apply("read_code", before, place - 1, cache)
                return codes.at[:, place].set(choose(logits, place)), cache

            codes, _ = jax.lax.fori_loop(1, self.num_places, body, (codes, cache))
        else:

            def whole(place: Array, codes: Array) -> Array:
                logits = apply(None, tokens, mask, codes)[1]
                chosen = choose(jax.lax.dynamic_index_in_dim(logits, place, axis=1, keepdims=False), place)
                return codes.at[:, place].set(chosen)

            codes = jax.lax.fori_loop(0, self.num_places, whole, codes)
        return codes[:count].reshape(count, *filled(self, "code_shape"))


def _mask_of(batch: Batch) -> Array:
    """Where the text of a batch is no padding, bool [B, T]."""
    return batch["mask"].astype(bool) if "mask" in batch else jnp.ones_like(batch["tokens"], bool)
