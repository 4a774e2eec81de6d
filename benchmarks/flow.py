"""Time of one training step of RealNVP (8 couplings, 784 dimensions) beside the same step in PyTorch eager.

    python -m benchmarks.flow            # needs `pip install 'genjax[benchmark]'`

Both compute in float32 on the CPU with the same networks, loss and Adam; runs of both take turns, and medians count.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.timing import add_options, compare, options_of, training_steps
from genjax.families.flow.real_nvp import RealNVP
from genjax.optimizers import Adam
from genjax.training.host import keep_freed_memory

DIM, COUPLINGS, BOUND = 784, 8, 3.0


def jax_step(x: np.ndarray, hidden: tuple[int, ...], steps_per_dispatch: int = 1):
    """Returns a function that takes the given number of steps and waits for them."""
    model = RealNVP(
        data_shape=(DIM,), num_couplings=COUPLINGS, hidden_dims=hidden, bound=BOUND, actnorm=False, optimizer=Adam()
    )
    return training_steps(model, {"x": x}, steps_per_dispatch)


def torch_step(x: np.ndarray, hidden: tuple[int, ...]):
    """The same in PyTorch."""
    import torch

    torch.manual_seed(0)
    half = DIM // 2

    def network() -> torch.nn.Module:
        widths, layers = (half, *hidden), []
        for a, b in zip(widths[:-1], widths[1:]):
            layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        last = torch.nn.Linear(widths[-1], 2 * half)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        return torch.nn.Sequential(*layers, last)

    networks = torch.nn.ModuleList(network() for _ in range(COUPLINGS))
    optimizer = torch.optim.Adam(networks.parameters(), lr=1e-3)
    data = torch.as_tensor(x)

    def loss() -> torch.Tensor:
        h, log_det = data, 0.0
        for index, net in enumerate(networks):
            a, b = h[:, :half], h[:, half:]
            if index % 2:
                a, b = b, a
            shift, raw = net(a).chunk(2, -1)
            s = BOUND * torch.tanh(raw / BOUND)
            b = (b + shift) * torch.exp(s)
            log_det = log_det + s.sum(-1)
            h = torch.cat((b, a) if index % 2 else (a, b), -1)
        log_prob = -0.5 * (h**2 + np.log(2 * np.pi)).sum(-1) + log_det
        return -log_prob.mean()

    def run(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
        return value.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--hidden", type=int, nargs="*", default=[256, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--steps_per_dispatch", type=int, default=1)
    add_options(parser)
    values = parser.parse_args()
    keep_freed_memory()
    x = np.random.default_rng(0).normal(size=(values.batch_size, DIM)).astype(np.float32)
    runs = {
        "genjax": jax_step(x, tuple(values.hidden), values.steps_per_dispatch),
        "torch eager": torch_step(x, tuple(values.hidden)),
    }
    compare(runs, values.rounds, values.steps, **options_of(values))


if __name__ == "__main__":
    main()
