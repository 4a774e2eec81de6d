"""Time of one training step of a U-Net beside the same step in PyTorch eager, and the cost of a sampler's own loop.

    python -m benchmarks.diffusion                 # needs `pip install 'genjax[benchmark]'`
    python -m benchmarks.diffusion --accumulation_steps=4     # the batch in four parts, for the same gradient
    python -m benchmarks.diffusion --compute_dtype=bfloat16 --compiled --batch_size=128    # for a GPU
    python -m benchmarks.diffusion --sampler       # network evaluations alone beside the whole sampler

The U-Net has 32, 64 and 128 channels on three levels, one residual block a level (two on the way up), attention on the
last, and 32 x 32 x 3 pixels, batch 16; float32, epsilon loss and Adam, on a GPU where JAX has one and else on the CPU.
Runs take turns, and medians count.  With `--accumulation_steps`, PyTorch is timed both ways: the whole batch at once,
and in as many parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import add_options, compare, options_of, torch_device, training_steps
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.samplers import DDIM
from genjax.families.diffusion.unet import UNet
from genjax.optimizers import Adam
from genjax.training import host

WIDTHS = (32, 64, 128)
MODEL = Diffusion(
    data_shape=(32, 32, 3),
    network=UNet(channels=32, channel_multipliers=(1, 2, 4), num_blocks=1, attention_levels=(2,), num_groups=8),
    optimizer=Adam(learning_rate=1e-4),
)


def num_parameters(x: np.ndarray) -> int:
    """Number of parameters of ours."""
    state = jax.eval_shape(MODEL.init, jax.random.key(0), {"x": x})
    return sum(a.size for a in jax.tree.leaves(state.params))


def torch_step(x: np.ndarray, accumulation_steps: int = 1, compiled: bool = False, dtype: str = "float32"):
    """The same network and step in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int):
            super().__init__()
            self.norm_1, self.conv_1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
            self.adapt = nn.Linear(128, 2 * outputs)
            self.norm_2, self.conv_2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
            self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

        def forward(self, x, embedding):
            h = self.conv_1(functional.silu(self.norm_1(x)))
            scale, shift = self.adapt(embedding)[:, :, None, None].chunk(2, 1)
            h = self.norm_2(h) * (1 + scale) + shift
            return self.skip(x) + self.conv_2(functional.silu(h))

    class Attend(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.norm = nn.GroupNorm(8, width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x):
            b, c, h, w = x.shape
            q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, -1)
            heads = lambda a: a.view(b, h * w, 4, c // 4).transpose(1, 2)
            y = (
                functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
                .transpose(1, 2)
                .reshape(b, h * w, c)
            )
            return x + self.out(y).transpose(1, 2).reshape(b, c, h, w)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            a, b, c = WIDTHS
            self.embed = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
            self.input = nn.Conv2d(3, a, 3, padding=1)
            self.down = nn.ModuleList([Block(a, a), Block(a, b), Block(b, c)])
            self.halve = nn.ModuleList([nn.Conv2d(a, a, 3, 2, 1), nn.Conv2d(b, b, 3, 2, 1)])
            self.middle = nn.ModuleList([Block(c, c), Block(c, c)])
            self.up = nn.ModuleList(
                [Block(c + c, c), Block(c + b, c), Block(c + b, b), Block(b + a, b), Block(b + a, a), Block(a + a, a)]
            )
            self.enlarge = nn.ModuleList([nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)])
            self.attend = nn.ModuleList([Attend(c) for _ in range(4)])
            self.output = nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, 3, 3, padding=1))

        def forward(self, x, t):
            frequencies = torch.exp(-math.log(10000.0) * torch.arange(16, device=t.device) / 16)
            angles = t[:, None] * frequencies
            e = self.embed(torch.cat([angles.cos(), angles.sin()], -1))
            h = self.input(x)
            skips = [h]
            for i in range(3):
                h = self.down[i](h, e)
                if i == 2:
                    h = self.attend[0](h)
                skips.append(h)
                if i < 2:
                    h = self.halve[i](h)
                    skips.append(h)
            h = self.middle[1](self.attend[1](self.middle[0](h, e)), e)
            for i in range(6):
                h = self.up[i](torch.cat([h, skips.pop()], 1), e)
                if i < 2:
                    h = self.attend[2 + i](h)
                if i in (1, 3):
                    h = self.enlarge[i // 2](functional.interpolate(h, scale_factor=2))
            return self.output(h)

    device = torch_device()
    net = Net().to(device)
    size = sum(p.numel() for p in net.parameters())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    if compiled:
        net = torch.compile(net)
    data = torch.as_tensor(x).permute(0, 3, 1, 2).contiguous().to(device)
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).sqrt().to(device)

    def run(count: int) -> float:
        for _ in range(count):
            step = torch.randint(0, 1000, (len(data),), device=device)
            alpha, noise = alphas[step][:, None, None, None], torch.randn_like(data)
            z, total = alpha * data + (1 - alpha**2).sqrt() * noise, 0.0
            optimizer.zero_grad()
            for part in zip(*(a.chunk(accumulation_steps) for a in (z, step + 1.0, noise))):
                with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
                    value = functional.mse_loss(net(*part[:2]), part[2]) / accumulation_steps
                value.backward()
                total += value.detach()
            optimizer.step()
        return float(total)

    return run, size


