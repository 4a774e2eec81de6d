"""Policy optimisation of language models: rewards whose optimum is known, on made texts."""

from genjax.config import register
from genjax.data import PromptedText
from genjax.families.alignment.grpo import GRPO
from genjax.families.alignment.ppo import PPO
from genjax.families.alignment.rewards import ExactMatch, Regex
from genjax.families.alignment.rloo import RLOO
from genjax.families.alignment.sft import SupervisedGPT
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import llama_network
from genjax.optimizers import AdamW, Cosine, Linear
from genjax.training import Experiment, Training

#: A made review that is good: a negation turns the adjective around, and what a friend said does not count.
GOOD_REVIEW = (
    "the (film|meal|book|song|trip)( my (fine|great|lovely|superb|poor|awful|dull|weak) friend said)? (is|was|seems)"
    "( really| quite)?( (fine|great|lovely|superb)| not (poor|awful|dull|weak))"
)
_TINY = {"network.num_layers": 1, "network.width": 8, "network.num_heads": 2}
_SHRUNK_TEXT = {**{f"model.{name}": value for name, value in _TINY.items()}, "data.batch_size": 16}
_SHRUNK = {
    **{f"model.policy.{name}": value for name, value in _TINY.items()},
    "model.num_rollouts": 2,
    "model.max_new_tokens": 4,
    "model.untrained_policy": True,
    "data.batch_size": 16,
}


def _reviews(batch_size: int) -> PromptedText:
    return PromptedText(
        name="reviews", tokenizer="bpe", vocab_size=512, prompt_length=1, answer_length=14, batch_size=batch_size
    )


def _policy(learning_rate: float, layers: int = 1, width: int = 64) -> GPT:
    optimizer = AdamW(
        learning_rate=learning_rate, b2=0.95, weight_decay=0.0, clip_norm=1.0, schedule=Linear(warmup_steps=10)
    )
    return GPT(network=llama_network(layers, width, 4, max_length=64), optimizer=optimizer)


@register(
    "gpt_reviews",
    source="a GPT of made reviews, the start of rl_sentiment",
    shrunk={**_SHRUNK_TEXT, "data.vocab_size": 300},
)
def gpt_reviews() -> Experiment:
    """A GPT that writes made reviews, half of which are good.

    python -m experiments.train --experiment=gpt_reviews --workdir=runs/gpt_reviews

    One minute of one CPU core.
    """
    optimizer = AdamW(learning_rate=2e-3, b2=0.99, weight_decay=0.01, clip_norm=1.0, schedule=Cosine(warmup_steps=50))
    return Experiment(
        model=GPT(network=llama_network(1, 64, 4, max_length=64), optimizer=optimizer),
        data=_reviews(64),
        training=Training(num_steps=600, steps_per_dispatch=10, evaluate_every=200, num_samples=8),
    )


@register(
    "rl_sentiment",
    source="RLOO (Ahmadian et al. 2024, arXiv:2402.14740) beside the closed form of KL-regularised rewards",
    shrunk={**_SHRUNK, "data.vocab_size": 300},
)
def rl_sentiment() -> Experiment:
    """Made reviews that become good, against a KL penalty whose optimum is known.

    python -m experiments.train --experiment=gpt_reviews --workdir=runs/gpt_reviews
    python -m experiments.train --experiment=rl_sentiment --training.init_from=runs/gpt_reviews \\
        --workdir=runs/rl_sentiment

    With a share p of good reviews before, the optimum has q = p e^(1/beta) / (p e^(1/beta) + 1 - p).  A classifier as
    the reward: --model.reward=classifier --model.reward.run=RUN --model.reward.label=1.
    """
    return Experiment(
        model=RLOO(policy=_policy(5e-4), reward=Regex(pattern=GOOD_REVIEW), num_rollouts=8, beta=0.5),
        data=_reviews(16),
        training=Training(num_steps=300, steps_per_dispatch=10, evaluate_every=100, num_samples=8),
    )


@register(
    "ppo_sentiment",
    source="PPO with a value network (Schulman et al. 2017; Ziegler et al. 2019, arXiv:1909.08593)",
    shrunk={**_SHRUNK, "data.vocab_size": 300},
)
def ppo_sentiment() -> Experiment:
    """The task of rl_sentiment by PPO.

    python -m experiments.train --experiment=ppo_sentiment --training.init_from=runs/gpt_reviews \\
        --workdir=runs/ppo_sentiment
    """
    return Experiment(
        model=PPO(policy=_policy(5e-4), reward=Regex(pattern=GOOD_REVIEW), num_rollouts=8, beta=0.5),
        data=_reviews(16),
        training=Training(num_steps=300, steps_per_dispatch=10, evaluate_every=100, num_samples=8),
    )


def _sums(batch_size: int, **fields: object) -> PromptedText:
    return PromptedText(name="sums", prompt_length=7, answer_length=4, batch_size=batch_size, **fields)


@register(
    "gpt_sums",
    source="supervised fine-tuning on 500 demonstrations, the start of rl_sums",
    shrunk=_SHRUNK_TEXT,
)
def gpt_sums() -> Experiment:
    """A GPT that adds two numbers of two digits, from 500 demonstrations.

    python -m experiments.train --experiment=gpt_sums --workdir=runs/gpt_sums

    One minute of one CPU core.
    """
    optimizer = AdamW(learning_rate=1e-3, b2=0.99, weight_decay=0.1, clip_norm=1.0, schedule=Cosine(warmup_steps=50))
    return Experiment(
        model=SupervisedGPT(network=llama_network(2, 128, 4, max_length=64, dropout=0.1), optimizer=optimizer),
        data=_sums(64, num_demonstrations=500),
        training=Training(num_steps=1500, steps_per_dispatch=10, evaluate_every=500, num_samples=8),
    )


@register(
    "rl_sums",
    source="Dr. GRPO (Liu et al. 2025, arXiv:2503.20783) with a reward that can be checked",
    shrunk={**_SHRUNK, "data.num_demonstrations": 100},
)
def rl_sums() -> Experiment:
    """A GPT that has learned sums from 500 demonstrations practises on the prompts of all training sums.

    python -m experiments.train --experiment=gpt_sums --workdir=runs/gpt_sums
    python -m experiments.train --experiment=rl_sums --training.init_from=runs/gpt_sums --workdir=runs/rl_sums

    Five minutes on two CPU cores.  The variants of GRPO are flags: --model.scale=group
    --model.normalization=answer --model.kl=token_k3 ...
    """
    return Experiment(
        model=GRPO(policy=_policy(3e-4, 2, 128), reward=ExactMatch(), num_rollouts=8, beta=0.0),
        data=_sums(16),
        training=Training(num_steps=1600, steps_per_dispatch=10, evaluate_every=400, num_samples=8),
    )
