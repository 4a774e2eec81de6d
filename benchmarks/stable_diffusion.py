"""Time of one evaluation of a small U-Net of Stable Diffusion beside diffusers', and of its gradient.

    python -m benchmarks.stable_diffusion          # needs torch and diffusers

The U-Net has 32 and 64 channels, two residual blocks a level, a spatial transformer on the second, and codes 16 x 16
x 4, batch 4, on two threads; float32.  Runs take turns, and medians count.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import compare
from genjax.families.diffusion.checkpoints import read_unet
from genjax.training import host

CONFIG = {
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "sample_size": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--gradient", action="store_true", help="time value and gradient")
    arguments = parser.parse_args()
    host.keep_freed_memory()
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    z, context = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 16, 16, 4), (4, 77, 32)))
    k = np.full((4,), 500.0, np.float32)
    module = read_unet(CONFIG).build(4, None, jnp.float32)
    params = jax.jit(module.init)(jax.random.key(0), z, k, {"context": context})["params"]
    theirs = UNet2DConditionModel(**CONFIG)
    print(f"parameters: genjax {sum(p.size for p in jax.tree.leaves(params)):,}", end=", ")
    print(f"diffusers {sum(p.numel() for p in theirs.parameters()):,}")
    inputs = (torch.tensor(z).permute(0, 3, 1, 2).contiguous(), torch.tensor(k), torch.tensor(context))
    apply = lambda params: module.apply({"params": params}, z, k, {"context": context})
    forward = jax.jit(lambda params: apply(params).mean())
    gradient = jax.jit(jax.grad(lambda params: jnp.square(apply(params)).mean()))

    def ours_run(count: int) -> float:
        found = 0.0
        for _ in range(count):
            found = forward(params) if not arguments.gradient else gradient(params)["output"]["bias"].sum()
            found.block_until_ready()
        return float(found)

    def their_run(count: int) -> float:
        found = torch.zeros(())
        for _ in range(count):
            if arguments.gradient:
                theirs.zero_grad()
                found = torch.square(theirs(*inputs).sample).mean()
                found.backward()
            else:
                with torch.no_grad():
                    found = theirs(*inputs).sample.mean()
        return float(found)

    compare({"genjax": ours_run, "diffusers": their_run}, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
