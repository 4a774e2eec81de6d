"""Files of low-rank updates of Stable Diffusion, under the names of the library peft and of kohya's scripts.

    peft    unet.mid_block...to_q.lora_A.weight [r, in], ...lora_B.weight [out, r]; rank and alpha in the file's header
    kohya   lora_unet_mid_block_..._to_q.lora_down.weight, ...lora_up.weight, ...alpha; lora_te_ for the text encoder

    W' = W + (alpha / r) B A        (Hu et al. 2021, arXiv:2106.09685, eq. 3)

Read are also the names that diffusers had before peft.  A tensor of theirs that is two maps of ours (the gated layer)
has one A for both; maps that were trained apart are written as one update of twice the rank.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from genjax.batch import PyTree
from genjax.families.diffusion import pipelines
from genjax.interop import safetensors
from genjax.interop.architecture import UnsupportedError
from genjax.interop.bindings import Binding
from genjax.interop.safetensors import CheckpointFileError, shortened
from genjax.nn.lora import LoRA

#: How the two factors of an update are called.
_DOWN = re.compile(r"\.(lora_A(\.default)?|lora_down|lora\.down|lora_linear_layer\.down)\.weight$")
_UP = {"lora_A": "lora_B", "lora_down": "lora_up", ".down": ".up"}
#: Names of attention's updates before peft.
_OLD = re.compile(r"(\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight$")
_METADATA = "lora_adapter_metadata"
#: First names of a part's maps in kohya's files; the first is written.
_KOHYA = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}


class _Map(NamedTuple):
    """A linear map of theirs: its part and name, and the paths of ours that it is made of, with their bindings."""

    part: str
    name: str
    members: tuple[tuple[tuple[str, ...], Binding], ...]


class _Update(NamedTuple):
    """An update of a map of theirs: A [r, in], B [out, r] and alpha."""

    down: np.ndarray
    up: np.ndarray
    alpha: float


def _maps(model: Any) -> dict[str, _Map]:
    """The linear maps of a model by `part.name`."""
    found: dict[str, _Map] = {}
    for part in pipelines.parts_of(model):
        if part.folder not in _KOHYA:
            continue
        for path, binding in part.bindings.items():
            name, dot, last = binding.name.rpartition(".")
            plain = (binding.axes == (1, 0)) and last == "weight" and bool(dot)
            if not plain or not path.endswith("/kernel"):
                continue
            key = f"{part.folder}.{name}"
            before = found[key].members if key in found else ()
            members = sorted([*before, (tuple(path.split("/")), binding)], key=lambda m: m[1].part or (0, 1))
            found[key] = _Map(part.folder, name, tuple(members))
    return found


def _named(maps: dict[str, _Map]) -> Callable[[str], _Map | None]:
    """A function that finds a map under the name that a file has for it."""
    names: dict[str, _Map] = {}
    for each in maps.values():
        # Folders and files have the text encoder with and without its first name.
        for name in {each.name, each.name.removeprefix("text_model.")}:
            names[f"{each.part}.{name}"] = each
            for start in _KOHYA[each.part]:
                names[start + name.replace(".", "_")] = each
    return lambda name: names.get(name, names.get(f"unet.{name}"))


def read_updates(file: str | Path, model: Any) -> tuple[LoRA, PyTree]:
    """The low-rank updates of a file, as the fields `lora` and the parameters `lora` of a `StableDiffusion`.

    Args:
      file: a safetensors file.
      model: the model, of the folder that the file belongs to.

    Raises:
      CheckpointFileError: the file is damaged, factors are missing or of wrong shapes, or there is no update.
      UnsupportedError: the file updates what is no linear map of the model.
    """
    file = Path(file).expanduser()
    if file.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise CheckpointFileError(f"{file} is pickled and is not read, as that can run code: save it as safetensors")
    find, tensors = _named(_maps(model)), safetensors.read_header(file)
    updates: dict[tuple[str, ...], _Update] = {}
    unknown, used, alphas = [], set(), _header_alphas(file)
    names = {_modern(name): name for name in tensors}
    for name in names:
        if not (ending := _DOWN.search(name)):
            continue
        module = name[: ending.start()]
        up_name = name
        for old, new in _UP.items():
            up_name = up_name[: ending.start()] + up_name[ending.start() :].replace(old, new)
        used |= {name, up_name, f"{module}.alpha"}
        found = find(module)
        if found is None:
            unknown.append(module)
            continue
        if up_name not in names:
            raise CheckpointFileError(f"{file} has {names[name]} without its second factor {up_name}")
        down, up = (np.array(tensors[names[n]].view(), np.float32) for n in (name, up_name))
        if down.ndim == 4 and down.shape[2:] != (1, 1):
            unknown.append(module)
            continue
        down, up = (a.reshape(a.shape[:2]) for a in (down, up))
        if down.shape[0] != up.shape[1]:
            raise CheckpointFileError(
                f"{file} has factors of {module} with the ranks {down.shape[0]} and {up.shape[1]}, which must be equal"
            )
        alpha = alphas.get(found.part, float(len(down)))
        if f"{module}.alpha" in names:
            alpha = float(np.array(tensors[names[f"{module}.alpha"]].view(), np.float32).reshape(-1)[0])
        update = _Update(down, up, alpha)
        for path, binding in found.members:
            place, count = binding.part or (0, 1)
            size = len(up) // count
            updates[path] = update._replace(up=up[place * size : (place + 1) * size])
    rest = [names[name] for name in names if name not in used]
    if unknown or rest:
        raise UnsupportedError(
            f"{file} updates {shortened(sorted({*unknown, *rest}))}, which are no linear maps of this model"
        )
    if not updates:
        raise CheckpointFileError(f"{file} holds no low-rank updates, whose names have lora_A or lora_down in them")
    return _as_ours(updates, model, file)


def _modern(name: str) -> str:
    """A name as peft has it, of one that diffusers had before."""
    if match := _OLD.search(name):
        last = "to_out.0" if match[2] == "out" else f"to_{match[2]}"
        return f"{name[: match.start()]}.{last}.lora.{match[3]}.weight"
    return name


def _header_alphas(file: Path) -> dict[str, float]:
    """alpha of each part, where the file's header says it."""
    text = safetensors.read_metadata(file).get(_METADATA)
    try:
        settings = dict(json.loads(text)) if text else {}
        end = ".lora_alpha"
        alphas = {name.removesuffix(end): float(value) for name, value in settings.items() if name.endswith(end)}
    except (ValueError, TypeError):
        raise CheckpointFileError(f"{file} is damaged: its {_METADATA} is no JSON with numbers") from None
    patterns = [name for name, value in settings.items() if name.endswith(".alpha_pattern") and value]
    if patterns:
        raise UnsupportedError(f"{file} has {patterns[0]}, an alpha for each map, which is not read; merge it first")
    return alphas


