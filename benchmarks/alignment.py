"""Time of a step of GRPO beside trl's GRPOTrainer on the same sizes.

    python -m benchmarks.alignment --rounds 3       # needs trl and transformers beside genjax

A GPT of 4 layers, 128 wide, 256 tokens; 16 prompts of 16 tokens, 8 answers of 32 tokens to each; Dr. GRPO without a
reference, one update with AdamW; float32.  A step is drawing the answers, rewarding them and the update.  Both take
turns in one process, and medians count; trl's own logs and checkpoints are off.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from genjax.families.alignment.grpo import GRPO
from genjax.families.alignment.rewards import Length
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import gpt2_network
from genjax.optimizers import AdamW
from genjax.training import host

LAYERS, WIDTH, HEADS, VOCAB = 4, 128, 4, 256
PROMPTS, ANSWERS, PROMPT_LENGTH, NEW = 16, 8, 16, 32


def our_steps() -> Callable[[int], list[float]]:
    """A function that takes so many steps and returns the seconds of each."""
    network = gpt2_network(LAYERS, WIDTH, HEADS, max_length=64, dropout=0.0, attention_dropout=0.0)
    policy = GPT(vocab_size=VOCAB, network=network, optimizer=AdamW(learning_rate=1e-6, clip_norm=1.0))
    model = GRPO(
        policy=policy, reward=Length(longest=64, buffer=64), num_rollouts=ANSWERS, max_new_tokens=NEW, beta=0.0
    )
    batch = {"prompt": jax.random.randint(jax.random.key(0), (PROMPTS, PROMPT_LENGTH), 0, VOCAB)}
    state = jax.jit(model.init)(jax.random.key(1), batch)
    step = jax.jit(model.train_step, donate_argnums=0)
    number = 0

    def run(count: int) -> list[float]:
        nonlocal state, number
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(step(state, batch, jax.random.key(number)))
            seconds.append(time.perf_counter() - began)
            number += 1
            assert float(metrics["num_tokens"]) == NEW
        return seconds

    return run


def their_steps(folder: str) -> Callable[[int], list[float]]:
    """The same of trl."""
    import datasets
    import tokenizers
    import transformers
    import trl

    symbols = [chr(0x100 + i) for i in range(VOCAB - 2)]
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols, "<pad>", "<end>"])}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library, pad_token="<pad>", eos_token="<end>")
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=VOCAB - 1, eos_token_id=VOCAB - 1, pad_token_id=VOCAB - 2,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    draw = np.random.default_rng(0)
    prompts = ["".join(symbols[i] for i in draw.integers(0, len(symbols), PROMPT_LENGTH)) for _ in range(PROMPTS * 64)]
    seconds: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *unused: Any, **more: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *unused: Any, **more: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    def run(count: int) -> list[float]:
        seconds.clear()
        settings = trl.GRPOConfig(
            output_dir=folder, per_device_train_batch_size=PROMPTS * ANSWERS, num_generations=ANSWERS, beta=0.0,
            max_completion_length=NEW, loss_type="dr_grpo", scale_rewards="none", max_steps=count, learning_rate=1e-6,
            use_cpu=jax.default_backend() == "cpu", report_to="none", save_strategy="no", logging_strategy="no",
            bf16=False, generation_kwargs={"min_new_tokens": NEW}, gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model=model, args=settings, processing_class=tokenizer, callbacks=[Clock()],
            reward_funcs=lambda completions, **unused: [float(len(text)) for text in completions],
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        )  # fmt: skip
        trainer.train()
        return list(seconds)

    return run


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    if jax.default_backend() == "cpu":
        host.keep_freed_memory()
    ours, found = our_steps(), {"genjax": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        theirs = their_steps(folder)
        for number in range(options.rounds + 1):
            for name, run in (("genjax", ours), ("trl", theirs)):
                # The first step of a round warms up, and so does the first round.
                taken = run(options.steps + 1)[1:]
                if number:
                    found[name] += taken
    medians = {name: statistics.median(taken) for name, taken in found.items()}
    tokens = PROMPTS * ANSWERS * NEW
    for name, median in medians.items():
        print(f"{name:<8} {1000 * median:9.1f} ms a step, {tokens / median:9.0f} new tokens/s")
    print(f"ratio    {medians['genjax'] / medians['trl']:9.3f}")


if __name__ == "__main__":
    main()
