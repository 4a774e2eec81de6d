"""Vectors of texts by a trained encoder: a run of this project, or a folder of sentence-transformers.

embedder = Embedder.open("all-MiniLM-L6-v2")           # or Embedder.of_run(genjax.restore("runs/dpr"))
vectors = embedder.documents(["a text", "another"])    # float32 [2, C]
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax import config, pretrained
from genjax.data.text.base import DelimitedText
from genjax.data.text.encoder import EncoderText
from genjax.model import EmbedsQueries, EmbedsTexts, EmbedsTokens, TrainState
from genjax.training import Run

_logger = logging.getLogger(__name__)
#: Where folders of sentence-transformers say how many tokens of a text are read.
_LENGTH_FILE, _POOLING_FILE = "sentence_bert_config.json", "1_Pooling/config.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder:
    """An encoder and the tokenizer that belongs to it.

    Attributes:
      model: the encoder.
      state: its parameters.
      data: its tokenizer and special tokens.
      length: largest number of tokens of a text; longer texts are cut.
      batch_size: number of texts that are encoded at a time.
    """

    model: EmbedsTexts
    state: TrainState
    data: DelimitedText
    length: int
    batch_size: int = 64

    @classmethod
    def of_run(cls, run: Run, batch_size: int = 64) -> Embedder:
        """The encoder of a run.

        Raises:
          ConfigError: the run is no encoder of texts.
        """
        data = run.experiment.data
        if not isinstance(run.model, EmbedsTexts) or not isinstance(data, DelimitedText):
            raise config.ConfigError(
                f"{run.name} is a run of {type(run.model).__name__} on {type(data).__name__}, which gives no vectors "
                "of texts; give a run of an encoder (BERT, RoBERTa, DPR, RAG)"
            )
        spec = data.spec()
        return cls(run.model, run.state, data, spec.get("document_length", spec["sequence_length"]), batch_size)

    @classmethod
    def open(cls, folder: str | Path, batch_size: int = 64) -> Embedder:
        """The encoder in a folder of the library transformers or sentence-transformers.

        Raises:
          ConfigError: it is no encoder of texts, has no tokenizer, or pools its tokens otherwise than by their mean.
        """
        return cls.of_pretrained(pretrained.load_pretrained(Path(folder).expanduser()), batch_size)

    @classmethod
    def of_pretrained(cls, found: pretrained.Pretrained, batch_size: int = 64) -> Embedder:
        """As `open`, of a folder that was read."""
        folder, file = found.folder, found.folder / pretrained.TOKENIZER_FILE
        if not isinstance(found.model, EmbedsTexts) or not file.is_file():
            has = "with" if file.is_file() else "without"
            raise config.ConfigError(
                f"{folder} holds {type(found.model).__name__} {has} a tokenizer.json; vectors of texts come from an "
                "encoder (BERT, RoBERTa) with its tokenizer"
            )
        pooling = _json(folder / _POOLING_FILE)
        others = [name for name, value in pooling.items() if name.startswith("pooling_mode") and value is True]
        if others not in ([], ["pooling_mode_mean_tokens"]):
            raise config.ConfigError(f"{folder} pools by {', '.join(others)}; known is the mean of tokens")
        length = _json(folder / _LENGTH_FILE).get("max_seq_length") or found.model.network.max_length
        data = EncoderText(tokenizer_file=str(file), sequence_length=max(int(length), 8))
        return cls(found.model, found.state, data, int(length), batch_size)

    @functools.cached_property
    def identity(self) -> str:
        """A digest of everything that vectors depend on: parameters, tokenizer, and the largest number of tokens."""
        digest = hashlib.sha256(f"{type(self.model).__name__} {self.length}".encode())
        digest.update(self.data.make_tokenizer().to_json().encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.state.eval_params):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of documents, float32 [N, C]."""
        return self._vectors(texts, type(self.model).embed)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of queries, float32 [N, C]; a model with one encoder for both embeds them like documents."""
        queries = isinstance(self.model, EmbedsQueries)
        return self._vectors(texts, type(self.model).embed_queries if queries else type(self.model).embed)

    def document_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Vectors of the tokens of each document, its marks included, float32 [T, C] each.

        Raises:
          ConfigError: the model gives no vectors of tokens.
        """
        return self._of_tokens(texts, _document_tokens)

    def query_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `document_tokens`, of queries."""
        return self._of_tokens(texts, _query_tokens)

    def _of_tokens(self, texts: Sequence[str], embed: Any) -> list[np.ndarray]:
        if not isinstance(self.model, EmbedsTokens):
            raise config.ConfigError(
                f"{type(self.model).__name__} gives no vectors of tokens; late interaction needs an encoder that does "
                "(BERT, RoBERTa, DPR, RAG)"
            )
        return self._encoded(texts, embed)

    def _vectors(self, texts: Sequence[str], embed: Any) -> np.ndarray:
        found = self._encoded(texts, embed)
        return np.stack(found) if found else np.zeros((0, 0), np.float32)

    def _encoded(self, texts: Sequence[str], embed: Any) -> list[np.ndarray]:
        """What `embed` gives for each text: a vector [C], or vectors of its own tokens [T, C]."""
        ids = [self.data.make_tokenizer().encode(text) for text in texts]
        rows = [self.data.enclosed(each, self.length) for each in ids]
        cut = sum(len(row) >= self.length and len(each) > len(row) for row, each in zip(rows, ids))
        if cut:
            _logger.warning("%d of %d texts are longer than %d tokens and are cut", cut, len(rows), self.length)
        # Texts of like length together, so that little padding is encoded.
        order = np.argsort([len(row) for row in rows], kind="stable")
        vectors: list[Any] = [None] * len(rows)
        for start in range(0, len(rows), self.batch_size):
            places = order[start : start + self.batch_size]
            part = [rows[i] for i in places]
            # Few different shapes, so few programs: full batches, and lengths that are powers of two.
            part += part[-1:] * (min(self.batch_size, _power_of_two(len(rows))) - len(part))
            tokens, mask = self.data.pad(part, min(_power_of_two(max(map(len, part))), self.length))
            found = np.asarray(_embedded(self.model, embed, self.state, {"tokens": tokens, "mask": mask}), np.float32)
            for place, vector in zip(places, found):
                vectors[place] = vector if vector.ndim == 1 else vector[: len(rows[place])]
        return vectors


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embedded(model: Any, embed: Any, state: TrainState, batch: dict[str, Any]) -> Any:
    return embed(model, state, batch)


def _document_tokens(model: EmbedsTokens, state: TrainState, batch: dict[str, Any]) -> Any:
    return model.embed_tokens(state, batch)


def _query_tokens(model: EmbedsTokens, state: TrainState, batch: dict[str, Any]) -> Any:
    return model.embed_tokens(state, batch, queries=True)


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def _json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
