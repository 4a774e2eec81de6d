"""A tiny pipeline in the layout of the library diffusers, written by genjax alone."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from genjax.families.diffusion import pipelines
from genjax.families.diffusion.stable_diffusion import StableDiffusion
from genjax.pretrained import save_pretrained

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [("l", "o"), ("lo", "w</w>")]
CHAIN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tokenizer_files(folder: Path, padding: str = END) -> None:
    """vocab.json and merges.txt of CLIP's kind with 516 pieces, and the settings."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {byte: chr(byte) for byte in printable}, 0
    for byte in range(256):
        if byte not in letters:
            letters[byte], extra = chr(256 + extra), extra + 1
    pieces = [letters[b] for b in range(256)] + [letters[b] + "</w>" for b in range(256)]
    pieces += ["".join(pair) for pair in MERGES] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    merges = "\n".join(" ".join(pair) for pair in MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    settings = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding, "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "CLIPTokenizer"}))


def stable_diffusion(folder: Path, vocab_size: int = 516) -> Path:
    """A pipeline of version 1 of 8 x 8 pixels and of one level with random weights, in a folder below `folder`; its
    tokenizer has 516 tokens.
    """
    vae = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "sample_size": 8}
    vae |= {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    unet = {"block_out_channels": [8], "layers_per_block": 1, "sample_size": 8, "cross_attention_dim": 16}
    unet |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    unet |= {"norm_num_groups": 4, "attention_head_dim": 2}
    text = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"vocab_size": vocab_size, "eos_token_id": 515, "projection_dim": 16, "max_position_embeddings": 77}
    described = folder / "described"
    for part, config in (
        ("vae", {"_class_name": "AutoencoderKL", **vae}),
        ("unet", {"_class_name": "UNet2DConditionModel", **unet}),
        ("text_encoder", {"model_type": "clip_text_model", **text}),
    ):
        (described / part).mkdir(parents=True)
        (described / part / "config.json").write_text(json.dumps(config))
    # The encoder's kind is told by its tensors' names; an empty file has none.
    (described / "text_encoder" / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    (described / "scheduler").mkdir()
    chain = {"_class_name": "DDIMScheduler", **CHAIN, "set_alpha_to_one": False, "clip_sample": False}
    (described / "scheduler" / "scheduler_config.json").write_text(json.dumps(chain))
    (described / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    tokenizer_files(described / "tokenizer")
    model = StableDiffusion(**pipelines.read_model(described))
    rng = np.random.default_rng(0)
    drawn = lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype(np.float32)
    params = jax.tree.map(drawn, pipelines.abstract_params(model))
    save_pretrained(folder / "pipeline", model, params, source=described)
    return folder / "pipeline"