def _as_ours(updates: dict[tuple[str, ...], _Update], model: Any, file: Path) -> tuple[LoRA, PyTree]:
    shapes = traverse_util.flatten_dict(pipelines.abstract_params(model))
    first = next(iter(updates.values()))
    lora = LoRA(rank=len(first.down), alpha=first.alpha, targets=tuple(sorted({path[-2] for path in updates})))
    flat = {}
    for path, (down, up, alpha) in updates.items():
        if (down.shape[1], up.shape[0]) != shapes[path].shape:
            raise CheckpointFileError(
                f"{file} has an update of [{down.shape[1]}, {up.shape[0]}] for {'/'.join(path)}, which is "
                f"{list(shapes[path].shape)}"
            )
        # One alpha / r for all: what an update has beyond goes into its second factor.
        factor = (alpha / len(down)) / (lora.alpha / lora.rank)
        flat[(*path, "a")] = jnp.asarray(down.T)
        flat[(*path, "b")] = jnp.asarray(up.T if factor == 1.0 else factor * up.T)
    return lora, traverse_util.unflatten_dict(flat)


def with_updates(model: Any, params: PyTree, file: str | Path) -> tuple[Any, PyTree]:
    """A model and its parameters with the updates of a file beside them, which are added where the model is used."""
    lora, updates = read_updates(file, model)
    return dataclasses.replace(model, lora=lora), {**params, "lora": updates}


