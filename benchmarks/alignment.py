"""Times of steps of GRPO and of supervised fine-tuning beside trl's trainers on the same sizes.

    python -m benchmarks.alignment --case=grpo,sft --rounds=5       # needs trl and transformers beside genjax

    grpo   16 prompts of 16 tokens, 8 answers of 32 tokens to each; Dr. GRPO without a reference, one update; a step is
           drawing the answers, rewarding them and the update
    sft    12 rows of 64 tokens, the first 16 of which are a prompt; mean over the tokens of the answers

A GPT of 4 layers, 128 wide, 256 tokens; AdamW; float32.  Both take turns in one process, and medians count; the logs
and checkpoints of trl are off.  Where a machine has other work, seconds of CPU on one core tell more than those of the
wall:

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.alignment --clock=cpu
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import CLOCKS, machine
from genjax.batch import Batch
from genjax.families.alignment.grpo import GRPO
from genjax.families.alignment.rewards import Length
from genjax.families.alignment.sft import SupervisedGPT
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import gpt2_network
from genjax.optimizers import AdamW
from genjax.training import host

LAYERS, WIDTH, HEADS, VOCAB = 4, 128, 4, 256
PROMPTS, ANSWERS, PROMPT_LENGTH, NEW = 16, 8, 16, 32
ROWS, LENGTH = 12, 64
#: A function that takes so many steps and returns the seconds of each.
Steps = Callable[[int], list[float]]
#: Seconds since some moment.
Clock = Callable[[], float]


def our_network() -> dict[str, Any]:
    """Fields of a GPT."""
    network = gpt2_network(LAYERS, WIDTH, HEADS, max_length=64, dropout=0.0, attention_dropout=0.0)
    return {"vocab_size": VOCAB, "network": network, "optimizer": AdamW(learning_rate=1e-6, clip_norm=1.0)}


def our_grpo(clock: Clock) -> Steps:
    """Steps of GRPO."""
    model = GRPO(
        policy=GPT(**our_network()), reward=Length(longest=64, buffer=64), num_rollouts=ANSWERS, max_new_tokens=NEW,
        beta=0.0,
    )  # fmt: skip
    prompts = jax.random.randint(jax.random.key(0), (PROMPTS, PROMPT_LENGTH), 0, VOCAB)
    return our_steps(model, {"prompt": prompts}, clock, num_tokens=NEW)


def our_sft(clock: Clock) -> Steps:
    """Steps of supervised fine-tuning."""
    tokens = jax.random.randint(jax.random.key(0), (ROWS, LENGTH), 0, VOCAB)
    answer = jnp.broadcast_to(jnp.arange(LENGTH) >= PROMPT_LENGTH, tokens.shape)
    batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool), "loss_mask": answer}
    return our_steps(SupervisedGPT(**our_network()), batch, clock)


def our_steps(model: Any, batch: Batch, clock: Clock, num_tokens: int | None = None) -> Steps:
    """Steps of a model; where `num_tokens` is given, the answers must have so many."""
    state = jax.jit(model.init)(jax.random.key(1), batch)
    step = jax.jit(model.train_step, donate_argnums=0)
    number = 0

    def run(count: int) -> list[float]:
        nonlocal state, number
        seconds = []
        for _ in range(count):
            began = clock()
            state, metrics = jax.block_until_ready(step(state, batch, jax.random.key(number)))
            seconds.append(clock() - began)
            number += 1
            assert num_tokens is None or float(metrics["num_tokens"]) == num_tokens
        return seconds

    return run


def their_network() -> tuple[Any, Any, list[str]]:
    """A GPT-2 and a tokenizer of the library transformers, and its symbols, a token each."""
    import tokenizers
    import transformers

    symbols = [chr(0x100 + i) for i in range(VOCAB - 2)]
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols, "<pad>", "<end>"])}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library, pad_token="<pad>", eos_token="<end>")
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=VOCAB - 1, eos_token_id=VOCAB - 1, pad_token_id=VOCAB - 2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), tokenizer, symbols


def their_grpo(clock: Clock, folder: str) -> Steps:
    """Steps of trl's GRPOTrainer."""
    import datasets
    import trl

    model, tokenizer, symbols = their_network()
    draw = np.random.default_rng(0)
    prompts = ["".join(symbols[i] for i in draw.integers(0, len(symbols), PROMPT_LENGTH)) for _ in range(PROMPTS * 64)]

    def trainer(count: int, **more: Any) -> Any:
        settings = trl.GRPOConfig(
            per_device_train_batch_size=PROMPTS * ANSWERS, num_generations=ANSWERS, beta=0.0, max_steps=count,
            max_completion_length=NEW, loss_type="dr_grpo", scale_rewards="none", **their_settings(folder),
            generation_kwargs={"min_new_tokens": NEW},
        )  # fmt: skip
        return trl.GRPOTrainer(
            model=model, args=settings, processing_class=tokenizer, **more,
            reward_funcs=lambda completions, **unused: [float(len(text)) for text in completions],
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        )  # fmt: skip

    return their_steps(trainer, clock)


