"""Models that draw what captions say."""

import dataclasses

from experiments.configs.latent import autoencoder_kl_scenes
from experiments.configs.vq_vae import vq_vae_scenes
from genjax.config import register
from genjax.data import CaptionedImages, CaptionedVideos
from genjax.families.autoregressive.dalle import DALLE, LogitGuidance
from genjax.families.autoregressive.text_and_codes import TextAndCodes
from genjax.families.diffusion.caption_encoder import CaptionEncoder
from genjax.families.diffusion.dit import DiT
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.latent_diffusion import LatentDiffusion
from genjax.families.diffusion.mmdit import MMDiT
from genjax.families.diffusion.samplers import Euler
from genjax.families.diffusion.times import LogitNormalTime
from genjax.nn.transformer import Transformer
from genjax.optimizers import Adam, AdamW, Constant, Cosine
from genjax.training import Evaluation, Experiment, Training

_SHRUNK = {
    "model.network.hidden_dim": 8,
    "model.network.num_layers": 1,
    "model.network.num_heads": 2,
    "model.network.patch_size": 8,
    "model.text.stack.num_layers": 1,
    "model.text.stack.width": 8,
    "model.text.stack.num_heads": 2,
    "model.sampler.num_steps": 2,
    "data.num_made": 32,
    "data.num_held_out": 16,
    "data.batch_size": 8,
}


@register(
    "text_to_image_scenes",
    source="Peebles & Xie 2023, arXiv:2212.09748; cross-attention to captions by Chen et al. 2023, arXiv:2310.00426",
    shrunk=_SHRUNK,
)
def text_to_image_scenes() -> Experiment:
    """Scenes from their captions by flow matching in pixels, with cross-attention to a text encoder trained with it.

    python -m experiments.train --experiment=text_to_image_scenes --workdir=runs/text_to_image_scenes
    python -m experiments.quality --workdir=runs/text_to_image_scenes --judge=scenes --scales=0,1,2,4
    python -m experiments.sample --workdir=runs/text_to_image_scenes --model.guidance.scale=2 \\
        --prompt="a small red circle left of a large blue square"

    About an hour of one CPU core.
    """
    model = FlowMatching(
        network=DiT(patch_size=4, hidden_dim=96, num_layers=5, num_heads=4),
        condition_on=("text",),
        text=CaptionEncoder(stack=Transformer(num_layers=2, width=96, num_heads=4, causal=False, max_length=20)),
        # Things are large, so that they are seen through much noise: most is decided at late times.
        times=LogitNormalTime(mean=0.8),
        sampler=Euler(num_steps=30, variable="time"),
        guidance=Guidance(scale=2.0),
        optimizer=Adam(
            learning_rate=2e-3, b2=0.99, clip_norm=1.0, schedule=Constant(warmup_steps=100), ema_decay=0.995
        ),
    )
    return Experiment(
        model=model,
        data=CaptionedImages(preprocessing="signed", batch_size=32, eval_batch_size=200),
        training=Training(num_steps=8000, log_every=50, checkpoint_every=100, evaluate_every=500, sample_every=1000),
        evaluation=Evaluation(num_examples=400),
    )


@register(
    "mmdit_scenes",
    source="Esser et al. 2024, arXiv:2403.03206, on captions of made pictures",
    shrunk={**_SHRUNK, "model.network.num_layers": 2},
)
def mmdit_scenes() -> Experiment:
    """Scenes from their captions by rectified flow with two streams, at the size and steps of text_to_image_scenes.

    python -m experiments.train --experiment=mmdit_scenes --workdir=runs/mmdit_scenes
    python -m experiments.quality --workdir=runs/mmdit_scenes --judge=scenes --scales=0,1,2,4

    Beside them, of as many parameters, captions by adaLN alone:

    python -m experiments.train --experiment=text_to_image_scenes --workdir=runs/adaln_scenes \\
        --model.network.cross_attention=false --model.text.pooled --model.network.num_layers=6

    About an hour of one CPU core.
    """
    image = text_to_image_scenes()
    model = dataclasses.replace(
        image.model,
        network=MMDiT(patch_size=4, hidden_dim=88, num_layers=4, num_heads=4, qk_norm=True),
        text=dataclasses.replace(image.model.text, pooled=True),
    )
    return dataclasses.replace(image, model=model)


