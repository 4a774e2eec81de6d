"""LangChain's embeddings, retriever and vector store; skipped where langchain-core is not installed."""

import numpy as np
import pytest

pytest.importorskip("langchain_core")

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from genjax.data.text.collection import Document as Text
from genjax.errors import UserError
from genjax.langchain import GenjaxEmbeddings, GenjaxRetriever, GenjaxVectorStore
from genjax.tools import retrieval
from genjax.tools.embedding import Embedder
from tests.tools.untrained import untrained

VECTORS = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)


class Given(Embeddings):
    """Vectors of texts that are the numbers of their rows."""

    def __init__(self, vectors=VECTORS):
        self.vectors = vectors

    def embed_documents(self, texts):
        return [self.vectors[int(text)].tolist() for text in texts]

    def embed_query(self, text):
        return self.vectors[int(text)].tolist()


def store_of(metric="cosine", count=20):
    texts = [str(i) for i in range(count)]
    return GenjaxVectorStore.from_texts(
        texts, Given(), [{"even": i % 2 == 0} for i in range(count)], ids=[f"d{i}" for i in range(count)], metric=metric
    )


def scores_of(metric, query, vectors):
    if metric == "euclidean":
        return -((vectors - query) ** 2).sum(1)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query) if metric == "cosine" else 1
    return vectors @ query / lengths


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
def test_a_store_finds_the_best_of_those_that_are_there(metric):
    # langchain 18709, 22209, 32498: negative relevance, and similarities read as distances.
    store = store_of(metric)
    store.delete(["d3", "d4", "unknown"])
    left = [i for i in range(20) if i not in (3, 4)]
    want = scores_of(metric, VECTORS[7], VECTORS)
    order = sorted(left, key=lambda i: -want[i])
    found = store.similarity_search_with_score("7", k=6)
    assert [document.page_content for document, _ in found] == [str(i) for i in order[:6]]
    np.testing.assert_allclose([score for _, score in found], want[order[:6]], rtol=1e-5, atol=1e-5)
    even = store.similarity_search("7", k=20, filter={"even": True})
    assert [document.id for document in even] == [f"d{i}" for i in order if i % 2 == 0]
    assert store.similarity_search("7", k=3, filter=lambda each: each.id in ("d1", "d4"))[0].id == "d1"
    relevance = [score for _, score in store.similarity_search_with_relevance_scores("7", k=20)]
    assert relevance == sorted(relevance, reverse=True) and relevance[-1] >= 0 and relevance[0] <= 1
    # A new document takes the place of one that was deleted, and one of the same id the older's.
    store.add_documents([Document("4", id="new"), Document("7", id="d0")])
    assert len(store) == 19 and {each.id for each in store.similarity_search("7", k=2)} == {"d7", "d0"}
    assert "new" in {each.id for each in store.similarity_search("4", k=2)} and store.get_by_ids(["d4"]) == []
    store.delete()
    assert len(store) == 0 and store.similarity_search("7") == []


def test_documents_unlike_each_other():
    found = store_of().max_marginal_relevance_search("7", k=4, fetch_k=10, lambda_mult=0.3)
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    likeness = unit @ unit[7]
    pool, chosen = list(np.argsort(-likeness)[:10]), []
    while len(chosen) < 4:
        worth = lambda i: 0.3 * likeness[i] - 0.7 * max((unit[i] @ unit[j] for j in chosen), default=0)
        # The first is the best alone.
        best = max(pool, key=worth) if chosen else pool[0]
        chosen.append(best)
        pool.remove(best)
    assert [int(document.page_content) for document in found] == chosen


def test_a_store_is_saved_and_refused_with_other_embeddings(tmp_path):
    store = store_of("inner_product")
    store.delete(["d2"])
    store.save(tmp_path)
    again = GenjaxVectorStore.load(tmp_path, Given())
    assert again.metric == "inner_product" and len(again) == 19
    assert again.similarity_search_with_score("7", k=19) == store.similarity_search_with_score("7", k=19)
    assert again.get_by_ids(["d5"]) == [Document("5", id="d5", metadata={"even": False})]
    for vectors in (VECTORS[::-1], VECTORS[:, :3]):
        with pytest.raises(UserError, match="was made with other embeddings"):
            GenjaxVectorStore.load(tmp_path, Given(vectors))
    (tmp_path / "store.jsonl").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        GenjaxVectorStore.load(tmp_path, Given())
    with pytest.raises(UserError, match="holds no store"):
        GenjaxVectorStore.load(tmp_path / "nowhere", Given())
    store.add_texts(["1"], [{"thing": object()}])
    with pytest.raises(UserError, match="cannot be written as JSON"):
        store.save(tmp_path)


