"""Tokens a second of a GGUF file here beside the library transformers, in one run, in turns:

    python -m tests.interop.gguf_speed --file=SmolLM2-135M-Instruct.Q4_1.gguf

Both read the file, hold float32 weights, and write the likeliest tokens after the same prompt, on the same cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from genjax import decoding
from genjax.pretrained import load_pretrained


def cpu_seconds() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def written(generate: Callable[..., jax.Array], state: Any, prompts: np.ndarray) -> np.ndarray:
    """New tokens after prompts [B, P], [B, T]."""
    return np.asarray(generate(state, jnp.asarray(prompts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rows", default="1,8", help="numbers of texts at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours = load_pretrained(options.file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(options.file.parent), gguf_file=options.file.name, dtype=torch.float32
    )
    prompt, greedy = np.arange(100, 116, dtype=np.int32), decoding.Sampling(temperature=0.0)
    for rows in map(int, options.rows.split(",")):
        prompts = np.repeat(prompt[None], rows, axis=0)

        generate = jax.jit(
            lambda state, prompts: (
                ours.model.generate(state, jax.random.key(0), prompts, options.tokens, sampling=greedy).tokens
            )
        )
        here = functools.partial(written, generate, ours.state, prompts)

        def there(prompts: np.ndarray = prompts) -> np.ndarray:
            with torch.no_grad():
                found = theirs.generate(
                    torch.tensor(prompts, dtype=torch.long),
                    attention_mask=torch.ones(prompts.shape, dtype=torch.long),
                    max_new_tokens=options.tokens,
                    min_new_tokens=options.tokens,
                    do_sample=False,
                )
            return found[:, prompts.shape[1] :].numpy()

        def rate(write: Callable[[], np.ndarray]) -> tuple[float, float]:
            began, cpu = time.perf_counter(), cpu_seconds()
            count = write().size
            return count / (time.perf_counter() - began), count / (cpu_seconds() - cpu)

        same = float((here() == there()).mean())
        rates = np.array([(*rate(here), *rate(there)) for _ in range(options.rounds)])
        wall, cpu, their_wall, their_cpu = (round(statistics.median(column), 1) for column in rates.T.tolist())
        print(
            json.dumps(
                {
                    "texts at a time": rows,
                    "same tokens": same,
                    "tokens/s": wall,
                    "tokens/s of transformers": their_wall,
                    "tokens a CPU second": cpu,
                    "tokens a CPU second of transformers": their_cpu,
                    "times as fast by CPU seconds": round(float(np.median(rates[:, 1] / rates[:, 3])), 2),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
