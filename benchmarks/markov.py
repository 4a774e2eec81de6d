"""Times beside hmmlearn (forward pass and EM step), scikit-learn (EM of mixtures) and blackjax (NUTS).

    python -m benchmarks.markov          # needs `pip install hmmlearn blackjax scikit-learn`

All compute on the CPU with the cores that there are; runs of both sides take turns, and medians count.  Compile time is
apart.  NUTS counts the smallest bulk effective sample size of a second, with windowed warm-up apart, of four chains.
"""

from __future__ import annotations

import argparse
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import compare
from genjax.data import Evidence
from genjax.families.markov.hidden_markov_model import HiddenMarkovModel
from genjax.families.mixture.mixture import MixtureModel
from genjax.families.monte_carlo import diagnostics
from genjax.families.monte_carlo.kernels import Nuts
from genjax.families.monte_carlo.sampler import run_chains
from genjax.families.monte_carlo.targets import CorrelatedGaussian, EightSchools, LogisticRegression
from genjax.nn.emissions import Gaussian


def hidden_markov_model(rounds: int) -> None:
    """64 states, 16 sequences of 1000 frames of 8 numbers, diagonal Gaussians."""
    from hmmlearn.hmm import GaussianHMM

    states, length, count, dim = 64, 1000, 16, 8
    x = np.random.default_rng(0).normal(size=(count, length, dim)).astype(np.float32)
    model, batch = HiddenMarkovModel(num_states=states, emission=Gaussian()), {"x": jnp.asarray(x)}
    state = jax.jit(model.init)(jax.random.key(0), batch)
    log_prob, step = jax.jit(model.log_prob), jax.jit(model.train_step)
    params = jax.tree.map(np.float64, model.best(state))
    flat, lengths = x.reshape(-1, dim).astype(np.float64), [length] * count

    def peer(implementation: str) -> GaussianHMM:
        other = GaussianHMM(states, "diag", n_iter=1, init_params="", implementation=implementation)
        normalize = lambda p: np.exp(p) / np.exp(p).sum(-1, keepdims=True)
        other.startprob_, other.transmat_ = normalize(params["initial"]), normalize(params["transition"])
        other.means_, other.covars_ = params["emission"]["mean"], params["emission"]["scale"] ** 2
        return other

    print("forward pass")
    runs = {"genjax": lambda n: [float(log_prob(state, batch).sum()) for _ in range(n)][-1]}
    for kind in ("scaling", "log"):
        other = peer(kind)
        runs[f"hmmlearn {kind}"] = lambda n, o=other: [o.score(flat, lengths) for _ in range(n)][-1]
    compare(runs, rounds, 2)
    print("EM step")
    runs = {"genjax": lambda n: [float(step(state, batch, jax.random.key(0))[1]["loss"]) for _ in range(n)][-1]}
    for kind in ("scaling", "log"):
        runs[f"hmmlearn {kind}"] = lambda n, k=kind: [
            -peer(k).fit(flat, lengths).monitor_.history[0] / len(flat) for _ in range(n)
        ][-1]
    compare(runs, max(rounds // 2, 1), 1)


def mixture(rounds: int) -> None:
    """EM steps of 32 full-covariance components on 100,000 points of 16 numbers."""
    from sklearn.mixture import GaussianMixture

    steps = 10
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(32, 16))[rng.integers(0, 32, 100_000)] * 3 + rng.normal(size=(100_000, 16))).astype(
        np.float32
    )
    model, batch = MixtureModel(num_components=32), {"x": jnp.asarray(x)}
    start = jax.jit(model.init)(jax.random.key(0), batch)
    step, means = jax.jit(model.train_step), np.float64(start.params["parts"]["mean"])

    def own(n: int) -> float:
        state = start
        for i in range(n):
            state, metrics = step(state, batch, jax.random.key(i))
        return float(metrics["loss"])

    def peer(n: int) -> float:
        # In the data's own type, which is the faster for it.
        other = GaussianMixture(
            32, max_iter=n, tol=0, means_init=means.astype(np.float32), init_params="random_from_data"
        )
        return -float(other.fit(x).lower_bound_)

    compare({"genjax": own, "scikit-learn": peer}, rounds, steps)


