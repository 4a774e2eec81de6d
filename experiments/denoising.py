"""Shows how a trained diffusion model denoises, guides and edits:

    python -m experiments.denoising --workdir=runs/edm_mnist --tool=trajectory

trajectory  the way from noise to samples as a GIF
schedule    alpha, sigma and the log signal-to-noise ratio of the forward process over time, with the sampler's steps
guidance    samples of each class, a row for each of the --scales of guidance.  Guidance is classifier-free, or with
            --classifier by the gradient of that run's classifier of noisy data.  With --features (the directory of a
            run of a classifier) also a table and a plot of the share of samples recognised as their class, and of
            precision and recall
inpaint     examples, the same examples without their middle, and the middle filled in by RePaint; the model need not be
            trained for it
edit        examples, and image-to-image (SDEdit) results that start from them, a row for each of the --strengths
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command_line
from genjax.config import ConfigError
from genjax.data import Images, random_order, write_grid
from genjax.data.videos import write_gif
from genjax.evaluation.neighbors import precision_recall
from genjax.families.diffusion import editing
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.guidance import Guidance, with_classifier
from genjax.families.diffusion.image_to_image import hole_mask
from genjax.families.diffusion.noisy_classifier import NoisyClassifier
from genjax.tools.features import classifier_features
from genjax.training import runs as runs
from genjax.training.records import write_json

TOOLS = ("trajectory", "schedule", "guidance", "inpaint", "edit")

flags.DEFINE_string("workdir", None, "directory of a run of experiments.train")
command_line.define_step()
flags.DEFINE_enum("tool", "trajectory", TOOLS, "what to look at")
flags.DEFINE_integer("num_samples", 16, "samples of a picture; of each scale, with --features", lower_bound=1)
flags.DEFINE_list("scales", ["0", "0.5", "1", "2", "4"], "weights of the guidance")
flags.DEFINE_string(
    "classifier", None, "directory of a run of a classifier of noisy data that guides in place of labels"
)
flags.DEFINE_list("strengths", ["0.25", "0.5", "0.75"], "shares of the way to noise that examples are taken")
flags.DEFINE_string("features", None, "directory of a run of a classifier that judges guided samples")
flags.DEFINE_integer("num_resamples", 5, "how often RePaint takes each step", lower_bound=1)
flags.DEFINE_integer("jump_length", 1, "how many steps RePaint goes back at once", lower_bound=1)
flags.DEFINE_integer("seed", 0, "seed of what is drawn")


def numbers(name: str) -> list[float]:
    """The values of a flag that is a list of numbers."""
    given = flags.FLAGS[name].value
    try:
        values = [float(value) for value in given]
    except ValueError:
        values = [float("nan")]
    if not np.isfinite(values).all():
        raise ConfigError(f"--{name}={','.join(given)} is not a list of numbers")
    return values


def path_of(run: Any, name: str) -> Path:
    """Where a tool writes."""
    path = Path(run.workdir) / "denoising" / name
    path.parent.mkdir(exist_ok=True)
    return path


def pictures(run: Any) -> Images:
    """The run's data, which must be pictures."""
    if not isinstance(run.experiment.data, Images):
        raise ConfigError(f"--tool={flags.FLAGS.tool} shows pictures; {run.name} has other data")
    return run.experiment.data


def examples(run: Any, count: int) -> dict[str, jax.Array]:
    """The first examples of the evaluation split, in `random_order`, as the model sees them."""
    data = pictures(run)
    available = len(data.load(run.experiment.evaluation.split))
    if count > available:
        raise ConfigError(f"--num_samples={count} is more than the {available} examples of the split")
    rows = random_order(available)[:count]
    raw = data.load(run.experiment.evaluation.split).gather(rows)
    return data.transform({**raw, "example_index": rows.astype(np.int32)}, jax.random.key(0))


