"""How a diffusion model denoises, guides and edits: pictures of trajectories, schedules,
guidance, inpainting and SDEdit.

    run = genjax.restore("runs/edm_mnist")
    denoising.guidance(run, denoising.Options(scales=(0.0, 1.0, 4.0)))

Each tool writes its files into <workdir>/denoising.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.config import ConfigError, check_at_least
from genjax.data import Images, Points, random_order, write_grid
from genjax.data.videos import write_gif
from genjax.evaluation.neighbors import precision_recall
from genjax.families.diffusion import editing
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.guidance import Guidance, with_classifier
from genjax.families.diffusion.image_to_image import hole_mask
from genjax.families.diffusion.noisy_classifier import NoisyClassifier
from genjax.tools.drawing import moving_points, plot_schedule, plot_shares
from genjax.tools.features import classifier_features
from genjax.tools.outcome import Outcome, folder_of
from genjax.training import Run, runs
from genjax.training.records import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the pictures of a diffusion model.

    Attributes:
      num_samples: number of samples in a picture; with features, for each scale.
      scales: weights of the guidance.
      classifier: directory of a run of a classifier of noisy data, which guides instead of labels.
      strengths: strengths of image-to-image: 0 keeps the example, 1 starts from pure noise.
      features: directory of a run of a classifier that judges guided samples.
      num_resamples: number of times that RePaint takes each step.
      jump_length: number of steps that RePaint goes back at once.
      seed: seed of all random choices.
    """

    num_samples: int = 16
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    classifier: str | None = None
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75)
    features: str | None = None
    num_resamples: int = 5
    jump_length: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, num_samples=1, num_resamples=1, jump_length=1)
        for name in ("scales", "strengths"):
            if not np.isfinite(getattr(self, name)).all():
                raise ConfigError(f"--{name}={','.join(map(str, getattr(self, name)))} has a number that is not finite")


def trajectory(run: Run, options: Options | None = None) -> Outcome:
    """Draws the way from noise to samples as a GIF: pictures, or points before points of the data.

    Noise that is larger than the samples is shown at their size.

    Raises:
      ConfigError: the run is not of a diffusion model of pictures or of points of two and more dimensions.
    """
    options = options or Options()
    _check_diffusion(run)
    data = run.experiment.data
    if isinstance(data, Points) and run.model.data_shape == (1,):
        raise ConfigError(f"trajectory shows points in the plane; those of {run.name} have one dimension")
    if not isinstance(data, Points):
        data = _pictures(run, "trajectory")
    steps = _way(run, options.num_samples, options.seed)
    if isinstance(data, Points):
        examples = data.load("train").arrays()["x"][:1000]
        shown = moving_points(np.stack([data.inverse_transform(x) for x in steps]), examples)[None]
    else:
        shown = np.stack([data.to_unit(x) for x in steps], 1)
    path = folder_of(run, "denoising") / "trajectory.gif"
    write_film(shown, path)
    return Outcome(files=(path,))


def film(run: Run, num_samples: int, seed: int, **condition: Any) -> np.ndarray:
    """Pictures in [0, 1] on the way from noise to samples, [N, T + 1, H, W, C].

    Raises:
      ConfigError: the run is not of a diffusion model of pictures.
    """
    data = _pictures(run, "the way from noise to a picture")
    return np.stack([data.to_unit(x) for x in _way(run, num_samples, seed, **condition)], 1)


def write_film(shown: np.ndarray, path: Path) -> None:
    """Writes pictures [N, T, H, W, C] with brightness in [0, 1] as one GIF, whose last picture stays for a second."""
    write_gif(np.concatenate([shown, np.repeat(shown[:, -1:], 8, 1)], 1), path)


def _way(run: Run, num_samples: int, seed: int, **condition: Any) -> np.ndarray:
    """The states of samples from noise on, [T + 1, N, ...]; noise that is larger than the samples has their size."""
    draw = jax.jit(lambda state, key, given: run.model.sample(state, key, num_samples, trajectory=True, **given))
    steps = np.asarray(draw(run.state, jax.random.key(seed), condition))
    # Noise far outside the data's range would show as black and white only.
    deviation = steps.reshape(len(steps), -1).std(1).reshape(-1, *[1] * (steps.ndim - 1))
    return steps / np.maximum(deviation / deviation[-1], 1.0)


