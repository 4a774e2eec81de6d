"""Pictures of files, changed by a diffusion model: image to image, and inpainting where there is a mask.

    edits.write_from_folder(edits.Options(pretrained="FOLDER", image="photo.png", prompt="a red house", strength=0.6))
    edits.write(genjax.restore("runs/scenes"), edits.Options(image="scene.png", mask="mask.png"))

A mask is white where the picture is drawn anew.  A model in pixels fills it in by RePaint, Stable Diffusion as its
network was trained: by replacement, or by what it sees of the mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from genjax import config
from genjax.data.fitting import read_given
from genjax.data.images import Images, write_grid
from genjax.data.text.prompts import PromptTokenizer
from genjax.families.diffusion import code_editing, editing
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.lora_files import with_updates
from genjax.families.diffusion.stable_diffusion import StableDiffusion
from genjax.pretrained import load_pretrained
from genjax.tools import conditions
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of edits.

    Attributes:
      pretrained: folder of a pipeline of the library diffusers, in place of a run.
      lora: file of low-rank updates for the folder, under peft's or kohya's names.
      image: file of the picture.
      mask: file of the mask, white where the picture is drawn anew; without it the whole picture changes.
      prompt: what the result shows, for a model that reads text.
      negative_prompt: text that guidance leads away from, in place of the empty one.
      hint: file of a picture that the result follows, for a model with a control network: a hint as such networks read
        it; of a run whose data have none, a picture whose edges are taken.
      strength: share of the steps that are taken: little keeps the picture, 1 starts from noise.
      num_samples: number of results.
      num_steps: steps of the sampler; by default the model's.
      guidance: weight of the guidance, which counts from 0; by default the model's.
      seed: seed of the results.
      output: path of the picture; by default edit.png in the run, or in the current folder.
    """

    pretrained: str | None = None
    lora: str | None = None
    image: str | None = None
    mask: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    hint: str | None = None
    strength: float = 0.8
    num_samples: int = 1
    num_steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        config.check_at_least(self, num_samples=1, num_steps=1)


def write(run: Run, options: Options) -> Path:
    """Changes a picture by the model of a run, and writes the results as one PNG.

    Raises:
      ConfigError: the run is not of a diffusion model of pictures, or does not read texts.
      DataError: the picture cannot be read.
    """
    if options.lora is not None:
        raise config.ConfigError(
            "--lora names updates for a folder; give it by --pretrained=FOLDER, or leave --lora out"
        )
    model, data = run.model, run.experiment.data
    if not isinstance(model, (Diffusion, StableDiffusion)) or len(model.data_shape or ()) != 3:
        raise config.ConfigError(
            f"{run.name} holds a {type(model).__name__}, and edits need a diffusion model of pictures [H, W, C]"
        )
    if not isinstance(data, Images):
        raise config.ConfigError(f"{type(data).__name__} reads no pictures from files; edits need a run of pictures")
    x = np.asarray(data.read_picture(_given(options)))
    texts: dict[str, Any] = {}
    model = _changed(model, options)
    if options.prompt is not None or options.negative_prompt is not None:
        prompts = None if options.prompt is None else (options.prompt,)
        texts = dict(conditions.prompts_for(model, data, prompts, options.negative_prompt, options.num_samples))
    texts |= _hints(model, options, lambda file: conditions.hint_of_data(model, data, file))
    default = Path(run.workdir) / "samples" / "edit.png"
    return _write(model, run.state, x, texts, options, default, data.to_unit)


def write_from_folder(options: Options) -> Path:
    """Changes a picture by the pipeline of the library diffusers in a folder, and writes the results as one PNG.

    Raises:
      ConfigError: the folder holds no pipeline.
      DataError: the picture cannot be read.
    """
    found = load_pretrained(options.pretrained)
    if not isinstance(found.model, StableDiffusion):
        raise config.ConfigError(
            f"{options.pretrained} holds a {type(found.model).__name__} and no pipeline; give the folder of one, with "
            "model_index.json"
        )
    if options.lora is not None:
        model, params = with_updates(found.model, found.params, options.lora)
        found = dataclasses.replace(found, model=model, params=params)
    model = _changed(found.model, options)
    height, width, channels = model.data_shape
    levels = read_given(_given(options), (height, width), channels)
    texts: dict[str, Any] = {}
    for part, name in (("tokenizer", "tokens"), ("tokenizer_2", "second_tokens")):
        if not (found.folder / part).is_dir():
            continue
        tokenizer = PromptTokenizer(found.folder / part, model.text.network.max_length)
        for text, prefix in ((options.prompt or "", ""), (options.negative_prompt, "negative_")):
            if text is not None:
                texts[prefix + name] = tokenizer.encode([text] * options.num_samples)
    texts |= _hints(model, options, lambda file: read_given(file, (height, width), 3).astype(np.float32) / 255.0)
    x = levels[None].astype(np.float32) / 127.5 - 1.0
    unit = lambda samples: np.clip(0.5 + 0.5 * np.asarray(samples), 0.0, 1.0)
    return _write(model, found.state, x, texts, options, Path("edit.png"), unit)


def _hints(model: Any, options: Options, read: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    return conditions.hints_for(model, None if options.hint is None else (options.hint,), options.num_samples, read)


def _given(options: Options) -> str:
    if options.image is None:
        raise config.ConfigError("an edit starts from a picture; give it by --image=FILE")
    return options.image


def _changed(model: Any, options: Options) -> Any:
    """The model with the options' steps and guidance."""
    inner = model.diffusion if isinstance(model, StableDiffusion) else model
    if options.num_steps is not None:
        inner = dataclasses.replace(inner, sampler=dataclasses.replace(inner.sampler, num_steps=options.num_steps))
    if options.guidance is not None:
        inner = dataclasses.replace(inner, guidance=dataclasses.replace(inner.guidance, scale=options.guidance))
    return dataclasses.replace(model, diffusion=inner) if isinstance(model, StableDiffusion) else inner


def _write(
    model: Any, state: Any, x: np.ndarray, texts: dict[str, Any], options: Options, default: Path, unit: Any
) -> Path:
    x = jnp.asarray(np.repeat(x, options.num_samples, 0))
    key, known = jax.random.key(options.seed), None
    if options.mask is not None:
        white = read_given(options.mask, x.shape[1:3], 1)
        known = jnp.asarray(white[None] < 128, jnp.float32)
        if not 0.0 < float(known.mean()) < 1.0:
            raise config.ConfigError(
                f"--mask={options.mask} is of one colour; it is white where the picture is drawn anew, else black"
            )
    if isinstance(model, StableDiffusion):
        draw = jax.jit(lambda state, x: code_editing.edit(model, state, key, x, options.strength, known, **texts))
    elif known is None:
        draw = jax.jit(lambda state, x: editing.image_to_image(model, state, key, x, options.strength, **texts))
    else:
        steps = model.sampler.num_steps
        draw = jax.jit(lambda state, x: editing.inpaint(model, state, key, x, known, steps, **texts))
    samples = np.asarray(draw(state, x))
    conditions.check_finite(samples, "edits")
    path = default if options.output is None else Path(options.output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = unit(samples)
    if len(pictures) == 1:
        # Of its own size, and not enlarged on a sheet.
        levels = np.round(255.0 * np.clip(pictures[0], 0.0, 1.0)).astype(np.uint8)
        Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(path)
    else:
        write_grid(pictures, path)
    return path