def trajectory(run: Any) -> list[Path]:
    data, count = pictures(run), flags.FLAGS.num_samples
    draw = jax.jit(lambda state, key: run.model.sample(state, key, count, trajectory=True))
    steps = np.asarray(draw(run.state, jax.random.key(flags.FLAGS.seed)))  # [T + 1, N, ...]
    # Noise far outside of the data's range would show as black and white alone.
    deviation = steps.reshape(len(steps), -1).std(1).reshape(-1, *[1] * (steps.ndim - 1))
    shown = np.stack([data.to_unit(x) for x in steps / np.maximum(deviation / deviation[-1], 1.0)], 1)
    # The last picture stays for a second.
    path = path_of(run, "trajectory.gif")
    write_gif(np.concatenate([shown, np.repeat(shown[:, -1:], 8, 1)], 1), path)
    return [path]


def schedule(run: Any) -> list[Path]:
    from matplotlib.figure import Figure

    model = run.model
    process, sampler = model.process_of(run.state.eval_params), model.sampler
    low = max(process.t_min, 1e-3 * process.t_max)
    t = jnp.geomspace(low, process.t_max, 400) if process.t_max > 1.0 else jnp.linspace(low, process.t_max, 400)
    grid, alpha, sigma = sampler.grid(process)
    inner = (sigma > 0.0) & (alpha > 0.0)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(t, process.alpha(t), label="alpha")
    left.plot(t, process.sigma(t), label="sigma")
    left.legend()
    right.plot(t, process.log_snr(t), label="log alpha^2 / sigma^2")
    right.plot(grid[inner], 2 * jnp.log(alpha[inner] / sigma[inner]), ".", label=f"steps of {type(sampler).__name__}")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("t")
        if process.t_max > 1.0:
            axes.set_xscale("log")
    path = path_of(run, "schedule.png")
    figure.savefig(path, dpi=100)
    return [path]


