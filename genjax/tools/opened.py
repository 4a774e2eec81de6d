"""What a path holds: a run of this project, or a model of another library, opened as a run of no steps.

run = opened("runs/instructions")
run = opened("SmolLM2-135M-Instruct")         # a folder of the library transformers, or a GGUF file
run = opened("all-MiniLM-L6-v2")              # a folder of sentence-transformers
embedder = opened_embedder("all-MiniLM-L6-v2")
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from genjax import config, pretrained
from genjax.data.text.chat import Chat
from genjax.families.alignment.sft import SupervisedGPT
from genjax.families.language.gpt import GPT
from genjax.interop import gguf
from genjax.interop.huggingface import CONFIG_FILE
from genjax.model import EmbedsTexts, TrainState
from genjax.tools.embedding import Embedder
from genjax.training import Experiment, Run, Training, resolve, runs
from genjax.training.engine import Engine


def opened(path: str | Path) -> Run:
    """The run at a path; a decoder-only model or an encoder of another library is a run that has made no step.

    Raises:
      ConfigError: there is neither.
    """
    return opened_pretrained(path) if is_of_another_library(path) else runs.restore(path)


def opened_pretrained(path: str | Path, change: Callable[[Experiment], Experiment] | None = None) -> Run:
    """The model of another library at a path as a run that has made no step: of chats, or of texts for an encoder.

    Args:
      path: a folder of the libraries transformers or sentence-transformers, or a GGUF file.
      change: what is changed of the experiment, such as how tokens are chosen.

    Raises:
      ConfigError: it is neither a decoder-only model nor an encoder, each with its tokenizer.
    """
    path = Path(path).expanduser()
    found = pretrained.load_pretrained(path)
    file = found.folder / pretrained.TOKENIZER_FILE
    if not isinstance(found.model, GPT | EmbedsTexts) or not file.is_file():
        has = "with" if file.is_file() else "without"
        raise config.ConfigError(
            f"{path} holds {type(found.model).__name__} {has} a tokenizer.json; texts come from a decoder "
            "(GPT-2, Llama, Mistral, Qwen) with its tokenizer, and vectors of texts from an encoder (BERT, RoBERTa)"
        )
    kinds = {"tokens": "int32", "mask": "bool"}
    if isinstance(found.model, GPT):
        own = {each.name: getattr(found.model, each.name) for each in dataclasses.fields(GPT)}
        model: Any = SupervisedGPT(**own)
        data: Any = Chat(name="chats", sequence_length=8, batch_size=1).starting_from(str(found.folder))
        kinds["loss_mask"] = "bool"
    else:
        embedder = Embedder.of_pretrained(found)
        model, data = embedder.model, embedder.data
    experiment = Experiment(model=model, data=data, training=Training(mesh="data:1"))
    experiment = experiment if change is None else change(experiment)
    engine = Engine(resolve(experiment), batch_spec={name: ((1, 9), kind) for name, kind in kinds.items()})
    state = TrainState(step=jnp.zeros((), jnp.int32), params=found.params)
    return Run(path.name, path, engine.experiment, state, engine)


def opened_embedder(path: str | Path) -> Embedder:
    """The encoder of texts at a path.

    Raises:
      ConfigError: there is none.
    """
    path = Path(path).expanduser()
    return Embedder.open(path) if is_of_another_library(path) else Embedder.of_run(runs.restore(path))


def is_of_another_library(path: str | Path) -> bool:
    """Whether a path holds a folder of the library transformers, or is the name of a GGUF file."""
    path = Path(path).expanduser()
    if path.suffix == ".gguf" and not path.is_dir():
        return True
    try:
        content = json.loads((gguf.folder_of(path) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content
