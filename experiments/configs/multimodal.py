"""Encoders of pictures and texts in one space."""

from genjax.config import register
from genjax.data import CaptionedImages
from genjax.families.multimodal.clip import CLIP
from genjax.families.multimodal.networks import clip_network, siglip_network
from genjax.families.multimodal.siglip import SigLIP
from genjax.optimizers import AdamW, Cosine
from genjax.training import Evaluation, Experiment, Training

_SHRUNK = {
    "model.text.num_layers": 1,
    "model.text.width": 8,
    "model.text.num_heads": 2,
    "model.vision.num_layers": 1,
    "model.vision.width": 8,
    "model.vision.num_heads": 2,
    "model.patch_size": 16,
    "data.name": "scenes",
    "data.tokenizer": "words",
    "data.image_size": None,
    "data.sequence_length": 20,
    "data.num_made": 32,
    "data.num_held_out": 24,
    "data.batch_size": 8,
}
_OPTIMIZER = AdamW(
    learning_rate=1e-3, b2=0.98, eps=1e-6, weight_decay=0.05, clip_norm=1.0, schedule=Cosine(warmup_steps=50)
)
_SCENES = CaptionedImages(preprocessing="signed", batch_size=128, eval_batch_size=400)
_EVALUATION = Evaluation(num_examples=400)


def _clip(data: CaptionedImages, patch_size: int, num_steps: int) -> Experiment:
    return Experiment(
        model=CLIP(
            text=clip_network(2, 96, 4, max_length=32),
            vision=clip_network(3, 96, 4),
            patch_size=patch_size,
            embedding_dim=64,
            optimizer=_OPTIMIZER,
        ),
        data=data,
        training=Training(num_steps=num_steps, log_every=50, evaluate_every=250, checkpoint_every=250),
        evaluation=_EVALUATION,
    )


@register("clip_scenes", source="Radford et al. 2021, arXiv:2103.00020, on Scenes", shrunk=_SHRUNK)
def clip_scenes() -> Experiment:
    """CLIP on Scenes; of two things it must tell which stands where.

    python -m experiments.train --experiment=clip_scenes --workdir=runs/clip_scenes
    python -m experiments.pairs --workdir=runs/clip_scenes

    About eight minutes of one CPU core.
    """
    return _clip(_SCENES, 4, 1500)


@register("clip_emoji", source="Radford et al. 2021, arXiv:2103.00020, on emoji64", shrunk=_SHRUNK)
def clip_emoji() -> Experiment:
    """CLIP on captioned emoji at 32 x 32 pixels; most test captions have words that training lacks.

    python -m experiments.train --experiment=clip_emoji --data.dir=FOLDER --workdir=runs/clip_emoji
    python -m experiments.pairs --workdir=runs/clip_emoji

    About five minutes of one CPU core.
    """
    data = CaptionedImages(
        name="emoji",
        tokenizer="bpe",
        image_size=(32, 32),
        preprocessing="signed",
        sequence_length=32,
        batch_size=128,
        eval_batch_size=400,
    )
    return _clip(data, 4, 1000)


@register("siglip_scenes", source="Zhai et al. 2023, arXiv:2303.15343, on Scenes", shrunk=_SHRUNK)
def siglip_scenes() -> Experiment:
    """SigLIP on Scenes, beside `clip_scenes` with equal steps and stacks.

    python -m experiments.train --experiment=siglip_scenes --workdir=runs/siglip_scenes
    python -m experiments.pairs --workdir=runs/siglip_scenes

    About eight minutes of one CPU core.
    """
    return Experiment(
        model=SigLIP(
            text=siglip_network(2, 96, 4, max_length=20),
            vision=siglip_network(3, 96, 4),
            patch_size=4,
            optimizer=_OPTIMIZER,
        ),
        data=_SCENES,
        training=Training(num_steps=1500, log_every=50, evaluate_every=250, checkpoint_every=250),
        evaluation=_EVALUATION,
    )