def guidance(run: Any) -> list[Path]:
    data, model, values = pictures(run), run.model, flags.FLAGS
    noisy = None if values.classifier is None else noisy_classifier(run)
    if noisy is None and "label" not in model.condition_on:
        raise ConfigError(
            "--tool=guidance needs a model that is conditional on classes; train it with condition_on=label"
        )

    # One program for all scales.
    @jax.jit
    def draw(state: Any, key: jax.Array, scale: jax.Array, label: jax.Array) -> jax.Array:
        noise_key, step_key = jax.random.split(key)
        process = model.process_of(state.eval_params)
        z = process.prior_scale * jax.random.normal(noise_key, (len(label), *model.data_shape))
        if noisy is None:
            guide = dataclasses.replace(model.guidance, scale=scale)
            condition = model.sampling_condition(state, len(label), label, {})
            denoise = model.denoiser(state.eval_params, condition, guide)
        else:
            nothing = model.without(model.sampling_condition(state, len(label), None, {}))
            likelihood = noisy.model.log_likelihood(noisy.state, label)
            denoise = with_classifier(
                model.denoiser(state.eval_params, nothing, Guidance()), process, likelihood, scale
            )
        return model.sampler.run(denoise, process, z, step_key)

    scales, classes = numbers("scales"), model.num_classes
    label = jnp.arange(classes)
    rows = [draw(run.state, jax.random.key(values.seed), jnp.float32(scale), label) for scale in scales]
    sheet = path_of(run, "guidance.png")
    write_grid(np.concatenate([data.to_unit(np.asarray(x)) for x in rows]), sheet, classes)
    if values.features is None:
        return [sheet]

    classifier, judge = classifier_features(Path(values.features).expanduser())
    reference = judge(data.to_unit(np.asarray(examples(run, values.num_samples)["x"])))[0]
    size = min(values.num_samples, 10 * classes)
    table = []
    for scale in scales:
        features, right = [], 0
        for i in range(-(-values.num_samples // size)):
            label = (i * size + jnp.arange(size)) % classes
            x = draw(run.state, jax.random.fold_in(jax.random.key(values.seed), i), jnp.float32(scale), label)
            feature, logits = judge(data.to_unit(np.asarray(x)))
            features.append(feature)
            right += int((logits.argmax(-1) == np.asarray(label)).sum())
        count = len(features) * size
        table.append(
            {"scale": scale, "recognised": right / count, **precision_recall(reference, np.concatenate(features))}
        )
        print("  " + "  ".join(f"{name} {value:.4f}" for name, value in table[-1].items()), flush=True)
    protocol = (
        f"{run.name}, step {run.step}, {type(model.sampler).__name__} of {model.sampler.num_steps} steps, {count} samples against "
        f"{len(reference)} of {run.experiment.evaluation.split}; features of {classifier}; seed {values.seed}"
    )
    print(protocol)
    record = path_of(run, "guidance.json")
    write_json(record, {"protocol": protocol, "scales": table})
    return [sheet, record, draw_trade(run, table)]


def noisy_classifier(run: Any) -> Any:
    """The run of --classifier, which must know the noise and the classes of `run`."""
    if run.model.condition_on and not run.model.condition_dropout:
        raise ConfigError(
            "--classifier guides a model without its conditions, which condition_dropout=0 never trained; train with 0.1"
        )
    if run.model.gives_path_ends:
        raise ConfigError(f"--classifier needs the mean of the data, which {type(run.model).__name__} does not give")
    classifier = runs.restore(Path(flags.FLAGS.classifier).expanduser())
    if not isinstance(classifier.model, NoisyClassifier):
        raise ConfigError(f"--classifier={flags.FLAGS.classifier} is a run of {type(classifier.model).__name__}")
    for field in ("process", "data_shape", "num_classes"):
        theirs, ours = getattr(classifier.model, field), getattr(run.model, field)
        if theirs != ours:
            raise ConfigError(f"--classifier={flags.FLAGS.classifier} has {field} {theirs}, and {run.name} has {ours}")
    return classifier


def draw_trade(run: Any, table: list[dict[str, float]]) -> Path:
    """Plots the share of samples that are recognised, precision and recall over the scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for name in ("recognised", "precision", "recall"):
        axes.plot([row["scale"] for row in table], [row[name] for row in table], "o-", label=name)
    axes.set_xlabel("guidance scale w")
    axes.set_ylim(0.0, 1.02)
    axes.legend()
    path = path_of(run, "guidance_trade.png")
    figure.savefig(path, dpi=100)
    return path


def inpaint(run: Any) -> list[Path]:
    data, count = pictures(run), flags.FLAGS.num_samples
    batch = examples(run, count)
    x = batch["x"]
    if x.ndim != 4:
        raise ConfigError("--tool=inpaint needs pictures with height and width; train with data.flatten=false")
    mask = hole_mask(*x.shape[1:3], 2)[None]
    condition = run.model.condition(batch)
    steps = (run.model.sampler.num_steps, flags.FLAGS.num_resamples, flags.FLAGS.jump_length)
    fill = jax.jit(lambda state, key: editing.inpaint(run.model, state, key, x, mask, *steps, **condition))
    filled = fill(run.state, jax.random.key(flags.FLAGS.seed))
    known = np.asarray(mask) * data.to_unit(np.asarray(x)) + 0.5 * (1.0 - np.asarray(mask))
    path = path_of(run, "inpaint.png")
    write_grid(np.concatenate([data.to_unit(np.asarray(x)), known, data.to_unit(np.asarray(filled))]), path, count)
    return [path]


def edit(run: Any) -> list[Path]:
    data, count = pictures(run), flags.FLAGS.num_samples
    batch = examples(run, count)
    condition = run.model.condition(batch)
    rows = [batch["x"]]
    for strength in numbers("strengths"):
        change = jax.jit(
            lambda state, key, strength=strength: editing.image_to_image(
                run.model, state, key, batch["x"], strength, **condition
            )
        )
        rows.append(change(run.state, jax.random.key(flags.FLAGS.seed)))
    path = path_of(run, "edit.png")
    write_grid(np.concatenate([data.to_unit(np.asarray(x)) for x in rows]), path, count)
    return [path]


def main(arguments: list[str]) -> int:
    run = command_line.restore_from_flags(arguments, __doc__)
    if run is None:
        return 0
    if not isinstance(run.model, Diffusion):
        raise ConfigError(
            f"experiments.denoising shows diffusion models of pictures; this is a {type(run.model).__name__}"
        )
    for path in _TOOLS[flags.FLAGS.tool](run):
        print(path)
    return 0


_TOOLS = {
    "trajectory": trajectory,
    "schedule": schedule,
    "guidance": guidance,
    "inpaint": inpaint,
    "edit": edit,
}


if __name__ == "__main__":
    command_line.run(main)
