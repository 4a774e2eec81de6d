"""GGUF files, the format of llama.cpp, as checkpoints.

    load_pretrained("model.gguf")        --model.pretrained=model.gguf

A file of a Llama, Mistral, Qwen2 or Qwen3 is described by a small folder in ~/.cache/genjax/gguf, which looks like a
checkpoint of the library transformers: config.json, tokenizer.json, tokenizer_config.json with the chat template, and a
link to the file.  Weights stay in the file.  They are read one tensor at a time and become float32, whatever they are
stored as (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, and the K-quants).

llama.cpp keeps the rows of the query and key maps of a Llama in another order, so that its rotary embedding turns
neighbours; here they come back into the order of transformers, whose rotary embedding turns halves.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from genjax.interop.architecture import UnsupportedError
from genjax.interop.safetensors import CheckpointFileError, Tensor

#: The name of the link to the file in its folder.
LINK = "model.gguf"
FOLDERS = Path("~/.cache/genjax/gguf")
#: Version of how files are described; raised when a description changes.
_VERSION = 1
_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
#: Our name of each part of a layer.
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: How texts are divided before pieces are joined, by the name in the file; None for the expression of GPT-2.
_DIVISIONS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": "digits",
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}
#: Types of tokens in the file: control tokens, and what the user of the format has added.
_CONTROL, _ADDED = 3, 4


def folder_of(path: str | Path) -> Path:
    """The folder that describes a GGUF file; any other path is returned as it is.

    Raises:
      CheckpointFileError: the file is none, is damaged, or the package gguf is not installed.
      UnsupportedError: its architecture or its tokenizer is not known.
    """
    file = Path(path).expanduser()
    if file.suffix != ".gguf" or file.is_dir():
        return file
    if not file.is_file():
        raise CheckpointFileError(f"there is no file {file}")
    file, stat = file.resolve(), file.stat()
    name = hashlib.sha256(f"{_VERSION} {file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32]
    folder = FOLDERS.expanduser() / name
    if not (folder / LINK).exists():
        fields, tensors = _content(file)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in _description(file, fields, set(tensors)).items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        # The link is made last: a folder that has it is complete.
        (folder / LINK).unlink(missing_ok=True)
        (folder / LINK).symlink_to(file)
    return folder


@dataclasses.dataclass(frozen=True)
class GGUFTensor(Tensor):
    """A tensor of a GGUF file, which becomes float32 when it is looked at.

    Attributes:
      name: its name in the file.
      num_heads: heads whose rows come back into the order of transformers, or 0.
    """

    name: str = ""
    num_heads: int = 0

    def view(self) -> np.ndarray:
        import gguf

        stored = _content(self.file)[1][self.name]
        array = (
            gguf.quants.dequantize(stored.data, stored.tensor_type).astype(np.float32, copy=False).reshape(self.shape)
        )
        if self.num_heads:
            pairs = array.reshape(self.num_heads, array.shape[0] // self.num_heads // 2, 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        return array


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a file, from the folder that describes it, under the names of the library transformers.

    Raises:
      CheckpointFileError: the file is gone or damaged.
      UnsupportedError: it has tensors of an unknown kind.
    """
    file = (folder / LINK).resolve()
    fields, stored = _content(file)
    kind = fields["general.architecture"]
    heads = {"attn_q": _field(file, fields, f"{kind}.attention.head_count")}
    heads["attn_k"] = fields.get(f"{kind}.attention.head_count_kv", heads["attn_q"])
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        part = name.rpartition(".")[0].rpartition(".")[2]
        turned = heads.get(part, 0) if kind == "llama" else 0
        shape = tuple(int(size) for size in reversed(tensor.shape))
        found[_their_name(file, name)] = GGUFTensor(file, np.dtype(np.float32), shape, 0, name, turned)
    return found


