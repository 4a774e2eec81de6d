"""Codes of a trained run: paths between them, directions, their information on classes and
factors, and tables of codes.

    run = genjax.restore("runs/vae_digits")
    latents.interpolate(run, latents.Options(num_rows=4))

A density of codes learned from the table of `export` (any flow, with --data.name=table) turns an autoencoder into a
generative model, and shows how far the codes of a VAE, the means of q(z | x), are from its prior.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax.config import ConfigError, check_at_least
from genjax.data import Images, random_order, write_grid
from genjax.data.files import with_ending
from genjax.data.latents import TEXT_FIELDS, TEXTS_FILE
from genjax.data.tables import read_table
from genjax.evaluation import disentanglement, likelihood
from genjax.evaluation.latents import (
    attribute_vector,
    linear_interpolation,
    partners,
    spherical_interpolation,
    traversal,
)
from genjax.model import HasClasses, HasCodeMaps, HasCodeVariables, HasLatents, HasLogProb, HasLogProbBound, takes
from genjax.tools.conditions import has_exact_log_prob, labels_for
from genjax.tools.likelihood import log_likelihoods
from genjax.tools.outcome import Outcome, folder_of
from genjax.training import Run
from genjax.training.records import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the tools for codes.

    Attributes:
      num_rows: number of rows of a picture.
      num_values: number of columns of a picture, which are points on a path.
      example: number of the example of the split that is traversed.
      source: class whose examples are changed.
      target: class towards which examples are changed.
      held_out: class that the run has not seen.
      num_samples: number of examples that are drawn of each class.
      codes: CSV or NPY file with a code in each row.
      label: classes of the rows of codes, in turn, by name or number, for a model conditional on classes.
      seed: seed of all random choices.
    """

    num_rows: int = 8
    num_values: int = 9
    example: int = 0
    source: int = 0
    target: int = 1
    held_out: int | None = None
    num_samples: int = 100
    codes: str | None = None
    label: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, num_rows=1, num_values=2, example=0, num_samples=1)


def interpolate(run: Run, options: Options | None = None) -> Outcome:
    """Draws the decoded points between the codes of pairs of examples, on lines and on great arcs.

    Raises:
      ConfigError: the model has no codes, or the split too few examples.
    """
    options = options or Options()
    codes, examples = _encode(run, "interpolate")
    rows, columns = options.num_rows, options.num_values
    if len(codes) < 2 * rows:
        raise ConfigError(f"--num_rows={rows} needs {2 * rows} examples; the split has {len(codes)}")
    order = random_order(len(codes))
    codes, examples = codes[order], {name: a[order] for name, a in examples.items()}
    label, ends = _labels(run, examples), np.arange(rows, 2 * rows)
    if label is not None:
        # On a path between codes of different classes there is no one class to decode with.
        ends = partners(label, rows)
        label = label[:rows]
    files: list[Path] = []
    for name, path in (("linear", linear_interpolation), ("spherical", spherical_interpolation)):
        points = path(codes[:rows], codes[ends], columns)
        files += _draw(run, _decode_rows(run, points, label), columns, f"interpolation_{name}")
    return Outcome(files=tuple(files))


def traverse(run: Run, options: Options | None = None) -> Outcome:
    """Draws one example with its code changed along one dimension at a time, from -3 to 3.

    For a model whose code has named variables (InfoGAN) it draws a picture for each variable, which
    changes along the rows of samples.

    Raises:
      ConfigError: the codes are no vectors, or the split has no such example.
    """
    options = options or Options()
    if isinstance(run.model, HasCodeVariables):
        sheets = traversals(run, jax.random.key(options.seed), options.num_rows, options.num_values)
        files: list[Path] = []
        for variable, rows in enumerate(sheets):
            files += _draw(run, rows.reshape(-1, *rows.shape[2:]), rows.shape[1], f"traversal_{variable}")
        return Outcome(files=tuple(files))
    codes, examples = _encode(run, "traverse")
    if codes.ndim != 2:
        raise ConfigError(f"traverse needs codes that are vectors; these have the shape {codes.shape[1:]}")
    if options.example >= len(codes):
        raise ConfigError(f"--example={options.example} is not in the split, which has {len(codes)} examples")
    # The model uses the dimensions whose means vary most.
    used = np.argsort(-codes.var(0))[: options.num_rows]
    points = traversal(codes[options.example], used, np.linspace(-3.0, 3.0, options.num_values))
    label = _labels(run, examples)
    label = None if label is None else np.repeat(label[options.example], len(used))
    files = _draw(run, _decode_rows(run, points, label), options.num_values, "traversal")
    return Outcome(files=tuple(files), notes=(f"rows are the dimensions {', '.join(map(str, used))}",))


