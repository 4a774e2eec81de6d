"""Time of one training step of a VAE beside the same step in PyTorch, eager and compiled.

    python -m benchmarks.vae                       # needs `pip install 'genjax[benchmark]'`
    python -m benchmarks.vae --network=conv

All compute in float32 on the CPU with the same networks, loss and Adam, batch 128, 28 x 28 pixels; runs take turns, and
medians count.  The allocator is set as `experiments.train` sets it.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.timing import add_options, compare, options_of, training_steps
from genjax.families.vae.vae import VAE
from genjax.nn.encoder_decoder import ConvNetwork, MLPNetwork
from genjax.optimizers import Adam
from genjax.training import host

LATENT_DIM, HIDDEN, CHANNELS, DENSE = 32, 512, (32, 64), 256


def jax_step(x: np.ndarray, network: str, steps_per_dispatch: int):
    """Returns a function that takes the given number of steps and waits for them."""
    networks = {
        "mlp": MLPNetwork(hidden_dims=(HIDDEN,), activation="relu"),
        "conv": ConvNetwork(channels=CHANNELS, hidden_dims=(DENSE,), activation="relu"),
    }
    model = VAE(data_shape=(28, 28, 1), latent_dim=LATENT_DIM, network=networks[network], optimizer=Adam())
    return training_steps(model, {"x": x}, steps_per_dispatch)


def torch_networks(network: str):
    """Encoder and decoder with the shapes and the numbers of parameters of ours."""
    from torch import nn

    if network == "mlp":
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT_DIM))
        decoder = nn.Sequential(nn.Linear(LATENT_DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784))
        return encoder, decoder
    first, second = CHANNELS
    encoder = nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, first, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(first, second, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(49 * second, DENSE),
        nn.ReLU(),
        nn.Linear(DENSE, 2 * LATENT_DIM),
    )
    decoder = nn.Sequential(
        nn.Linear(LATENT_DIM, DENSE),
        nn.ReLU(),
        nn.Linear(DENSE, 49 * second),
        nn.ReLU(),
        nn.Unflatten(1, (second, 7, 7)),
        nn.ConvTranspose2d(second, first, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(first, 1, 4, 2, 1),
        nn.Flatten(),
    )
    return encoder, decoder


def torch_step(x: np.ndarray, network: str, compiled: bool):
    """The same in PyTorch."""
    import torch

    torch.manual_seed(0)
    encoder, decoder = torch_networks(network)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    data = torch.as_tensor(x.reshape(len(x), 28, 28))
    target = data.reshape(len(x), 784)

    def loss() -> torch.Tensor:
        mean, log_scale = encoder(data).chunk(2, -1)
        z = mean + torch.exp(log_scale) * torch.randn_like(mean)
        logits = decoder(z)
        reconstruction = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        kl = (0.5 * (mean**2 + torch.exp(2 * log_scale) - 1) - log_scale).sum()
        return (reconstruction + kl) / len(x)

    objective = torch.compile(loss) if compiled else loss

    def run(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad()
            value = objective()
            value.backward()
            optimizer.step()
        return value.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=("mlp", "conv"), default="mlp")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--steps_per_dispatch", type=int, default=10, help="as --training.steps_per_dispatch")
    parser.add_argument("--eager_only", action="store_true", help="leave torch.compile out; it needs a C++ compiler")
    add_options(parser)
    values = parser.parse_args()
    host.keep_freed_memory()
    x = np.random.default_rng(0).integers(0, 2, (values.batch_size, 28, 28, 1)).astype(np.float32)
    runs = {
        "genjax": jax_step(x, values.network, values.steps_per_dispatch),
        "torch eager": torch_step(x, values.network, compiled=False),
    }
    if not values.eager_only:
        runs["torch.compile"] = torch_step(x, values.network, compiled=True)
    compare(runs, values.rounds, values.steps, **options_of(values))


if __name__ == "__main__":
    main()
