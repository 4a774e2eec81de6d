"""Finds documents by their words, by the vectors of a trained encoder, or by both:

    python -m experiments.retrieve --index=runs/index --build=documents.jsonl              # words alone (BM25)
    python -m experiments.retrieve --index=runs/index --query="who wrote it?"
    python -m experiments.retrieve --index=runs/vectors --build=documents.jsonl --workdir=runs/dpr
    python -m experiments.retrieve --index=runs/vectors --workdir=runs/dpr --query="who wrote it?" --method=fusion
    python -m experiments.retrieve --index=runs/vectors --encoder=all-MiniLM-L6-v2 --query="who wrote it?"

    python -m experiments.retrieve --index=runs/tokens --build=documents.jsonl --workdir=runs/dpr --kind=tokens
    python -m experiments.retrieve --index=runs/vectors --workdir=runs/dpr --query="who wrote it?" --approximate=hnsw

--build takes a folder of .txt files, a text file with a document a line, or JSON lines with "text" and, if wanted, "id"
and "title".  A build that was killed goes on with the same command.  An index with vectors is opened with the encoder
that made it: a run, or a folder of sentence-transformers (--encoder); another one is refused.  A run may be given as
--workdir too.

--kind=tokens keeps a vector of each token, and compares queries and documents token by token (late interaction).
--approximate=ivf or hnsw searches vectors of documents by faiss, and prints its recall beside exact search.

A run of a model that reads documents (RAG) answers too, and says which document each token came from;
--picture=FILE.png draws it.
"""

from __future__ import annotations

import dataclasses

from experiments import command_line
from genjax import config
from genjax.data.files import with_ending
from genjax.data.text.collection import read_collection
from genjax.tools import reading, retrieval
from genjax.tools.embedding import Embedder
from genjax.tools.opened import opened_embedder
from genjax.training import Run, runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The index and the encoder.

    Attributes:
      index: folder of the index.
      build: documents to make the index of; without it the index is opened.
      query: what to look for; several may be separated by |.
      workdir: run of an encoder of texts, or of a model that reads documents.
      encoder: run of an encoder of texts, or folder of one of sentence-transformers.
      picture: file for a picture of the documents that the tokens of a RAG run's answer came from.
    """

    index: str | None = None
    build: str | None = None
    query: str | None = None
    workdir: str | None = None
    encoder: str | None = None
    picture: str | None = None


def main(arguments: list[str]) -> int:
    options = Place(), retrieval.SearchOptions(), retrieval.BuildOptions()
    if command_line.first_flags(arguments, {"help": False, "h": False}):
        command_line.print_help(__doc__, *options)
        return 0
    place, searched, built = config.from_flags(arguments, *options)
    if place.index is None or (place.build is None and place.query is None):
        raise config.ConfigError("give an index and what to do: --index=FOLDER --query=TEXT, or --build=DOCUMENTS")
    run = None if place.workdir is None else runs.restore(place.workdir)
    embedder = encoder_of(place, run)
    if place.build is not None:
        index = retrieval.build(place.index, read_collection(place.build), embedder, built)
        kinds = "words"
        if index.vectors is not None:
            kinds += f" and vectors of {index.vectors.vectors.shape[1]} numbers"
        if index.tokens is not None:
            kinds += " and {} tokens, vectors of {} numbers".format(*index.tokens.vectors.shape)
        print(f"{place.index}: {len(index.documents)} documents, {kinds}")
    else:
        index = retrieval.Index.open(place.index, embedder)
    queries = [] if place.query is None else place.query.split("|")
    for query, row in zip(queries, index.search(queries, searched) if queries else []):
        lines = [f"  {each.score:8.4f}  {each.document.id}  {shown(each.document.whole)}" for each in row]
        print(query, *(lines or ["  no document holds a word of it"]), sep="\n")
        if run is not None and reading.reads_documents(run) and row:
            report(reading.answer(run, index, query), place.picture)
    for made in index.approximations.values():
        print(made.report())
    return 0


def encoder_of(place: Place, run: Run | None) -> Embedder | None:
    """The encoder that the flags name, or None.

    Raises:
      ConfigError: two are named, or what is named gives no vectors of texts.
    """
    if run is not None and place.encoder is not None:
        raise config.ConfigError("give one encoder: --workdir=RUN or --encoder=RUN, not both")
    if place.encoder is not None:
        return opened_embedder(place.encoder)
    return None if run is None else Embedder.of_run(run)


def report(answer: reading.Answer, picture: str | None) -> None:
    """Prints an answer, and the likeliest document of each of its tokens."""
    print(f"answer: {answer.text}")
    if answer.attribution is not None:
        for token, shares in zip(answer.tokens, answer.attribution):
            best = int(shares.argmax())
            print(f"  {token.strip()!r:<16} {shares[best]:.3f}  {answer.read[best].document.id}")
    if picture is not None:
        path = with_ending(picture, ".png")
        reading.draw(answer, path)
        print(path)


def shown(text: str, width: int = 160) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


if __name__ == "__main__":
    command_line.run(main)
