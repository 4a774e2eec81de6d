"""Time of training steps of a GPT and an LSTM, and of generation, beside the same in PyTorch.

    python -m benchmarks.sequence                  # needs `pip install 'genjax[benchmark]'`
    python -m benchmarks.sequence --case=gpt_small,lstm --rounds=5

    gpt_small   4 layers, 128 wide, context 64, batch 12, 65 tokens
    gpt_large   6 layers, 384 wide, context 256, batch 8, 65 tokens
    lstm        2 x 512, length 64, batch 32, 10000 tokens
    gpt2        12 layers, 768 wide, context 1024, batch --batch_size, 50304 tokens; bfloat16, and PyTorch compiled;
                also tells tokens a second and their share of the device's peak (6 N + 12 L H Q T operations a token)
    generate    128 tokens with gpt_small's network, for 1 and for 64 prompts, with a cache in both; with --devices=2
                also 64 prompts as two devices of one core each answer them, 32 each

All compute with the same networks, loss and Adam, but for gpt2 in float32, on a GPU where JAX has one and else on the
CPU; runs take turns, and medians count.  The allocator is set as `experiments.train` sets it.
"""

from __future__ import annotations

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.timing import add_options, compare, options_of, peak_operations, torch_device, training_steps
from genjax import decoding
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import gpt2_network
from genjax.families.recurrent.language import RecurrentLanguageModel
from genjax.nn.recurrent import Recurrent
from genjax.optimizers import Adam
from genjax.training import host

SIZES = {"gpt_small": (4, 128, 4, 64, 12, 65), "gpt_large": (6, 384, 6, 256, 8, 65)}
GPT2_SIZE = (12, 768, 12, 1024, 50304)
LSTM_SIZE = {"width": 512, "length": 64, "batch": 32, "vocab": 10_000}


