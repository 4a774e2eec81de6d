"""Tiny pipelines of the library diffusers with random weights, built and saved without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")

from tests.interop.diffusers_parts import diffusers, randomized, torch  # noqa: E402
from tests.interop.made_folders import CHAIN, tokenizer_files  # noqa: E402


def text_config(width: int, **changes):
    """Settings of a tiny text encoder."""
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 516}
    ends = {"bos_token_id": 514, "eos_token_id": 515, "pad_token_id": 515}
    return transformers.CLIPTextConfig(hidden_size=width, max_position_embeddings=77, **{**sizes, **ends, **changes})


def autoencoder(scaling_factor: float = 0.18215):
    """A tiny autoencoder that halves once."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (16, 32), "norm_num_groups": 16, "latent_channels": 4, "sample_size": 32}
    return randomized(diffusers.AutoencoderKL(**blocks, **sizes, scaling_factor=scaling_factor), 1)


def unet(**changes):
    """A tiny U-Net."""
    settings = {
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
    }
    return randomized(diffusers.UNet2DConditionModel(**{**settings, **changes}), 2)


def stable_diffusion(folder: Path, **unet_changes):
    """Their pipeline of version 1 with PNDM, or of version 2 by changes of the U-Net, saved to the folder."""
    tokenizer_files(folder / "source_tokenizer")
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=randomized(transformers.CLIPTextModel(text_config(32)), 3),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "source_tokenizer"),
        unet=unet(**unet_changes),
        scheduler=diffusers.PNDMScheduler(**CHAIN, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, folder / "pipeline"


def controlled(folder: Path):
    """Their pipeline of version 1 with a control network beside the U-Net, saved to the folder."""
    plain, _ = stable_diffusion(folder)
    # As many halvings of the hint as the autoencoder has.
    network = diffusers.ControlNetModel.from_unet(plain.unet, conditioning_channels=3)
    config = {**network.config, "conditioning_embedding_out_channels": (16, 32)}
    network = randomized(diffusers.ControlNetModel.from_config(config), 4)
    with torch.no_grad():
        for parameter in network.controlnet_cond_embedding.parameters():
            # So that the hint is seen in the pictures.
            parameter.mul_(4.0)
    parts = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=network, requires_safety_checker=False)
    pipeline.save_pretrained(folder / "controlled")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, folder / "controlled"


def stable_diffusion_xl(folder: Path):
    """Their pipeline SDXL with Euler, saved to the folder."""
    tokenizer_files(folder / "source_tokenizer")
    tokenizer_files(folder / "source_tokenizer_2", padding="!")
    read = transformers.CLIPTokenizer.from_pretrained
    large = unet(
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
        cross_attention_dim=32 + 16,
    )
    second = transformers.CLIPTextModelWithProjection(text_config(16, hidden_act="gelu", projection_dim=20))
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(0.13025),
        text_encoder=randomized(transformers.CLIPTextModel(text_config(32)), 3),
        text_encoder_2=randomized(second, 4),
        tokenizer=read(folder / "source_tokenizer"),
        tokenizer_2=read(folder / "source_tokenizer_2"),
        unet=large,
        scheduler=diffusers.EulerDiscreteScheduler(**CHAIN, timestep_spacing="leading"),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, folder / "pipeline"
