"""A language model that reads pictures in place of tokens, and the one that it starts from."""

from genjax.config import register
from genjax.data import PictureQuestions
from genjax.families.language.gpt import GPT
from genjax.families.multimodal.llava import LLaVA
from genjax.families.multimodal.networks import clip_network
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW, Cosine
from genjax.training import Evaluation, Experiment, Training

_NETWORK = Transformer(num_layers=2, width=96, num_heads=4, max_length=96)
_OPTIMIZER = AdamW(learning_rate=2e-3, b2=0.99, weight_decay=0.01, clip_norm=1.0, schedule=Cosine(warmup_steps=100))
_SHRUNK = {
    "model.network.num_layers": 1,
    "model.network.width": 8,
    "model.network.num_heads": 2,
    "data.num_made": 32,
    "data.num_held_out": 24,
    "data.batch_size": 8,
}


@register(
    "gpt_questions_scenes",
    source="Radford et al. 2019 (GPT-2), on the questions and answers of Scenes without the pictures",
    shrunk=_SHRUNK,
)
def gpt_questions_scenes() -> Experiment:
    """The language model that `llava_scenes` starts from: questions about Scenes and their answers, without pictures.

    python -m experiments.train --experiment=gpt_questions_scenes --workdir=runs/gpt_questions

    About two minutes of one CPU core.
    """
    return Experiment(
        model=GPT(network=_NETWORK, optimizer=_OPTIMIZER),
        data=PictureQuestions(
            preprocessing="signed", batch_size=64, eval_batch_size=200, picture_tokens=0, learn_questions=True
        ),
        training=Training(num_steps=1000, log_every=50, checkpoint_every=500, evaluate_every=500),
        evaluation=Evaluation(num_examples=600),
    )


@register(
    "llava_scenes",
    source="Liu et al. 2023, arXiv:2304.08485, section 4, on questions about Scenes",
    shrunk={
        **_SHRUNK,
        "model.vision.num_layers": 2,
        "model.vision.width": 8,
        "model.vision.num_heads": 2,
        "model.patch_size": 16,
        "model.untrained_encoder": True,
        "data.picture_tokens": 4,
    },
)
def llava_scenes() -> Experiment:
    """LLaVA on questions about Scenes: stage 1 trains the projector, stage 2 the language model too.

    python -m experiments.train --experiment=llava_scenes --model.vision_from=runs/clip_scenes \\
        --model.language_from=runs/gpt_questions --workdir=runs/llava_1
    python -m experiments.train --experiment=llava_scenes --model.frozen=vision_encoder \\
        --training.init_from=runs/llava_1 --workdir=runs/llava_2
    python -m experiments.caption --workdir=runs/llava_2

    Each stage takes about 15 minutes of one CPU core.
    """
    return Experiment(
        model=LLaVA(
            vision=clip_network(3, 96, 4),
            patch_size=4,
            network=_NETWORK,
            tie_embeddings=True,
            frozen=("vision_encoder", "language"),
            max_new_tokens=3,
            optimizer=_OPTIMIZER,
        ),
        data=PictureQuestions(preprocessing="signed", batch_size=64, eval_batch_size=200, picture_tokens=64),
        training=Training(num_steps=3000, log_every=50, checkpoint_every=250, evaluate_every=500),
        evaluation=Evaluation(num_examples=600),
    )
