"""How well a watermark is found again: false alarms on human text, detection by length, after edits, after changes.

    run = genjax.restore("runs/gpt_text")
    watermarks.texts(run, watermarks.Options()).text()

Texts carry a green list (genjax.decoding.watermark), pictures of diffusion models rings in their noise
(genjax.families.diffusion.tree_ring).  A detector states the probability that a text or picture without the mark would
look as marked; the tables say how often it is below 1e-2, 1e-3 and 1e-5, where human texts and unmarked pictures should
be below 1e-2 in one case of a hundred.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from genjax import config
from genjax.config import ConfigError
from genjax.data import Images
from genjax.data.text.base import TokenizedData
from genjax.decoding import Watermark
from genjax.families.diffusion import ode
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.tree_ring import TreeRing
from genjax.model import ContinuesText
from genjax.tools.outcome import Outcome
from genjax.training import Run, runs
from genjax.training.records import write_json

#: Probabilities of a false alarm at which detectors are read.
LEVELS = (1e-2, 1e-3, 1e-5)
#: Texts that are looked at together.
_ROWS = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the watermark and of its measurement.

    Attributes:
      seed: the secret number of the watermark.
      green_fraction: share of the vocabulary that is green; for texts.
      delta: number that is added to the logits of green tokens; for texts.
      radius: radius of the outermost ring in the noise; for pictures.
      channel: channel of the noise that carries the rings; for pictures.
      num_samples: number of texts or pictures that are made with the mark, and of pictures without.
      num_windows: largest number of windows of human text that are looked at; they do not overlap.
      lengths: lengths of texts in tokens.
      edits: shares of tokens that are replaced by others.
      num_steps: steps of the fourth-order solver from a picture back to its noise.
    """

    seed: int = 7
    green_fraction: float = 0.25
    delta: float = 2.0
    radius: int = 3
    channel: int = 0
    num_samples: int = 200
    num_windows: int = 10_000
    lengths: tuple[int, ...] = (25, 50, 100, 200)
    edits: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    num_steps: int = 25

    def __post_init__(self) -> None:
        config.check_at_least(self, num_samples=2, num_windows=1, num_steps=1)
        if not self.lengths or min(self.lengths) < 2:
            raise ConfigError(f"--lengths={','.join(map(str, self.lengths))} must be numbers of at least two tokens")
        if any(not 0.0 <= share <= 1.0 for share in self.edits):
            raise ConfigError(f"--edits={','.join(map(str, self.edits))} must be shares between 0 and 1")


def measure(run: Run, options: Options | None = None) -> Outcome:
    """The table of a run that writes texts or draws pictures, also written into <workdir>/watermark.json.

    Raises:
      ConfigError: the run does neither.
    """
    run = runs.policy_run(run)
    if isinstance(run.model, Diffusion) and isinstance(run.experiment.data, Images):
        return pictures(run, options)
    if isinstance(run.model, ContinuesText) and isinstance(run.experiment.data, TokenizedData):
        return texts(run, options)
    raise ConfigError(
        f"{run.workdir} holds a {type(run.model).__name__} of {run.experiment.data.name}; watermarks are for models "
        "that continue text and for diffusion models of pictures"
    )


def _written(run: Run, protocol: str, figures: list[dict[str, Any]]) -> Outcome:
    path = run.workdir / "watermark.json"
    write_json(path, {"step": run.step, "protocol": protocol, "figures": figures})
    return Outcome(files=(path,), notes=(protocol,), figures=tuple(figures))


def _shares(p_values: np.ndarray) -> dict[str, float]:
    """Share of texts or pictures below each level."""
    return {f"p<{level:g}": float((p_values < level).mean()) for level in LEVELS}


# ----------------------------------------------------------------------------------------------------------------------
# Texts


