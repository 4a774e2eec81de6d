"""One transformer stack for encoders, decoders and encoder-decoders (Vaswani et al. 2017).

    pre-norm   x <- x + attention(norm(x));  x <- x + cross(norm(x), context);  x <- x + mlp(norm(x));  norm at the end
    post-norm  x <- norm(x + attention(x)) and so on

`Transformer` is the configuration, `TransformerStack` the network from embeddings to embeddings, `TokenEmbedding` the
layers before and after it.  A decoder's `Cache` is an explicit argument of fixed shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from genjax import devices
from genjax.batch import Array, PyTree
from genjax.errors import UserError
from genjax.nn import sharding
from genjax.nn.attention import Attention, KVCache, is_large
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.mixture_of_experts import ExpertLayer, MixtureOfExperts
from genjax.nn.positions import RotaryScaling, SlopeBias, T5Bias, alibi_slopes, segment_positions, sinusoidal_table
from genjax.nn.products import dense_product
from genjax.nn.scores import TokenScores, scores_of

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """Configuration of a stack.

    Attributes:
      num_layers: number of blocks.
      width: features C of the residual stream.
      num_heads: query heads.
      num_kv_heads: key and value heads; None for num_heads (grouped-query attention has fewer).
      head_dim: features of a head, None for width / num_heads.
      mlp_dim: features of the hidden layer, None for 4 width (gated: 8/3 width, up to a multiple of 32).
      activation: non-linearity of the hidden layer.
      gated: multiply it by a second linear map: SwiGLU with "silu", GEGLU with "gelu" (Shazeer 2020).
      norm: "layer" (LayerNorm), "rms" (RMSNorm), or "rms_offset", whose scale is 1 + its parameter (Gemma).
      norm_placement: "pre", before each sublayer, or "post", after it.
      norm_epsilon: added to the variance.
      final_norm: whether the output is normalised; used with norm_placement="pre" only.
      qk_norm: RMS norm of queries and keys.
      use_bias: biases of linear maps and of LayerNorm.
      qkv_bias: biases of queries, keys and values, None for `use_bias`.
      key_bias: bias of keys alone, None to have it where queries and values have theirs.
      output_bias: bias of the attention's output, None for `use_bias`.
      positions: how tokens know their places (see nn/positions.py).
      max_length: largest sequence; the size of learned and sinusoidal tables.
      rotary_base: base of the rotary frequencies.
      rotary_fraction: share of each head's features that is rotated.
      rotary_scaling: change of the rotary frequencies for longer contexts, or None.
      relative_buckets: number of buckets of T5's relative positions.
      relative_max_distance: all longer distances share the last bucket of T5's relative positions.
      causal: a token sees only itself and earlier tokens.
      window: a token sees only tokens less than this many places away, or None.
      cross_attention: blocks attend to a context as well.
      attention_scale: factor on attention logits, None for 1 / sqrt(head_dim).
      dropout: rate of dropout of the embeddings and of each sublayer's output.
      attention_dropout: rate of dropout of attention weights.
      mlp_dropout: rate of dropout of the hidden layer.
      experts: mixture-of-experts settings, or None for a plain hidden layer.
      init_std: standard deviation of weights, None for LeCun's.
      scale_residual_init: divide init_std by sqrt(2 num_layers) for the linear maps that write to the residual stream
        (GPT-2).
      remat: recompute blocks in the backward pass to save memory.
      scan_layers: compile one block and scan it: faster to compile, slower on a CPU.
    """

    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu_tanh"
    gated: bool = False
    norm: Literal["layer", "rms", "rms_offset"] = "layer"
    norm_placement: Literal["pre", "post"] = "pre"
    norm_epsilon: float = 1e-5
    final_norm: bool = True
    qk_norm: bool = False
    use_bias: bool = True
    qkv_bias: bool | None = None
    key_bias: bool | None = None
    output_bias: bool | None = None
    positions: Literal["none", "learned", "sinusoidal", "rotary", "alibi", "t5"] = "learned"
    max_length: int = 1024
    rotary_base: float = 10000.0
    rotary_fraction: float = 1.0
    rotary_scaling: RotaryScaling | None = None
    relative_buckets: int = 32
    relative_max_distance: int = 128
    causal: bool = True
    window: int | None = None
    cross_attention: bool = False
    attention_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    experts: MixtureOfExperts | None = None
    init_std: float | None = 0.02
    scale_residual_init: bool = True
    remat: bool = False
    scan_layers: bool = False

    @property
    def size_of_head(self) -> int:
        """Features of a head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def size_of_mlp(self) -> int:
        """Features of the hidden layer."""
        if self.mlp_dim is not None:
            return self.mlp_dim
        return -(-8 * self.width // 3 // 32) * 32 if self.gated else 4 * self.width

    @property
    def longest(self) -> int | None:
        """Largest length that the positions serve.

        None if there are no positions, or if positions serve any length: biases by distance (ALiBi, T5).
        """
        return self.max_length if self.positions in ("learned", "sinusoidal", "rotary") else None

    def check_length(self, length: int, what: str, name: str) -> None:
        """Refuses a text that is longer than the positions serve.

        Args:
          length: its number of tokens.
          what: subject and verb of the message, as in "the examples take".
          name: of this configuration, as in "model.network".

        Raises:
          UserError: the text is longer.
        """
        if self.longest is not None and length > self.longest:
            raise UserError(f"{what} {length} places, but the longest context is {name}.max_length={self.longest}")

    @property
    def residual_init_std(self) -> float | None:
        """Standard deviation of the maps that write to the residual stream."""
        if self.init_std is None or not self.scale_residual_init:
            return self.init_std
        return self.init_std * (2 * self.num_layers) ** -0.5

    def init_cache(
        self,
        batch: int,
        length: int,
        dtype: Any = jnp.float32,
        ragged: bool = False,
        *,
        back: int = 1,
        whole: bool = False,
    ) -> Cache:
        """An empty cache.

        Args:
          batch: number of rows.
          length: number of tokens that it has place for; where attention has a window, the last ones are kept alone.
          dtype: type of keys and values.
          ragged: whether rows may stand at different places.
          back: number of tokens that `length` of a cache may later be set back by.
          whole: keep all tokens, also those beyond a window.
        """
        kv_heads = self.num_kv_heads or self.num_heads
        most = None if self.window is None or whole else self.window + back - 1
        layer = lambda: KVCache.zeros(batch, kv_heads, length, self.size_of_head, dtype, most)
        return Cache(
            layers=tuple(layer() for _ in range(self.num_layers)),
            length=jnp.zeros((batch,) if ragged else (), jnp.int32),
        )


class Cache(flax.struct.PyTreeNode):
    """What a decoder remembers.

    Attributes:
      layers: keys and values of each layer.
      length: number of tokens so far, a scalar or one for each row.
      limit: number of tokens of each row that the next call leaves in the cache at most, [B], or None.
      cross: keys and values of the context in each layer, or None.
      context_mask: True where the context is no padding, [B, S], or None.
    """

    layers: tuple[KVCache, ...]
    length: Array
    limit: Array | None = None
    cross: tuple[KVCache, ...] | None = None
    context_mask: Array | None = None

    def grow(self, length: int) -> Cache:
        """The same with place for `length` tokens."""
        return self.replace(layers=tuple(layer.grow(length) for layer in self.layers))


class StackOutput(NamedTuple):
    """Output x [B, T, C]; new cache; attention weights (self, cross) of each layer if asked for; auxiliary loss [B]."""

    x: Array
    cache: Cache | None
    weights: Any
    auxiliary: Array


class OffsetRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) (1 + scale), in float32 (Gemma, arXiv:2403.08295)."""

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return (wide * jnp.broadcast_to(1.0 + scale, wide.shape)).astype(self.dtype)


def _norm(config: Transformer, dtype: Any, name: str) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=dtype, name=name)
    if config.norm == "rms_offset":
        return OffsetRMSNorm(epsilon=config.norm_epsilon, dtype=dtype, name=name)
    return nn.LayerNorm(
        epsilon=config.norm_epsilon, use_bias=config.use_bias, dtype=dtype, use_fast_variance=False, name=name
    )


class FeedForward(nn.Module):
    """The hidden layer of a block, plain or gated."""

    config: Transformer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dropout_keys: Array | None = None) -> Array:
        config = self.config

        def dense(name: str, features: int, std: float | None) -> nn.Dense:
            init = nn.initializers.lecun_normal() if std is None else nn.initializers.normal(std)
            product = dense_product if name == "down" else sharding.columns_product
            return nn.Dense(features, config.use_bias, self.dtype, kernel_init=init, dot_general=product, name=name)

        activation = ACTIVATIONS[config.activation]
        width, x = x.shape[-1], sharding.for_columns(x, config.size_of_mlp)
        hidden = dense("up", config.size_of_mlp, config.init_std)(x)
        if config.gated:
            hidden = activation(dense("gate", config.size_of_mlp, config.init_std)(x)) * hidden
        else:
            hidden = activation(hidden)
        hidden = dropout(sharding.split_tokens(hidden, "tensor"), config.mlp_dropout, dropout_keys)
        return sharding.split_tokens(dense("down", width, config.residual_init_std)(hidden))


class Block(nn.Module):
    """Self-attention, cross-attention where asked, and the hidden layer, each with norm and residual path."""

    config: Transformer
    dtype: Any = jnp.float32
    return_weights: bool = False

    @nn.compact
    def __call__(
        self, x: Array, layer: Array, cache: KVCache | None, cross: KVCache | None, inputs: dict[str, Any]
    ) -> tuple[Array, tuple[Any, Any, Any]]:
        """Runs block number `layer`; all blocks share `inputs`.  Returns x and (caches, weights, auxiliary)."""
        config = self.config
        pre = config.norm_placement == "pre"
        keys = fold_in(inputs["dropout_keys"], layer)
        rotary = int(config.size_of_head * config.rotary_fraction) if config.positions == "rotary" else 0
        common = {
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.size_of_head,
            "qkv_bias": config.use_bias if config.qkv_bias is None else config.qkv_bias,
            "key_bias": config.key_bias,
            "output_bias": config.use_bias if config.output_bias is None else config.output_bias,
            "qk_norm": config.qk_norm,
            "norm_epsilon": config.norm_epsilon,
            "scale": config.attention_scale,
            "dropout_rate": config.attention_dropout,
            "dtype": self.dtype,
            "init_std": config.init_std,
            "output_init_std": config.residual_init_std,
        }

        def sublayer(name: str, place: int, x: Array, apply):
            norm = _norm(config, self.dtype, name + "_norm")
            out, rest = apply(norm(x) if pre else x)
            x = x + dropout(out, config.dropout, fold_in(keys, place))
            x = x if inputs["one"] is None else x / jnp.broadcast_to(inputs["one"], x.shape)
            return (x if pre else norm(x)), rest

        def attend(h: Array):
            module = Attention(
                **common,
                causal=config.causal,
                window=config.window,
                rotary_dim=rotary,
                rotary_base=config.rotary_base,
                rotary_scaling=config.rotary_scaling,
                name="attention",
            )
            out, *rest = module(
                h,
                positions=inputs["positions"],
                segment_ids=inputs["segment_ids"],
                key_mask=inputs["key_mask"],
                prefix_lengths=inputs["prefix_lengths"],
                bias=inputs["bias"],
                cache=cache,
                start=inputs["start"],
                limit=inputs["limit"],
                dropout_keys=fold_in(keys, 3),
                return_weights=self.return_weights,
            )
            return out, rest

        def attend_context(h: Array):
            out, *rest = Attention(**common, cross=True, name="cross_attention")(
                h,
                inputs["context"],
                segment_ids=inputs["segment_ids"] if inputs["context_segment_ids"] is not None else None,
                key_segment_ids=inputs["context_segment_ids"],
                key_mask=inputs["context_mask"],
                cache=cross,
                dropout_keys=fold_in(keys, 4),
                return_weights=self.return_weights,
            )
            return out, rest

        def feed(h: Array):
            if config.experts is None:
                return FeedForward(config, self.dtype, name="mlp")(h, fold_in(keys, 5)), jnp.zeros(h.shape[0])
            activation, stds = ACTIVATIONS[config.activation], (config.init_std, config.residual_init_std)
            module = ExpertLayer(
                config.experts, config.size_of_mlp, activation, config.gated, self.dtype, *stds, name="experts"
            )
            mask = inputs["key_mask"] if cache is None else None
            return module(h, mask, training=keys is not None, causal=config.causal)

        x, (cache, weights) = sublayer("attention", 0, x, attend)
        cross_weights = None
        if config.cross_attention:
            x, (cross, cross_weights) = sublayer("cross_attention", 1, x, attend_context)
        x, auxiliary = sublayer("mlp", 2, x, feed)
        return x, ((cache, cross if config.cross_attention else None), (weights, cross_weights), auxiliary)


def _unknown_one(x: Array) -> Array | None:
    """On one CPU, a scalar 1 that the compiler does not know to be 1; by it sums of the residual stream are divided.

    XLA on CPU would compute the gradient of the stream anew for each of its readers in each layer, from what all later
    layers add to it, so that a step moved memory as the square of the number of layers.  It does not compute divisions
    twice, but writes them to memory.
    """
    if devices.platform() != "cpu" or devices.is_divided():
        return None
    first = jax.lax.stop_gradient(x.reshape(-1)[0])
    return jnp.where(first > jnp.inf, first, jnp.ones_like(first))


class TransformerStack(nn.Module):
    """The blocks and the final norm.

    Parameters: `layer_0`, `layer_1`, ..., or `layers` with a leading axis if scanned.
    """

    config: Transformer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        key_mask: Array | None = None,
        prefix_lengths: Array | None = None,
        context: Array | None = None,
        context_mask: Array | None = None,
        context_segment_ids: Array | None = None,
        cache: Cache | None = None,
        dropout_keys: Array | None = None,
        return_weights: bool = False,
        before_layer: Callable[[int, Array], Array] | None = None,
        layer_biases: Sequence[Array | None] | None = None,
    ) -> StackOutput:
        """Runs the blocks.

        Args:
          x: embeddings, [B, T, C].
          positions: position of each token for rotary angles, [B | 1, T]; None for its place (in its segment).
          segment_ids: packed sequences, [B, T]: tokens see only their own segment.
          key_mask: True at tokens that are no padding, [B, T] ([B, S] with a cache; None with the cache of a window).
          prefix_lengths: in a causal stack, the number of first tokens that see each other both ways, [B].
          context, context_mask, context_segment_ids: the encoder's output [B, S, C'] and its padding and segments.
          cache: the tokens so far (decoders); of fewer rows, prompts that successive rows of x share, with the length
            of each row's prompt.
          dropout_keys: one key an example, or None in evaluation.
          return_weights: whether to return attention weights.
          before_layer: (number of a layer, x) -> x, what a larger network puts before layers, such as gated blocks.
          layer_biases: for each layer what is added to its attention logits, [B | 1, H | 1, T, S] or None; sparse
            patterns that differ from layer to layer are biases of 0 and of `MASKED`.

        Raises:
          UserError: an argument that this configuration cannot serve.
        """
        config = self.config
        length = x.shape[1]
        if cache is not None and (segment_ids is not None or not config.causal):
            raise UserError("a cache serves causal stacks without packed segments")
        if key_mask is not None and cache is not None and cache.layers[0].is_ring:
            raise UserError("a cache of a window keeps no places that a mask could hide; leave the mask out")
        if config.norm_placement not in ("pre", "post") or config.norm not in ("layer", "rms", "rms_offset"):
            raise UserError(f"unknown norm={config.norm!r} or norm_placement={config.norm_placement!r}")
        if prefix_lengths is not None and segment_ids is not None:
            raise UserError("a prefix that is seen both ways does not go with packed segments")
        if config.cross_attention and context is None and (cache is None or cache.cross is None):
            raise UserError("a stack with cross_attention needs a context")
        if positions is None and segment_ids is not None:
            positions = segment_positions(segment_ids)
        start = None if cache is None else cache.length
        query_index = _index(length, start)
        key_index = jnp.arange(length) if cache is None else cache.layers[0].places(start, length)
        bias = None
        if config.positions == "alibi":
            bias = SlopeBias(jnp.asarray(alibi_slopes(config.num_heads)))
        elif config.positions == "t5":
            module = T5Bias(
                config.num_heads,
                config.relative_buckets,
                config.relative_max_distance,
                bidirectional=not config.causal,
                name="relative_bias",
            )
            bias = module()
        shared = cache is not None and cache.layers[0].keys.shape[0] != x.shape[0]
        large = shared or is_large(length, key_index.shape[-1])
        if bias is not None and (layer_biases is not None or not large):
            # Once for all layers.
            bias = bias(query_index, key_index)
        if cache is not None and context_mask is None:
            context_mask = cache.context_mask
        inputs = {
            "positions": positions,
            "segment_ids": segment_ids,
            "key_mask": key_mask,
            "prefix_lengths": prefix_lengths,
            "bias": bias,
            "start": start,
            # Nothing is differentiated where tokens are drawn; answers to shared prompts are scored, with gradients.
            "one": None if cache is not None and not shared else _unknown_one(x),
            "limit": None if cache is None else cache.limit,
            "context": context,
            "context_mask": context_mask,
            "context_segment_ids": context_segment_ids,
            "dropout_keys": fold_in(dropout_keys, 1),
        }
        x = dropout(x, config.dropout, dropout_keys)
        block = sharding.blocks(Block, self, self.dtype, config.remat, prevent_cse=not config.scan_layers)
        if config.scan_layers:
            if before_layer is not None:
                raise UserError("blocks stand before single layers: take network.scan_layers=false")
            if layer_biases is not None:
                raise UserError("scanned layers all attend in the same way: take network.scan_layers=false")
            if cache is not None:
                raise UserError("a cache needs unrolled layers; see unrolled()")
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=config.num_layers,
            )
            stack = sharding.scanned(stack, self, self.dtype)(config, self.dtype, return_weights, name="layers")
            x, (_, weights, auxiliary) = stack(x, jnp.arange(config.num_layers), None, None, inputs)
            auxiliary = auxiliary.sum(0)
            weights = [jax.tree.map(lambda w: w[i], weights) for i in range(config.num_layers)]  # noqa: B023
        else:
            caches, weights, auxiliary = [], [], jnp.zeros(x.shape[0])
            for i in range(config.num_layers):
                own = None if cache is None else cache.layers[i]
                cross = None if cache is None or cache.cross is None else cache.cross[i]
                x = x if before_layer is None else before_layer(i, x)
                layer: Any = block(config, self.dtype, return_weights, name=f"layer_{i}")
                own_inputs = inputs
                if layer_biases is not None and layer_biases[i] is not None:
                    own_inputs = {**inputs, "bias": layer_biases[i] if bias is None else bias + layer_biases[i]}
                x, (new, weight, more) = layer(x, jnp.asarray(i), own, cross, own_inputs)
                caches.append(new)
                weights.append(weight)
                auxiliary = auxiliary + more
            if cache is not None:
                cross = tuple(c for _, c in caches) if config.cross_attention else None
                after = cache.length + length
                cache = Cache(
                    layers=tuple(c for c, _ in caches),
                    length=after if cache.limit is None else jnp.minimum(after, cache.limit),
                    cross=cross,
                    context_mask=context_mask,
                )
        if config.final_norm and config.norm_placement == "pre":
            x = _norm(config, self.dtype, "final_norm")(x)
        return StackOutput(x, cache, weights if return_weights else None, auxiliary)


def _index(length: int, start: Array | None) -> Array:
    """Places of `length` tokens that follow `start` others, [1 | B, T]."""
    index = jnp.arange(length)[None]
    return index if start is None else index + (start[:, None] if start.ndim else start)


class TokenEmbedding(nn.Module):
    """Embeddings of tokens, of their positions and types; and, where tied, the logits.

    Attributes:
      vocab_size: number of tokens.
      config: the stack's configuration, which says what positions it needs.
      num_types: number of token types (BERT's segments), 0 for none.
      position_offset: added to positions before they are looked up (2 in BART and RoBERTa).
      scale: factor on the token embeddings (sqrt(width) in Vaswani et al. 2017).
      norm: whether a norm follows (BERT).
      dtype: compute type.
      shared: a table of tokens that another module owns, or None for one of its own.
      config_name: path of the configuration in the model's fields, for error messages.
    """

    vocab_size: int
    config: Transformer
    num_types: int = 0
    position_offset: int = 0
    scale: float = 1.0
    norm: bool = False
    dtype: Any = jnp.float32
    shared: nn.Embed | None = None
    config_name: str = "model.network"

    def setup(self) -> None:
        config = self.config
        std = 0.02 if config.init_std is None else config.init_std
        init = nn.initializers.normal(std)
        if self.shared is None:
            self.token = nn.Embed(self.vocab_size, config.width, embedding_init=init)
        if config.positions == "learned":
            self.position = nn.Embed(config.max_length + self.position_offset, config.width, embedding_init=init)
        if self.num_types:
            self.type = nn.Embed(self.num_types, config.width, embedding_init=init)
        if self.norm:
            self.embedding_norm = _norm(config, self.dtype, "embedding_norm")

    def __call__(
        self,
        tokens: Array,
        *,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        types: Array | None = None,
        start: Array | None = None,
        features: Array | None = None,
        replaced: Array | None = None,
    ) -> Array:
        """tokens [B, T] -> [B, T, C]; `start` tokens came before (see `Cache.length`).

        Where `replaced` [B, T] is True, `features` [B, T, C] stand in place of the tokens' scaled embeddings, as the
        features of pictures do.

        Raises:
          UserError: no tokens came before, and the tokens are more than the positions serve.
        """
        config = self.config
        if start is None:
            config.check_length(tokens.shape[1], "the tokens take", self.config_name)
        x = sharding.rows_of((self.shared or self.token).embedding, tokens)
        if self.scale != 1.0:
            x = x * self.scale
        if features is not None:
            x = jnp.where(replaced[..., None], features.astype(x.dtype), x)
        if config.positions in ("learned", "sinusoidal"):
            if positions is None:
                positions = _index(tokens.shape[1], start) if segment_ids is None else segment_positions(segment_ids)
            if start is not None:
                # Only proposals that are dropped later lie beyond the table; they must not be NaN.
                positions = jnp.minimum(positions, config.max_length - 1)
            if config.positions == "learned":
                x = x + jnp.broadcast_to(self.position(positions + self.position_offset), x.shape)
            else:
                table = jnp.asarray(sinusoidal_table(config.max_length, config.width))
                x = x + jnp.broadcast_to(jnp.take(table, positions, axis=0), x.shape)
        if self.num_types:
            x = x + self.type(jnp.zeros_like(tokens) if types is None else types)
        if self.norm:
            x = self.embedding_norm(x)
        return x.astype(self.dtype)

    def logits(self, x: Array) -> Array:
        """Products with the token embeddings, [B, T, C] -> float32 [B, T, V]."""
        return sharding.logits_of(x, (self.shared or self.token).embedding, ("token", "embedding"), self.dtype)

    def scores(self, x: Array, targets: Array) -> TokenScores:
        """Scores of targets [B, T] under the logits of x [B, T, C]."""
        return scores_of(x, (self.shared or self.token).embedding, targets, ("token", "embedding"), self.dtype)


class OutputMap(nn.Module):
    """The linear map from the stack's output to logits, where it is not the table of the tokens.

    Attributes:
      vocab_size: number of tokens V.
      init_std: standard deviation of the weights; None for LeCun's.
      dtype: compute type; logits are float32.
    """

    vocab_size: int
    init_std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, targets: Array | None = None) -> Array | TokenScores:
        """[B, T, C] -> float32 [B, T, V], or the scores of targets [B, T]."""
        std = self.init_std
        init = nn.initializers.lecun_normal() if std is None else nn.initializers.normal(std)
        kernel = self.param("kernel", init, (x.shape[-1], self.vocab_size))
        if targets is not None:
            return scores_of(x, kernel, targets, ("head", "kernel"), self.dtype)
        return sharding.logits_of(x, kernel, ("head", "kernel"), self.dtype)


def unrolled(params: PyTree, config: Transformer) -> PyTree:
    """Turns the parameters of a scanned stack into parameters of the same stack with `scan_layers=False`.

    Parameters that are not scanned are returned as they are.
    """
    if "layers" not in params:
        return params
    layers = {f"layer_{i}": jax.tree.map(lambda a: a[i], params["layers"]) for i in range(config.num_layers)}  # noqa: B023
    return {**{name: value for name, value in params.items() if name != "layers"}, **layers}


def scanned(params: PyTree, config: Transformer) -> PyTree:
    """The inverse of `unrolled`."""
    if "layers" in params:
        return params
    layers = [params[f"layer_{i}"] for i in range(config.num_layers)]
    rest = {name: value for name, value in params.items() if not name.startswith("layer_")}
    return {**rest, "layers": jax.tree.map(lambda *a: jnp.stack(a), *layers)}
