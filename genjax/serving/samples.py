"""Requests for samples and vectors: pictures, sound, music and molecules of any run, and embeddings of texts."""

from __future__ import annotations

import base64
import dataclasses
import mimetypes
import secrets
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax.data.images import Images
from genjax.model import takes
from genjax.serving.batching import power_of_two
from genjax.serving.bodies import Body, RequestError
from genjax.tools import conditions
from genjax.tools.embedding import Embedder
from genjax.training import Run

#: Largest number of samples, and of texts to embed, of a request.
MOST_SAMPLES, MOST_TEXTS = 64, 2048
SAMPLE_FIELDS = frozenset(("model", "n", "seed", "label"))
PICTURE_FIELDS = SAMPLE_FIELDS | {"prompt", "size", "response_format", "quality", "style", "output_format"}
EMBEDDING_FIELDS = frozenset(("model", "input", "encoding_format", "dimensions", "input_type"))
#: Types of files that Python does not know everywhere.
_TYPES = {".mid": "audio/midi", ".smi": "chemical/x-daylight-smiles", ".wav": "audio/wav"}


@dataclasses.dataclass(frozen=True)
class SampleOrder:
    """A request for samples: their number, their seed, and the class of all, or None."""

    count: int
    seed: int
    label: str | None


@dataclasses.dataclass(frozen=True)
class Samples:
    """Draws samples of a run."""

    run: Run

    @property
    def draws_pictures(self) -> bool:
        """Whether samples are pictures."""
        return isinstance(self.run.experiment.data, Images)

    def understand(self, content: bytes, pictures: bool) -> SampleOrder:
        """What the body of a request asks for.

        Raises:
          RequestError: the body is not as it should be, or the run does not draw pictures.
        """
        body = Body(content, PICTURE_FIELDS if pictures else SAMPLE_FIELDS)
        count, seed = body.integer("n", 1, 1, MOST_SAMPLES), body.integer("seed", None, 0, 2**32 - 1)
        label = body.fields.get("label")
        if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
            raise RequestError("label must be the name or the number of a class", param="label")
        if pictures:
            if not self.draws_pictures:
                raise RequestError(f"{self.run.name} draws no pictures; ask /v1/samples", status=404)
            body.refuse("size", "auto", "pictures have the size that the run has learned")
            body.refuse("response_format", "b64_json", "no file is kept that a URL could lead to")
            body.refuse("output_format", "png", "pictures are PNG")
            prompt = body.text("prompt", "").strip()
            label = prompt if label is None and prompt else label
        if label is not None and not takes(self.run.model, "label"):
            raise RequestError(
                f"{self.run.name} was not trained with classes; leave prompt and label out", param="label"
            )
        return SampleOrder(count, secrets.randbits(32) if seed is None else seed, None if label is None else str(label))

    def pictures(self, order: SampleOrder) -> list[dict[str, str]]:
        """Each picture as PNG in base64."""
        drawn = self._draw(order)
        return [{"b64_json": self._files(drawn[i : i + 1])[0]["b64_json"]} for i in range(len(drawn))]

    def files(self, order: SampleOrder) -> list[dict[str, str]]:
        """The files of the samples as their domain shows them: name, type, and content as text or in base64."""
        return self._files(self._draw(order))

    def _draw(self, order: SampleOrder) -> np.ndarray:
        # A power of two, so that few programs are compiled.
        size, condition = power_of_two(order.count), {}
        if order.label is not None:
            names = self.run.experiment.data.label_names()
            condition["label"] = conditions.labels_for(self.run.model, [order.label], size, names)
        drawn = self.run.sample(jax.random.key(order.seed), size, **condition)[: order.count]
        conditions.check_finite(drawn, f"samples of {self.run.name}")
        return drawn

    def _files(self, samples: np.ndarray) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            paths = self.run.write_samples(samples, Path(folder) / "samples")
            return [_content(path) for path in paths]


def _content(path: Path) -> dict[str, Any]:
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    found: dict[str, Any] = {"name": path.name, "type": kind}
    if path.suffix in (".smi", ".txt", ".csv"):
        return found | {"text": path.read_text(encoding="utf-8")}
    return found | {"b64_json": base64.b64encode(path.read_bytes()).decode()}


@dataclasses.dataclass(frozen=True)
class EmbeddingOrder:
    """A request for vectors: the texts, whether they are queries, whether numbers are sent in base64."""

    texts: list[str]
    queries: bool
    in_base64: bool
    num_tokens: int


def understand_embeddings(content: bytes, embedder: Embedder) -> EmbeddingOrder:
    """What the body of a request for vectors asks for.

    Raises:
      RequestError: the body is not as it should be, or a text is longer than the encoder reads.
    """
    body = Body(content, EMBEDDING_FIELDS)
    texts = body.texts("input", MOST_TEXTS)
    if not texts or not all(texts):
        raise RequestError("input must be a text or a list of texts, none of them empty", param="input")
    body.refuse("dimensions", None, "vectors have the size that the run has learned")
    data, sizes = embedder.data, []
    tokenizer, framing = data.make_tokenizer(), len(data.framed(np.zeros(0, np.int32)))
    longest = embedder.length * max(map(len, tokenizer.pieces))
    for text in texts:
        size = len(tokenizer.encode(text)) + framing if len(text) <= longest else len(text)
        if size > embedder.length:
            raise RequestError(
                f"input has a text of {size} {'tokens' if len(text) <= longest else 'characters'}, "
                f"and the encoder reads {embedder.length} tokens",
                param="input",
                code="context_length_exceeded",
            )
        sizes.append(size)
    return EmbeddingOrder(
        texts=texts,
        queries=body.choice("input_type", "document", ("document", "query")) == "query",
        in_base64=body.choice("encoding_format", "float", ("float", "base64")) == "base64",
        num_tokens=sum(sizes),
    )


def embedded(order: EmbeddingOrder, embedder: Embedder, model: str) -> dict[str, Any]:
    """The vectors in the form of the OpenAI interface."""
    vectors = embedder.queries(order.texts) if order.queries else embedder.documents(order.texts)
    show = lambda vector: (
        base64.b64encode(vector.astype("<f4").tobytes()).decode() if order.in_base64 else vector.tolist()
    )
    data = [{"object": "embedding", "index": i, "embedding": show(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": order.num_tokens, "total_tokens": order.num_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}