def arithmetic(run: Run, options: Options | None = None) -> Outcome:
    """Draws examples of the class `source` with the difference of the classes' mean codes added, from 0 to 1.5 times.

    Raises:
      ConfigError: the model has no codes, or the data no labels.
    """
    options = options or Options()
    codes, examples = _encode(run, "arithmetic")
    if "label" not in examples:
        raise ConfigError(f"arithmetic needs a labelled set; {run.experiment.data.name} has no labels")
    vector = attribute_vector(codes, examples["label"], options.source, options.target)
    strength = np.linspace(0.0, 1.5, options.num_values)
    chosen = codes[examples["label"] == options.source][: options.num_rows]
    points = chosen[:, None] + strength.reshape(1, -1, *[1] * vector.ndim) * vector[None, None]
    label = np.full(len(chosen), options.source) if takes(run.model, "label") else None
    name = f"arithmetic_{options.source}_to_{options.target}"
    return Outcome(files=tuple(_draw(run, _decode_rows(run, points, label), len(strength), name)))


def anomaly(run: Run, options: Options | None = None) -> Outcome:
    """Measures how well the likelihood, or its bound, tells the class `held_out`, which the run has not seen.

    Raises:
      ConfigError: no class is held out, the run has seen it, or the model has no likelihood of all classes together.
    """
    options = options or Options()
    held_out, data = options.held_out, run.experiment.data
    if held_out is None:
        raise ConfigError("anomaly needs --held_out=CLASS, a class that the run has not seen")
    seen = data.classes if isinstance(data, Images) else ()
    if held_out in seen or not seen:
        rest = ",".join(str(c) for c in range(10) if c != held_out)
        raise ConfigError(f"the run has seen the class {held_out}; train one without it: --data.classes={rest}")
    if takes(run.model, "label"):
        raise ConfigError(
            f"anomaly needs a likelihood of all classes together; {type(run.model).__name__} has one given the class"
        )
    bound = "log_prob" if has_exact_log_prob(run.model) else "log_prob_bound"
    if not isinstance(run.model, HasLogProb | HasLogProbBound):
        raise ConfigError(f"anomaly needs a model with a likelihood; {type(run.model).__name__} has none")

    def score(state: Any, batch: Any, key: jax.Array) -> jax.Array:
        # The likelihood of the data before their transform, as in tools.likelihood.
        return -log_likelihoods(run.model, state, batch, key)[1]

    everything = dataclasses.replace(data, classes=())
    scores, examples = run.engine.map(score, run.state, run.experiment.evaluation.split, everything)
    known, new = np.isin(examples["label"], seen), examples["label"] == held_out
    figures = {
        "score": f"-{bound} (nats)",
        "held_out_class": held_out,
        "num_known": int(known.sum()),
        "num_held_out": int(new.sum()),
        "mean_score_known": float(scores[known].mean()),
        "mean_score_held_out": float(scores[new].mean()),
        "roc_auc": likelihood.roc_auc(scores[known], scores[new]),
    }
    return _report(run, f"anomaly_{held_out}", figures)


def augment(run: Run, options: Options | None = None) -> Outcome:
    """Writes labelled examples drawn from a model conditional on classes as <workdir>/latents/augmentation.npz.

    Raises:
      ConfigError: the model is not conditional on classes.
    """
    options = options or Options()
    if not isinstance(run.model, HasClasses) or not takes(run.model, "label"):
        raise ConfigError(
            f"augment needs a model conditional on classes, such as conditional_vae; {type(run.model).__name__} is not"
        )
    num_classes = run.model.num_classes
    label = np.repeat(np.arange(num_classes, dtype=np.int32), options.num_samples)
    samples = run.sample(jax.random.key(options.seed), len(label), label=label)
    path = folder_of(run, "latents") / "augmentation.npz"
    np.savez_compressed(path, x=samples, label=label)
    columns = min(options.num_samples, 16)
    shown = samples.reshape(num_classes, -1, *samples.shape[1:])[:, :columns].reshape(-1, *samples.shape[1:])
    return Outcome(files=(path, *_draw(run, shown, columns, "augmentation")))


