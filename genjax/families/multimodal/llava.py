"""LLaVA: a language model that reads pictures in place of tokens (Liu et al. 2023, arXiv:2304.08485, section 4).

    h = projector(encoder(x)),   the i-th picture token is read as h_i,   loss = mean of -log p of the answers' tokens

The encoder comes from a CLIP or SigLIP.  Its features after the block `feature_layer` are read, of the patches alone or
with the class token.  The projector is one linear map, or two with a GELU between (LLaVA 1.5, arXiv:2310.03744).
Training has two stages: the projector alone, and then the projector with the language model, or with low-rank updates
of it:

    --model.vision_from=CLIP --model.language_from=GPT --model.frozen=vision_encoder,language
    --training.init_from=STAGE_1 --model.frozen=vision_encoder

With `prefix_attention` the pictures and the question see each other both ways, as in PaliGemma (Beyer et al. 2024,
arXiv:2407.07726).

A batch is that of describing.py, and its texts have `image_token` once for every feature of a picture.  `x` may be
[B, M, H, W, C], M pictures a text, whose features stand in the places of the picture tokens in order.  Without `x` the
model is the language model that it started from.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax import decoding
from genjax.batch import Array, Batch, ComputeDtype, PyTree
from genjax.errors import UserError, filled, number_of
from genjax.families.language.gpt import GPT, LanguageModel
from genjax.families.language.networks import llama_network
from genjax.families.multimodal.clip import CLIP
from genjax.families.multimodal.contrast import ending_at
from genjax.families.multimodal.describing import DescribesPictures
from genjax.families.multimodal.llava_checkpoints import LLAVA_ARCHITECTURE, PALIGEMMA_ARCHITECTURE
from genjax.families.multimodal.networks import clip_network
from genjax.families.multimodal.siglip import SigLIP
from genjax.families.multimodal.sources import folder_model, folder_part, is_run
from genjax.interop.architecture import Architecture
from genjax.interop.huggingface import FromPretrained
from genjax.model import PartSources, TrainState
from genjax.nn.attention import MASKED
from genjax.nn.lora import LoRA
from genjax.nn.tokens import with_more_tokens
from genjax.nn.transformer import ACTIVATIONS, Cache, StackOutput, Transformer, unrolled
from genjax.nn.vision_transformer import VisionTransformer
from genjax.optimizers import AdamW, Cosine, Optimizer


class Projector(nn.Module):
    """Features of pictures [..., C'] to features that the language model reads, [..., C].

    Attributes:
      width: number of features C.
      num_layers: one linear map, or two with an exact GELU between.
      dtype: compute type.
    """

    width: int
    num_layers: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(0.02)
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="first")(x)
        if self.num_layers == 1:
            return x
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="second")(ACTIVATIONS["gelu"](x))


class LLaVANetwork(nn.Module):
    """The encoder of pictures, the projector and the language model."""

    language_model: LanguageModel
    vision: Transformer
    vision_form: str
    patch_size: int
    image_token: int
    class_token: bool
    projector_layers: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        clip = self.vision_form == "clip"
        form = {"input_norm": clip, "class_token": clip, "patch_bias": not clip}
        self.vision_encoder = VisionTransformer(self.vision, self.patch_size, **form, dtype=self.dtype)
        self.projector = Projector(self.language_model.config.width, self.projector_layers, self.dtype)
        self.language = self.language_model.clone()

    def features(self, x: Array) -> Array:
        """Pictures [B, H, W, C] or [B, M, H, W, C] -> what is read in place of picture tokens, [B, M N, C']."""
        pictures = x.reshape(-1, *x.shape[-3:])
        found = self.vision_encoder(pictures)
        if self.vision_form == "clip" and not self.class_token:
            found = found[:, 1:]
        found = self.projector(found)
        return found.reshape(x.shape[0], -1, found.shape[-1])

    def read(
        self,
        tokens: Array,
        features: Array | None,
        cache: Cache | None = None,
        dropout_keys: Array | None = None,
        prefix_lengths: Array | None = None,
    ) -> tuple[Array, StackOutput]:
        """tokens [B, T] and features of pictures -> float32 logits [B, T, V] and the stack's output."""
        inputs: dict[str, Any] = {"cache": cache, "dropout_keys": dropout_keys, "prefix_lengths": prefix_lengths}
        if features is not None:
            replaced = tokens == self.image_token
            place = jnp.clip(jnp.cumsum(replaced, axis=1) - 1, 0, features.shape[1] - 1)
            inputs |= {
                "features": jnp.take_along_axis(features, place[..., None], axis=1),
                "replaced": replaced,
            }
            # The token of a picture may lie behind the vocabulary.
            tokens = jnp.where(replaced, 0, tokens)
        return self.language(tokens, **inputs)

    def __call__(
        self,
        tokens: Array,
        x: Array | None = None,
        dropout_keys: Array | None = None,
        prefix_lengths: Array | None = None,
    ) -> Array:
        """Logits after each of `tokens` [B, T], float32 [B, T, V]."""
        features = None if x is None else self.features(x)
        return self.read(tokens, features, None, dropout_keys, prefix_lengths)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LLaVA(FromPretrained, DescribesPictures):
    """A language model that answers questions about pictures, which it reads in place of tokens.

    Attributes:
      data_shape: shape (H, W, C) of the pictures; None takes the data set's.
      vocab_size: number of tokens; None takes the data set's.
      sequence_length: tokens T of a row with its start and end; None takes the data set's.
      start_token: what every row begins with; None takes the data set's.
      end_token: what ends answers; None takes the data set's.
      image_token: the token in whose place a feature of a picture is read; None takes the data set's.
      picture_tokens: number of tokens that the data write for a picture; None takes the data set's.
      vision: the pictures' stack.
      vision_form: clip, with a class token and a norm before the first block; or siglip, with a bias of the patches.
      patch_size: height and width of a patch.
      feature_layer: the block whose features are read, -1 for the last, -2 for the one before.
      feature_norm: whether the encoder's last norm follows.
      class_token: whether the features of a class token are read before those of the patches.
      projector_layers: number of linear maps from features of pictures to features of the language model, 1 or 2.
      network: the language model's stack; its `max_length` is the longest context.
      tie_embeddings: whether logits are products with the token embeddings.
      embedding_scale: factor on token embeddings.
      prefix_attention: whether what comes before an answer is seen both ways.
      vision_from: a run of CLIP or SigLIP, or a folder of one of the library transformers, whose encoder of pictures
        is taken with its sizes, or None.
      language_from: a run of GPT, or a folder of the library transformers, whose language model is taken with its
        sizes, or None.
      untrained_encoder: start without a trained encoder of pictures, to try a configuration out.
      max_new_tokens: tokens of the longest answer that is written, its end included; None for sequence_length - 1.
      num_beams: number of hypotheses of `describe`.
      length_penalty: exponent of the length by which `describe` divides scores; larger values favour longer texts.
      label_smoothing: probability that the loss spreads over all tokens; not used in evaluation.
      sampling: how `sample` and `generate` choose tokens.
      lora: train the projector and low-rank updates of the language model's linear maps and nothing else, or None.
      frozen: beginnings of the paths of parameters that are not trained: vision_encoder, and in the first stage
        language.
      pretrained: folder of a LLaVA or a PaliGemma of the library transformers to start from, or None.
      compute_dtype: type that the network computes in; parameters, logits and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    flag_name: ClassVar[str] = "llava"
    architectures: ClassVar[tuple[Architecture, ...]] = (LLAVA_ARCHITECTURE, PALIGEMMA_ARCHITECTURE)
    heads = ("projector",)
    needs_pictures: ClassVar[bool] = False

    data_shape: tuple[int, ...] | None = None
    vocab_size: int | None = None
    sequence_length: int | None = None
    start_token: int | None = None
    end_token: int | tuple[int, ...] | None = None
    image_token: int | None = None
    picture_tokens: int | None = None
    vision: Transformer = clip_network(24, 1024, 16)
    vision_form: Literal["clip", "siglip"] = "clip"
    patch_size: int = 14
    feature_layer: int = -2
    feature_norm: bool = False
    class_token: bool = False
    projector_layers: int = 2
    network: Transformer = llama_network(32, 4096, 32)
    tie_embeddings: bool = False
    embedding_scale: float = 1.0
    prefix_attention: bool = False
    vision_from: str | None = None
    language_from: str | None = None
    untrained_encoder: bool = False
    max_new_tokens: int | None = None
    num_beams: int = 1
    length_penalty: float = 0.0
    label_smoothing: float = 0.0
    sampling: decoding.Sampling = decoding.Sampling()
    lora: LoRA | None = None
    frozen: tuple[str, ...] = ("vision_encoder",)
    pretrained: str | None = None
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = AdamW(learning_rate=1e-3, clip_norm=1.0, schedule=Cosine(warmup_steps=100))

    def __post_init__(self) -> None:
        if self.projector_layers not in (1, 2):
            raise UserError(f"model.projector_layers={self.projector_layers} must be 1 or 2")
        if self.class_token and self.vision_form == "siglip":
            raise UserError("model.class_token=true needs an encoder with a class token, and SigLIP has none")

    def language_model(self) -> GPT:
        """The language model alone."""
        return GPT(
            vocab_size=self.vocab_size,
            start_token=self.start_token,
            end_token=self.end_token,
            network=self.network,
            tie_embeddings=self.tie_embeddings,
            embedding_scale=self.embedding_scale,
            compute_dtype=self.compute_dtype,
        )

    def vision_model(self) -> CLIP | SigLIP:
        """A model of pictures and texts with this encoder of pictures."""
        kind = CLIP if self.vision_form == "clip" else SigLIP
        return kind(data_shape=self.data_shape, vision=self.vision, patch_size=self.patch_size)

    @property
    def features_per_picture(self) -> int:
        """Number of features that stand for a picture, which is the number of picture tokens that they need."""
        height, width, _ = filled(self, "data_shape")
        return (height // self.patch_size) * (width // self.patch_size) + self.class_token

    def module(self, unroll: bool = False, whole: bool = False) -> LLaVANetwork:
        """The Linen module.

        Args:
          unroll: the language model's layers are not scanned, as a cache needs.
          whole: the encoder has all its blocks and its last norm, also those that are not used.
        """
        vision = dataclasses.replace(self.vision, causal=False, cross_attention=False, positions="none")
        network = self.network
        if unroll:
            network = dataclasses.replace(network, scan_layers=False, remat=False)
        return LLaVANetwork(
            self.language_model().module(network),
            vision if whole else ending_at(vision, self.feature_layer, self.feature_norm, "model.feature_layer"),
            self.vision_form,
            self.patch_size,
            self._image_token,
            self.class_token,
            self.projector_layers,
            jnp.dtype(self.compute_dtype),
        )

    @property
    def _image_token(self) -> int:
        if self.image_token is None:
            raise UserError(
                "LLaVA reads pictures in place of tokens, and the data write none for them: give "
                f"--data.picture_tokens={self.features_per_picture}"
            )
        return self.image_token

    # The start of a run.

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the rows are longer than the language model's positions serve, or the data write another number of
            tokens for a picture than it has features.
        """
        shape = filled(self, "data_shape")
        self.check_condition(batch.get("x"))
        self._image_token  # noqa: B018
        if self.picture_tokens is not None:
            self._check_count(self.picture_tokens)
        self.network.check_length(batch["tokens"].shape[1] - 1, "the texts take", "model.network")
        network_key, update_key = jax.random.split(key)
        inputs = (batch["tokens"][:1, :1], jnp.zeros((1, *shape)))
        return self.start(update_key, self.module(whole=True).init(network_key, *inputs)["params"])

    def _check_count(self, count: int) -> None:
        """Raises UserError unless the data's number of tokens for a picture is the number of its features."""
        wanted = self.features_per_picture
        if count == wanted:
            return
        hint = f"set data.picture_tokens={wanted}"
        if self.vision_form == "clip" and count == wanted + (-1 if self.class_token else 1):
            hint += f", or model.class_token={'false' if self.class_token else 'true'}"
        raise UserError(f"the data write {number_of(count, 'token')} for a picture, and {self._features()}; {hint}")

    def _features(self) -> str:
        """A part of a sentence that says where the number of features of a picture comes from."""
        height, width, _ = filled(self, "data_shape")
        patches = number_of((height // self.patch_size) * (width // self.patch_size), "patch", "patches")
        of = f"{patches} of model.patch_size={self.patch_size} in pictures of {height} x {width}"
        more = ", and the class token of model.class_token=true" if self.class_token else ""
        return f"its features are worth {number_of(self.features_per_picture, 'token')} ({of}{more})"

    def check_start(self, source: Any) -> None:
        """Refuses to train on features of an encoder that was not trained.

        Args:
          source: the model of the run `training.init_from`, or None.

        Raises:
          UserError: no trained encoder is given.
        """
        given = self.vision_from is not None or self.pretrained is not None or isinstance(source, LLaVA)
        if not given and not self.untrained_encoder and "vision_encoder" in self.frozen:
            raise UserError(
                "LLaVA reads the features of a trained encoder of pictures; give a run of CLIP or SigLIP, or a folder "
                "of one, by --model.vision_from"
            )

    @property
    def part_runs(self) -> tuple[str, ...]:
        """Where the language model comes from; the data take its tokenizer."""
        found = self.language_from is not None and Path(self.language_from).expanduser().is_dir()
        return (self.language_from,) if found else ()

    def like_parts(self, earlier: Any) -> LLaVA:
        """The model with the sizes of encoder and language model that an earlier configuration has."""
        if not isinstance(earlier, LLaVA):
            return self
        names = ("vision", "vision_form", "patch_size", "network", "tie_embeddings", "embedding_scale")
        return dataclasses.replace(self, **{name: getattr(earlier, name) for name in names})

    def with_parts(self, sources: PartSources) -> LLaVA:
        """The model with the sizes of what it starts from; a resumed run whose sources are gone keeps its own.

        Raises:
          UserError: it starts from another kind of model, or from pictures of another shape.
        """
        model = self
        if self.vision_from is not None and Path(self.vision_from).expanduser().exists():
            theirs = _model_at(self.vision_from, sources, (CLIP, SigLIP), "vision_from")
            if None not in (theirs.data_shape, self.data_shape) and tuple(theirs.data_shape) != tuple(self.data_shape):
                raise UserError(
                    f"model.vision_from={self.vision_from} sees pictures of the shape {tuple(theirs.data_shape)}, and "
                    f"the data have {tuple(self.data_shape)}; set data.image_size"
                )
            form = "clip" if isinstance(theirs, CLIP) else "siglip"
            model = dataclasses.replace(model, vision=theirs.vision, patch_size=theirs.patch_size, vision_form=form)
        if self.language_from is not None and Path(self.language_from).expanduser().exists():
            theirs = _model_at(self.language_from, sources, (GPT,), "language_from")
            if self.vocab_size is not None and theirs.vocab_size > self.vocab_size:
                model._image_token  # noqa: B018
                raise UserError(
                    f"model.language_from={self.language_from} knows {theirs.vocab_size} tokens, and "
                    f"model.vocab_size={self.vocab_size}"
                )
            own = {field: getattr(self.network, field) for field in ("remat", "scan_layers")}
            model = dataclasses.replace(
                model,
                network=dataclasses.replace(theirs.network, **own),
                tie_embeddings=theirs.tie_embeddings,
                embedding_scale=theirs.embedding_scale,
            )
        return model

    def make_parts(self, sources: PartSources) -> dict[str, PyTree]:
        """Nothing: encoder and language model are parameters; see `start_params`."""
        del sources
        return {}

    def start_params(self, params: PyTree, sources: PartSources) -> PyTree:
        """New parameters, with the trained encoder and the trained language model in their places.

        Rows of tokens that the language model does not know are the mean of its others.
        """
        taken = dict(params)
        if self.vision_from is not None:
            like = {"vision_encoder": params["vision_encoder"]}
            taken |= _params_at(self.vision_from, self.vision_model(), like, sources)
        if self.language_from is not None:
            theirs = _model_at(self.language_from, sources, (GPT,), "language_from")
            shapes = dataclasses.replace(self.language_model(), vocab_size=theirs.vocab_size)
            example = jnp.zeros((1, 1), jnp.int32)
            like = jax.eval_shape(lambda: shapes.module().init(jax.random.key(0), example)["params"])
            found = _params_at(self.language_from, shapes, like, sources)
            grow = lambda new, old: jnp.asarray(old) if new.shape == old.shape else with_more_tokens(old, new.shape)
            taken["language"] = jax.tree.map(grow, params["language"], found)
        place = lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding)
        return jax.tree.map(place, taken, params)

    def adapted(self, params: PyTree) -> PyTree:
        return {"language": params["language"]}

    # Texts.

    def check_condition(
        self, source: Array | None = None, prompts: Array | None = None, prompt_lengths: Array | None = None
    ) -> None:
        # Of several pictures a text, the first is looked at.
        first = source[:, 0] if source is not None and source.ndim == 5 else source
        super().check_condition(first, prompts, prompt_lengths)

    def check_pictures(self, tokens: Array, x: Array | None) -> None:
        """Refuses texts whose picture tokens are not those of their pictures; inside `jit` nothing is checked.

        Args:
          tokens: texts, [B, T].
          x: pictures [B, H, W, C] or [B, M, H, W, C], or None.

        Raises:
          UserError: a text has more or fewer picture tokens than its pictures have features, both counted in tokens.
        """
        if isinstance(tokens, jax.core.Tracer):
            return
        each, most = self.features_per_picture, 0 if x is None else (1 if x.ndim == 4 else x.shape[1])
        for i, row in enumerate(np.asarray(tokens) == self._image_token):
            count = int(row.sum())
            if count == most * each or (x is not None and x.ndim == 5 and count % each == 0 < count < most * each):
                continue
            if count and x is None:
                raise UserError(
                    f"the text {i} has {number_of(count, 'picture token')}, and no picture is given; give "
                    f"{number_of(-(-count // each), 'picture')}, or leave the token {self.image_token} out"
                )
            if not count:
                raise UserError(
                    f"a picture is given to the text {i}, which has no picture tokens; write the token "
                    f"{self.image_token} {each} times where the picture stands (data.picture_tokens={each})"
                )
            cut = f": the text is cut inside a picture's tokens, {count % each} of {each}" if count % each else ""
            raise UserError(
                f"the text {i} has {number_of(count, 'picture token')} for {number_of(most, 'picture')} worth "
                f"{number_of(most * each, 'token')}{cut}; of one picture {self._features()}"
            )

    def _prefix(self, batch: Batch) -> Array | None:
        return self.prompts_of(batch)[1] if self.prefix_attention else None

    def _logits(self, params: PyTree, batch: Batch, dropout_keys: Array | None = None) -> Array:
        x = batch.get("x")
        self.check_pictures(batch["tokens"], x)
        # Padding is at the end of rows, where no token that counts sees it.
        inputs = (batch["tokens"][:, :-1], x, dropout_keys, self._prefix(batch))
        return self.module().apply({"params": self.merged_params(params)}, *inputs)

    def logits(
        self, state: TrainState, tokens: Array, x: Array | None = None, prefix_lengths: Array | None = None
    ) -> Array:
        """Next-token logits after each of `tokens` [B, T], which may have pictures x, float32 [B, T, V].

        `prefix_lengths` [B] are the numbers of first tokens that are seen both ways, with `prefix_attention`.
        """
        self.check_pictures(tokens, x)
        params = self.merged_params(state.eval_params)
        prefix = prefix_lengths if self.prefix_attention else None
        return self.module().apply({"params": params}, tokens, x, None, prefix)

    def description_decoder(self, state: TrainState, x: Array | None) -> decoding.Decoder:
        """A decoder for `genjax.decoding` that continues texts of equal length about pictures; see `reader`."""
        return self._decoder(state, x, None)

    def reader(
        self, state: TrainState, x: Array | None, prompts: Array, lengths: Array | None
    ) -> tuple[decoding.Decoder, Array, Array | None]:
        self.check_pictures(prompts, x)
        return self._decoder(state, x, lengths), prompts, lengths

    def _decoder(self, state: TrainState, x: Array | None, lengths: Array | None) -> decoding.Decoder:
        if x is not None:
            self.check_condition(x)
        params = self.merged_params(state.eval_params)
        language = {**params["language"], "stack": unrolled(params["language"]["stack"], self.network)}
        weights = {"params": {**params, "language": language}, "x": x, "lengths": lengths}
        return decoding.of_weights(self._decoder_of, weights)

    def _decoder_of(self, weights: PyTree) -> decoding.Decoder:
        module, params = self.module(unroll=True), weights["params"]
        x, lengths = weights["x"], weights["lengths"]

        def encode() -> tuple[Array | None, Array | None]:
            return None if x is None else module.apply({"params": params}, x, method="features"), lengths

        def decode(tokens: Array, context: PyTree | None, cache: Cache) -> tuple[Array, StackOutput]:
            features, ends = (None, None) if context is None else context
            prefix = None
            if context is not None and self.prefix_attention:
                prefix = jnp.full((len(tokens),), tokens.shape[1]) if ends is None else ends
            logits, out = module.apply({"params": params}, tokens, features, cache, None, prefix, method="read")
            # A text cannot show a picture: a written token of one would have no features.
            banned = jnp.arange(logits.shape[-1])[None, None] == self._image_token
            return jnp.where(banned, MASKED, logits), out

        options = {"what": "prompt and new tokens take", "name": "model.network"}
        network = dataclasses.replace(self.network, scan_layers=False, remat=False)
        return decoding.context_decoder(network, encode, decode, dtype=jnp.dtype(self.compute_dtype), **options)


def _model_at(source: str, sources: PartSources, kinds: tuple[type[Any], ...], field: str) -> Any:
    """The model of a run, or of a folder of the library transformers.

    Raises:
      UserError: it is of another kind.
    """
    model = sources.described(source) if is_run(source) else folder_model(source, kinds)
    if not isinstance(model, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"model.{field}={source} is a {type(model).__name__}, and {names} is wanted")
    return model


def _params_at(source: str, model: Any, like: PyTree, sources: PartSources) -> PyTree:
    """Parameters of a run, or of a folder, in the tree `like`."""
    return sources.params_of(source, like) if is_run(source) else folder_part(source, model, like)
