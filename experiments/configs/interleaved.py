"""Language models that see pictures between their words."""

from genjax.config import register
from genjax.data import Interleaved
from genjax.families.multimodal.flamingo import Flamingo
from genjax.families.multimodal.flamingo_layers import Resampler
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW, Cosine
from genjax.training import Evaluation, Experiment, Training


@register(
    "flamingo_scenes",
    source="Alayrac et al. 2022, arXiv:2204.14198, on Scenes",
    shrunk={
        "model.vision.num_layers": 1,
        "model.vision.width": 8,
        "model.vision.num_heads": 2,
        "model.patch_size": 16,
        "model.resampler.num_latents": 2,
        "model.resampler.num_heads": 2,
        "model.decoder.num_layers": 1,
        "model.decoder.width": 8,
        "model.decoder.num_heads": 2,
        "data.num_made": 32,
        "data.num_held_out": 24,
        "data.num_pictures": 400,
        "data.batch_size": 8,
    },
)
def flamingo_scenes() -> Experiment:
    """Flamingo on texts with pictures between their words: questions about either of two, and new words for colours.

    python -m experiments.train --experiment=captions_scenes --training.num_steps=4000 --workdir=runs/captions_scenes
    python -m experiments.train --experiment=flamingo_scenes --training.init_from=runs/captions_scenes \\
        --training.init_prefix=vision_encoder --model.frozen=vision_encoder --workdir=runs/flamingo_scenes
    python -m experiments.evaluate --workdir=runs/flamingo_scenes --evaluation.split=either
    python -m experiments.evaluate --workdir=runs/flamingo_scenes --evaluation.split=four_shots
    python -m experiments.evaluate --workdir=runs/flamingo_scenes --evaluation.split=no_shots

    The encoder comes from a run of captions and stays as it is.  Where all parts began at nothing and the gates were
    shut, the gates stayed shut and answers were guesses.  About 20 minutes of one CPU core.
    """
    return Experiment(
        model=Flamingo(
            decoder=Transformer(num_layers=4, width=96, num_heads=4, max_length=32),
            vision=Transformer(num_layers=3, width=96, num_heads=4),
            patch_size=4,
            resampler=Resampler(num_latents=4, num_layers=1, num_heads=4),
            every=2,
            initial_gate=1.0,
            max_new_tokens=2,
            optimizer=AdamW(
                learning_rate=2e-3, b2=0.98, weight_decay=0.01, clip_norm=1.0, schedule=Cosine(warmup_steps=100)
            ),
        ),
        data=Interleaved(batch_size=32, eval_batch_size=100),
        training=Training(num_steps=4000, log_every=50, checkpoint_every=250, evaluate_every=500),
        evaluation=Evaluation(num_examples=600),
    )
