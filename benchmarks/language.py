"""Time of BERT-mini (4 layers, 256 wide), forward and a training step, beside the same in PyTorch; and of loading.

    python -m benchmarks.language --rounds 5       # needs `pip install 'genjax[benchmark]'`
    python -m benchmarks.language --case load --gigabytes 1

    bert    batch 16, 128 tokens, vocabulary 8192, no dropout; 15% of the tokens are predicted, and only for these are
            logits made, in both; Adam; float32
    load    a random Llama-like checkpoint is written and read; how much the process needs above its parameters

Runs take turns, and medians count.  The allocator is set as `experiments.train` sets it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import compare
from genjax.families.language.bert import BERT
from genjax.families.language.encoder_tasks import MaskedLanguageModel
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import bert_network, llama_network
from genjax.interop.huggingface import abstract_params
from genjax.optimizers import Adam
from genjax.pretrained import load_pretrained, save_pretrained
from genjax.training import host

LAYERS, WIDTH, HEADS, BATCH, LENGTH, VOCAB = 4, 256, 4, 16, 128, 8192


def torch_bert():
    """BERT's network with PyTorch's fused attention, and the masked head at given places."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH, 1e-12), nn.LayerNorm(WIDTH, 1e-12)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x):
            batch, length, _ = x.shape
            q, k, v = self.qkv(x).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v)
            x = self.first(x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH)))
            return self.second(x + self.down(functional.gelu(self.up(x))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.types, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, 1e-12)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.transform, self.head_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, 1e-12)
            self.bias = nn.Parameter(torch.zeros(VOCAB))
            for weight in self.parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=0.02)

        def encode(self, tokens):
            x = self.norm(self.token(tokens) + self.position.weight + self.types.weight[0])
            for block in self.blocks:
                x = block(x)
            return x

        def forward(self, tokens, places=None):
            x = self.encode(tokens)
            if places is None:
                return x
            x = x.gather(1, places[:, :, None].expand(-1, -1, WIDTH))
            return self.head_norm(functional.gelu(self.transform(x))) @ self.token.weight.T + self.bias

    return Network()


def bert(rounds: int, threads: int, eager: bool) -> None:
    """Compares forward passes and training steps."""
    import torch

    torch.set_num_threads(threads)
    tokens = np.random.default_rng(0).integers(0, VOCAB - 4, (BATCH, LENGTH)).astype(np.int32)
    network = bert_network(LAYERS, WIDTH, HEADS, max_length=LENGTH, dropout=0.0, attention_dropout=0.0)
    model = BERT(
        vocab_size=VOCAB,
        mask_token=VOCAB - 1,
        special_tokens=(VOCAB - 2,),
        network=network,
        task=MaskedLanguageModel(),
        optimizer=Adam(learning_rate=1e-4),
    )
    batch = {"tokens": jnp.asarray(tokens)}
    state = jax.jit(model.init)(jax.random.key(0), batch)
    features = jax.jit(model.features)
    step = jax.jit(model.train_step, donate_argnums=0)

    def our_forward(count: int) -> float:
        for _ in range(count):
            out = features(state, batch)
        return float(out.mean())

    theirs = torch_bert()
    run = theirs if eager else torch.compile(theirs)
    data = torch.tensor(tokens, dtype=torch.long)

    def their_forward(count: int) -> float:
        with torch.no_grad():
            for _ in range(count):
                out = run(data)
        return out.mean().item()

    name = "torch" if eager else "torch.compile"
    print("forward", flush=True)
    compare({"genjax": our_forward, name: their_forward}, rounds, 10)

    trained = jax.tree.map(jnp.copy, state)

    def our_steps(count: int) -> float:
        nonlocal trained
        for i in range(count):
            trained, metrics = step(trained, batch, jax.random.key(i))
        return float(metrics["nll_per_token"])

    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4, fused=True)
    count = max(1, round(0.15 * LENGTH))

    def their_steps(steps: int) -> float:
        for _ in range(steps):
            places = torch.rand(BATCH, LENGTH).topk(count).indices
            targets = data.gather(1, places)
            kind = torch.rand(places.shape)
            new = torch.where(kind < 0.9, torch.randint(0, VOCAB, places.shape), targets)
            new = torch.where(kind < 0.8, VOCAB - 1, new)
            logits = run(data.scatter(1, places, new), places)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss.item()

    print("training step", flush=True)
    compare({"genjax": our_steps, name: their_steps}, rounds, 5)


def resident() -> int:
    """Bytes of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def llama(gigabytes: float) -> GPT:
    """A Llama-like model of about so many gigabytes: 2 x 32000 x 1024 numbers of embeddings, and 12.6 million a
    layer.
    """
    layers = max(1, round((gigabytes * 1e9 / 4 - 65.5e6) / 12.6e6))
    network = llama_network(layers, 1024, 8, mlp_dim=2816, max_length=2048)
    return GPT(vocab_size=32000, network=network, tie_embeddings=False)


def write(folder: str, gigabytes: float) -> None:
    """Writes a random checkpoint."""
    model, rng = llama(gigabytes), np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), abstract_params(model))
    save_pretrained(folder, model, params)


def load(gigabytes: float) -> None:
    """Reads a checkpoint of about so many gigabytes in this process, which another one has written."""
    with tempfile.TemporaryDirectory() as folder:
        # Elsewhere, because memory that this process had and gave back would hide what reading takes.
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(folder, gigabytes))
        writer.start()
        writer.join()
        size = (Path(folder) / "model.safetensors").stat().st_size
        jnp.zeros(1).block_until_ready()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before, began = resident(), time.perf_counter()
        loaded = load_pretrained(folder)
        jax.block_until_ready(loaded.params)
        seconds = time.perf_counter() - began
        own = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
        status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
        peak = int(status.split()[0]) * 1024
    print(
        f"checkpoint {size / 1e9:.3f} GB, parameters {own / 1e9:.3f} GB, read in {seconds:.1f} s; "
        f"peak {(peak - before) / 1e9:.3f} GB above the process, {(peak - before - own) / 1e9:.3f} GB above the "
        "parameters"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("bert", "load"), default="bert")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    host.keep_freed_memory()
    if arguments.case == "load":
        load(arguments.gigabytes)
    else:
        bert(arguments.rounds, arguments.threads, arguments.eager)


if __name__ == "__main__":
    main()