def test_what_a_store_cannot_take_is_refused():
    store = store_of()
    with pytest.raises(UserError, match="there are 1 ids for 2 texts"):
        store.add_texts(["1", "2"], ids=["a"])
    with pytest.raises(UserError, match="the store knows no setting scores"):
        store.similarity_search("1", scores=True)
    with pytest.raises(UserError, match="has the vector 0"):
        GenjaxVectorStore.from_texts(["0"], Given(np.zeros((1, 5))))
    with pytest.raises(UserError, match="NaN or infinity"):
        GenjaxVectorStore.from_texts(["0"], Given(np.full((1, 5), np.nan)))
    with pytest.raises(UserError, match="query 0 has the vector 0"):
        store.similarity_search_by_vector([0.0] * 5)
    with pytest.raises(UserError, match=r"queries have shape \[1, 2\], and the documents of this index 5 numbers each"):
        store.similarity_search_by_vector([1.0, 2.0])
    with pytest.raises(UserError, match="must be at least 1"):
        store.similarity_search("1", k=0)
    few = Given()
    few.embed_documents = lambda texts: [[1.0, 2.0]]
    with pytest.raises(UserError, match="the embeddings gave 1 vectors for 2 documents"):
        GenjaxVectorStore.from_texts(["1", "2"], few)
    few.embed_documents = lambda texts: [[1.0, 2.0], [1.0]]
    with pytest.raises(UserError, match="each document must have a vector of as many numbers as the others"):
        GenjaxVectorStore.from_texts(["1", "2"], few)
    # What was refused has left nothing, an id that comes twice is one document, and more than all are all.
    assert len(store) == 20 and len(store.similarity_search("1", k=50)) == 20
    twice = GenjaxVectorStore.from_texts(["1", "2"], Given(), ids=["a", "a"])
    assert len(twice) == 1 and twice.get_by_ids(["a"])[0].page_content == "2"
    assert GenjaxVectorStore.from_texts([], Given()).similarity_search("1") == []
    store._embedding = Given(VECTORS[:, :3])
    with pytest.raises(UserError, match="vectors of 3 numbers do not fit the store's of 5"):
        store.add_texts(["1"])


def test_vectors_and_documents_are_those_of_the_tools(tmp_path):
    run = untrained("bert_embedded", tmp_path / "encoder")
    texts = [Text("a", "a class of things", "Classes"), Text("b", "a module"), Text("c", "the class of a module")]
    index = retrieval.build(tmp_path / "index", texts, Embedder.of_run(run))
    folder, place = str(run.workdir), str(tmp_path / "index")
    embeddings = GenjaxEmbeddings(model=folder)
    vectors = np.array(embeddings.embed_documents(["a module", "a class"]))
    np.testing.assert_array_equal(vectors, Embedder.of_run(run).documents(["a module", "a class"]))
    np.testing.assert_allclose(embeddings.embed_query("a module"), vectors[0], atol=1e-6)
    for method in (None, "words", "fusion"):
        want = index.search(["class"], retrieval.SearchOptions(method=method, num_documents=2))[0]
        found = GenjaxRetriever(index=place, encoder=folder, method=method).invoke("class", k=2)
        assert [(each.id, each.metadata["score"]) for each in found] == [(e.document.id, e.score) for e in want]
    words = GenjaxRetriever(index=place, k=1).invoke("things")
    assert words[0].metadata["title"] == "Classes" and words[0].page_content == "a class of things"
    assert GenjaxRetriever(index=place).invoke("unknown") == []
    store = GenjaxVectorStore.from_index(place, folder)
    want = index.search(["class"], retrieval.SearchOptions(num_documents=3))[0]
    assert [each.id for each in store.similarity_search("class")] == [each.document.id for each in want]
    with pytest.raises(UserError, match="method=vectors needs vectors"):
        GenjaxRetriever(index=place, method="vectors").invoke("class")
