"""Looks at the latent codes of a trained run, and writes a picture or a table:

    python -m experiments.latents --workdir=runs/vae_digits --tool=interpolate

interpolate   pairs of examples, and the decoded points between their two codes, on lines and on great arcs (both
              examples have one class if the model is conditional on classes)
traverse      one example, its code changed along one dimension at a time from -3 to 3; for InfoGAN a picture for each
              variable of the code, which changes along the rows of samples
arithmetic    examples of class --source, decoded after adding the mean code of --target and subtracting the mean code
              of --source (a model conditional on classes still decodes them as --source)
anomaly       detection of the class --held_out, which the run must not have seen (train it with --data.classes=...):
              area under the ROC curve of the negative likelihood, or of its bound
augment       labelled examples drawn from a model conditional on classes, --num_samples of each class
disentangle   mutual information gap and FactorVAE score, for a set with known factors (sprites)
export        the codes of --evaluation.split as a table, for instance to train a flow on
decode        pictures of the codes in the rows of the table --codes, for instance codes that the flow has drawn

To learn the density of an autoencoder's codes by a flow, and to see the flow's samples as pictures:

    python -m experiments.latents --workdir=runs/vae_digits --tool=export --evaluation.split=train
    python -m experiments.train --experiment=spline_table --data.dir=runs/vae_digits/latents/codes_train.npy \\
        --workdir=runs/flow
    python -m experiments.sample --workdir=runs/flow --output=runs/flow/codes
    python -m experiments.latents --workdir=runs/vae_digits --tool=decode --codes=runs/flow/codes.csv
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.data import Images, random_order, write_grid
from genjax.evaluation import disentanglement, latents, likelihood
from genjax.model import HasClasses
from genjax.tools import conditions
from genjax.tools import latents as latent_tables
from genjax.tools.likelihood import log_likelihoods
from genjax.training.records import write_json

TOOLS = ("interpolate", "traverse", "arithmetic", "anomaly", "augment", "disentangle", "export", "decode")

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
flags.DEFINE_enum("tool", "interpolate", TOOLS, "what to look at")
flags.DEFINE_integer("num_rows", 8, "rows of a picture", lower_bound=1)
flags.DEFINE_integer("num_values", 9, "columns of a picture: points on a path", lower_bound=2)
flags.DEFINE_integer("example", 0, "which example of the split is traversed", lower_bound=0)
flags.DEFINE_integer("source", 0, "class whose examples are changed")
flags.DEFINE_integer("target", 1, "class that they are changed towards")
flags.DEFINE_integer("held_out", None, "class that the run has not seen")
flags.DEFINE_integer("num_samples", 100, "examples drawn of each class", lower_bound=1)
flags.DEFINE_string("codes", None, "CSV or NPY file with a code in each row")
flags.DEFINE_list(
    "label", None, "classes of the rows of --codes, in turn, by name or number, for a model conditional on classes"
)
flags.DEFINE_integer("seed", 0, "seed of what is drawn")


def needs(run: Any, *methods: str) -> None:
    """Raises ConfigError unless the model has these capabilities."""
    missing = [name for name in methods if not hasattr(run.model, name)]
    if missing:
        raise ConfigError(
            f"--tool={flags.FLAGS.tool} needs a model with {' and '.join(methods)}; {type(run.model).__name__} has no "
            f"{' and no '.join(missing)}"
        )


def encode(run: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes [N, ...] and raw examples of the evaluation split."""
    needs(run, "encode", "decode")
    return latent_tables.encode(run)


def labels(run: Any, examples: dict[str, np.ndarray]) -> np.ndarray | None:
    """Classes of examples [N] where the model decodes codes given them, else None."""
    return examples["label"] if conditions.takes_labels(run.model) else None