def schedule(run: Run, options: Options | None = None) -> Outcome:
    """Draws alpha, sigma and the log signal-to-noise ratio of the forward process over time, with
    the sampler's steps.
    """
    del options
    _check_diffusion(run)
    model = run.model
    path = folder_of(run, "denoising") / "schedule.png"
    plot_schedule(model.process_of(run.state.eval_params), model.sampler, path)
    return Outcome(files=(path,))


def guidance(run: Run, options: Options | None = None) -> Outcome:
    """Draws samples of each class, a row for each scale of guidance, and with `features` judges them.

    Returns:
      The sheet; with `features` also a JSON file and a plot, and a row of figures for each scale: the share of samples
      that is recognised as their class, precision and recall.

    Raises:
      ConfigError: the model has no classes, or a classifier does not fit it.
    """
    options = options or Options()
    data, classes = _pictures(run, "guidance"), run.model.num_classes
    noisy = None if options.classifier is None else _noisy_classifier(run, options.classifier)
    if noisy is None and "label" not in run.model.condition_on:
        raise ConfigError("guidance needs a model that is conditional on classes; train it with condition_on=label")
    draw = _guided_sampler(run, noisy)
    key, label = jax.random.key(options.seed), jnp.arange(classes)
    rows = [draw(run.state, key, jnp.float32(scale), label) for scale in options.scales]
    sheet = folder_of(run, "denoising") / "guidance.png"
    write_grid(np.concatenate([data.to_unit(np.asarray(x)) for x in rows]), sheet, classes)
    if options.features is None:
        return Outcome(files=(sheet,))

    classifier, judge = classifier_features(Path(options.features).expanduser())
    reference = judge(data.to_unit(np.asarray(_examples(run, options.num_samples)["x"])))[0]
    size = min(options.num_samples, 10 * classes)
    count = -(-options.num_samples // size) * size
    table = []
    for scale in options.scales:
        features, right = [], 0
        for i in range(count // size):
            label = (i * size + jnp.arange(size)) % classes
            x = draw(run.state, jax.random.fold_in(key, i), jnp.float32(scale), label)
            feature, logits = judge(data.to_unit(np.asarray(x)))
            features.append(feature)
            right += int((logits.argmax(-1) == np.asarray(label)).sum())
        found = precision_recall(reference, np.concatenate(features))
        table.append({"scale": scale, "recognised": right / count, **found})
    sampler = run.model.sampler
    protocol = (
        f"{run.name}, step {run.step}, {type(sampler).__name__} of {sampler.num_steps} steps, {count} samples against "
        f"{len(reference)} of {run.experiment.evaluation.split}; features of {classifier}; seed {options.seed}"
    )
    record, plot = (folder_of(run, "denoising") / name for name in ("guidance.json", "guidance_trade.png"))
    write_json(record, {"protocol": protocol, "scales": table})
    plot_shares(table, "scale", "guidance scale w", plot)
    return Outcome(files=(sheet, record, plot), notes=(protocol,), figures=tuple(table))


def inpaint(run: Run, options: Options | None = None) -> Outcome:
    """Draws examples, the same without their middle, and the middle filled in by RePaint.

    Raises:
      ConfigError: the data have no height and width, or too few examples.
    """
    options = options or Options()
    data, count = _pictures(run, "inpaint"), options.num_samples
    batch = _examples(run, count)
    x = batch["x"]
    if x.ndim != 4:
        raise ConfigError("inpaint needs pictures with height and width; train with data.flatten=false")
    mask = hole_mask(*x.shape[1:3], 2)[None]
    condition = run.model.condition(batch)
    steps = (run.model.sampler.num_steps, options.num_resamples, options.jump_length)
    fill = jax.jit(lambda state, key: editing.inpaint(run.model, state, key, x, mask, *steps, **condition))
    filled = fill(run.state, jax.random.key(options.seed))
    known = np.asarray(mask) * data.to_unit(np.asarray(x)) + 0.5 * (1.0 - np.asarray(mask))
    path = folder_of(run, "denoising") / "inpaint.png"
    write_grid(np.concatenate([data.to_unit(np.asarray(x)), known, data.to_unit(np.asarray(filled))]), path, count)
    return Outcome(files=(path,))


def edit(run: Run, options: Options | None = None) -> Outcome:
    """Draws examples, and image-to-image (SDEdit) results that start from them, a row for each strength.

    Raises:
      ConfigError: the split has too few examples.
      UserError: a strength is not in (0, 1].
    """
    options = options or Options()
    data, count = _pictures(run, "edit"), options.num_samples
    batch = _examples(run, count)
    condition = run.model.condition(batch)
    rows = [batch["x"]]
    for strength in options.strengths:
        change = jax.jit(
            lambda state, key, strength=strength: editing.image_to_image(
                run.model, state, key, batch["x"], strength, **condition
            )
        )
        rows.append(change(run.state, jax.random.key(options.seed)))
    path = folder_of(run, "denoising") / "edit.png"
    write_grid(np.concatenate([data.to_unit(np.asarray(x)) for x in rows]), path, count)
    return Outcome(files=(path,))


#: The tools, by their names in experiments.denoising.
TOOLS = {
    "trajectory": trajectory,
    "schedule": schedule,
    "guidance": guidance,
    "inpaint": inpaint,
    "edit": edit,
}


def _check_diffusion(run: Run) -> None:
    if not isinstance(run.model, Diffusion):
        raise ConfigError(f"experiments.denoising shows diffusion models; this is a {type(run.model).__name__}")


def _pictures(run: Run, tool: str) -> Images:
    """The data of a run of a diffusion model, which must be pictures."""
    _check_diffusion(run)
    if not isinstance(run.experiment.data, Images):
        raise ConfigError(f"{tool} shows pictures; {run.name} has other data")
    return run.experiment.data


def _examples(run: Run, count: int) -> dict[str, jax.Array]:
    """The first examples of the evaluation split in `random_order`, transformed for the model."""
    data, split = run.experiment.data, run.experiment.evaluation.split
    available = len(data.load(split))
    if count > available:
        raise ConfigError(f"--num_samples={count} is more than the {available} examples of the split")
    rows = random_order(available, count)
    raw = data.load(split).gather(rows)
    return data.transform({**raw, "example_index": rows.astype(np.int32)}, jax.random.key(0))


def _guided_sampler(run: Run, noisy: Run | None) -> Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]:
    """One program for all scales: samples by state, key, scale and classes [N], guided by a
    classifier if there is one.
    """
    model = run.model

    @jax.jit
    def draw(states: tuple[Any, Any], key: jax.Array, scale: jax.Array, label: jax.Array) -> jax.Array:
        state, noisy_state = states
        noise_key, step_key = jax.random.split(key)
        process = model.process_of(state.eval_params)
        z = process.prior_scale * jax.random.normal(noise_key, (len(label), *model.data_shape))
        if noisy is None:
            guide = dataclasses.replace(model.guidance, scale=scale)
            condition = model.sampling_condition(state, len(label), label, {})
            denoise = model.denoiser(state.eval_params, condition, guide)
        else:
            nothing = model.without(model.sampling_condition(state, len(label), None, {}))
            likelihood = noisy.model.log_likelihood(noisy_state, label)
            denoise = with_classifier(
                model.denoiser(state.eval_params, nothing, Guidance()), process, likelihood, scale
            )
        return model.sampler.run(denoise, process, z, step_key)

    # The classifier's weights are an argument, as constants would be a part of the program.
    return lambda state, *rest: draw((state, None if noisy is None else noisy.state), *rest)


def _noisy_classifier(run: Run, directory: str) -> Run:
    """The run `Options.classifier`, which must have the forward process and the classes of `run`."""
    if run.model.condition_on and not run.model.condition_dropout:
        raise ConfigError(
            "--classifier guides a model without its conditions, which condition_dropout=0 never trained; "
            "train with 0.1"
        )
    if run.model.gives_path_ends:
        raise ConfigError(f"--classifier needs the mean of the data, which {type(run.model).__name__} does not give")
    classifier = runs.restore(Path(directory).expanduser())
    if not isinstance(classifier.model, NoisyClassifier):
        raise ConfigError(f"--classifier={directory} is a run of {type(classifier.model).__name__}")
    for field in ("process", "data_shape", "num_classes"):
        theirs, ours = getattr(classifier.model, field), getattr(run.model, field)
        if theirs != ours:
            raise ConfigError(f"--classifier={directory} has {field} {theirs}, and {run.name} has {ours}")
    return classifier
