"""Times the gated PixelCNN: a training step beside PyTorch eager, and the stepwise sampler beside whole passes.

    python -m benchmarks.autoregressive step          # 5 layers x 64, batch 32; needs `pip install 'genjax[benchmark]'`
    python -m benchmarks.autoregressive step --accumulation_steps=8    # the batch in eight parts, for the same gradient
    python -m benchmarks.autoregressive sampling      # 10 layers x 128, 64 pictures

Both training steps compute in float32 on the CPU with the same layers, loss and Adam; runs of both take turns, and
medians count.  With `--accumulation_steps`, PyTorch is timed both ways: the whole batch at once, and in as many parts.
The naive sampler takes 784 equal passes, of which `--passes` are timed.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import add_options, compare, options_of, training_steps
from genjax.families.autoregressive.gated_pixel_cnn import GatedPixelCNN
from genjax.optimizers import Adam
from genjax.training.host import keep_freed_memory

SIZE = 28


def jax_step(x: np.ndarray, layers: int, width: int, accumulation_steps: int = 1):
    """Returns a function that takes the given number of steps and waits for them."""
    optimizer = Adam(accumulation_steps=accumulation_steps)
    model = GatedPixelCNN(
        data_shape=(SIZE, SIZE, 1), num_layers=layers, hidden_dim=width, output_dim=width, optimizer=optimizer
    )
    return training_steps(model, {"x": x})


def torch_step(x: np.ndarray, layers: int, width: int, accumulation_steps: int = 1):
    """The same in PyTorch, with kernels cropped to their taps and pictures shifted by padding."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)

    def gate(a: torch.Tensor) -> torch.Tensor:
        first, second = a.chunk(2, 1)
        return torch.tanh(first) * torch.sigmoid(second)

    class Layer(nn.Module):
        def __init__(self, channels: int, size: int, first: bool, last: bool):
            super().__init__()
            self.first, self.last, self.half = first, last, size // 2
            rows = size // 2 + (not first)
            self.vertical = nn.Conv2d(channels, 2 * width, (rows, size))
            self.link = nn.Conv2d(2 * width, 2 * width, 1)
            self.horizontal = nn.Conv2d(channels, 2 * width, (1, rows), bias=False)
            self.out = nn.Conv2d(width, width, 1)

        def forward(self, v: torch.Tensor, h: torch.Tensor):
            half = self.half
            # The first layer leaves out the present row and pixel: one more zero before, one fewer after.
            if self.first:
                a = self.vertical(functional.pad(v[:, :, :-1], (half, half, half, 0)))
                b = self.horizontal(functional.pad(h[..., :-1], (half, 0)))
            else:
                a = self.vertical(functional.pad(v, (half, half, half, 0)))
                b = self.horizontal(functional.pad(h, (half, 0)))
            residual = self.out(gate(b + self.link(a)))
            return None if self.last else gate(a), residual if self.first else h + residual

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                Layer(1 if n == 0 else width, 7 if n == 0 else 3, n == 0, n == layers - 1) for n in range(layers)
            )
            self.last, self.head = nn.Conv2d(width, width, 1), nn.Conv2d(width, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            v = h = 2 * x - 1
            for layer in self.layers:
                v, h = layer(v, h)
            return self.head(functional.relu(self.last(functional.relu(h))))

    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    data = torch.as_tensor(x).permute(0, 3, 1, 2).contiguous()

    def run(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad()
            total = 0.0
            for part in data.chunk(accumulation_steps):
                loss = functional.binary_cross_entropy_with_logits(network(part), part, reduction="sum") / len(data)
                loss.backward()
                total += loss.item()
            optimizer.step()
        return total

    return run


def sampling(layers: int, width: int, count: int, passes: int) -> None:
    """Prints the time of both samplers."""
    model = GatedPixelCNN(data_shape=(SIZE, SIZE, 1), num_layers=layers, hidden_dim=width, output_dim=width)
    x = jnp.zeros((count, SIZE, SIZE, 1))
    state = jax.jit(model.init)(jax.random.key(0), {"x": x})
    sample = jax.jit(model.sample, static_argnames="num_samples")

    def timed(function) -> float:
        jax.block_until_ready(function())  # compiles
        began = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - began

    fast = timed(lambda: sample(state, jax.random.key(1), num_samples=count))
    features = jax.jit(model.features)
    one = timed(lambda: [jax.block_until_ready(features(state.params, x, None)) for _ in range(passes)]) / passes
    slow = SIZE * SIZE * one
    print(f"{count} pictures, {layers} layers x {width}")
    print(
        f"stepwise {fast:.2f} s; {SIZE * SIZE} whole passes of {one:.3f} s: {slow:.1f} s; "
        f"{slow / fast:.1f} times faster"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["step", "sampling"])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_samples", type=int, default=64)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--accumulation_steps", type=int, default=1)
    add_options(parser)
    values = parser.parse_args()
    keep_freed_memory()
    if values.what == "sampling":
        sampling(10, 128, values.num_samples, values.passes)
        return
    x = (np.random.default_rng(0).random((values.batch_size, SIZE, SIZE, 1)) < 0.3).astype(np.float32)
    parts = values.accumulation_steps
    runs = {"genjax": jax_step(x, 5, 64, parts), "torch eager": torch_step(x, 5, 64)}
    if parts > 1:
        runs["torch in parts"] = torch_step(x, 5, 64, parts)
    compare(runs, values.rounds, values.steps, **options_of(values))


if __name__ == "__main__":
    main()
