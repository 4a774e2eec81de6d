"""Time of one training step of DCGAN (discriminator and generator) beside the same step in PyTorch, eager and compiled.

    python -m benchmarks.gan                       # needs `pip install 'genjax[benchmark]'`
    python -m benchmarks.gan --eager_only

Batch 64, 32 x 32 x 3 pixels, 64 base channels, latents of 100, batch norm in both networks, non-saturating objective
and Adam, float32, on a GPU where JAX has one and else on the CPU.  Both draw new latents for each network's update.
Runs take turns, and medians count.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.timing import add_options, compare, options_of, torch_device, training_steps
from genjax.families.gan.dcgan import DCGANNetwork
from genjax.families.gan.gan import GAN
from genjax.optimizers import Adam
from genjax.training import host

LATENT_DIM, SIZE = 100, 32


def jax_step(x: np.ndarray, base: int):
    """Returns a function that takes the given number of steps and waits for them."""
    adam = Adam(learning_rate=2e-4, b1=0.5)
    model = GAN(
        data_shape=(SIZE, SIZE, 3),
        latent_dim=LATENT_DIM,
        network=DCGANNetwork(base_channels=base),
        generator_optimizer=adam,
        discriminator_optimizer=adam,
    )
    return training_steps(model, {"x": x})


def torch_networks(base: int):
    """Generator and discriminator with the shapes and the numbers of parameters of ours."""
    from torch import nn

    generator = nn.Sequential(
        nn.ConvTranspose2d(LATENT_DIM, 4 * base, 4, 1, 0, bias=False),
        nn.BatchNorm2d(4 * base),
        nn.ReLU(True),
        nn.ConvTranspose2d(4 * base, 2 * base, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * base),
        nn.ReLU(True),
        nn.ConvTranspose2d(2 * base, base, 4, 2, 1, bias=False),
        nn.BatchNorm2d(base),
        nn.ReLU(True),
        nn.ConvTranspose2d(base, 3, 4, 2, 1),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(3, base, 4, 2, 1),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(base, 2 * base, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * base),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(2 * base, 4 * base, 4, 2, 1, bias=False),
        nn.BatchNorm2d(4 * base),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(4 * base, 1, 4, 1, 0),
        nn.Flatten(),
    )
    return generator, discriminator


def torch_step(x: np.ndarray, base: int, compiled: bool):
    """The same in PyTorch."""
    import torch
    from torch.nn.functional import softplus

    torch.manual_seed(0)
    device = torch_device()
    generator, discriminator = (network.to(device) for network in torch_networks(base))
    optimizers = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in (generator, discriminator)]
    if compiled:
        generator, discriminator = torch.compile(generator), torch.compile(discriminator)
    data = torch.as_tensor(x).permute(0, 3, 1, 2).contiguous().to(device)
    latents = lambda: torch.randn(len(x), LATENT_DIM, 1, 1, device=device)

    def run(count: int) -> float:
        for _ in range(count):
            with torch.no_grad():
                fake = generator(latents())
            optimizers[1].zero_grad()
            (softplus(-discriminator(data)).mean() + softplus(discriminator(fake)).mean()).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            discriminator.requires_grad_(False)
            loss = softplus(-discriminator(generator(latents()))).mean()
            loss.backward()
            discriminator.requires_grad_(True)
            optimizers[0].step()
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--base_channels", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--eager_only", action="store_true", help="leave torch.compile out; it needs a C++ compiler")
    add_options(parser)
    values = parser.parse_args()
    host.keep_freed_memory()
    x = np.random.default_rng(0).uniform(-1, 1, (values.batch_size, SIZE, SIZE, 3)).astype(np.float32)
    runs = {
        "genjax": jax_step(x, values.base_channels),
        "torch eager": torch_step(x, values.base_channels, compiled=False),
    }
    if not values.eager_only:
        runs["torch.compile"] = torch_step(x, values.base_channels, compiled=True)
    compare(runs, values.rounds, values.steps, **options_of(values))


if __name__ == "__main__":
    main()
