"""Language models that hear."""

from genjax.config import register
from genjax.data import SpokenTexts
from genjax.families.language.networks import llama_network
from genjax.families.multimodal.audio_encoder import audio_network
from genjax.families.multimodal.audio_language_model import AudioLanguageModel
from genjax.optimizers import AdamW, Cosine
from genjax.training import Experiment, Training


@register(
    "spoken_digits",
    source="Radford et al. 2022, arXiv:2212.04356 (encoder); Ma et al. 2024, arXiv:2402.08846 (before an LM); FSDD",
    shrunk={
        "model.encoder.num_layers": 1,
        "model.encoder.width": 8,
        "model.encoder.num_heads": 2,
        "model.decoder.num_layers": 1,
        "model.decoder.width": 8,
        "model.decoder.num_heads": 2,
        "data.name": "tunes",
        "data.num_samples": 2000,
        "data.num_mels": 8,
        "data.num_made": 32,
        "data.num_held_out": 24,
        "data.batch_size": 8,
    },
)
def spoken_digits() -> Experiment:
    """Spoken digits, spelled letter by letter: Whisper's encoder before a small Llama.

    python -m experiments.train --experiment=spoken_digits --data.dir=FOLDER --workdir=runs/spoken_digits
    python -m experiments.transcribe --workdir=runs/spoken_digits

    About twenty minutes of one CPU core.
    """
    return Experiment(
        model=AudioLanguageModel(
            encoder=audio_network(3, 96, 4, dropout=0.1),
            decoder=llama_network(2, 96, 4, max_length=64, dropout=0.1),
            frames_per_token=3,
            optimizer=AdamW(
                learning_rate=2e-3, b2=0.98, weight_decay=0.05, clip_norm=1.0, schedule=Cosine(warmup_steps=200)
            ),
        ),
        data=SpokenTexts(
            name="spoken_digits",
            sequence_length=8,
            stretch=0.15,
            shift=0.1,
            noise=0.003,
            silenced=0.15,
            batch_size=64,
            eval_batch_size=300,
        ),
        training=Training(num_steps=2500, log_every=50, checkpoint_every=250, evaluate_every=250),
    )