def compare_sampler(x: np.ndarray, num_steps: int, rounds: int) -> None:
    """Prints what the sampler's loop adds to the network's evaluations inside the same compiled scan."""
    model = dataclasses.replace(MODEL, sampler=DDIM(num_steps=num_steps))
    state = jax.jit(model.init)(jax.random.key(0), {"x": jnp.asarray(x)})
    shape = x.shape

    @jax.jit
    def network_alone(state, z):
        def body(z, t):
            return model.apply(state.params, z, jnp.broadcast_to(t, shape[:1]), {}), None

        return jax.lax.scan(body, z, jnp.linspace(1.0, 0.02, num_steps))[0]

    sample = jax.jit(lambda s, key: model.sample(s, key, shape[0]))

    def run_sampler(_: int) -> float:
        return float(sample(state, jax.random.key(2)).mean())

    def run_network(_: int) -> float:
        return float(network_alone(state, jnp.asarray(x)).mean())

    compare({"sampler": run_sampler, "network": run_network}, rounds=rounds, steps=num_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", action="store_true", help="time the sampler's loop instead of training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--accumulation_steps", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--compute_dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--compiled", action="store_true", help="also time torch.compile; on the CPU it needs a C++ compiler"
    )
    add_options(parser)
    arguments = parser.parse_args()
    host.keep_freed_memory()
    x = np.random.default_rng(0).uniform(-1, 1, (arguments.batch_size, 32, 32, 3)).astype(np.float32)
    if arguments.sampler:
        compare_sampler(x, 20, arguments.rounds)
        return
    import torch

    torch.set_num_threads(2)
    dtype = arguments.compute_dtype
    theirs, torch_size = torch_step(x, dtype=dtype)
    print(f"parameters: genjax {num_parameters(x):,}, torch {torch_size:,}")
    parts = arguments.accumulation_steps
    optimizer = dataclasses.replace(MODEL.optimizer, accumulation_steps=parts)
    model = dataclasses.replace(MODEL, optimizer=optimizer, compute_dtype=dtype)
    runs = {"genjax": training_steps(model, {"x": x}), "torch eager": theirs}
    if parts > 1:
        runs["torch in parts"] = torch_step(x, parts, dtype=dtype)[0]
    if arguments.compiled:
        runs["torch.compile"] = torch_step(x, compiled=True, dtype=dtype)[0]
    compare(runs, arguments.rounds, arguments.steps, **options_of(arguments))


if __name__ == "__main__":
    main()
