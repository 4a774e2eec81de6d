"""LLaVA 1.5 and PaliGemma of the library transformers: an encoder of pictures, a projector and a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from genjax.families.language.checkpoints.gpt import ARCHITECTURES
from genjax.families.multimodal import checkpoints as clip
from genjax.families.multimodal import siglip_checkpoints as siglip
from genjax.interop.architecture import Architecture, Config, UnsupportedError, require
from genjax.interop.bindings import Bindings, linear, merge

if TYPE_CHECKING:
    from genjax.families.multimodal.llava import LLaVA

#: Language models that can read pictures, by their model_type.
_LANGUAGE = {a.model_type: a for a in ARCHITECTURES if a.model_type != "gpt2"}

#: Default values of both encoders of pictures, which files may leave out.
_VISION = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


def _language_part(config: Config, default: str, names: Collection[str]) -> dict[str, Any]:
    """Fields of the language model."""
    text = {"vocab_size": 32000, **(config.get("text_config") or {})}
    kind = text.get("model_type", default)
    if kind not in _LANGUAGE:
        raise UnsupportedError(
            f"config.json has a language model of the kind {kind!r}; known are {', '.join(_LANGUAGE)}"
        )
    tied = config.get("tie_word_embeddings", default == "gemma") or text.get("tie_word_embeddings", False)
    found = _LANGUAGE[kind].read({**text, "tie_word_embeddings": tied}, names)
    ends = config.get("eos_token_id")
    return found if ends is None else {**found, "end_token": ends if isinstance(ends, int) else tuple(ends)}


def _vision_part(config: Config, default: str) -> dict[str, Any]:
    """Fields of the encoder of pictures."""
    part = {**_VISION, **(config.get("vision_config") or {})}
    kind = part.get("model_type", default)
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise UnsupportedError(
            f"config.json has an encoder of pictures of the kind {kind!r}; known are clip_vision_model and "
            "siglip_vision_model"
        )
    form = kind.partition("_")[0]
    size = part.get("image_size", 224)
    return {
        "vision_form": form,
        "vision": (clip if form == "clip" else siglip).stack(part),
        "patch_size": part.get("patch_size", 32 if form == "clip" else 16),
        "data_shape": (size, size, part.get("num_channels", 3)),
    }


def _read_llava(config: Config, names: Collection[str]) -> dict[str, Any]:
    require(config, "projector_hidden_act", "gelu", "gelu")
    require(config, "multimodal_projector_bias", True, True)
    require(config, "vision_feature_select_strategy", "default", "default", "full")
    vision = _vision_part(config, "clip_vision_model")
    layer, blocks = config.get("vision_feature_layer", -2), vision["vision"].num_layers
    if not isinstance(layer, int):
        raise UnsupportedError(
            f"config.json has vision_feature_layer={layer!r}, and only features of one layer can be read"
        )
    full = config.get("vision_feature_select_strategy", "default") == "full"
    if vision["vision_form"] == "siglip" and not full:
        raise UnsupportedError(
            "config.json has vision_feature_select_strategy='default', which leaves the first of a SigLIP's patches "
            "out, and only 'full' can be read"
        )
    return {
        **_language_part(config, "llama", names),
        **vision,
        "image_token": config.get("image_token_index", config.get("image_token_id", 32000)),
        # The features before the first block have the number 0.
        "feature_layer": layer if layer < 0 else layer - blocks - 1,
        "feature_norm": False,
        "class_token": full and vision["vision_form"] == "clip",
        "projector_layers": 2,
        "prefix_attention": False,
    }


def _read_paligemma(config: Config, names: Collection[str]) -> dict[str, Any]:
    return {
        **_language_part(config, "gemma", names),
        **_vision_part(config, "siglip_vision_model"),
        "image_token": config.get("image_token_index", config.get("image_token_id", 256000)),
        "feature_layer": -1,
        "feature_norm": True,
        "class_token": False,
        "projector_layers": 1,
        "prefix_attention": True,
    }


def _language(model: LLaVA) -> Architecture:
    """The architecture that the language model is written as.

    Raises:
      UnsupportedError: there is none.
    """
    for architecture in _LANGUAGE.values():
        if architecture.writes(model.language_model()):
            return architecture
    raise UnsupportedError("the library transformers has no counterpart of this LLaVA's language model")


def _written(model: LLaVA, kind: str) -> dict[str, Any]:
    """What both libraries' configurations have."""
    text = _language(model).write(model.language_model())
    text.pop("architectures")
    stack = (clip if model.vision_form == "clip" else siglip).stack_config(model.vision)
    vision = {
        "model_type": f"{model.vision_form}_vision_model",
        "image_size": model.data_shape[0],
        "num_channels": model.data_shape[2],
        "patch_size": model.patch_size,
        **stack,
    }
    if model.vision_form == "siglip":
        vision["vision_use_head"] = False
    return {
        "model_type": kind,
        "image_token_index": model.image_token,
        "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": model.start_token,
        "eos_token_id": list(model.end_token) if isinstance(model.end_token, tuple) else model.end_token,
        "text_config": text,
        "vision_config": vision,
    }


