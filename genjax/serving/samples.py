"""Requests for samples and vectors: pictures, sound, music and molecules of any run, and embeddings of texts.

A picture may also be asked for by its latent, where the model decodes one, and as a film on the way from noise, where
it is a diffusion model.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import mimetypes
import secrets
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data.images import Images
from genjax.families.diffusion.diffusion import Diffusion
from genjax.model import DecodesNoise, takes
from genjax.serving.batching import power_of_two
from genjax.serving.bodies import Body, RequestError
from genjax.tools import conditions, denoising
from genjax.tools.embedding import Embedder
from genjax.training import Run

#: Largest number of samples, and of texts to embed, of a request.
MOST_SAMPLES, MOST_TEXTS = 64, 2048
_FIELDS = frozenset(("model", "n", "seed", "label"))
SAMPLE_FIELDS = _FIELDS | {"latents", "film"}
PICTURE_FIELDS = _FIELDS | {"prompt", "size", "response_format", "quality", "style", "output_format"}
EMBEDDING_FIELDS = frozenset(("model", "input", "encoding_format", "dimensions", "input_type"))
#: Types of files that Python does not know everywhere.
_TYPES = {".mid": "audio/midi", ".smi": "chemical/x-daylight-smiles", ".wav": "audio/wav"}


@dataclasses.dataclass(frozen=True)
class SampleOrder:
    """A request for samples.

    Attributes:
      count: number of samples.
      seed: seed of all.
      label: class of all, or None.
      latents: the latent of the only sample, or None to draw it.
      film: whether pictures are shown on their way from noise.
    """

    count: int
    seed: int
    label: str | None
    latents: tuple[float, ...] | None = None
    film: bool = False


@dataclasses.dataclass(frozen=True)
class Samples:
    """Draws samples of a run."""

    run: Run

    @property
    def draws_pictures(self) -> bool:
        """Whether samples are pictures."""
        return isinstance(self.run.experiment.data, Images)

    @property
    def latent_dim(self) -> int:
        """Number of the latents that a picture is decoded from; 0 where there are none."""
        return self.run.model.latent_dim if self.draws_pictures and isinstance(self.run.model, DecodesNoise) else 0

    @property
    def has_films(self) -> bool:
        """Whether pictures can be shown on their way from noise."""
        return self.draws_pictures and isinstance(self.run.model, Diffusion)

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
        latents, film = body.numbers("latents"), body.flag("film")
        if latents is not None and len(latents) != self.latent_dim:
            has = f"has {self.latent_dim} latents" if self.latent_dim else "decodes no latents to pictures"
            raise RequestError(f"latents has {len(latents)} numbers, and {self.run.name} {has}", param="latents")
        if latents is not None and count != 1:
            raise RequestError(f"latents describe one sample, and n={count}", param="n")
        if film and not self.has_films:
            raise RequestError(f"{self.run.name} draws no pictures from noise step by step", param="film")
        return SampleOrder(
            count, secrets.randbits(32) if seed is None else seed, None if label is None else str(label), latents, film
        )

    def pictures(self, order: SampleOrder) -> list[dict[str, str]]:
        """Each picture as PNG in base64."""
        drawn = self._draw(order)
        return [{"b64_json": self._files(drawn[i : i + 1])[0]["b64_json"]} for i in range(len(drawn))]

    def files(self, order: SampleOrder) -> list[dict[str, str]]:
        """The files of the samples as their domain shows them: name, type, and content as text or in base64."""
        if not order.film:
            return self._files(self._draw(order))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.gif"
            denoising.write_film(denoising.film(self.run, order.count, order.seed, **self._condition(order)), path)
            return [_content(path)]

    def _draw(self, order: SampleOrder) -> np.ndarray:
        if order.latents is not None:
            codes = jnp.asarray([order.latents], jnp.float32)
            drawn = np.asarray(_decoded(self.run.model, self.run.state, codes, self._condition(order)))
        else:
            # A power of two, so that few programs are compiled.
            size = power_of_two(order.count)
            drawn = self.run.sample(jax.random.key(order.seed), size, **self._condition(order, size))[: order.count]
        conditions.check_finite(drawn, f"samples of {self.run.name}")
        return drawn

    def _condition(self, order: SampleOrder, size: int | None = None) -> dict[str, Any]:
        """What samples are drawn given, for `size` of them, by default the number that is asked for."""
        if order.label is None:
            return {}
        names = self.run.experiment.data.label_names()
        return {"label": conditions.labels_for(self.run.model, [order.label], size or order.count, names)}

    def _files(self, samples: np.ndarray) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            paths = self.run.write_samples(samples, Path(folder) / "samples")
            return [_content(path) for path in paths]


@functools.partial(jax.jit, static_argnums=0)
def _decoded(model: Any, state: Any, codes: jax.Array, condition: dict[str, Any]) -> jax.Array:
    return model.decode(state, codes, **condition)


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