def decode(run: Any, codes: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """Decoded rows of codes [R, C, ...], each row of one class [R] where there are any, shape [R * C, ...]."""
    label = None if label is None else np.repeat(label, codes.shape[1])
    return latent_tables.decode(run, codes.reshape(-1, *codes.shape[2:]), label)


def draw(run: Any, samples: np.ndarray, num_columns: int, name: str) -> None:
    """Writes a picture with rows of `num_columns` and prints its path."""
    stem = Path(run.workdir) / "latents" / name
    stem.parent.mkdir(exist_ok=True)
    data = run.experiment.data
    if isinstance(data, Images):
        path = stem.with_suffix(".png")
        write_grid(data.to_unit(samples), path, num_columns)
        print(path)
    else:
        for path in run.write_samples(samples, stem):
            print(path)


def report(run: Any, name: str, values: dict[str, Any]) -> None:
    """Prints a table and writes it as JSON."""
    path = Path(run.workdir) / "latents" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    settings = run.experiment.evaluation
    protocol = (
        f"{run.name}, step {run.step}, split {settings.split}, {run.experiment.data.protocol()}, seed {settings.seed}"
    )
    print(protocol)
    for key, value in values.items():
        print(f"  {key:<28} {value:.4f}" if isinstance(value, float) else f"  {key:<28} {value}")
    write_json(path, {"protocol": protocol, **values})
    print(f"written to {path}")


def interpolate(run: Any) -> None:
    codes, examples = encode(run)
    rows, columns = flags.FLAGS.num_rows, flags.FLAGS.num_values
    if len(codes) < 2 * rows:
        raise ConfigError(f"--num_rows={rows} needs {2 * rows} examples; the split has {len(codes)}")
    order = random_order(len(codes))
    codes, examples = codes[order], {name: a[order] for name, a in examples.items()}
    label, ends = labels(run, examples), np.arange(rows, 2 * rows)
    if label is not None:
        # Codes of different classes have no path between them that one class decodes.
        ends = latents.partners(label, rows)
        label = label[:rows]
    for name, path in (
        ("linear", latents.linear_interpolation),
        ("spherical", latents.spherical_interpolation),
    ):
        points = path(codes[:rows], codes[ends], columns)
        draw(run, decode(run, points, label), columns, f"interpolation_{name}")


def traverse(run: Any) -> None:
    if hasattr(run.model, "traverse"):
        traverse_variables(run)
        return
    codes, examples = encode(run)
    if codes.ndim != 2:
        raise ConfigError(f"--tool=traverse needs codes that are vectors; these have the shape {codes.shape[1:]}")
    if flags.FLAGS.example >= len(codes):
        raise ConfigError(f"--example={flags.FLAGS.example} is not in the split, which has {len(codes)} examples")
    # Dimensions whose means vary most are those that the model uses.
    used = np.argsort(-codes.var(0))[: flags.FLAGS.num_rows]
    values = np.linspace(-3.0, 3.0, flags.FLAGS.num_values)
    points = latents.traversal(codes[flags.FLAGS.example], used, values)
    label = labels(run, examples)
    label = None if label is None else np.repeat(label[flags.FLAGS.example], len(used))
    draw(run, decode(run, points, label), len(values), "traversal")
    print(f"rows are the dimensions {', '.join(map(str, used))}")


def traverse_variables(run: Any) -> None:
    values = flags.FLAGS
    sheets = latent_tables.traversals(run, jax.random.key(values.seed), values.num_rows, values.num_values)
    for variable, rows in enumerate(sheets):
        draw(run, rows.reshape(-1, *rows.shape[2:]), rows.shape[1], f"traversal_{variable}")


def arithmetic(run: Any) -> None:
    codes, examples = encode(run)
    if "label" not in examples:
        raise ConfigError(f"--tool=arithmetic needs a labelled set; {run.experiment.data.name} has no labels")
    source, target = flags.FLAGS.source, flags.FLAGS.target
    vector = latents.attribute_vector(codes, examples["label"], source, target)
    strength = np.linspace(0.0, 1.5, flags.FLAGS.num_values)
    chosen = codes[examples["label"] == source][: flags.FLAGS.num_rows]
    points = chosen[:, None] + strength.reshape(1, -1, *[1] * vector.ndim) * vector[None, None]
    label = np.full(len(chosen), source) if conditions.takes_labels(run.model) else None
    draw(run, decode(run, points, label), len(strength), f"arithmetic_{source}_to_{target}")


def anomaly(run: Any) -> None:
    held_out = flags.FLAGS.held_out
    if held_out is None:
        raise ConfigError("--tool=anomaly needs --held_out=CLASS, a class that the run has not seen")
    data = run.experiment.data
    seen = getattr(data, "classes", ())
    if held_out in seen or not seen:
        rest = ",".join(str(c) for c in range(10) if c != held_out)
        raise ConfigError(f"the run has seen the class {held_out}; train one without it: --data.classes={rest}")
    if conditions.takes_labels(run.model):
        raise ConfigError(
            f"--tool=anomaly needs a likelihood of all classes together; {type(run.model).__name__} has one given the class"
        )
    bound = "log_prob" if conditions.has_exact_log_prob(run.model) else "log_prob_bound"
    needs(run, bound)
    # Of the data before their transform, as in experiments.likelihood.
    score = lambda state, batch, key: -log_likelihoods(run.model, state, batch, key)[1]  # noqa: E731
    everything = dataclasses.replace(data, classes=())
    scores, examples = run.engine.map(score, run.state, run.experiment.evaluation.split, everything)
    known = np.isin(examples["label"], seen)
    new = examples["label"] == held_out
    report(
        run,
        f"anomaly_{held_out}",
        {
            "score": f"-{bound} (nats)",
            "held_out_class": held_out,
            "num_known": int(known.sum()),
            "num_held_out": int(new.sum()),
            "mean_score_known": float(scores[known].mean()),
            "mean_score_held_out": float(scores[new].mean()),
            "roc_auc": likelihood.roc_auc(scores[known], scores[new]),
        },
    )


def augment(run: Any) -> None:
    num_classes = getattr(run.model, "num_classes", None)
    if not num_classes:
        raise ConfigError(
            f"--tool=augment needs a model conditional on classes, such as conditional_vae; {type(run.model).__name__} is not"
        )
    label = np.repeat(np.arange(num_classes, dtype=np.int32), flags.FLAGS.num_samples)
    if isinstance(run.model, HasClasses):
        run.model.check_labels(label)
    samples = run.sample(jax.random.key(flags.FLAGS.seed), len(label), label=label)
    path = Path(run.workdir) / "latents" / "augmentation.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, x=samples, label=label)
    print(path)
    columns = min(flags.FLAGS.num_samples, 16)
    draw(
        run,
        samples.reshape(num_classes, -1, *samples.shape[1:])[:, :columns].reshape(-1, *samples.shape[1:]),
        columns,
        "augmentation",
    )


def disentangle(run: Any) -> None:
    codes, examples = encode(run)
    if "factors" not in examples:
        raise ConfigError(
            f"--tool=disentangle needs a set with known factors, such as sprites, not {run.experiment.data.name}"
        )
    rng = np.random.default_rng(flags.FLAGS.seed)
    codes = codes.reshape(len(codes), -1)
    report(
        run,
        "disentanglement",
        {
            "num_examples": len(codes),
            "mutual_information_gap": disentanglement.mutual_information_gap(codes, examples["factors"]),
            "factor_vae_score": disentanglement.factor_vae_score(codes, examples["factors"], rng),
        },
    )


def export(run: Any) -> None:
    codes, _ = encode(run)
    path = latent_tables.write_codes(run, codes)
    print(f"{len(codes)} codes of the split {run.experiment.evaluation.split} written to {path}")


def show_decoded(run: Any) -> None:
    if flags.FLAGS.codes is None:
        raise ConfigError("--tool=decode needs --codes=FILE, a CSV or NPY file with a code in each row")
    shape = latent_tables.code_shape(run)
    limit = flags.FLAGS.num_rows * flags.FLAGS.num_values
    codes = latent_tables.read_codes(flags.FLAGS.codes, shape, limit)
    name = f"decoded_{Path(flags.FLAGS.codes).stem}"
    label = None
    if conditions.takes_labels(run.model):
        if flags.FLAGS.label:
            names = run.experiment.data.label_names()
            label = conditions.labels_for(run.model, flags.FLAGS.label, len(codes), names)
        else:
            label = np.resize(np.arange(run.model.num_classes, dtype=np.int32), len(codes))
    draw(run, latent_tables.decode(run, codes, label), flags.FLAGS.num_values, name)


_TOOLS = {
    "interpolate": interpolate,
    "traverse": traverse,
    "arithmetic": arithmetic,
    "anomaly": anomaly,
    "augment": augment,
    "disentangle": disentangle,
    "export": export,
    "decode": show_decoded,
}


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is not None:
        _TOOLS[flags.FLAGS.tool](run)
    return 0


if __name__ == "__main__":
    command_line.run(main)
