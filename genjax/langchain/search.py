"""Encoders, indices and vectors of this project as embeddings, retriever and vector store of LangChain."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import BaseModel, ConfigDict, Field

from genjax.config import ConfigError
from genjax.data.files import write_whole
from genjax.families.retrieval.vector_index import Metric, VectorIndex
from genjax.langchain.requests import embedder_at, index_at
from genjax.tools.retrieval import Found, SearchOptions

DOCUMENTS_FILE, VECTORS_FILE = "store.jsonl", "store.npy"
#: Which documents are searched: the ones with these metadata, or the ones for which a function returns True.
Filter = Mapping[str, Any] | Callable[[Document], bool]


class GenjaxEmbeddings(BaseModel, Embeddings):
    """Vectors of texts by an encoder: a run (BERT, DPR, RAG), or a folder of sentence-transformers.

        GenjaxEmbeddings(model="all-MiniLM-L6-v2").embed_query("who wrote it?")

    Attributes:
      model: folder of the encoder.
    """

    model_config = ConfigDict(extra="forbid")

    model: str

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents."""
        return embedder_at(self.model).documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return embedder_at(self.model).queries([text])[0].tolist()


class GenjaxRetriever(BaseRetriever):
    """Documents of an index of `experiments.retrieve`, found by words, by vectors, or by both.

        GenjaxRetriever(index="runs/index", encoder="all-MiniLM-L6-v2", method="fusion", k=3).invoke("who wrote it?")

    Attributes:
      index: folder of the index.
      encoder: folder of the encoder that made its vectors; without it documents are found by words.
      k: number of documents.
      method: words (BM25), vectors, or fusion of both by their ranks; by default vectors where the index has them.
      depth: number of documents of each ranking that a fusion joins.
    """

    index: str
    encoder: str | None = None
    k: int = Field(default=5, ge=1)
    method: Literal["words", "vectors", "fusion"] | None = None
    depth: int = Field(default=100, ge=1)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Its settings are plain values."""
        return True

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        options = SearchOptions(num_documents=self.k if k is None else k, method=self.method, depth=self.depth)
        return [_as_document(found) for found in index_at(self.index, self.encoder).search([query], options)[0]]


def _as_document(found: Found) -> Document:
    title = {"title": found.document.title} if found.document.title else {}
    return Document(id=found.document.id, page_content=found.document.text, metadata={"score": found.score, **title})


class GenjaxVectorStore(VectorStore):
    """Documents in memory, found exactly by their vectors, on the device.

        store = GenjaxVectorStore.from_texts(["a text", "another"], GenjaxEmbeddings(model="runs/dpr"))
        store.similarity_search_with_score("a question", k=1, filter={"source": "a.txt"})
        store.save("runs/store")                     # arrays and JSON lines, nothing pickled

    Scores are the larger the better for every metric.
    """

    def __init__(self, embedding: Embeddings, metric: Metric = "cosine", block_size: int = 65536) -> None:
        """Makes an empty store.

        Args:
          embedding: makes the vectors, of any library.
          metric: how a query and a document are compared.
          block_size: number of documents that are compared at a time.
        """
        self._embedding, self.metric, self._block_size = embedding, metric, block_size
        self._lock = threading.Lock()
        # Places of documents that were deleted are None, until others take them.
        self._documents: list[Document | None] = []
        self._places: dict[str, int] = {}
        self._vectors = np.zeros((0, 0), np.float32)

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embedding

    def __len__(self) -> int:
        return len(self._places)

    # Documents.

    def add_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, *,
        ids: Sequence[str | None] | None = None, **kwargs: Any,
    ) -> list[str]:  # fmt: skip
        """Adds texts; one whose id is there takes the place of the older text.

        Returns:
          The ids, which are made where none is given.

        Raises:
          ConfigError: there are not as many metadata or ids as texts, or settings are not known.
        """
        texts = list(texts)
        _refuse(kwargs)
        metadatas, ids = metadatas or [{} for _ in texts], ids or [None] * len(texts)
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if len(given) != len(texts):
                raise ConfigError(f"there are {len(given)} {name} for {len(texts)} texts")
        return self.add_documents(
            [Document(id=i, page_content=text, metadata=meta) for text, meta, i in zip(texts, metadatas, ids)]
        )

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Adds documents; one whose id is there takes the place of the older one.  `ids` go before their own.

        Raises:
          ConfigError: there are not as many ids as documents, or settings are not known.
          UserError: there are not as many vectors as documents or they differ in width, or a vector is not finite or is
            0 where cosines are asked for.
        """
        given = kwargs.pop("ids", None) or [document.id for document in documents]
        _refuse(kwargs)
        if len(given) != len(documents):
            raise ConfigError(f"there are {len(given)} ids for {len(documents)} documents")
        ids = [str(uuid.uuid4()) if name is None else str(name) for name in given]
        if not documents:
            return []
        vectors: Any = self._embedding.embed_documents([each.page_content for each in documents])
        self._put(ids, [each.model_copy(update={"id": name}) for each, name in zip(documents, ids)], vectors)
        return ids

    def _put(self, ids: Sequence[str], documents: Sequence[Document], vectors: np.ndarray) -> None:
        vectors = VectorIndex.of(vectors, self.metric).vectors
        if len(vectors) != len(documents):
            raise ConfigError(f"the embeddings gave {len(vectors)} vectors for {len(documents)} documents")
        with self._lock:
            if len(self._documents) and vectors.shape[1] != self._vectors.shape[1]:
                raise ConfigError(
                    f"vectors of {vectors.shape[1]} numbers do not fit the store's of {self._vectors.shape[1]}"
                )
            free = [place for place, document in enumerate(self._documents) if document is None]
            for name in ids:
                if name not in self._places:
                    self._places[name] = free.pop() if free else len(self._documents)
                    if self._places[name] == len(self._documents):
                        self._documents.append(None)
            # Room for a power of two of documents, so that few programs are compiled; searches keep the older array.
            room = max(16, 1 << (len(self._documents) - 1).bit_length())
            held = np.zeros((room, vectors.shape[1]), np.float32)
            held[: len(self._vectors), :] = self._vectors if len(self._vectors) else 0
            for name, document, vector in zip(ids, documents, vectors):
                self._documents[self._places[name]] = document
                held[self._places[name]] = vector
            self._vectors = held

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Removes documents by their ids, all of them where none are given; ids that are not there are no error."""
        _refuse(kwargs)
        with self._lock:
            for name in list(self._places) if ids is None else ids:
                if (place := self._places.pop(name, None)) is not None:
                    self._documents[place] = None
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, without those that are not there."""
        with self._lock:
            found = [self._documents[self._places[name]] for name in ids if name in self._places]
        return [each.model_copy(deep=True) for each in found if each is not None]

    # Searches.

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The best documents for a query, best first."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The best documents for a vector, best first."""
        return [document for document, _, _ in self._best(embedding, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """The best documents with their scores: inner product, cosine, or minus the squared distance.

        Args:
          query: the text.
          k: largest number of documents.
          **kwargs: `filter`: metadata that documents must have, or a function of a document.
        """
        return [(document, score) for document, score, _ in self._best(self._embedding.embed_query(query), k, **kwargs)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Documents that are good for a query and unlike each other (Carbonell & Goldstein 1998).

        Args:
          query: the text.
          k: largest number of documents.
          fetch_k: number of the best documents among which they are chosen.
          lambda_mult: 1 asks for the best alone, 0 for the most different ones.
          **kwargs: as in `similarity_search_with_score`.
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        found = self._best(embedding, max(k, fetch_k), **kwargs)
        if not found:
            return []
        vectors = [vector for _, _, vector in found]
        return [found[i][0] for i in maximal_marginal_relevance(np.array(embedding), vectors, lambda_mult, k)]

    def _best(
        self, vector: Sequence[float], k: int, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float, np.ndarray]]:
        """The best documents with their scores and vectors."""
        _refuse(kwargs)
        with self._lock:
            documents, vectors = list(self._documents), self._vectors
        if not documents:
            return []
        chosen = [document is not None and _passes(document, filter) for document in documents]
        present = np.zeros(len(vectors), bool)
        present[: len(chosen)] = chosen
        index = VectorIndex(vectors, self.metric, self._block_size)
        hits = index.search(np.array([vector], np.float32), k, present)
        return [
            (documents[place].model_copy(deep=True), float(score), vectors[place])
            for place, score in zip(hits.documents[0], hits.scores[0])
            if place >= 0
        ]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return {"cosine": _of_cosine, "inner_product": _of_product, "euclidean": _of_distance}[self.metric]

    # Files.

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        metric: Metric = "cosine",
        block_size: int = 65536,
        **kwargs: Any,
    ) -> GenjaxVectorStore:
        """A store of texts."""
        store = cls(embedding, metric, block_size)
        store.add_texts(texts, metadatas, ids=ids, **kwargs)
        return store

    @classmethod
    def from_index(cls, index: str, encoder: str) -> GenjaxVectorStore:
        """A store of the documents and vectors of an index of `experiments.retrieve`.

        Args:
          index: folder of the index.
          encoder: folder of the encoder that made it; another one is refused.
        """
        found = index_at(index, encoder)
        if found.vectors is None:
            raise ConfigError(f"{index} holds vectors of tokens; a vector store needs one vector of each document")
        store = cls(GenjaxEmbeddings(model=encoder), found.vectors.metric)
        documents = [_as_document(Found(each, 0.0, i)) for i, each in enumerate(found.documents)]
        for document in documents:
            del document.metadata["score"]
        store._put([str(each.id) for each in documents], documents, found.vectors.vectors)
        return store

    def save(self, folder: str | Path) -> None:
        """Writes the documents as JSON lines, and the vectors as an array.

        Raises:
          ConfigError: metadata cannot be written as JSON.
        """
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            places = list(self._places.values())
            documents, vectors = [self._documents[place] for place in places], self._vectors[places]
        head = {"metric": self.metric, "num_documents": len(places)}
        rows = [{"id": each.id, "text": each.page_content, "metadata": each.metadata} for each in documents if each]
        try:
            lines = [json.dumps(row, ensure_ascii=False) for row in (head, *rows)]
        except TypeError as error:
            raise ConfigError(f"metadata of a document cannot be written as JSON: {error}") from None
        with (folder / f"{VECTORS_FILE}.new").open("wb") as file:
            np.save(file, vectors)
        (folder / f"{VECTORS_FILE}.new").replace(folder / VECTORS_FILE)
        write_whole(folder / DOCUMENTS_FILE, "".join(f"{line}\n" for line in lines))

    @classmethod
    def load(cls, folder: str | Path, embedding: Embeddings, block_size: int = 65536) -> GenjaxVectorStore:
        """The store that `save` wrote.

        Raises:
          ConfigError: there is none, it is damaged, or `embedding` gives other vectors than those in it.
        """
        folder = Path(folder).expanduser()
        if not (folder / DOCUMENTS_FILE).is_file() or not (folder / VECTORS_FILE).is_file():
            raise ConfigError(f"{folder} holds no store; GenjaxVectorStore.save writes one")
        try:
            head, *rows = map(json.loads, (folder / DOCUMENTS_FILE).read_text(encoding="utf-8").splitlines())
            vectors = np.load(folder / VECTORS_FILE, allow_pickle=False)
            whole = len(rows) == len(vectors) == head["num_documents"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ConfigError(f"{folder} is damaged; save the store again")
        store = cls(embedding, head["metric"], block_size)
        if rows:
            own = VectorIndex.of(np.array(embedding.embed_documents([rows[0]["text"]])), store.metric).vectors
            if own.shape[1] != vectors.shape[1] or not np.allclose(own[0], vectors[0], rtol=1e-3, atol=1e-3):
                raise ConfigError(f"{folder} was made with other embeddings; load it with those that made it")
            documents = [Document(id=row["id"], page_content=row["text"], metadata=row["metadata"]) for row in rows]
            store._put([row["id"] for row in rows], documents, vectors)
        return store


def _refuse(settings: Mapping[str, Any]) -> None:
    if settings:
        raise ConfigError(f"the store knows no setting {', '.join(settings)}")


def _passes(document: Document, wanted: Filter | None) -> bool:
    if wanted is None:
        return True
    if callable(wanted):
        return wanted(document)
    return all(name in document.metadata and document.metadata[name] == value for name, value in wanted.items())


# Scores as relevance: between 0 and 1, the larger the better.


def _of_cosine(score: float) -> float:
    return min(max((1 + score) / 2, 0.0), 1.0)


def _of_product(score: float) -> float:
    return float(0.5 * (1 + np.tanh(score / 2)))


def _of_distance(score: float) -> float:
    return 1 / (1 - min(score, 0.0))
