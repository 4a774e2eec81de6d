"""What a pretrained Stable Diffusion learns of pictures of one's own: a word, a subject, or to follow hints."""

import dataclasses

from genjax.config import register
from genjax.data import HintedImages, SubjectImages
from genjax.families.diffusion.controlnet import ControlledUNet
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.stable_diffusion import StableDiffusion
from genjax.families.diffusion.unet import UNet
from genjax.optimizers import AdamW
from genjax.training import Evaluation, Experiment, Training

#: Without a folder of the library diffusers: a tiny model of Scenes.
_SHRUNK = {
    "data": "pairs",
    "data.name": "scenes",
    "data.image_size": (32, 32),
    "data.num_made": 32,
    "data.num_held_out": 16,
    "data.batch_size": 8,
    "model.untrained_autoencoder": True,
    "model.autoencoder.network.channels": (4, 4, 4),
    "model.autoencoder.network.num_groups": 2,
    "model.text.vocab_size": 32,
    "model.text.network.width": 8,
    "model.text.network.num_layers": 1,
    "model.text.network.num_heads": 2,
    "model.text.network.max_length": 20,
    "model.empty_tokens": (0,) * 20,
    "model.diffusion.network.channels": 8,
    "model.diffusion.network.channel_multipliers": (1,),
    "model.diffusion.network.num_blocks": 1,
    "model.diffusion.network.attention_levels": (0,),
    "model.diffusion.network.num_heads": 2,
    "model.diffusion.sampler.num_steps": 2,
}


def _fine_tuning(learning_rate: float, num_steps: int) -> Experiment:
    diffusion = Diffusion(
        network=UNet(attention_levels=(0, 1, 2), num_heads=8),
        condition_on=("context",),
        guidance=Guidance(scale=6.5),
        optimizer=AdamW(learning_rate=learning_rate, weight_decay=1e-2, clip_norm=1.0),
    )
    return Experiment(
        model=StableDiffusion(diffusion=diffusion),
        data=SubjectImages(image_size=(512, 512), batch_size=1, eval_batch_size=4),
        training=Training(num_steps=num_steps, log_every=10, checkpoint_every=500, sample_every=500, num_samples=4),
        evaluation=Evaluation(num_examples=4),
    )


@register(
    "textual_inversion",
    source="Gal et al. 2022, arXiv:2208.01618",
    shrunk={**_SHRUNK, "model.new_tokens": 1},
)
def textual_inversion() -> Experiment:
    """A new word for what a few pictures show: its embedding alone is trained.

    python -m experiments.train --experiment=textual_inversion --model.pretrained=FOLDER --data.dir=PICTURES \\
        --data.new_words="<x>" --data.like=dog --data.texts="a photo of <x>" --workdir=runs/textual_inversion
    python -m experiments.sample --workdir=runs/textual_inversion --prompt="a painting of <x>"

    FOLDER holds a Stable Diffusion 1 or 2 of the library diffusers, PICTURES three to ten pictures; for pictures of
    another size than 512 x 512 give --data.image_size.
    """
    experiment = _fine_tuning(learning_rate=5e-4, num_steps=3000)
    optimizer = dataclasses.replace(experiment.model.optimizer, weight_decay=0.0)
    model = dataclasses.replace(
        experiment.model,
        frozen=("autoencoder", "text", "diffusion"),
        diffusion=dataclasses.replace(experiment.model.diffusion, optimizer=optimizer),
    )
    data = dataclasses.replace(
        experiment.data,
        texts=("a photo of <x>", "a rendering of <x>", "a close-up photo of <x>", "a cropped photo of <x>"),
        new_words=("<x>",),
    )
    return dataclasses.replace(experiment, model=model, data=data)


@register("dreambooth", source="Ruiz et al. 2022, arXiv:2208.12242", shrunk={**_SHRUNK, "model.prior_weight": 0.0})
def dreambooth() -> Experiment:
    """A rare word for what a few pictures show: the whole U-Net learns it, beside pictures of the class.

    python -m experiments.train --experiment=dreambooth --model.pretrained=FOLDER --data.dir=PICTURES \\
        --data.texts="a photo of sks dog" --data.prior_dir=CLASS_PICTURES --data.prior_text="a photo of a dog" \\
        --workdir=runs/dreambooth
    python -m experiments.sample --workdir=runs/dreambooth --prompt="a photo of sks dog in a bucket"

    FOLDER holds a pipeline of the library diffusers, PICTURES three to ten pictures, CLASS_PICTURES about 200 pictures
    of the class, which the paper draws with the model itself.  Without them: --model.prior_weight=0.  With
    --model.lora=lora only low-rank updates are trained, which takes a third of the memory.
    """
    experiment = _fine_tuning(learning_rate=5e-6, num_steps=1000)
    model = dataclasses.replace(experiment.model, prior_weight=1.0)
    return dataclasses.replace(
        experiment, model=model, data=dataclasses.replace(experiment.data, texts=("a photo of sks",))
    )


@register(
    "controlnet",
    source="Zhang et al. 2023, arXiv:2302.05543",
    shrunk={
        **_SHRUNK,
        "data": "hinted_pairs",
        "data.sequence_length": 20,
        "model.diffusion.network.hint_channels": (4, 4, 4),
    },
)
def controlnet() -> Experiment:
    """A control network that makes Stable Diffusion follow a picture: edges, or the user's own hints.

    python -m experiments.train --experiment=controlnet --model.pretrained=FOLDER --data.dir=PICTURES \\
        --data.hints=HINTS --workdir=runs/controlnet
    python -m experiments.sample --workdir=runs/controlnet --prompt="a red house" --hint=sketch.png

    FOLDER holds a pipeline of the library diffusers, PICTURES pictures with captions (genjax/data/captions.py), HINTS a
    picture of the same name for each.  Without --data.hints the edges of the pictures are learned, and --hint names a
    picture whose edges are taken.  The U-Net stays; half of the captions are dropped, as in the paper.
    """
    experiment = _fine_tuning(learning_rate=1e-5, num_steps=20_000)
    diffusion = experiment.model.diffusion
    diffusion = dataclasses.replace(
        diffusion,
        network=ControlledUNet(attention_levels=(0, 1, 2), num_heads=8),
        condition_on=("context", "hint"),
        condition_dropout=0.5,
    )
    return dataclasses.replace(
        experiment,
        model=StableDiffusion(diffusion=diffusion, frozen=("autoencoder", "text", "diffusion/unet")),
        data=HintedImages(
            name="folder",
            image_size=(512, 512),
            preprocessing="signed",
            sequence_length=77,
            batch_size=4,
            eval_batch_size=4,
        ),
    )