def write_updates(
    file: str | Path, model: Any, params: PyTree, names: Literal["peft", "kohya"] = "peft", dtype: str = "float32"
) -> None:
    """Writes the low-rank updates of a model, so that the library diffusers loads them.

    Args:
      file: ends in .safetensors; its folder is made where it does not exist.
      model: a `StableDiffusion` with `lora`.
      params: its parameters, with their `lora`.
      names: whose names the file has.
      dtype: type of the tensors.

    Raises:
      UnsupportedError: the model has no updates.
    """
    if model.lora is None or "lora" not in params:
        raise UnsupportedError("the model has no low-rank updates; train it with --model.lora=lora")
    flat = traverse_util.flatten_dict(params["lora"])
    rows, kind = [], jnp.dtype(dtype)
    add = lambda name, array: rows.append((name, array.shape, kind, lambda: array.astype(kind)))
    for each, update in _joined(model, flat):
        trailing = (1,) * each.members[0][1].trailing
        down, up = (a.reshape(*a.shape, *trailing) for a in (update.down, update.up))
        if names == "kohya":
            start = _KOHYA[each.part][0]
            if model.second_text is not None and each.part == "text_encoder":
                start = "lora_te1_"
            module = start + each.name.replace(".", "_")
            add(f"{module}.lora_down.weight", down)
            add(f"{module}.lora_up.weight", up)
            add(f"{module}.alpha", np.asarray(update.alpha, np.float32))
        else:
            # Without a header, alpha is the rank.
            scale = np.float32(update.alpha / len(down))
            add(f"{each.part}.{each.name}.lora_A.weight", down)
            add(f"{each.part}.{each.name}.lora_B.weight", up if scale == 1.0 else scale * up)
    file = Path(file).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write(file, rows)


def _joined(model: Any, flat: dict[tuple[str, ...], Any]) -> Iterator[tuple[_Map, _Update]]:
    """The updates of the other library's maps, of which one may stand for several maps here."""
    scale = model.lora.alpha / model.lora.rank
    for each in _maps(model).values():
        own = [
            (np.asarray(flat[(*path, "a")], np.float32).T, np.asarray(flat[(*path, "b")], np.float32).T)
            for path, _ in each.members
            if (*path, "a") in flat
        ]
        if not own:
            continue
        if len(own) < len(each.members):
            missing = ["/".join(path) for path, _ in each.members if (*path, "a") not in flat]
            raise UnsupportedError(
                f"{each.part}.{each.name} is one map in the library, and {missing[0]} has no update; name both of its "
                "halves in model.lora.targets"
            )
        if all(np.array_equal(down, own[0][0]) for down, _ in own):
            down, up = own[0][0], np.concatenate([up for _, up in own])
        else:
            down = np.concatenate([down for down, _ in own])
            up = np.zeros((sum(len(up) for _, up in own), len(down)), np.float32)
            row = column = 0
            for _, part in own:
                up[row : row + part.shape[0], column : column + part.shape[1]] = part
                row, column = row + part.shape[0], column + part.shape[1]
        yield each, _Update(down, up, scale * len(down))


# ----------------------------------------------------------------------------------------------------------------------
# New words


def read_word(file: str | Path) -> tuple[str, np.ndarray]:
    """A word of textual inversion and its embeddings [n, C], of a file in the form of diffusers or of automatic1111.

    Raises:
      CheckpointFileError: the file is pickled or damaged, or holds no or several words.
    """
    file = Path(file).expanduser()
    if file.suffix in (".bin", ".pt"):
        raise CheckpointFileError(f"{file} is pickled and is not read, as that can run code: save it as safetensors")
    tensors = safetensors.read_header(file)
    if len(tensors) != 1:
        raise CheckpointFileError(f"{file} holds {len(tensors)} tensors, and the embedding of a word is one")
    [(name, tensor)] = tensors.items()
    word = f"<{file.stem}>" if name == "emb_params" else name
    return word, np.array(tensor.view(), np.float32).reshape(-1, tensor.shape[-1])


def write_word(file: str | Path, word: str, embedding: Any) -> None:
    """Writes a word of textual inversion with its embeddings [n, C], as diffusers reads it."""
    array = np.asarray(embedding, np.float32)
    file = Path(file).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write(file, [(word, array.shape, array.dtype, lambda: array)])