def disentangle(run: Run, options: Options | None = None) -> Outcome:
    """Measures the mutual information gap and the FactorVAE score of a set with known factors.

    Raises:
      ConfigError: the model has no codes, or the factors are not known.
    """
    options = options or Options()
    codes, examples = _encode(run, "disentangle")
    if "factors" not in examples:
        raise ConfigError(
            f"disentangle needs a set with known factors, such as sprites, not {run.experiment.data.name}"
        )
    codes, rng = codes.reshape(len(codes), -1), np.random.default_rng(options.seed)
    figures = {
        "num_examples": len(codes),
        "mutual_information_gap": disentanglement.mutual_information_gap(codes, examples["factors"]),
        "factor_vae_score": disentanglement.factor_vae_score(codes, examples["factors"], rng),
    }
    return _report(run, "disentanglement", figures)


def export(run: Run, options: Options | None = None) -> Outcome:
    """Writes the codes of the evaluation split: as a table, from which any flow learns their density; or maps of codes
    with their classes and texts, as `Latents` (data) reads them.

    Raises:
      ConfigError: the model has no codes.
    """
    del options
    if isinstance(run.model, HasCodeMaps):
        return _export_maps(run)
    codes, _ = _encode(run, "export")
    note = f"{len(codes)} codes of the split {run.experiment.evaluation.split}"
    return Outcome(files=(write_codes(run, codes),), notes=(note,))


def _export_maps(run: Run) -> Outcome:
    """Writes maps of codes, and what accompanies them, in a folder for --data=latents."""
    model, split, folder = run.model, run.experiment.evaluation.split, folder_of(run, "latents") / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    codes, examples = run.engine.map(lambda state, batch, key: model.code_maps(state, batch), run.state, split)
    arrays = {"": codes.astype(np.float32)}
    if "label" in examples:
        arrays["_label"] = examples["label"]
    if "captions" in examples:
        for name in ("tokens", "mask"):
            arrays[f"_{name}"] = run.engine.map(lambda state, batch, key, name=name: batch[name], run.state, split)[0]
        spec = run.experiment.data.spec()
        write_json(folder / TEXTS_FILE, {name: spec[name] for name in TEXT_FIELDS if name in spec})
    files = tuple(folder / f"{split}{name}.npy" for name in arrays)
    for file, array in zip(files, arrays.values()):
        np.save(file, array)
    flags = f"--data=latents --data.dir={folder} --data.scale={1.0 / codes.std():.5g}"
    return Outcome(files=files, notes=(f"{len(codes)} codes of the split {split}; {flags}",))


def show(run: Run, options: Options | None = None) -> Outcome:
    """Decodes and draws the first codes of the table `options.codes`.

    Raises:
      ConfigError: there is no such table, or its rows are no codes of the run.
    """
    options = options or Options()
    if options.codes is None:
        raise ConfigError("decode needs --codes=FILE, a CSV or NPY file with a code in each row")
    codes = read_codes(options.codes, code_shape(run), options.num_rows * options.num_values)
    label = None
    if takes(run.model, "label"):
        if options.label:
            label = labels_for(run.model, options.label, len(codes), run.experiment.data.label_names())
        else:
            label = np.resize(np.arange(run.model.num_classes, dtype=np.int32), len(codes))
    name = f"decoded_{Path(options.codes).stem}"
    return Outcome(files=tuple(_draw(run, decode(run, codes, label), options.num_values, name)))


#: The tools, by their names in experiments.latents.
TOOLS = {
    "interpolate": interpolate,
    "traverse": traverse,
    "arithmetic": arithmetic,
    "anomaly": anomaly,
    "augment": augment,
    "disentangle": disentangle,
    "export": export,
    "decode": show,
}


