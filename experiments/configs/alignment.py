"""Alignment: instruction tuning, reward models and preferences on made sets with known answers."""

from genjax.config import register
from genjax.data import Chat, Preferences
from genjax.families.alignment.preference import PreferenceOptimization
from genjax.families.alignment.preference_losses import DPO, KTO, ORPO, PreferenceLoss, SimPO
from genjax.families.alignment.reward import Score
from genjax.families.alignment.sft import SupervisedGPT
from genjax.families.language.gpt import GPT
from genjax.families.language.gpt_tasks import GPTForTask
from genjax.families.language.networks import llama_network
from genjax.optimizers import AdamW, Cosine, Linear
from genjax.training import Evaluation, Experiment, Training

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

    About ten minutes of one CPU core.  Then talk to it: python -m experiments.generate \\
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


def _policy(method: PreferenceLoss, learning_rate: float) -> Experiment:
    """A GPT of made reviews, as `gpt_reviews` trains it, that learns from pairs of them."""
    optimizer = AdamW(
        learning_rate=learning_rate,
        b2=0.95,
        weight_decay=0.0,
        clip_norm=1.0,
        schedule=Cosine(warmup_steps=20, final_scale=0.05),
    )
    return Experiment(
        model=PreferenceOptimization(
            policy=GPT(network=llama_network(1, 64, 4, max_length=64), optimizer=optimizer), method=method
        ),
        data=Preferences(tokenizer="bpe", vocab_size=512, sequence_length=15, batch_size=64),
        training=Training(num_steps=400, steps_per_dispatch=10, evaluate_every=200, num_samples=8),
        evaluation=Evaluation(num_examples=2000),
    )


_SHRUNK_POLICY = {
    "model.policy.network.num_layers": 1,
    "model.policy.network.width": 8,
    "model.policy.network.num_heads": 2,
    "model.policy.network.mlp_dim": 16,
    "model.untrained_policy": True,
    "data.batch_size": 16,
    "data.vocab_size": 260,
    "data.sequence_length": 40,
    "data.num_made": 200,
}


@register(
    "dpo_sentiment",
    source="DPO (Rafailov et al. 2023, arXiv:2305.18290) beside the closed form of its optimum",
    shrunk=_SHRUNK_POLICY,
)
def dpo_sentiment() -> Experiment:
    """A GPT of made reviews learns from pairs that a Bradley-Terry reward of 1 for good reviews has labelled.

    python -m experiments.train --experiment=gpt_reviews --workdir=runs/gpt_reviews
    python -m experiments.train --experiment=dpo_sentiment --training.init_from=runs/gpt_reviews \\
        --workdir=runs/dpo_sentiment
    python -m experiments.alignment --workdir=runs/dpo_sentiment

    About a minute and a half of one CPU core.  Of p good reviews before, the optimum has
    q = p e^(1/beta) / (p e^(1/beta) + 1 - p), which the last command compares with samples.
    """
    return _policy(DPO(beta=0.5), 3e-4)


@register(
    "kto_sentiment",
    source="KTO (Ethayarajh et al. 2024, arXiv:2402.01306) on the pairs of dpo_sentiment",
    shrunk=_SHRUNK_POLICY,
)
def kto_sentiment() -> Experiment:
    """The pairs of dpo_sentiment, each answer for itself.

    python -m experiments.train --experiment=kto_sentiment --training.init_from=runs/gpt_reviews \\
        --workdir=runs/kto_sentiment
    """
    return _policy(KTO(beta=0.5), 3e-4)


@register(
    "simpo_sentiment",
    source="SimPO (Meng et al. 2024, arXiv:2405.14734) on the pairs of dpo_sentiment",
    shrunk=_SHRUNK_POLICY,
)
def simpo_sentiment() -> Experiment:
    """The pairs of dpo_sentiment without a reference: nothing holds the policy near its start but the number of steps.

    python -m experiments.train --experiment=simpo_sentiment --training.init_from=runs/gpt_reviews \\
        --workdir=runs/simpo_sentiment
    """
    return _policy(SimPO(beta=2.0, gamma=0.5), 1e-4)


@register(
    "orpo_sentiment",
    source="ORPO (Hong et al. 2024, arXiv:2403.07691) on the pairs of dpo_sentiment",
    shrunk=_SHRUNK_POLICY,
)
def orpo_sentiment() -> Experiment:
    """The pairs of dpo_sentiment: learns the chosen reviews and pushes the odds of the others down, without a
    reference.

    python -m experiments.train --experiment=orpo_sentiment --training.init_from=runs/gpt_reviews \\
        --workdir=runs/orpo_sentiment
    """
    return _policy(ORPO(weight=1.0), 3e-4)


@register(
    "reward_sentiment",
    source="a reward model (Ouyang et al. 2022, arXiv:2203.02155, eq. 1) beside the Bayes rate of its labels",
    shrunk={**_SHRUNK, "data.vocab_size": 260, "data.sequence_length": 40, "data.num_made": 200},
)
def reward_sentiment() -> Experiment:
    """A reward model of made reviews from pairs of them; ties and noise are in the labels, so the best accuracy is
    known.

    python -m experiments.train --experiment=reward_sentiment --workdir=runs/reward_sentiment
    python -m experiments.evaluate --workdir=runs/reward_sentiment

    About a minute of one CPU core.  Evaluations print the Bayes rate.
    """
    optimizer = AdamW(learning_rate=1e-3, weight_decay=0.01, clip_norm=1.0, schedule=Linear(warmup_steps=50))
    return Experiment(
        model=GPTForTask(network=llama_network(2, 64, 4, max_length=64), task=Score(), optimizer=optimizer),
        data=Preferences(tokenizer="bpe", vocab_size=512, sequence_length=15, batch_size=64),
        training=Training(num_steps=400, steps_per_dispatch=10, evaluate_every=200, num_samples=8),
    )
