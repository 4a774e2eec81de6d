"""Stable Diffusion: latent diffusion whose context is the text encoder of CLIP, and whose folders are those of the
library diffusers (Rombach et al. 2022, arXiv:2112.10752; SDXL: Podell et al. 2023, arXiv:2307.01952).

    context(text)      features of all 77 places; SDXL joins the features of two encoders
    vector(text)       SDXL: pooled features of the second encoder and six numbers (original size, corner of the crop,
                       size; each height first)
    guidance           away from the context of the empty text, or of a negative text

A model learns a new word by an embedding behind its vocabulary's, with all else frozen (textual inversion: Gal et al.
2022, arXiv:2208.01618); and a subject without forgetting its class (DreamBooth: Ruiz et al. 2022, arXiv:2208.12242):

    loss(pictures, texts) + prior_weight loss(pictures that the model drew of the class, their texts)

Genjax counts guidance from 0: a scale of 6.5 here is guidance_scale=7.5 of the library.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, example_keys
from genjax.errors import UserError
from genjax.families.diffusion import pipelines
from genjax.families.diffusion.controlnet import ControlledUNet, controlled, edges, started_from_unet
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.latent_diffusion import LatentDiffusion
from genjax.families.diffusion.processes import expand
from genjax.families.multimodal.clip_text import TextEncoder
from genjax.interop.huggingface import given_up
from genjax.model import TrainState

#: Arrays of a batch that are of a picture with its text.
_PAIR = ("x", "tokens", "mask", "second_tokens")


def _table(text: PyTree) -> Array:
    """The embeddings of a text encoder's tokens, [V, C]."""
    return text["text_embedding"]["token"]["embedding"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion(LatentDiffusion):
    """A fixed autoencoder and fixed encoders of text, and a diffusion model of codes given texts.

    A batch has pictures `x` and texts `tokens` [B, T] (`second_tokens` too where the second encoder has another
    vocabulary or padding).

    Attributes:
      text: encoder of texts.
      second_text: SDXL's second encoder, whose features follow the first's, and whose pooled features are given too.
      empty_tokens: tokens of the empty text, by which texts are dropped in training.
      second_empty_tokens: the same of the second encoder.
      padding_token: token of the places behind a text, which the encoder sees; None for the last of `empty_tokens`.
      second_padding_token: the same of the second encoder.
      image_channels: channels that the network sees beside the code; 5 for inpainting, a mask and a masked code.
      pretrained: folder of a pipeline of the library diffusers to start from, whose sizes replace those here.
      zero_empty: a dropped text has the context 0 and not the encoding of the empty text (SDXL).
      new_tokens: number of embeddings of new words, whose tokens follow the tokenizer's; with
        frozen=autoencoder,text,diffusion they alone are trained.  None takes the data set's, if it has any.
      first_new_token: the first of these tokens, which takes the place of what the text encoder has there; None takes
        the data set's, else the token behind the encoder's vocabulary.
      new_tokens_from: token whose embedding they start at; None takes the data set's, else the mean of all.
      prior_weight: weight of the loss on the batch's `prior_x` and `prior_tokens`.
    """

    heads: ClassVar[tuple[str, ...]] = ("new_tokens",)

    text: TextEncoder = TextEncoder()
    second_text: TextEncoder | None = None
    empty_tokens: tuple[int, ...] = ()
    second_empty_tokens: tuple[int, ...] = ()
    padding_token: int | None = None
    second_padding_token: int | None = None
    image_channels: int = 0
    pretrained: str | None = None
    zero_empty: bool = False
    new_tokens: int | None = None
    first_new_token: int | None = None
    new_tokens_from: int | None = None
    prior_weight: float = 0.0
    frozen: tuple[str, ...] = ("autoencoder", "text")

    # ------------------------------------------------------------------------------------------------------------------
    # Folders

    def with_pretrained_sizes(self) -> StableDiffusion:
        """The model of the folder `pretrained`, with its own picture size, and its own way to learn and to sample."""
        if self.pretrained is None:
            return self
        found = pipelines.read_model(self.pretrained)
        found["data_shape"] = self.data_shape
        if self.frozen != StableDiffusion.frozen:
            # SDXL's second encoder is part of what `text` names in settings for all versions.
            second = ("second_text",) if "second_text" in found and "text" in self.frozen else ()
            found["frozen"] = tuple(dict.fromkeys((*self.frozen, *second)))
        own = self.diffusion
        kept = ("optimizer", "condition_dropout", "weighting", "weighting_gamma", "times", "compute_dtype", "guidance")
        changes = {name: getattr(own, name) for name in kept}
        if own.sampler != Diffusion().sampler:
            changes["sampler"] = own.sampler
        network = dataclasses.replace(found["diffusion"].network, remat=getattr(own.network, "remat", False))
        if isinstance(own.network, ControlledUNet) and not isinstance(network, ControlledUNet):
            network = controlled(network, own.network.hint_channels, own.network.control_scale)
            changes["condition_on"] = (*found["diffusion"].condition_on, "hint")
        found["diffusion"] = dataclasses.replace(found["diffusion"], network=network, **changes)
        return dataclasses.replace(self, **found)

    def pretrained_params(self, params: PyTree) -> PyTree:
        """The folder's parameters on the devices of `params`, whose memory is released; low-rank updates stay new."""
        if self.pretrained is None:
            return params
        theirs = self
        fresh = isinstance(self.diffusion.network, ControlledUNet) and not pipelines.has_control(self.pretrained)
        if fresh:
            # The folder's U-Net has no control network yet, which starts at the U-Net.
            plain = dataclasses.replace(self.diffusion, network=self.diffusion.network.plain)
            theirs = dataclasses.replace(self, diffusion=plain)
        wanted = {part.name: params[part.name] for part in pipelines.parts_of(theirs)}
        if fresh:
            wanted["diffusion"] = params["diffusion"]["unet"]
        loaded = pipelines.load_params(theirs, self.pretrained, given_up(wanted, set()))
        if fresh:
            loaded["diffusion"] = started_from_unet({**params["diffusion"], "unet": loaded["diffusion"]})
        return {**params, **loaded, **self.first_new_tokens(loaded["text"])}

    def check_start(self, source: Any) -> None:
        if self.pretrained is None:
            super().check_start(source)

    def learner(self) -> Diffusion:
        # `coded` drops texts already, in favour of the empty text.
        return dataclasses.replace(self.code_model(), condition_dropout=0.0)

    # ------------------------------------------------------------------------------------------------------------------
    # Texts

    def encode_text(
        self, params: PyTree, tokens: Array, second_tokens: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Context [B, T, C] and pooled features [B, D] (or None) of tokens [B, T]."""
        encoder, own = self.text, params["text"]
        if self.new_tokens:
            end = encoder.vocab_size - 1 if encoder.end_token is None else encoder.end_token
            first = encoder.vocab_size if self.first_new_token is None else self.first_new_token
            new, old = params["new_tokens"]["embedding"], _table(own)
            # A table may be longer than its tokenizer.
            table = jnp.concatenate([old[:first], new, old[first + self.new_tokens :]])
            encoder = dataclasses.replace(encoder, vocab_size=len(table), end_token=end)
            own = {**own, "text_embedding": {**own["text_embedding"], "token": {"embedding": table}}}
        context, pooled = encoder.encode(own, tokens)
        if self.second_text is not None:
            second = tokens if second_tokens is None else second_tokens
            more, pooled = self.second_text.encode(params["second_text"], second)
            context = jnp.concatenate([context, more], axis=-1)
        return context, pooled

    def first_new_tokens(self, text: PyTree) -> dict[str, PyTree]:
        """The embeddings of new words before the first step, given the text encoder's parameters; {} if there are none.

        Raises:
          UserError: the model has two encoders, its tokenizer has more tokens than its encoder, or the token to start
            from does not exist.
        """
        if not self.new_tokens:
            return {}
        if self.second_text is not None:
            raise UserError("model.new_tokens are for models with one text encoder, and SDXL has two; give 0")
        first, count = self.new_tokens_from, self.text.vocab_size
        if self.first_new_token is not None and not 0 <= self.first_new_token <= count:
            raise UserError(
                f"the tokenizer has {self.first_new_token} tokens and the text encoder knows {count}: "
                "data.tokenizer_dir does not belong to model.pretrained"
            )
        if first is not None and not 0 <= first < count:
            raise UserError(f"model.new_tokens_from={first} is no token of the vocabulary of {count}")
        table = _table(text)
        row = table.mean(0) if first is None else table[first]
        return {"new_tokens": {"embedding": jnp.tile(row[None], (self.new_tokens, 1))}}

    def sizes(self, count: int) -> Array:
        """The six numbers of SDXL for whole pictures of the model's size, [count, 6]."""
        height, width, _ = self.data_shape
        return jnp.broadcast_to(jnp.array([height, width, 0, 0, height, width], jnp.float32), (count, 6))

    def text_condition(
        self, params: PyTree, tokens: Array, second_tokens: Array | None = None, sizes: Array | None = None
    ) -> dict[str, Array]:
        """`context`, and with two encoders `vector`, of tokens [B, T]."""
        context, pooled = self.encode_text(params, tokens, second_tokens)
        if self.second_text is None:
            return {"context": context}
        sizes = self.sizes(tokens.shape[0]) if sizes is None else sizes
        return {"context": context, "vector": jnp.concatenate([pooled, sizes], axis=-1)}

    def empty_condition(self, params: PyTree, count: int, sizes: Array | None = None) -> dict[str, Array]:
        """The condition of the empty text, for `count` examples.

        Raises:
          UserError: the tokens of the empty text are not known.
        """
        if not self.empty_tokens:
            raise UserError(
                "model.empty_tokens are not known, so that no text can be dropped; give the tokens of the empty text"
            )
        repeat = lambda tokens: jnp.broadcast_to(jnp.asarray(tokens, jnp.int32), (count, len(tokens)))
        second = repeat(self.second_empty_tokens) if self.second_empty_tokens else None
        found = self.text_condition(params, repeat(self.empty_tokens), second, sizes)
        if not self.zero_empty:
            return found
        empty = {name: jnp.zeros_like(value) for name, value in found.items()}
        if "vector" in empty:
            empty["vector"] = empty["vector"].at[:, -6:].set(found["vector"][:, -6:])
        return empty

    def with_conditions(self, params: PyTree, batch: Batch, key: Array) -> Batch:
        """The batch with the encoded texts."""
        if "tokens" not in batch:
            raise UserError(
                f"{type(self).__name__} learns from pictures with texts, and the batch has only "
                f"{', '.join(sorted(batch))}; choose --data=pairs"
            )
        del key
        if "hint" in self.diffusion.condition_on:
            batch = {**batch, "hint": self.hints(batch)}
        tokens = self.padded_tokens(batch["tokens"], batch.get("mask"), self.padding_token)
        second = batch.get("second_tokens")
        if second is None and self.second_text is not None:
            second = self.padded_tokens(batch["tokens"], batch.get("mask"), self.second_padding_token)
        return {**batch, **self.text_condition(params, tokens, second)}

    def hints(self, batch: Batch) -> Array:
        """The pictures [B, H, W, 3] in [0, 1] that steer a control network: the batch's, else edges of its pictures."""
        return batch["hint"] if "hint" in batch else edges(batch["x"])

    def padded_tokens(self, tokens: Array, mask: Array | None, padding: int | None) -> Array:
        """Tokens [B, T] with the encoder's padding where the mask is False and behind, [B, length].

        Raises:
          UserError: texts are longer than the encoder's length, or the padding is not known.
        """
        length = self.text.network.max_length
        if tokens.shape[1] > length:
            raise UserError(
                f"texts have {tokens.shape[1]} tokens, and the encoder reads {length}; cut them to that, by "
                f"--data.sequence_length={length}"
            )
        if padding is None and (mask is not None or tokens.shape[1] < length):
            if not self.empty_tokens:
                raise UserError("texts are shorter than the encoder's length; give model.padding_token")
            padding = self.empty_tokens[-1]
        tokens = tokens if mask is None else jnp.where(mask, tokens, padding)
        more = ((0, 0), (0, length - tokens.shape[1]))
        return jnp.pad(tokens, more, constant_values=padding or 0)

    # ------------------------------------------------------------------------------------------------------------------
    # The contract

    def fixed_params(self, key: Array, batch: Batch) -> dict[str, PyTree]:
        first_key, second_key = jax.random.split(jax.random.fold_in(key, 1))
        tokens = {"tokens": jnp.zeros((1, self.text.network.max_length), jnp.int32)}
        params = {**super().fixed_params(key, batch), "text": self.text.init(first_key, tokens).params}
        if self.second_text is not None:
            params["second_text"] = self.second_text.init(second_key, tokens).params
        return {**params, **self.first_new_tokens(params["text"])}

    def loss(self, params: PyTree, batch: Batch, key: Array, learned: PyTree | None = None) -> tuple[Array, Metrics]:
        """Mean loss of the diffusion model, and its metrics; with prior_weight also `prior_loss`.

        Raises:
          UserError: the batch lacks the pictures of the class or their texts.
        """
        own = {name: value for name, value in batch.items() if not name.startswith("prior_")}
        if not self.prior_weight:
            return super().loss(params, own, key, learned)
        prior = {name.removeprefix("prior_"): value for name, value in batch.items() if name.startswith("prior_")}
        if not {"x", "tokens"} <= set(prior):
            raise UserError(
                f"model.prior_weight={self.prior_weight} weighs pictures of the subject's class that the model drew "
                "itself; give the batch prior_x and prior_tokens, as --data=subject --data.prior_dir=FOLDER does, or "
                "prior_weight=0"
            )
        loss, metrics = super().loss(params, own, key, learned)
        # What is said of places in the batch holds for both.
        common = {name: value for name, value in own.items() if name not in (*_PAIR, *self.diffusion.condition_on)}
        other, _ = super().loss(params, {**common, **prior}, jax.random.fold_in(key, 4), learned)
        return loss + self.prior_weight * other, {**metrics, "prior_loss": other}

    def coded(self, params: PyTree, learned: PyTree, batch: Batch, key: Array, training: bool) -> Batch:
        inner = super().coded(params, learned, batch, key, training)
        rate = self.diffusion.condition_dropout
        if not rate or not training:
            return inner
        keys = example_keys(jax.random.fold_in(key, 2), batch)
        dropped = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(keys)
        empty = self.empty_condition(params, 1)
        for name, value in empty.items():
            inner[name] = jnp.where(expand(dropped, inner[name]), value, inner[name])
        return inner

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        second = ("second_tokens", "negative_second_tokens") if self.second_text is not None else ()
        pictures = [name for name in ("image", "hint") if name in self.diffusion.condition_on]
        return ("tokens", "mask", "negative_tokens", "negative_mask", *second, *pictures)

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Pictures of texts, [num_samples, *data_shape].

        Args:
          state: trained state.
          key: random key.
          num_samples: how many.
          **condition: tokens [num_samples, T] and perhaps their mask, by default of the empty text; negative_tokens and
            negative_mask, which guidance leads away from in place of the empty text; second_tokens and
            negative_second_tokens, of the second encoder; image, what the network sees beside the code; hint, the
            picture in [0, 1] that steers a control network, by default black; noise, N(0, I) of the codes' shape to
            start from.
        """
        start, conditions, empty, step_key = self.prepared(state, key, num_samples, **condition)
        model = self.code_model().on_grid()
        params = self.diffusion_state(state).params
        denoise = model.denoiser(params, conditions, empty=empty)
        codes = model.sampler.run(denoise, model.process_of(params), start, step_key)
        return self.decode_codes(state, codes)

    def prepared(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        tokens: Array | None = None,
        mask: Array | None = None,
        negative_tokens: Array | None = None,
        negative_mask: Array | None = None,
        second_tokens: Array | None = None,
        negative_second_tokens: Array | None = None,
        noise: Array | None = None,
        **more: Array,
    ) -> tuple[Array, dict[str, Array], dict[str, Array], Array]:
        """Noise to start from, the conditions, those that guidance leads away from, and a key for the steps."""
        params = self.merged_params(state.eval_params)
        noise_key, step_key = jax.random.split(key)

        def read(tokens: Array, mask: Array | None, second: Array | None) -> dict[str, Array]:
            if second is None and self.second_text is not None:
                second = self.padded_tokens(tokens, mask, self.second_padding_token)
            return self.text_condition(params, self.padded_tokens(tokens, mask, self.padding_token), second)

        if negative_tokens is None:
            empty = self.empty_condition(params, num_samples)
        else:
            empty = read(negative_tokens, negative_mask, negative_second_tokens)
        conditions = empty if tokens is None else read(tokens, mask, second_tokens)
        for name, value in conditions.items():
            if value.shape[0] != num_samples:
                raise UserError(f"{name} has {value.shape[0]} rows, but num_samples is {num_samples}")
        if "image" in self.diffusion.condition_on and "image" not in more:
            raise UserError("the network sees a mask and the code of a masked picture beside the code; give `image`")
        if "hint" in self.diffusion.condition_on and "hint" not in more:
            more["hint"] = jnp.zeros((num_samples, *self.data_shape[:2], 3))
        process = self.code_model().on_grid().process_of(params)
        shape = (num_samples, *self.coder.code_shape)
        noise = jax.random.normal(noise_key, shape) if noise is None else noise
        if noise.shape != shape:
            raise UserError(f"noise has the shape {noise.shape}, and {num_samples} codes have {shape}")
        return process.prior_scale * noise, {**conditions, **more}, {**empty, **more}, step_key
