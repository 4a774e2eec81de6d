"""Answers of a retrieval-augmented model, with the documents that each token came from.

    run = genjax.restore("runs/rag_facts")
    index = retrieval.Index.open("runs/index", Embedder.of_run(run))
    answer = reading.answer(run, index, "what is the home of Bameru ?")
    print(answer.text, [each.document.id for each in answer.read])

The index gives the candidates.  The model's own retriever chooses among them what is read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax import config
from genjax.data.figures import empty_figure
from genjax.data.text.base import DelimitedText
from genjax.data.text.knowledge import KnowledgeQuestions
from genjax.model import ReadsDocuments, TrainState
from genjax.tools.retrieval import Found, Index, SearchOptions
from genjax.training import Run


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
      text: the answer.
      tokens: the text of each of its tokens.
      read: the documents that were read, best first.
      attribution: probability of each document for each token, float [T, K]; None where the model reads all documents
        at once.
    """

    text: str
    tokens: list[str]
    read: list[Found]
    attribution: np.ndarray | None


def reads_documents(run: Run) -> bool:
    """Whether the run answers questions from documents."""
    return isinstance(run.model, ReadsDocuments) and isinstance(run.experiment.data, KnowledgeQuestions)


def answer(run: Run, index: Index, question: str, search: SearchOptions | None = None) -> Answer:
    """The likeliest answer to a question.

    Args:
      run: a run of a retrieval-augmented model.
      index: an index of documents.
      question: the question.
      search: how candidates are looked for; by default as many as the run's training questions have.

    Raises:
      ConfigError: the run reads no documents, or none is found.
    """
    count = _data_of(run).num_documents
    found = index.search([question], search or SearchOptions(num_documents=count))[0][:count]
    if not found:
        raise config.ConfigError(f"no document was found for {question!r}, so there is nothing to read")
    return answer_from(run, question, found)


def answer_from(run: Run, question: str, found: Sequence[Found]) -> Answer:
    """The likeliest answer to a question from given documents, of which the model chooses what it reads.

    Args:
      run: a run of a retrieval-augmented model.
      question: the question.
      found: the candidates, at least one and at most as many as the run's training questions have.

    Raises:
      ConfigError: the run reads no documents, or there are none, or too many.
    """
    data = _data_of(run)
    count = data.num_documents
    if not 1 <= len(found) <= count:
        raise config.ConfigError(f"{len(found)} documents are given, and {run.name} reads between 1 and {count}")
    encode = data.make_tokenizer().encode
    source, source_mask = data.pad([data.enclosed(encode(question), data.source_length)], data.source_length)
    rows = [data.enclosed(encode(each.document.whole), data.document_length) for each in found]
    documents, documents_mask = data.pad([*rows, *[[]] * (count - len(rows))], data.document_length)
    batch = {"source": source, "source_mask": source_mask, "documents": documents[None]}
    batch |= {"documents_mask": documents_mask[None]}
    written = np.asarray(_answered(run.model, run.state, batch))[0]
    ends = np.flatnonzero(written == data.separator_token)
    ids = written[: ends[0]] if len(ends) else written
    # The end is attributed too, as a token of the answer.
    length = min(len(ids) + 1, len(written))
    tokens = np.concatenate([[data.start_token], written])[None].astype(np.int32)
    batch |= {"tokens": tokens, "mask": (np.arange(tokens.shape[1]) <= length)[None]}
    shares, places = _attributed(run.model, run.state, batch)
    places = [int(place) for place in np.asarray(places)[0] if 0 <= place < len(found)]
    attribution = None if shares is None else np.asarray(shares)[0, : len(ids), : len(places)]
    texts = [_text(data, [i]) for i in ids]
    return Answer(_text(data, ids).strip(), texts, [found[place] for place in places], attribution)


def _data_of(run: Run) -> KnowledgeQuestions:
    """The data of a run that reads documents.

    Raises:
      ConfigError: it reads none.
    """
    data = run.experiment.data
    if not reads_documents(run) or not isinstance(data, KnowledgeQuestions):
        raise config.ConfigError(f"{run.name} is a run of {type(run.model).__name__}, which answers from no documents")
    return data


@functools.partial(jax.jit, static_argnums=0)
def _answered(model: Any, state: TrainState, batch: dict[str, Any]) -> Any:
    return model.answer(state, batch)


@functools.partial(jax.jit, static_argnums=0)
def _attributed(model: Any, state: TrainState, batch: dict[str, Any]) -> Any:
    return model.attribution(state, batch)


def _text(data: DelimitedText, ids: np.ndarray | list[int]) -> str:
    """The text of tokens without special ones."""
    size = data.make_tokenizer().vocab_size
    return data.make_tokenizer().decode(i for i in ids if i < size)


def draw(found: Answer, path: Path) -> None:
    """Writes a picture of the attribution: a row for each document, a column for each token of the answer.

    Raises:
      ConfigError: the model does not tell its documents apart.
    """
    if found.attribution is None:
        raise config.ConfigError("this model reads all documents at once and does not say which a token came from")
    names = [f"{each.document.id}: {' '.join(each.document.whole.split())[:60]}" for each in found.read]
    figure = empty_figure(4 + 0.5 * len(found.tokens), 0.6 + 0.35 * len(names))
    panel = figure.subplots()
    image = panel.imshow(found.attribution.T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    panel.set_yticks(range(len(names)), names, fontsize="small")
    panel.set_xticks(range(len(found.tokens)), [token.strip() or "␣" for token in found.tokens], fontsize="small")
    figure.colorbar(image, label="p(document | token)")
    figure.savefig(path, dpi=100)
