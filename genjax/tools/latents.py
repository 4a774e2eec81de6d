"""Codes of a trained run as a table with a code in each row, and pictures of such a table, for `experiments.latents`.

A density of codes learned from the table (any flow, with --data.name=table) turns an autoencoder into a generative model, and
shows how far the codes of a VAE, the means of q(z | x), are from its prior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from genjax.config import ConfigError
from genjax.data.sources import read_table
from genjax.training.runs import Run


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
    """For each variable of a code that has some of several kinds, samples [num_rows, columns, *data_shape] along its values."""
    for variable in range(run.model.num_variables):
        yield np.asarray(run.model.traverse(run.state, key, variable, num_rows, num_values))


def write_codes(run: Run, codes: np.ndarray) -> Path:
    """Writes codes [N, ...] as rows of <workdir>/latents/codes_<split>.npy, float32 [N, D], and returns its path."""
    path = Path(run.workdir) / "latents" / f"codes_{run.experiment.evaluation.split}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.asarray(codes, np.float32).reshape(len(codes), -1))
    return path


def read_codes(path: str | Path, shape: tuple[int, ...], limit: int) -> np.ndarray:
    """The first rows, at most `limit`, of a CSV or NPY table, as codes [N, *shape].

    Raises:
      ConfigError: there is no such file, or its rows are no codes of that shape.
      DataError: it is not a table of finite numbers.
    """
    if not Path(path).expanduser().is_file():
        raise ConfigError(f"--codes={path} is not a file; give a CSV or NPY file with a code in each row")
    codes = read_table(str(path))[0][:limit]
    if codes.shape[1] != math.prod(shape):
        raise ConfigError(f"--codes={path} has {codes.shape[1]} columns, but a code of this run has {math.prod(shape)}")
    return codes.reshape(len(codes), *shape)