def texts(run: Run, options: Options | None = None) -> Outcome:
    """False alarms on windows of the training text, and detection in texts of the run, by length and after edits.

    An edit puts a token of the human text, drawn by its frequency, at a random place.

    Raises:
      ConfigError: the human text or the model's context is shorter than the texts.
    """
    options = options or Options()
    data, model, longest = run.experiment.data, run.model, max(options.lengths)
    mark = Watermark(seed=options.seed, green_fraction=options.green_fraction, delta=options.delta)
    tokenizer = data.make_tokenizer()
    human = np.concatenate([tokenizer.encode(text) for text in data.documents("train")]).astype(np.int32)
    if len(human) < longest:
        raise ConfigError(f"the training text has {len(human)} tokens, fewer than --lengths={longest}")
    chance = p_value_of_texts(mark, model.vocab_size)
    figures: list[dict[str, Any]] = []
    for length in options.lengths:
        count = min(options.num_windows, len(human) // length)
        starts = np.linspace(0, len(human) - length, count).astype(int)
        windows = human[starts[:, None] + np.arange(length)]
        figures.append({"what": "human", "tokens": length, "texts": count, "edited": 0.0, **_shares(chance(windows))})
    rows = _marked_texts(run, mark, options.num_samples, longest)
    generator = np.random.default_rng(0)
    for length in options.lengths:
        for share in (0.0, *options.edits):
            edited = edit(rows[:, :length], share, human, generator)
            named = {"what": "marked", "tokens": length, "texts": len(rows), "edited": share}
            figures.append({**named, **_shares(chance(edited))})
    protocol = (
        f"{run.name}, step {run.step}: {model.vocab_size} tokens, green {options.green_fraction}, "
        f"delta {options.delta}, temperature {model.sampling.temperature:g}"
    )
    return _written(run, protocol, figures)


def p_value_of_texts(mark: Watermark, vocab_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """The detector: tokens [N, T] -> probability of a score at least as large without the mark, [N]."""
    score = jax.jit(lambda rows: mark.z_score(rows, vocab_size))

    def p_values(rows: np.ndarray) -> np.ndarray:
        z = np.concatenate([np.asarray(score(rows[i : i + _ROWS])) for i in range(0, len(rows), _ROWS)])
        return np.array([0.5 * math.erfc(value / math.sqrt(2.0)) for value in z])

    return p_values


def edit(rows: np.ndarray, share: float, human: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Tokens [N, T] with `share` of the places of each row, rounded, filled by tokens drawn from `human` [M]."""
    edited, length = rows.copy(), rows.shape[1]
    for row in edited:
        places = generator.choice(length, round(share * length), replace=False)
        row[places] = generator.choice(human, len(places))
    return edited


def _marked_texts(run: Run, mark: Watermark, count: int, length: int) -> np.ndarray:
    """Texts of `length` tokens with the mark, [count, length], each from an empty beginning."""
    model = run.model
    room = model.token_decoder(run.state).max_length
    if room is not None and room <= length:
        raise ConfigError(f"the model's context has {room} tokens; --lengths must be below that")
    prompts = jnp.full((count, 1), model.start_token or 0, jnp.int32)

    @jax.jit
    def write(state: Any) -> jax.Array:
        # Texts may not end early, so the end token is none.
        unending = dataclasses.replace(model, end_token=None)
        return unending.generate(state, jax.random.key(1), prompts, length, watermark=mark).tokens

    return np.asarray(write(run.state))


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def pictures(run: Run, options: Options | None = None) -> Outcome:
    """Detection of rings in pictures of a diffusion run with and without the mark, as they are and after changes.

    Pictures are kept as bytes between the model and the detector, which knows the model and the key but no condition.

    Raises:
      ConfigError: the model's pictures are not in [-1, 1].
      UserError: the pictures have no room for the rings.
    """
    options = options or Options()
    data, model = run.experiment.data, run.model
    if data.preprocessing != "signed":
        raise ConfigError(f"the detector knows pictures in [-1, 1], and data.preprocessing is {data.preprocessing}")
    mark = TreeRing(seed=options.seed, radius=options.radius, channel=options.channel)
    mark.check(model.data_shape)
    process = model.on_grid().process_of(run.state.eval_params)
    scale = process.prior_scale

    def draw(state: Any, key: jax.Array, marked: bool) -> jax.Array:
        noise_key, step_key = jax.random.split(key)
        z = scale * jax.random.normal(noise_key, (options.num_samples, *model.data_shape))
        return model.sample_from(state, mark.mark(z, scale) if marked else z, step_key)

    @jax.jit
    def noise_of(state: Any, x: jax.Array) -> jax.Array:
        condition = model.without(model.sampling_condition(state, len(x), None, {}))
        denoise = model.denoiser(state.eval_params, condition, Guidance())
        return ode.encode(denoise, model.process_of(state.eval_params), x, options.num_steps) / scale

    draw = jax.jit(draw, static_argnums=2)
    shown = {}
    for name in ("unmarked", "marked"):
        unit = data.to_unit(np.asarray(draw(run.state, jax.random.key(2), name == "marked")))
        shown[name] = np.clip(np.round(255 * unit), 0, 255).astype(np.uint8)
    figures: list[dict[str, Any]] = []
    for change, function in CHANGES.items():
        found = {}
        for name, bytes_of in shown.items():
            changed = np.stack([function(x) for x in bytes_of]).astype(np.float32) / 255
            found[name] = mark.p_values(noise_of(run.state, 2.0 * changed - 1.0))
        for name, values in found.items():
            row = {"what": name, "change": change, "pictures": len(values), **_shares(values)}
            figures.append({**row, "area": area(found["marked"], found["unmarked"])})
    protocol = (
        f"{run.name}, step {run.step}: {type(model.sampler).__name__} of {model.sampler.num_steps} steps; radius "
        f"{mark.radius}, channel {mark.channel}, {len(mark.frequencies())} frequencies; {options.num_steps} steps back"
    )
    return _written(run, protocol, figures)


def area(marked: np.ndarray, unmarked: np.ndarray) -> float:
    """Probability that a marked picture has the smaller p-value of a pair, ties counting half (the area under ROC)."""
    return float((marked[:, None] < unmarked).mean() + 0.5 * (marked[:, None] == unmarked).mean())


def _jpeg(x: np.ndarray) -> np.ndarray:
    """Bytes [H, W, C] after JPEG of quality 50."""
    file = io.BytesIO()
    Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file)).reshape(x.shape)


def _noisy(x: np.ndarray) -> np.ndarray:
    """Bytes with noise of a tenth of the range added, the same for all pictures."""
    noise = np.random.default_rng(0).normal(0.0, 25.5, x.shape)
    return np.clip(x + noise, 0, 255).astype(np.uint8)


def _turned(x: np.ndarray) -> np.ndarray:
    """Bytes of the picture turned by a quarter."""
    return np.rot90(x)


def _cut(x: np.ndarray) -> np.ndarray:
    """The middle three quarters of height and width, enlarged to the whole."""
    height, width = x.shape[:2]
    y, z = height // 8, width // 8
    part = Image.fromarray((x.squeeze(-1) if x.shape[-1] == 1 else x)[y : height - y, z : width - z])
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC)).reshape(x.shape)


#: What may happen to a picture, bytes [H, W, C], before the detector sees it.
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "jpeg 50": _jpeg,
    "noise 0.1": _noisy,
    "turned": _turned,
    "cut 3/4": _cut,
}