@register(
    "latent_text_to_image_scenes",
    source="Rombach et al. 2022, arXiv:2112.10752, with the network of Peebles & Xie 2023, arXiv:2212.09748",
    shrunk={
        **{path.replace("model.", "model.diffusion."): value for path, value in _SHRUNK.items()},
        "model.diffusion.network.patch_size": 1,
        "model.autoencoder.network.channels": (4, 4, 4),
        "model.autoencoder.network.num_groups": 2,
        "model.untrained_autoencoder": True,
    },
)
def latent_text_to_image_scenes() -> Experiment:
    """Scenes from their captions by flow matching of the codes of autoencoder_kl_scenes, trained first.

    python -m experiments.train --experiment=autoencoder_kl_scenes --workdir=runs/autoencoder_kl_scenes
    python -m experiments.train --experiment=latent_text_to_image_scenes \\
        --training.init_from=runs/autoencoder_kl_scenes --workdir=runs/latent_text_to_image_scenes
    python -m experiments.quality --workdir=runs/latent_text_to_image_scenes --judge=scenes --scales=0,1,2,4

    About an hour of one CPU core.
    """
    image = text_to_image_scenes()
    diffusion = dataclasses.replace(
        image.model,
        network=DiT(patch_size=1, hidden_dim=128, num_layers=6, num_heads=4),
        # Codes are small maps without pixels that repeat each other: the paper's times.
        times=LogitNormalTime(),
        optimizer=dataclasses.replace(image.model.optimizer, learning_rate=1e-3),
    )
    model = LatentDiffusion(autoencoder=autoencoder_kl_scenes().model, diffusion=diffusion)
    training = dataclasses.replace(image.training, init_prefix=("autoencoder",))
    return dataclasses.replace(image, model=model, training=training)


@register(
    "dalle_scenes",
    source="Ramesh et al. 2021, arXiv:2102.12092, on captions of made pictures",
    shrunk={
        "model.vq_vae.channels": (4, 4),
        "model.vq_vae.embedding_dim": 4,
        "model.vq_vae.num_codes": 8,
        "model.prior.network.num_layers": 3,
        "model.prior.network.width": 8,
        "model.prior.network.num_heads": 2,
        "model.untrained_vq_vae": True,
        "data.num_made": 32,
        "data.num_held_out": 24,
        "data.batch_size": 8,
    },
)
def dalle_scenes() -> Experiment:
    """Scenes from their captions by DALL-E: a transformer of texts and of the codes of vq_vae_scenes, trained first.

    python -m experiments.train --experiment=vq_vae_scenes --workdir=runs/vq_vae_scenes
    python -m experiments.train --experiment=dalle_scenes --training.init_from=runs/vq_vae_scenes \\
        --workdir=runs/dalle_scenes
    python -m experiments.quality --workdir=runs/dalle_scenes --judge=scenes --scales=0,1,2
    python -m experiments.quality --workdir=runs/dalle_scenes --judge=scenes --rerank=runs/clip_scenes --candidates=16

    The later form of such models, one plain causal stack, beside it:

    python -m experiments.train --experiment=dalle_scenes --training.init_from=runs/vq_vae_scenes \\
        --model.prior.code_attention=dense --model.prior.network.positions=rotary --workdir=runs/dalle_dense_scenes

    About 40 minutes of one CPU core.
    """
    image = text_to_image_scenes()
    model = DALLE(
        vq_vae=vq_vae_scenes().model,
        prior=TextAndCodes(
            network=Transformer(num_layers=6, width=96, num_heads=4, max_length=128),
            # A square of 11 x 11 codes would be all of a map of 8 x 8.
            convolution_size=5,
            optimizer=AdamW(
                learning_rate=2e-3,
                b2=0.99,
                weight_decay=0.05,
                clip_norm=1.0,
                schedule=Cosine(warmup_steps=100, final_scale=0.05),
                ema_decay=0.995,
            ),
        ),
        guidance=LogitGuidance(scale=1.0),
    )
    training = dataclasses.replace(
        image.training, num_steps=8000, init_prefix=("encoder", "decoder", "codebook"), sample_every=1000
    )
    return dataclasses.replace(image, model=model, training=training)


@register(
    "text_to_video_scenes",
    source="Ho et al. 2022, arXiv:2204.03458; the network of Peebles & Xie 2023, arXiv:2212.09748, over all frames",
    shrunk={
        "model.network.hidden_dim": 8,
        "model.network.num_layers": 1,
        "model.network.num_heads": 2,
        "model.network.patch_size": 16,
        "model.text.stack.num_layers": 1,
        "model.text.stack.width": 8,
        "model.text.stack.num_heads": 2,
        "model.sampler.num_steps": 2,
        "data.num_made": 32,
        "data.num_held_out": 16,
        "data.batch_size": 8,
        "data.num_frames": 2,
    },
)
def text_to_video_scenes() -> Experiment:
    """Videos of one thing that moves, from captions; all patches of all frames attend to each other.

    python -m experiments.train --experiment=text_to_video_scenes --workdir=runs/text_to_video_scenes
    python -m experiments.quality --workdir=runs/text_to_video_scenes --judge=scenes --scales=0,2

    About two hours of one CPU core.
    """
    image = text_to_image_scenes()
    network = DiT(patch_size=8, hidden_dim=128, num_layers=5, num_heads=4)
    model = dataclasses.replace(image.model, network=network)
    data = CaptionedVideos(preprocessing="signed", batch_size=32, eval_batch_size=200)
    return dataclasses.replace(image, model=model, data=data)