def _their_name(file: Path, name: str) -> str:
    """The name of a tensor in the library transformers."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in _PARTS:
        return f"model.layers.{layer[1]}.{_PARTS[layer[2]]}.{layer[3]}"
    body, _, kind = name.rpartition(".")
    if body in _WHOLE and kind == "weight":
        return f"{_WHOLE[body]}.weight"
    raise UnsupportedError(f"{file} has a tensor {name}, which none of {', '.join(_ARCHITECTURES)} has here")


@functools.lru_cache(maxsize=4)
def _content(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the tensors of a file, by name."""
    try:
        import gguf
    except ImportError:
        raise CheckpointFileError(f"{file} is read by the package gguf: pip install 'genjax[gguf]'") from None
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise CheckpointFileError(f"{file} is no GGUF file, or is damaged ({error})") from None
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def _field(file: Path, fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise CheckpointFileError(f"{file} does not say {name}, which its architecture needs")
    return fields[name]


def _description(file: Path, fields: dict[str, Any], tensors: set[str]) -> dict[str, dict[str, Any]]:
    """The files of a checkpoint of transformers, by name, as JSON objects."""
    kind = fields.get("general.architecture")
    if kind not in _ARCHITECTURES:
        raise UnsupportedError(f"{file} holds a {kind}; GGUF files of {', '.join(_ARCHITECTURES)} are read")
    of = lambda name: _field(file, fields, f"{kind}.{name}")
    heads = of("attention.head_count")
    scaling = fields.get(f"{kind}.rope.scaling.type", "none")
    if "rope_freqs.weight" in tensors or scaling not in ("none", "linear"):
        raise UnsupportedError(
            f"{file} stretches its rotary positions by a table or by {scaling}, and only none and linear are read"
        )
    special = {
        f"{theirs}_token_id": fields[f"tokenizer.ggml.{ours}_token_id"]
        for theirs, ours in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{ours}_token_id" in fields
    }
    pieces = _field(file, fields, "tokenizer.ggml.tokens")
    config = {
        "model_type": _ARCHITECTURES[kind],
        "vocab_size": len(pieces),
        "hidden_size": of("embedding_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get(f"{kind}.attention.head_count_kv", heads),
        "head_dim": fields.get(f"{kind}.attention.key_length", of("embedding_length") // heads),
        "intermediate_size": of("feed_forward_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": of("context_length"),
        "rope_theta": fields.get(f"{kind}.rope.freq_base", 10000.0),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        **special,
    }
    if scaling == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": of("rope.scaling.factor")}
    settings = {name.removesuffix("_id"): pieces[i] for name, i in special.items()}
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"]
    return {"config.json": config, "tokenizer.json": _tokenizer(file, fields), "tokenizer_config.json": settings}


def _tokenizer(file: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer as the library tokenizers reads it."""
    model, division = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or division not in _DIVISIONS:
        raise UnsupportedError(
            f"{file} has a tokenizer {model} that divides texts as {division}; byte-level ones (gpt2) that divide as "
            f"{', '.join(_DIVISIONS)} are read"
        )
    pieces, kinds = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type", [])
    added = [
        {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == _CONTROL}
        for i, kind in enumerate(kinds) if kind in (_CONTROL, _ADDED)
    ]  # fmt: skip
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    expression = _DIVISIONS[division]
    if expression is None:
        before = [{**bytes_only, "use_regex": True}]
    elif expression == "digits":
        before = [{"type": "Digits", "individual_digits": True}, {**bytes_only, "use_regex": True}]
    else:
        split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        before = [split, {**bytes_only, "use_regex": False}]
    first = None
    if fields.get("tokenizer.ggml.add_bos_token", False):
        i = fields["tokenizer.ggml.bos_token_id"]
        token, text = {"SpecialToken": {"id": pieces[i], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        single, pair = [token, text], [token, text, {"Sequence": {"id": "B", "type_id": 1}}]
        table = {pieces[i]: {"id": pieces[i], "ids": [i], "tokens": [pieces[i]]}}
        first = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": table}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": before},
        "post_processor": first,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": fields.get("tokenizer.ggml.merges", []),
        },
    }
