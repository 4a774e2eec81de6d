"""Compares the likelihood of a trained run with a normal distribution, and with the likelihood of other data:

    python -m experiments.likelihood --workdir=runs/maf_mnist --against=black,uniform,inverted,shuffled

Prints the log-likelihood of the evaluation split.  Beside it stands the log-likelihood under a full-covariance normal
distribution that is fitted to the training split, if the model is a density in the same space.  Prints how well the
likelihood tells the split from the sets --against (area under the ROC curve; below 0.5 the other set is likelier).  Of
two-dimensional data it draws the density and prints its integral.  Pictures of other sets are converted to the levels,
the size and the channels of the run's pictures.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
from absl import flags

from experiments import command_line
from genjax import config
from genjax.tools import conditions
from genjax.tools.likelihood import altered, has_density, other_set, scores_of_examples
from genjax.training.records import write_json

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
flags.DEFINE_list(
    "against",
    [],
    "other sets: uniform, constant, black, inverted or shuffled pictures made from the split, or the names of sets, with "
    "their place where it is another: emoji=FILE",
)
flags.DEFINE_integer("num_examples", 2000, "examples of each set that are compared", lower_bound=2)
flags.DEFINE_string("output", None, "path of the density picture; <workdir>/density.png unless given")


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    import jax

    from genjax.data import first_examples
    from genjax.evaluation import likelihood
    from genjax.model import HasLogProb, HasLogProbBound

    values, model, data = flags.FLAGS, run.model, run.experiment.data
    split = run.experiment.evaluation.split
    if not isinstance(model, HasLogProb | HasLogProbBound):
        raise config.ConfigError(f"{type(model).__name__} has no likelihood")
    exact = conditions.has_exact_log_prob(model)
    key = jax.random.key(run.experiment.evaluation.seed)

    score = jax.jit(functools.partial(scores_of_examples, model, data))

    def scores(examples: dict[str, np.ndarray]) -> list[np.ndarray]:
        size, parts = data.eval_batch_size, []
        count = len(examples["x"])
        for start in range(0, count, size):
            index = np.minimum(np.arange(start, start + size), count - 1)
            batch = {name: a[index] for name, a in examples.items()}
            part = score(run.state, {**batch, "example_index": index.astype(np.int32)}, key)
            parts.append([np.asarray(p)[: count - start] for p in part])
        return [np.concatenate(p) for p in zip(*parts, strict=True)]

    held_out = data.load(split)
    test = held_out.gather(np.arange(len(held_out)))
    log_prob, raw, x = scores(test)
    dim = int(np.prod(x.shape[1:]))
    shift = (raw - log_prob).mean()
    print(f"{run.name}, step {run.step}: {type(model).__name__} on {data.name}, split {split}, {len(x)} examples")
    rows = {type(model).__name__: log_prob.mean()}
    if getattr(model, "dequantization", None) is None and has_density(data, test, key):
        train = data.load("train")
        examples = train.gather(first_examples(len(train), 60000))
        name = "normal without condition" if "condition" in test else "full-covariance normal"
        rows[name] = scores_of_normal(data, examples, key, x).mean()
    for name, value in rows.items():
        bits = -(value + shift) / (dim * math.log(2.0))
        unit = "nats (bound)" if name == type(model).__name__ and not exact else "nats"
        print(f"  {name:<24} log-likelihood {value:10.4f} {unit:<12}   {bits:8.4f} bits/dim")
    record = {"step": run.step, "split": split, "log_likelihood": {k: float(v) for k, v in rows.items()}}

    if x.shape[1:] == (2,) and exact and "condition" not in test:
        low, high = x.min(0) - 1.0, x.max(0) + 1.0
        density, integral = likelihood.density_grid(
            lambda points: scores_of_x(model, run.state, points), low, high, 400
        )
        path = Path(values.output or Path(run.workdir) / "density.png").expanduser()
        likelihood.write_density(density, low, high, x, path)
        record["integral"] = integral
        print(f"  the density integrates to {integral:.5f} over the square of the picture\n{path}")

    own = first_examples(len(raw), values.num_examples)
    for name in values.against:
        if name in ("uniform", "constant", "black", "inverted", "shuffled"):
            if not hasattr(data, "levels"):
                raise config.ConfigError(f"--against={name} is made from pictures, but {data.name} has none")
            examples = {**test, "x": altered(name, test["x"], data.levels)}
            examples = {k: a[own] for k, a in examples.items()}
        else:
            if conditions.takes_labels(model):
                raise config.ConfigError(f"the run is conditional on classes, which --against={name} does not share")
            examples = other_set(data, name, split, test["x"].shape[1:], values.num_examples)
            name = name.partition("=")[0]
        theirs = scores(examples)[1]
        # Values that underflow to a likelihood of 0 are simply the least likely.
        area = likelihood.roc_auc(np.nan_to_num(theirs, nan=-np.inf), raw[own])
        record.setdefault("roc_auc", {})[name] = area
        print(
            f"  against {name:<16} ROC-AUC {area:.4f}   their mean {-theirs.mean() / (dim * math.log(2.0)):8.4f} bits/dim"
        )
    path = Path(run.workdir) / f"likelihood_{split}.json"
    write_json(path, record)
    print(f"written to {path}")
    return 0


def scores_of_normal(data, train: dict[str, np.ndarray], key, x: np.ndarray) -> np.ndarray:
    """Log-density of x [N, ...] under a normal distribution fitted to training examples in the model's space."""
    import jax

    from genjax.evaluation import likelihood

    batch = {**train, "example_index": np.arange(len(train["x"]), dtype=np.int32)}
    transformed = np.asarray(jax.jit(data.transform)(batch, jax.random.fold_in(key, 1))["x"])
    return likelihood.gaussian_log_prob(x, *likelihood.fit_gaussian(transformed))


def scores_of_x(model, state, points: np.ndarray) -> np.ndarray:
    """Log-density of points [N, D] in the model's space."""
    import jax

    return np.asarray(jax.jit(model.log_prob)(state, {"x": points}))


if __name__ == "__main__":
    command_line.run(main)