def torch_gpt(layers: int, width: int, heads: int, context: int, vocab: int):
    """GPT-2's network with PyTorch's fused attention, and a cache when it generates."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x, cache=None):
            batch, length, _ = x.shape
            q, k, v = self.qkv(self.first(x)).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            if cache is not None:
                if cache:
                    k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
                cache[:] = [k, v]
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(functional.gelu(self.up(self.second(x)), approximate="tanh"))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(context, width)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(layers)), nn.LayerNorm(width)
            for weight in self.parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=0.02)

        def forward(self, tokens, caches=None, start=0):
            x = self.token(tokens) + self.position(torch.arange(start, start + tokens.shape[1], device=tokens.device))
            for i, block in enumerate(self.blocks):
                x = block(x, None if caches is None else caches[i])
            return self.norm(x) @ self.token.weight.T

    return Network()


def torch_lstm():
    """Embedding, two LSTM layers and an output map."""
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width, vocab = LSTM_SIZE["width"], LSTM_SIZE["vocab"]
            self.embedding, self.output = nn.Embedding(vocab, width), nn.Linear(width, vocab)
            self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)

        def forward(self, tokens):
            return self.output(self.lstm(self.embedding(tokens))[0])

    return Network()


def torch_run(network, tokens: np.ndarray, compiled: bool = False):
    """The same training step, eager in float32, or compiled in bfloat16."""
    import torch

    device = torch_device()
    network, data = network.to(device), torch.tensor(tokens, dtype=torch.long, device=device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    if compiled:
        network = torch.compile(network)

    def run(count: int) -> float:
        for _ in range(count):
            with torch.autocast(device, torch.bfloat16, enabled=compiled):
                logits = network(data[:, :-1])
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss.item()

    return run


def gpt2(rounds: int, steps: int, batch: int, layers: int, context: int) -> None:
    """Times training steps of GPT-2 124M, or of fewer of its layers, and prints tokens a second and the share of the
    peak.
    """
    _, width, heads, _, vocab = GPT2_SIZE
    tokens = np.random.default_rng(0).integers(0, vocab, (batch, context + 1)).astype(np.int32)
    network = gpt2_network(layers, width, heads, max_length=context)
    model = GPT(vocab_size=vocab, network=network, compute_dtype="bfloat16", optimizer=Adam(learning_rate=1e-4))
    theirs = torch_gpt(layers, width, heads, context, vocab)
    runs = {
        "genjax": training_steps(model, {"tokens": tokens}),
        "torch.compile": torch_run(theirs, tokens, compiled=True),
    }
    medians = compare(runs, rounds, steps)
    # As nanoGPT counts: all parameters but the positions'.
    parameters = sum(p.numel() for p in theirs.parameters()) - context * width
    operations, peak = 6 * parameters + 12 * layers * width * context, peak_operations()
    for name, seconds in medians.items():
        rate = batch * context / seconds
        share = (
            "" if peak is None else f", {rate * operations / peak:.1%} of the peak of {jax.devices()[0].device_kind}"
        )
        print(f"  {name:<16} {rate:10.0f} tokens/s{share}", flush=True)


def generation(rounds: int, batches: tuple[int, ...] = (1, 64), new_tokens: int = 128) -> None:
    """Tokens per second of sampling with a cache."""
    import torch

    layers, width, heads, _, _, vocab = SIZES["gpt_small"]
    context = new_tokens + 8
    model = GPT(vocab_size=vocab, network=gpt2_network(layers, width, heads, max_length=context))
    state = jax.jit(model.init)(jax.random.key(0), {"tokens": jnp.zeros((1, 9), jnp.int32)})
    device = torch_device()
    network = torch_gpt(layers, width, heads, context, vocab).to(device)
    options = {"sampling": decoding.Sampling(top_k=20), "end_token": None}
    generate = jax.jit(lambda state, key, prompts: model.generate(state, key, prompts, new_tokens, **options).tokens)

    @torch.no_grad()
    def loop(prompts) -> torch.Tensor:
        caches = [[] for _ in range(layers)]
        logits = network(prompts, caches)[:, -1]
        for step in range(new_tokens):
            values, index = logits.topk(20)
            token = index.gather(1, torch.multinomial(values.softmax(-1), 1))
            if step + 1 < new_tokens:
                logits = network(token, caches, prompts.shape[1] + step)[:, -1]
        return token.cpu()

    def ours(prompts, mesh=None):
        arguments = (state, jax.random.key(0), jnp.asarray(prompts))
        if mesh is not None:
            whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
            arguments = jax.device_put(arguments, (whole, whole, split))
        return lambda: generate(*arguments).block_until_ready()

    for batch in batches:
        prompts = np.zeros((batch, 8), np.int32)
        given = torch.tensor(prompts, dtype=torch.long, device=device)
        runs = {"genjax": ours(prompts), "torch": functools.partial(loop, given)}
        if len(jax.devices()) > 1 and batch % len(jax.devices()) == 0:
            mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
            runs[f"genjax, prompts split over {len(jax.devices())} devices"] = ours(prompts, mesh)
        seconds = {name: [] for name in runs}
        repetitions = 10 if batch == 1 else 1  # a single run is a few milliseconds
        for run in runs.values():
            run()
        for _ in range(rounds):
            for name, run in runs.items():
                time.sleep(0.5)  # until the other's threads, which spin for a while, sleep too
                began = time.perf_counter()
                for _ in range(repetitions):
                    run()
                seconds[name].append((time.perf_counter() - began) / repetitions)
        rates = {name: batch * new_tokens / float(np.median(s)) for name, s in seconds.items()}
        print(f"generate, {batch} prompts")
        for name, rate in rates.items():
            print(f"  {name:<40} {rate:8.0f} tokens/s, {rate / rates['torch']:.2f} times torch's", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="gpt_small,gpt_large,lstm,generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices that prompts are also split over")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round of gpt2")
    parser.add_argument("--batch_size", type=int, default=16, help="of gpt2")
    parser.add_argument("--layers", type=int, default=GPT2_SIZE[0], help="of gpt2")
    parser.add_argument("--context", type=int, default=GPT2_SIZE[3], help="of gpt2")
    add_options(parser)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    host.keep_freed_memory()
    import torch

    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    adam = Adam(learning_rate=1e-3)
    for case in arguments.case.split(","):
        print(case, flush=True)
        if case == "generate":
            generation(arguments.rounds)
            continue
        if case == "gpt2":
            gpt2(arguments.rounds, arguments.steps, arguments.batch_size, arguments.layers, arguments.context)
            continue
        if case == "lstm":
            width, vocab = LSTM_SIZE["width"], LSTM_SIZE["vocab"]
            tokens = rng.integers(0, vocab, (LSTM_SIZE["batch"], LSTM_SIZE["length"] + 1)).astype(np.int32)
            network = Recurrent(cell="lstm", num_layers=2, hidden_dim=width)
            model = RecurrentLanguageModel(vocab_size=vocab, embedding_dim=width, network=network, optimizer=adam)
            theirs, steps = torch_lstm(), 4
        else:
            layers, width, heads, context, batch, vocab = SIZES[case]
            tokens = rng.integers(0, vocab, (batch, context + 1)).astype(np.int32)
            network = gpt2_network(layers, width, heads, max_length=context)
            model = GPT(vocab_size=vocab, network=network, optimizer=adam)
            theirs, steps = torch_gpt(layers, width, heads, context, vocab), 20 if case == "gpt_small" else 2
        compare(
            {"genjax": training_steps(model, {"tokens": tokens}), "torch": torch_run(theirs, tokens)},
            arguments.rounds,
            steps,
            **options_of(arguments),
        )


if __name__ == "__main__":
    main()