def monte_carlo(rounds: int) -> None:
    """NUTS with 1000 transitions of warm-up and 2000 draws on three posteriors."""
    import blackjax

    schools = {name: jnp.asarray(a) for name, a in Evidence(name="eight_schools").load("train").arrays().items()}
    cancer = {name: jnp.asarray(a) for name, a in Evidence(name="breast_cancer").load("train").arrays().items()}
    posteriors = {
        "eight schools": (EightSchools(), schools),
        "correlated Gaussian, 50": (CorrelatedGaussian(dim=50, correlation=0.95), {"x": jnp.zeros((1, 0))}),
        "logistic regression, 31": (LogisticRegression(), cancer),
    }
    chains, warmup, draws = 4, 1000, 2000

    def smallest(positions) -> float:
        parts = [np.asarray(a).reshape(chains, draws, -1) for a in jax.tree.leaves(positions)]
        return float(diagnostics.summarize(jnp.concatenate(parts, -1))["bulk_ess"].min())

    for name, (target, batch) in posteriors.items():
        density = lambda q, target=target, batch=batch: target.log_density(q, batch)
        shapes = target.shapes((batch["x"].shape[1],))
        start = {k: jax.random.normal(jax.random.key(i), (chains, *s)) for i, (k, s) in enumerate(shapes.items())}

        # Warm-up once; then the sampling alone is compiled, and timed.
        warm = run_chains(jax.random.key(0), density, start, warmup, 1)
        last = jax.tree.map(lambda a: a[:, -1], warm.positions)
        step, mass = warm.step_size, warm.inverse_mass
        own_sampling = jax.jit(lambda key, q, d=density: sample_own(key, q, d, step, mass, draws))  # noqa: B023

        def adapt(key, q, d=density):
            (state, parameters), _ = blackjax.window_adaptation(blackjax.nuts, d).run(key, q, num_steps=warmup)
            return state, parameters

        states, parameters = jax.jit(jax.vmap(adapt))(jax.random.split(jax.random.key(1), chains), start)

        def one(key, state, parameters, d=density):
            kernel = blackjax.nuts(d, **parameters)

            def move(state, key):
                state, _ = kernel.step(key, state)
                return state, state.position

            return jax.lax.scan(move, state, jax.random.split(key, draws))[1]

        peer_sampling = jax.jit(lambda key, one=one: jax.vmap(one)(jax.random.split(key, chains), states, parameters))  # noqa: B023
        rates: dict[str, list[float]] = {"genjax": [], "blackjax": []}
        for i in range(rounds + 1):
            for side, call in (
                ("genjax", lambda key: own_sampling(key, last)),  # noqa: B023
                ("blackjax", peer_sampling),
            ):
                began = time.perf_counter()
                positions = jax.block_until_ready(call(jax.random.key(i)))
                seconds = time.perf_counter() - began
                if i:
                    rates[side].append(smallest(positions) / seconds)
        medians = {side: float(np.median(r)) for side, r in rates.items()}
        ratio = medians["genjax"] / medians["blackjax"]
        print(
            f"{name:<24}",
            "  ".join(f"{s} {r:9.0f} ESS/s" for s, r in medians.items()),
            f"  ratio {ratio:.2f}",
            flush=True,
        )


def sample_own(key, q, density, step, mass, draws):
    """NUTS draws [C, draws, ...] from positions after the warm-up."""
    from jax.flatten_util import ravel_pytree

    unravel = ravel_pytree(jax.tree.map(lambda a: a[0], q))[1]
    flat = jax.vmap(lambda p: ravel_pytree(p)[0])(q)
    kernel = Nuts()

    def chain(key, q):
        move = lambda q, k: (lambda new: (new, new))(kernel.step(k, q, lambda q: density(unravel(q)), step, mass)[0])
        return jax.lax.scan(move, q, jax.random.split(key, draws))[1]

    return jax.vmap(jax.vmap(unravel))(jax.vmap(chain)(jax.random.split(key, len(flat)), flat))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", "hmm", "mixture", "nuts"), default="all")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    warnings.simplefilter("ignore")
    for name, part in {"hmm": hidden_markov_model, "mixture": mixture, "nuts": monte_carlo}.items():
        if flags.part in ("all", name):
            print(f"== {part.__doc__}")
            part(flags.rounds)


if __name__ == "__main__":
    main()