def their_sft(clock: Clock, folder: str) -> Steps:
    """Steps of trl's SFTTrainer, on rows that are tokens already."""
    import datasets
    import trl

    model, tokenizer, symbols = their_network()
    rows = np.random.default_rng(0).integers(0, len(symbols), (ROWS * 64, LENGTH)).tolist()
    answers = [[int(place >= PROMPT_LENGTH) for place in range(LENGTH)]] * len(rows)
    data = datasets.Dataset.from_dict({"input_ids": rows, "completion_mask": answers})

    def trainer(count: int, **more: Any) -> Any:
        settings = trl.SFTConfig(
            per_device_train_batch_size=ROWS, max_length=LENGTH, completion_only_loss=True, max_steps=count,
            **their_settings(folder),
        )  # fmt: skip
        return trl.SFTTrainer(model=model, args=settings, processing_class=tokenizer, train_dataset=data, **more)

    return their_steps(trainer, clock)


def their_settings(folder: str) -> dict[str, Any]:
    """Settings of all trainers."""
    return {
        "output_dir": folder, "learning_rate": 1e-6, "use_cpu": jax.default_backend() == "cpu", "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "bf16": False, "gradient_checkpointing": False,
        "disable_tqdm": True,
    }  # fmt: skip


def their_steps(trainer: Callable[..., Any], clock: Clock) -> Steps:
    """Steps of a trainer that is made anew for so many."""
    import transformers

    seconds: list[float] = []

    class Times(transformers.TrainerCallback):
        def on_step_begin(self, *unused: Any, **more: Any) -> None:
            self.began = clock()

        def on_step_end(self, *unused: Any, **more: Any) -> None:
            seconds.append(clock() - self.began)

    def run(count: int) -> list[float]:
        seconds.clear()
        trainer(count, callbacks=[Times()]).train()
        return list(seconds)

    return run


def compare(case: str, rounds: int, steps: int, clock: Clock) -> None:
    """Times both in turns and prints medians."""
    print(f"this machine: {machine()}", flush=True)
    make, make_theirs, tokens, what = {
        "grpo": (our_grpo, their_grpo, PROMPTS * ANSWERS * NEW, "new tokens"),
        "sft": (our_sft, their_sft, ROWS * LENGTH, "tokens"),
    }[case]
    found: dict[str, list[float]] = {"genjax": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        runs = {"genjax": make(clock), "trl": make_theirs(clock, folder)}
        for number in range(rounds + 1):
            for name, run in runs.items():
                # The first step of a round warms up, and so does the first round.
                taken = run(steps + 1)[1:]
                if number:
                    found[name] += taken
    medians = {name: statistics.median(taken) for name, taken in found.items()}
    for name, median in medians.items():
        print(f"{case:<5} {name:<8} {1000 * median:9.1f} ms a step, {tokens / median:9.0f} {what}/s")
    print(f"{case:<5} ratio    {medians['genjax'] / medians['trl']:9.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", default="grpo,sft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="seconds of the wall or of CPU")
    options = parser.parse_args()
    if jax.default_backend() == "cpu":
        host.keep_freed_memory()
    for case in options.case.split(","):
        compare(case, options.rounds, options.steps, CLOCKS[options.clock])


if __name__ == "__main__":
    main()