def _write_llava(model: LLaVA) -> dict[str, Any]:
    full = model.class_token or model.vision_form == "siglip"
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        **_written(model, "llava"),
        "image_seq_length": model.features_per_picture,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": model.feature_layer,
        "vision_feature_select_strategy": "full" if full else "default",
    }


def _write_paligemma(model: LLaVA) -> dict[str, Any]:
    written, width = _written(model, "paligemma"), model.network.width
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        **written,
        "hidden_size": width,
        "projection_dim": width,
        "vision_config": {**written["vision_config"], "projection_dim": width},
    }


def _named(bindings: Bindings, ours: str, theirs: str, *aliases: str) -> Bindings:
    """The bindings of a part, with beginnings of our paths and of their names; `aliases` are other beginnings."""
    return {
        f"{ours}{path}": dataclasses.replace(
            b, name=theirs + b.name, aliases=tuple(alias + b.name for alias in aliases)
        )
        for path, b in bindings.items()
    }


def _bind(model: LLaVA, *projector: Bindings) -> Bindings:
    language = _language(model).bind(model.language_model())
    # Older files call the encoder's tensors as CLIP and SigLIP do, newer ones leave vision_model out.
    own = {
        path: dataclasses.replace(b, name=b.name.removeprefix("vision_model."))
        for path, b in (clip if model.vision_form == "clip" else siglip).vision_bindings(model).items()
    }
    return merge(
        _named(language, "language/", "language_model."),
        _named(own, "", "vision_tower.", "vision_tower.vision_model.", "model.vision_tower."),
        *projector,
    )


def _bind_llava(model: LLaVA) -> Bindings:
    maps = (("first", "linear_1"), ("second", "linear_2"))
    return _bind(model, *(linear(f"projector/{a}", f"multi_modal_projector.{b}") for a, b in maps))


def _bind_paligemma(model: LLaVA) -> Bindings:
    return _bind(model, linear("projector/first", "multi_modal_projector.linear"))


#: Tensors that are no parameters, and SigLIP's pooling, which is not used.
_BUFFERS = r"position_ids$|rotary_emb\.inv_freq$|^(model\.)?vision_tower\.(vision_model\.)?head\."

LLAVA_ARCHITECTURE = Architecture(
    model_type="llava",
    read=_read_llava,
    write=_write_llava,
    bind=_bind_llava,
    buffers=_BUFFERS,
    copies=("language_model.lm_head.weight",),
    own=("image_token",),
    writes=lambda model: model.projector_layers == 2 and not model.prefix_attention and not model.feature_norm,
)
PALIGEMMA_ARCHITECTURE = Architecture(
    model_type="paligemma",
    read=_read_paligemma,
    write=_write_paligemma,
    bind=_bind_paligemma,
    buffers=_BUFFERS,
    copies=("language_model.lm_head.weight",),
    own=("image_token",),
    writes=lambda model: model.projector_layers == 1 and model.prefix_attention,
)