def _encode(run: Run, tool: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes [N, ...] and raw examples of the evaluation split."""
    if not isinstance(run.model, HasLatents):
        raise ConfigError(f"{tool} needs a model with codes (encode and decode); {type(run.model).__name__} has none")
    return encode(run)


def _labels(run: Run, examples: dict[str, np.ndarray]) -> np.ndarray | None:
    """Classes of examples [N] if the model decodes codes given classes, else None."""
    return examples["label"] if takes(run.model, "label") else None


def _decode_rows(run: Run, codes: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """Decoded rows of codes [R, C, ...], with a class for each row [R] if given, shape [R * C, ...]."""
    label = None if label is None else np.repeat(label, codes.shape[1])
    return decode(run, codes.reshape(-1, *codes.shape[2:]), label)


def _draw(run: Run, samples: np.ndarray, num_columns: int, name: str) -> list[Path]:
    """Writes samples as a picture with rows of `num_columns`, or in another form for their domain;
    returns the files.
    """
    stem = folder_of(run, "latents") / name
    data = run.experiment.data
    if not isinstance(data, Images):
        return run.write_samples(samples, stem)
    path = with_ending(stem, ".png")
    write_grid(data.to_unit(samples), path, num_columns)
    return [path]


def _report(run: Run, name: str, figures: dict[str, Any]) -> Outcome:
    """Writes figures as JSON, with their protocol."""
    path = folder_of(run, "latents") / f"{name}.json"
    settings = run.experiment.evaluation
    protocol = (
        f"{run.name}, step {run.step}, split {settings.split}, {run.experiment.data.protocol()}, seed {settings.seed}"
    )
    write_json(path, {"protocol": protocol, **figures})
    return Outcome(files=(path,), notes=(protocol,), figures=(figures,))


def encode(run: Run) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes [N, ...] and raw examples of the evaluation split."""
    return run.engine.map(
        lambda state, batch, key: run.model.encode(state, batch), run.state, run.experiment.evaluation.split
    )


def code_shape(run: Run) -> tuple[int, ...]:
    """Shape of the code of one example, without computing any."""
    data = run.experiment.data
    batch = data.load(run.experiment.evaluation.split).gather(np.arange(1))
    return jax.eval_shape(
        lambda b, key: run.model.encode(run.state, data.transform(b, key)), batch, jax.random.key(0)
    ).shape[1:]


def decode(run: Run, codes: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
    """Decoded codes [N, ...], shape [N, *data_shape]; `label` [N] for a model that takes classes, else None."""
    given = {} if label is None else {"label": label.astype(np.int32)}
    return np.asarray(jax.jit(run.model.decode)(run.state, codes.astype(np.float32), **given))


def traversals(run: Run, key: jax.Array, num_rows: int, num_values: int) -> Iterator[np.ndarray]:
    """Samples [num_rows, columns, *data_shape] along the values of each variable of a code."""
    for variable in range(run.model.num_variables):
        yield np.asarray(run.model.traverse(run.state, key, variable, num_rows, num_values))


def write_codes(run: Run, codes: np.ndarray) -> Path:
    """Writes codes [N, ...] as rows of <workdir>/latents/codes_<split>.npy, float32 [N, D], and returns its path."""
    path = folder_of(run, "latents") / f"codes_{run.experiment.evaluation.split}.npy"
    np.save(path, np.asarray(codes, np.float32).reshape(len(codes), -1))
    return path


def read_codes(path: str | Path, shape: tuple[int, ...], limit: int) -> np.ndarray:
    """The first rows, at most `limit`, of a CSV or NPY table, as codes [N, *shape].

    Raises:
      ConfigError: there is no such file, or its rows are no codes of this shape.
      DataError: the file is not a table of finite numbers.
    """
    if not Path(path).expanduser().is_file():
        raise ConfigError(f"--codes={path} is not a file; give a CSV or NPY file with a code in each row")
    codes = read_table(str(path))[0][:limit]
    if codes.shape[1] != math.prod(shape):
        raise ConfigError(f"--codes={path} has {codes.shape[1]} columns, but a code of this run has {math.prod(shape)}")
    return codes.reshape(len(codes), *shape)
