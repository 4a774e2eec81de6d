"""Alignment: instruction tuning, reward models and preferences on made sets with known answers."""

from genjax.config import register
from genjax.data import Chat
from genjax.families.alignment.sft import SupervisedGPT
from genjax.families.language.networks import llama_network
from genjax.optimizers import AdamW, Cosine
from genjax.training import Experiment, Training

_SHRUNK = {"model.network.num_layers": 1, "model.network.width": 8, "model.network.num_heads": 2,
           "model.network.mlp_dim": 16, "data.batch_size": 16}  # fmt: skip


def _adam(learning_rate: float, warmup_steps: int = 20, weight_decay: float = 0.01) -> AdamW:
    schedule = Cosine(warmup_steps=warmup_steps, final_scale=0.1)
    return AdamW(learning_rate=learning_rate, b2=0.99, weight_decay=weight_decay, clip_norm=1.0, schedule=schedule)


@register(
    "instructions",
    source="instruction tuning (Wei et al. 2021, arXiv:2109.01652) on a made grammar like SCAN (Lake & Baroni 2018)",
    shrunk={**_SHRUNK, "data.vocab_size": 260},
)
def instructions() -> Experiment:
    """A GPT that answers chats of made instructions; held-out compositions of known words are the test.

    python -m experiments.train --experiment=instructions --workdir=runs/instructions

    About five minutes of one CPU core.  Then talk to it: python -m experiments.generate \\
        --workdir=runs/instructions --chat
    From a run or a checkpoint: --training.init_from=RUN, or --model.pretrained=FOLDER.
    """
    return Experiment(
        model=SupervisedGPT(network=llama_network(4, 128, 4, max_length=128), optimizer=_adam(2e-3, 50)),
        data=Chat(tokenizer="bpe", vocab_size=320, sequence_length=71, batch_size=32),
        training=Training(
            num_steps=1500, steps_per_dispatch=10, evaluate_every=250, best_metric="exact_match", best_mode="max",
            num_samples=8,
        ),
    )  # fmt: skip
