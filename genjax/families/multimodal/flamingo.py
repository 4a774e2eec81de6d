"""Flamingo: a language model that sees pictures between its words (Alayrac et al. 2022, arXiv:2204.14198, section 2).

    l_n = resampler(encoder(picture n)),   p(y_t | y_<t, pictures) = LM with gated blocks before every n-th layer
    the text at place t sees the picture number count(<image> in y_<=t) alone, and none before the first

A batch has pictures `x` [B, N, H, W, C], or films [B, N, F, H, W, C], in the order of their places in the text;
`tokens` [B, T] with `mask` have the image token where a picture stands; `loss_mask` is True at what counts.  Rows with
fewer than N pictures are filled up with any picture, which nothing sees.

With initial_gate=0 the logits at the start are those of the language model, to the bit.  Its parameters are called as
in a GPT and those of the encoder as in a captioner, so that both may come from other runs and stay as they are:
--training.init_from=RUN --training.init_prefix=embedding,stack and --model.frozen=embedding,stack,vision_encoder.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from genjax import decoding
from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.errors import UserError, filled, number_of
from genjax.families.language.gpt import LanguageModel
from genjax.families.multimodal.describer import Describer
from genjax.families.multimodal.flamingo_layers import GatedBlock, PerceiverResampler, Resampler
from genjax.families.multimodal.idefics_checkpoints import IDEFICS_ARCHITECTURE
from genjax.interop.huggingface import FromPretrained
from genjax.model import TrainState
from genjax.nn.dropout import fold_in
from genjax.nn.transformer import Cache, StackOutput, Transformer
from genjax.nn.vision_transformer import VisionTransformer


class FlamingoNetwork(LanguageModel, kw_only=True):
    """A language model with an encoder of pictures, the resampler and the gated blocks."""

    vision: Transformer
    patch_size: int
    input_norm: bool
    resampler_config: Resampler
    first: int
    every: int
    initial_gate: float

    def setup(self) -> None:
        super().setup()
        self.vision_encoder = VisionTransformer(self.vision, self.patch_size, self.input_norm, dtype=self.dtype)
        self.resampler = PerceiverResampler(self.resampler_config, self.dtype)
        places = range(self.first, self.config.num_layers, self.every)
        block = lambda: GatedBlock(self.config, self.resampler_config.num_latents, self.initial_gate, self.dtype)
        self.gated = {str(place): block() for place in places}

    def encode(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Pictures [B, N, H, W, C] or films [B, N, F, H, W, C] -> resampled [B, N, R, C']."""
        batch, count, *frames = x.shape[:-3]
        frames = frames[0] if frames else 1
        keys = None
        if dropout_keys is not None:
            split = lambda key: jax.random.split(key, count * frames)
            keys = jax.vmap(split)(fold_in(dropout_keys, 10)).reshape(-1)
        features = self.vision_encoder(x.reshape(-1, *x.shape[-3:]), keys)
        resampled = self.resampler(features.reshape(batch * count, frames, *features.shape[1:]))
        return resampled.reshape(batch, count, *resampled.shape[1:])

    def decode(
        self,
        tokens: Array,
        pictures: Array | None,
        number: Array,
        seen: dict[str, PyTree] | None = None,
        cache: Cache | None = None,
        dropout_keys: Array | None = None,
    ) -> tuple[Array, StackOutput, dict[str, PyTree]]:
        """Reads text.

        Args:
          tokens: [B, T].
          pictures: resampled pictures [B, N, R, C'], or None if `seen` has their keys and values.
          number: which picture each place sees, [B, T], counted from 1.
          seen: keys and values of the pictures in each gated block.
          cache: the text so far.
          dropout_keys: keys [B], or None in evaluation.

        Returns:
          Float32 logits [B, T, V], the stack's output, and `seen`.
        """
        found = {}

        def before_layer(place: int, x: Array) -> Array:
            name = str(place)
            if name not in self.gated:
                return x
            x, found[name] = self.gated[name](x, pictures, number, None if seen is None else seen[name])
            return x

        x = self.embedding(tokens, start=None if cache is None else cache.length)
        out = self.stack(x, cache=cache, dropout_keys=fold_in(dropout_keys, 11), before_layer=before_layer)
        return (self.embedding.logits(out.x) if self.tie_embeddings else self.head(out.x)), out, found

    def __call__(self, x: Array, tokens: Array, number: Array, dropout_keys: Array | None = None) -> Array:
        """Logits after each of `tokens` [B, T], float32 [B, T, V]."""
        return self.decode(tokens, self.encode(x, dropout_keys), number, dropout_keys=dropout_keys)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flamingo(FromPretrained, Describer):
    """A language model that sees pictures between its words.

    Attributes:
      data_shape: shape of x, (N, H, W, C) with at most N pictures a text; None takes the data set's.
      image_token: the token that stands where a picture is; None takes the data set's.
      decoder: the language model's stack.
      tie_embeddings: whether logits are products with the token embeddings.
      vision: the pictures' stack.
      patch_size: height and width of a patch.
      input_norm: a norm before the first block of the pictures' stack (CLIP).
      resampler: the resampler of pictures.
      first: number of the first layer of the language model that a gated block stands before.
      every: from then on a gated block stands before each `every`-th layer.
      initial_gate: the gates before tanh at the start.  0 leaves a trained language model as it is, to the bit; a model
        that learns from nothing needs open gates, for shut ones pass no gradient to the encoder and stay shut.
      next_picture: probability that a text in training sees the next picture in place of the last one (appendix A.3.1).
      pretrained: folder of an Idefics checkpoint of the library transformers to start from, or None.
    """

    architectures = (IDEFICS_ARCHITECTURE,)
    what: ClassVar[str] = "pictures"

    image_token: int | None = None
    decoder: Transformer = Transformer(num_layers=12, width=768, num_heads=12)
    tie_embeddings: bool = True
    vision: Transformer = Transformer(num_layers=12, width=768, num_heads=12, activation="gelu")
    patch_size: int = 16
    input_norm: bool = False
    resampler: Resampler = Resampler()
    first: int = 0
    every: int = 1
    initial_gate: float = 0.0
    next_picture: float = 0.0
    pretrained: str | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.first < self.decoder.num_layers:
            raise UserError(
                f"model.first={self.first} and model.every={self.every} put no gated block before any of the "
                f"{number_of(self.decoder.num_layers, 'layer')} of model.decoder"
            )
        if not 0.0 <= self.next_picture <= 1.0:
            raise UserError(f"model.next_picture={self.next_picture} must be a probability")

    @property
    def decoder_network(self) -> Transformer:
        """The language model's stack, whose own blocks attend to nothing but the text."""
        return dataclasses.replace(self.decoder, causal=True, cross_attention=False)

    def module(self, unroll: bool = False) -> FlamingoNetwork:
        # Positions of patches are the vision encoder's own table.
        vision = dataclasses.replace(self.vision, causal=False, cross_attention=False, positions="none")
        return FlamingoNetwork(
            vocab_size=filled(self, "vocab_size"),
            config=self.unrolled_decoder(unroll),
            tie_embeddings=self.tie_embeddings,
            vision=vision,
            patch_size=self.patch_size,
            input_norm=self.input_norm,
            resampler_config=self.resampler,
            first=self.first,
            every=self.every,
            initial_gate=self.initial_gate,
            dtype=jnp.dtype(self.compute_dtype),
        )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the rows are longer than the decoder's positions serve, or patches do not divide the pictures.
        """
        self._check_length(batch["tokens"].shape[1] - 1)
        one = jnp.ones((1, 1), jnp.int32)
        params = self.module().init(key, batch["x"][:1], one, one)["params"]
        return self.start(jax.random.fold_in(key, 1), params)

    def picture_number(self, tokens: Array) -> Array:
        """Number of the picture that each place of tokens [B, T] sees: of image tokens up to it, 0 for none."""
        return jnp.cumsum(tokens == filled(self, "image_token"), axis=1)

    # Likelihood.

    def _logits(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Array:
        tokens = batch["tokens"]
        number = self.picture_number(tokens)
        if self.next_picture and dropout_keys is not None:
            draw = jax.vmap(lambda key: jax.random.bernoulli(key, self.next_picture))(fold_in(dropout_keys, 12))
            number = jnp.where(draw[:, None], jnp.minimum(number + 1, number[:, -1:]), number)
        inputs = (batch["x"], tokens[:, :-1], number[:, :-1], dropout_keys)
        return self.module().apply({"params": self.merged_params(params)}, *inputs)

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean over examples of the nats of all tokens that count, divided by T - 1; and metrics."""
        loss, metrics = super().loss(params, batch, key)
        gates = {name: part for name, part in params.items() if name.startswith("gated_")}
        opened = [jnp.abs(jnp.tanh(part["cross_attention_gate"])).mean() for part in gates.values()]
        return loss, {**metrics, "open_gates": jnp.stack(opened).mean()}

    # Generation.

    def check_condition(
        self, source: Array | None = None, prompts: Array | None = None, prompt_lengths: Array | None = None
    ) -> None:
        """Raises UserError if pictures have another shape, or `prompts` has tokens outside the vocabulary or of more
        pictures than there are.
        """
        super().check_condition(None, prompts, prompt_lengths)
        shape = tuple(filled(self, "data_shape"))
        if source is not None and (source.ndim not in (5, 6) or tuple(source.shape[-3:]) != shape[-3:]):
            raise UserError(
                f"the model sees pictures of the shape {shape[-3:]}, several a text, and not x of {tuple(source.shape)}"
            )
        if source is None or prompts is None or isinstance(prompts, jax.core.Tracer):
            return
        most = int((np.asarray(prompts) == filled(self, "image_token")).sum(1).max())
        if most > source.shape[1]:
            tokens, pictures = number_of(most, "image token"), number_of(source.shape[1], "picture")
            raise UserError(
                f"a prompt has {tokens} for {pictures}, each worth one token; give a picture for each image token"
            )

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        # The memory carries the number of image tokens up to each place, so that it may be rewound to any.
        module, network = self.module(unroll=True), self.decoder_network
        params, x = weights["params"], weights["x"]

        def init(batch: int, length: int, ragged: bool, back: int = 1) -> PyTree:
            self._check_length(length)
            cache = network.init_cache(batch, length, jnp.dtype(self.compute_dtype), ragged, back=back)
            pictures = module.apply({"params": params}, x, method="encode")
            return {"cache": cache, "counts": jnp.zeros((batch, length + 1), jnp.int32), "pictures": pictures}

        def extend(memory: PyTree, tokens: Array) -> decoding.Step:
            cache, counts = memory["cache"], memory["counts"]
            start = jnp.broadcast_to(cache.length, (tokens.shape[0],))
            before = jnp.take_along_axis(counts, start[:, None], axis=1, mode="clip")
            number = before + self.picture_number(tokens)
            slots = start[:, None] + 1 + jnp.arange(tokens.shape[1])[None]
            counts = jax.vmap(lambda row, slot, new: row.at[slot].set(new, mode="drop"))(counts, slots, number)
            inputs = (tokens, memory.get("pictures"), number, memory.get("seen"), cache)
            logits, out, seen = module.apply({"params": params}, *inputs, method="decode")
            return decoding.Step(logits, {"cache": out.cache, "counts": counts, "seen": seen}, out.x)

        def rewind(memory: PyTree, length: Array) -> PyTree:
            return {**memory, "cache": memory["cache"].replace(length=length)}

        def until(memory: PyTree, length: Array) -> PyTree:
            return {**memory, "cache": memory["cache"].replace(limit=length)}

        def grow(memory: PyTree, length: int) -> PyTree:
            more = length + 1 - memory["counts"].shape[1]
            counts = jnp.pad(memory["counts"], ((0, 0), (0, more)))
            return {**memory, "cache": memory["cache"].grow(length), "counts": counts}

        changes = {"rewind": rewind, "until": until, "grow": grow}
        return decoding.Decoder(init=init, extend=extend, **changes, max_length=network.longest)
