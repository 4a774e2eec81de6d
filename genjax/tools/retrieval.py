"""Indices of documents: made in a folder, opened, and searched by words, by vectors, or by both.

    documents = read_collection("documents.jsonl")
    retrieval.build("index", documents, Embedder.open("all-MiniLM-L6-v2"))
    index = retrieval.Index.open("index", embedder)
    for found in index.search(["a question"])[0]:
        print(found.score, found.document.text)

The folder holds `documents.jsonl`, `words.npz` (BM25), `vectors/*.npy` in parts (`*.npz` of the vectors of tokens), and
`index.json`, which names the encoder by a digest of its parameters and tokenizer.  Nothing in it is pickled.  An index
that another encoder made is refused.  Parts are written whole, so a build that was killed goes on after its last part;
`index.json` is written last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from genjax import config
from genjax.data.files import write_whole
from genjax.data.text.collection import Document, checked, read_collection
from genjax.families.retrieval.approximate import ApproximateIndex, Approximation, Kind
from genjax.families.retrieval.bm25 import BM25, BM25Index, words_of
from genjax.families.retrieval.fusion import reciprocal_rank_fusion
from genjax.families.retrieval.hits import Hits
from genjax.families.retrieval.late_interaction import TokenIndex
from genjax.families.retrieval.vector_index import Metric, VectorIndex
from genjax.tools.embedding import Embedder

INDEX_FILE, DOCUMENTS_FILE, WORDS_FILE, VECTORS_FOLDER = "index.json", "documents.jsonl", "words.npz", "vectors"
#: What index.json will say, while the index is made.
UNFINISHED_FILE = "unfinished.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How an index is made.

    Attributes:
      words: formula of the scores of words.
      kind: what an encoder gives: a vector of each document, or of each of its tokens (late interaction, ColBERT).
      metric: how vectors of documents are compared; cosine where the encoder's vectors have length 1.
      part_size: documents of a part; a build that was killed goes on after the last whole part.
    """

    words: BM25 = BM25()
    kind: Literal["vectors", "tokens"] = "vectors"
    metric: Metric = "cosine"
    part_size: int = 4096

    def __post_init__(self) -> None:
        config.check_at_least(self, part_size=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How an index is searched.

    Attributes:
      num_documents: number of documents to find.
      method: words (BM25), vectors (of documents or of tokens), or fusion of both by their ranks; by default vectors
        where the index has them.
      depth: number of documents of each ranking that a fusion joins.
      approximate: compare with some of the vectors alone, as faiss chooses them, and tell the recall; by default with
        all.
      faiss: how far an approximate search looks.
    """

    num_documents: int = 5
    method: Literal["words", "vectors", "fusion"] | None = None
    depth: int = 100
    approximate: Kind | None = None
    faiss: Approximation = Approximation()

    def __post_init__(self) -> None:
        config.check_at_least(self, num_documents=1, depth=1)


@dataclasses.dataclass(frozen=True)
class Found:
    """A document that a search found.

    Attributes:
      document: the document.
      score: its score, the larger the better; scores of different methods are not comparable.
      place: its place in the index.
    """

    document: Document
    score: float
    place: int


def build(
    folder: str | Path,
    documents: Sequence[Document],
    embedder: Embedder | None = None,
    options: BuildOptions | None = None,
) -> Index:
    """Makes an index in a folder: of words, and of vectors where an encoder is given.

    A folder whose build was killed is gone on with; a complete index of the same documents and encoder is opened.

    Raises:
      ConfigError: the folder holds an index of other documents, another encoder or other options.
      DataError: there is no document, one is empty, or two have one id.
    """
    documents = checked(((f"document {i}", each) for i, each in enumerate(documents)), str(folder))
    folder, options = Path(folder).expanduser(), options or BuildOptions()
    of_tokens = options.kind == "tokens"
    if of_tokens and embedder is None:
        raise config.ConfigError("kind=tokens needs an encoder, whose vectors of tokens it keeps")
    described: dict[str, Any] = {
        "format": _FORMAT,
        "words": dataclasses.asdict(options.words),
        "metric": options.metric if embedder else None,
        "part_size": options.part_size if embedder else None,
        "encoder": embedder.identity if embedder else None,
        "num_documents": len(documents),
        **({"kind": options.kind} if of_tokens else {}),
    }
    lines = "".join(json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n" for each in documents)
    unfinished = folder / UNFINISHED_FILE
    folder.mkdir(parents=True, exist_ok=True)
    for file in (unfinished, folder / INDEX_FILE):
        if file.is_file() and (_read(file) != described or (folder / DOCUMENTS_FILE).read_text("utf-8") != lines):
            raise config.ConfigError(
                f"{folder} holds an index of other documents, of another encoder or with other options; "
                "give another folder, or remove it"
            )
    if not (folder / INDEX_FILE).is_file():
        write_whole(folder / DOCUMENTS_FILE, lines)
        write_whole(unfinished, json.dumps(described))
        words = options.words.index(words_of(document.whole) or [document.id] for document in documents)
        with (folder / "words.new").open("wb") as file:
            np.savez(file, **words.arrays())
        (folder / "words.new").replace(folder / WORDS_FILE)
        if embedder is not None:
            _write_vectors(folder / VECTORS_FOLDER, documents, embedder, options.part_size, of_tokens)
        unfinished.replace(folder / INDEX_FILE)
    return Index.open(folder, embedder)


def _write_vectors(
    folder: Path, documents: Sequence[Document], embedder: Embedder, part_size: int, of_tokens: bool
) -> None:
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(documents), part_size)):
        path = folder / f"{number:06d}.{'npz' if of_tokens else 'npy'}"
        if path.is_file():
            continue
        texts = [document.whole for document in documents[start : start + part_size]]
        with path.with_suffix(".new").open("wb") as file:
            if of_tokens:
                part = embedder.document_tokens(texts)
                np.savez(file, vectors=np.concatenate(part), lengths=np.array([len(each) for each in part]))
            else:
                np.save(file, embedder.documents(texts))
        path.with_suffix(".new").replace(path)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """An index that was opened.

    Attributes:
      documents: what is searched.
      words: scores of words.
      vectors: vectors of the documents, or None.
      embedder: the encoder that made them, or None.
      tokens: vectors of the documents' tokens in place of `vectors`, or None.
      approximations: indices of faiss that were made, by kind and settings, each with its recall.
    """

    documents: list[Document]
    words: BM25Index
    vectors: VectorIndex | None
    embedder: Embedder | None
    tokens: TokenIndex | None = None
    approximations: dict[tuple[Kind, Approximation], ApproximateIndex] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, embedder: Embedder | None = None) -> Index:
        """The index in a folder.

        Without `embedder` only its words can be searched.

        Raises:
          ConfigError: the folder holds no complete index, or another encoder made its vectors.
        """
        folder = Path(folder).expanduser()
        if not (folder / INDEX_FILE).is_file():
            begun = (folder / UNFINISHED_FILE).is_file()
            what = "an index that is not finished; build it again to go on" if begun else "no index; build one"
            raise config.ConfigError(f"{folder} holds {what}: --build=DOCUMENTS")
        described = _read(folder / INDEX_FILE)
        if described.get("format") != _FORMAT:
            raise config.ConfigError(f"{folder} has format {described.get('format')} and not {_FORMAT}; build it again")
        vectors = tokens = None
        if embedder is not None:
            if described["encoder"] is None:
                raise config.ConfigError(f"{folder} has no vectors; build it with this encoder in another folder")
            if described["encoder"] != embedder.identity:
                raise config.ConfigError(
                    f"{folder} was made by another encoder (other parameters, tokenizer or length); "
                    "build it again with this one"
                )
            if described.get("kind") == "tokens":
                tokens = _read_tokens(folder / VECTORS_FOLDER)
            else:
                parts = [np.load(path, allow_pickle=False) for path in sorted((folder / VECTORS_FOLDER).glob("*.npy"))]
                vectors = VectorIndex.of(
                    np.concatenate(parts), described["metric"], num_devices=jax.local_device_count()
                )
        with np.load(folder / WORDS_FILE, allow_pickle=False) as arrays:
            words = BM25Index.from_arrays(BM25(**described["words"]), dict(arrays))
        return cls(read_collection(folder / DOCUMENTS_FILE), words, vectors, embedder, tokens)

    def hits(self, queries: Sequence[str], options: SearchOptions | None = None) -> Hits:
        """Places of the best documents for each query, [Q, K].

        Raises:
          ConfigError: the method needs vectors, and the index has none or was opened without its encoder; or vectors of
            tokens, or words alone, are to be searched approximately.
          UserError: faiss is needed and not installed.
        """
        options, queries = options or SearchOptions(), list(queries)
        has_vectors = self.embedder is not None and (self.vectors is not None or self.tokens is not None)
        method = options.method or ("vectors" if has_vectors else "words")
        if options.approximate is not None and (method == "words" or self.vectors is None):
            raise config.ConfigError(
                f"approximate={options.approximate} searches vectors of documents; this search compares "
                f"{'words' if method == 'words' else 'tokens'}"
            )
        if method != "words" and not has_vectors:
            raise config.ConfigError(f"method={method} needs vectors; open the index with the encoder that made it")
        if not queries:
            # Of no text an encoder gives no vector, and so no width.
            return Hits(np.zeros((0, options.num_documents), np.int64), np.zeros((0, options.num_documents)))
        depth = options.num_documents if method != "fusion" else max(options.depth, options.num_documents)
        rankings = []
        if method != "vectors":
            rankings.append(self.words.search(map(words_of, queries), depth))
        if method != "words":
            rankings.append(self._by_vectors(queries, options, depth))
        return rankings[0] if len(rankings) == 1 else reciprocal_rank_fusion(rankings, options.num_documents)

    def _by_vectors(self, queries: Sequence[str], options: SearchOptions, depth: int) -> Hits:
        assert self.embedder is not None
        if self.tokens is not None:
            return self.tokens.search(self.embedder.query_tokens(queries), depth)
        assert self.vectors is not None
        vectors = self.embedder.queries(queries)
        if options.approximate is None:
            return self.vectors.search(vectors, depth)
        key = (options.approximate, options.faiss)
        if key not in self.approximations:
            made = ApproximateIndex.of(self.vectors, options.approximate, vectors, depth, options.faiss)
            self.approximations[key] = made
        return self.approximations[key].search(vectors, depth)

    def search(self, queries: Sequence[str], options: SearchOptions | None = None) -> list[list[Found]]:
        """The best documents for each query, best first; fewer where fewer were found."""
        hits = self.hits(queries, options)
        return [
            [Found(self.documents[place], float(score), int(place)) for place, score in zip(*row) if place >= 0]
            for row in zip(hits.documents, hits.scores)
        ]


def _read_tokens(folder: Path) -> TokenIndex:
    documents: list[np.ndarray] = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as part:
            documents += np.split(part["vectors"], np.cumsum(part["lengths"])[:-1])
    return TokenIndex.of(documents)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise config.ConfigError(f"{file} is damaged; remove the index and build it again") from None
