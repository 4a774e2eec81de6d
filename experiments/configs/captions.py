"""Captions of pictures, and questions about them."""

import dataclasses

from genjax.config import register
from genjax.data import CaptionedImages, PictureQuestions
from genjax.families.language.networks import bert_network
from genjax.families.multimodal.captioner import Captioner
from genjax.families.multimodal.git import GIT
from genjax.families.multimodal.networks import clip_network
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW, Cosine
from genjax.training import Evaluation, Experiment, Training

_SHRUNK = {
    "model.vision.num_layers": 1,
    "model.vision.width": 8,
    "model.vision.num_heads": 2,
    "model.decoder.num_layers": 1,
    "model.decoder.width": 8,
    "model.decoder.num_heads": 2,
    "model.patch_size": 16,
    "data.num_made": 32,
    "data.num_held_out": 24,
    "data.batch_size": 8,
}

_OPTIMIZER = AdamW(learning_rate=2e-3, b2=0.99, weight_decay=0.01, clip_norm=1.0, schedule=Cosine(warmup_steps=100))


def _captioner(max_new_tokens: int | None) -> Captioner:
    """A captioner that is small enough for two CPU cores."""
    return Captioner(
        vision=Transformer(num_layers=3, width=96, num_heads=4),
        decoder=Transformer(num_layers=2, width=96, num_heads=4, max_length=32),
        patch_size=4,
        max_new_tokens=max_new_tokens,
        optimizer=_OPTIMIZER,
    )


@register(
    "captions_scenes",
    source="Li et al. 2022, arXiv:2201.12086, section 3.1 (encoder of pictures, decoder of text), on Scenes",
    shrunk=_SHRUNK,
)
def captions_scenes() -> Experiment:
    """Captions of Scenes by a vision transformer and a decoder that attends to its patches.

    python -m experiments.train --experiment=captions_scenes --workdir=runs/captions_scenes
    python -m experiments.caption --workdir=runs/captions_scenes
    python -m experiments.caption --workdir=runs/captions_scenes --evaluation.split=held_out_pairs

    About an hour of one CPU core.
    """
    return Experiment(
        model=_captioner(None),
        data=CaptionedImages(preprocessing="signed", batch_size=64, eval_batch_size=200),
        training=Training(num_steps=6000, log_every=50, checkpoint_every=250, evaluate_every=500),
        evaluation=Evaluation(num_examples=400),
    )


@register(
    "git_scenes",
    source="Wang et al. 2022, arXiv:2205.14100, section 3 (one decoder of picture and text), on Scenes",
    shrunk=_SHRUNK,
)
def git_scenes() -> Experiment:
    """Captions of Scenes by a decoder that reads the features of the picture before its text, as in GIT.

    python -m experiments.train --experiment=git_scenes --workdir=runs/git_scenes
    python -m experiments.caption --workdir=runs/git_scenes
    python -m experiments.caption --workdir=runs/git_scenes --evaluation.split=held_out_pairs

    Data, steps and sizes are those of captions_scenes.
    """
    model = GIT(
        vision=clip_network(3, 96, 4),
        decoder=bert_network(2, 96, 4, max_length=32, dropout=0.0, attention_dropout=0.0),
        patch_size=4,
        optimizer=_OPTIMIZER,
    )
    return dataclasses.replace(captions_scenes(), model=model)


@register(
    "questions_scenes",
    source="Antol et al. 2015, arXiv:1505.00468; prefixed as by Wang et al. 2022, arXiv:2205.14100; on Scenes",
    shrunk=_SHRUNK,
)
def questions_scenes() -> Experiment:
    """Answers to balanced questions about Scenes; a guess without the picture is right in at most half of the cases.

    python -m experiments.train --experiment=captions_scenes --training.num_steps=4000 --workdir=runs/captions_scenes
    python -m experiments.train --experiment=questions_scenes --training.init_from=runs/captions_scenes \\
        --training.init_prefix=vision_encoder --workdir=runs/questions_scenes
    python -m experiments.caption --workdir=runs/questions_scenes

    After 1500 steps an encoder that has learned from captions has 71 % of the answers of the validation split, and one
    that begins at nothing 59 %.  About 40 minutes of one CPU core.
    """
    return Experiment(
        model=_captioner(3),
        data=PictureQuestions(preprocessing="signed", batch_size=64, eval_batch_size=200),
        training=Training(num_steps=6000, log_every=50, checkpoint_every=250, evaluate_every=500),
        evaluation=Evaluation(num_examples=600),
    )
