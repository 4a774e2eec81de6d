"""An index in a folder: built, killed, gone on with, searched, and refused with another encoder."""

import json
import logging

import numpy as np
import pytest

from experiments import retrieve
from genjax import config
from genjax.data.base import DataError
from genjax.data.text.collection import Document, read_collection
from genjax.errors import UserError
from genjax.families.retrieval.hits import Hits
from genjax.tools import retrieval
from genjax.tools.embedding import Embedder
from tests.tools.untrained import untrained

TEXTS = ["The cat sat on the mat.", "Dogs bark at night.", "A cat and a dog.", "Mats are flat.", "Night falls."]
DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Embedder:
    changes = {**config.find_experiment("bert_sentiment").shrunk, "data.tokenizer": "bytes"}
    return Embedder.of_run(untrained("bert_sentiment", tmp_path_factory.mktemp("bert") / "run", changes), batch_size=2)


def test_a_text_has_the_same_vector_whatever_stands_beside_it(embedder):
    together = embedder.documents(TEXTS)
    for text, vector in zip(TEXTS, together):
        np.testing.assert_allclose(embedder.documents([text])[0], vector, atol=1e-5)
    np.testing.assert_allclose((together**2).sum(1), 1, atol=1e-5)


def test_a_killed_build_goes_on_and_finds_what_a_whole_one_finds(embedder, tmp_path, monkeypatch):
    options = retrieval.BuildOptions(part_size=2)
    whole = retrieval.build(tmp_path / "whole", DOCUMENTS, embedder, options)

    calls = []

    def killed(self, texts):
        if calls:
            raise KeyboardInterrupt
        calls.append(texts)
        return documents(self, texts)

    documents = Embedder.documents
    monkeypatch.setattr(Embedder, "documents", killed)
    with pytest.raises(KeyboardInterrupt):
        retrieval.build(tmp_path / "killed", DOCUMENTS, embedder, options)
    with pytest.raises(UserError, match="holds an index that is not finished; build it again to go on"):
        retrieval.Index.open(tmp_path / "killed", embedder)
    monkeypatch.setattr(Embedder, "documents", lambda self, texts: calls.append(texts) or documents(self, texts))
    again = retrieval.build(tmp_path / "killed", DOCUMENTS, embedder, options)
    # The first part was not encoded again.
    assert [list(part) for part in calls] == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    np.testing.assert_array_equal(again.vectors.vectors, whole.vectors.vectors)
    for method in ("words", "vectors", "fusion"):
        search = retrieval.SearchOptions(num_documents=3, method=method)
        found = [index.search(["a cat at night"], search) for index in (whole, again)]
        assert found[0] == found[1] and len(found[0][0]) == 3


def test_words_vectors_and_fusion_find_what_their_parts_say(embedder, tmp_path):
    index = retrieval.build(tmp_path / "index", DOCUMENTS, embedder)
    options = lambda method: retrieval.SearchOptions(num_documents=5, method=method)
    # A document finds itself by its vector.
    assert [row[0].document for row in index.search(TEXTS, options("vectors"))] == DOCUMENTS
    words, vectors = (index.hits(["cat night"], options(method)) for method in ("words", "vectors"))
    assert set(words.documents[0]) == {0, 1, 2, 4, -1}
    rank = lambda hits, place: (
        1 / (61 + int(np.flatnonzero(hits.documents[0] == place)[0])) if place in hits.documents[0] else 0
    )
    expected = sorted(range(5), key=lambda place: -(rank(words, place) + rank(vectors, place)))
    assert index.hits(["cat night"], options("fusion")).documents[0].tolist() == expected


def test_tokens_are_compared_as_the_encoder_gives_them_alone(embedder, tmp_path):
    options = retrieval.BuildOptions(kind="tokens", part_size=2)
    retrieval.build(tmp_path / "index", DOCUMENTS, embedder, options)
    index = retrieval.Index.open(tmp_path / "index", embedder)

    def tokens(text):
        data = embedder.data
        ids = data.enclosed(data.make_tokenizer().encode(text), embedder.length)
        hidden = np.asarray(embedder.model.hidden(embedder.state, {"tokens": np.array([ids], np.int32)}))[0]
        return hidden / np.linalg.norm(hidden, axis=1, keepdims=True)

    documents, query = [tokens(text) for text in TEXTS], "a cat at night"
    wanted = np.array([(tokens(query) @ each.T).max(1).sum() for each in documents])
    found = index.search([query], retrieval.SearchOptions(num_documents=5))[0]
    assert [each.place for each in found] == np.argsort(-wanted).tolist()
    np.testing.assert_allclose([each.score for each in found], -np.sort(-wanted), atol=1e-4)
    assert len(index.search([query], retrieval.SearchOptions(num_documents=3, method="fusion"))[0]) == 3
    # A document's tokens are nearest to themselves.
    assert [row[0].document for row in index.search(TEXTS)] == DOCUMENTS
    with pytest.raises(UserError, match="approximate=hnsw searches vectors of documents; this search compares tokens"):
        index.search([query], retrieval.SearchOptions(approximate="hnsw"))
    with pytest.raises(UserError, match="an index of other documents, of another encoder or with other options"):
        retrieval.build(tmp_path / "index", DOCUMENTS, embedder)
    with pytest.raises(UserError, match="kind=tokens needs an encoder"):
        retrieval.build(tmp_path / "words", DOCUMENTS, options=options)


def test_the_command_keeps_tokens_and_tells_the_recall_of_faiss(embedder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(retrieve, "encoder_of", lambda place, run: embedder)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    build = f"--build={tmp_path / 'texts.txt'}"
    assert retrieve.main(["retrieve", f"--index={tmp_path / 'tokens'}", build, "--kind=tokens", "--query=a cat"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    count = sum(map(len, embedder.document_tokens(TEXTS)))
    assert f"5 documents, words and {count} tokens, vectors of" in first and lines[0] == "a cat" and len(lines) == 6
    pytest.importorskip("faiss", reason="approximate search: pip install 'genjax[faiss]'")
    asked = ["--query=a cat|night", "--approximate=ivf", "--num_documents=2"]
    assert retrieve.main(["retrieve", f"--index={tmp_path / 'vectors'}", build, *asked]) == 0
    report = "finds 1.000 of the 2 best documents of exact search (recall on 2 queries)"
    assert report in capsys.readouterr().out.splitlines()[-1]


def test_another_encoder_other_documents_and_a_missing_index_are_refused(embedder, tmp_path):
    retrieval.build(tmp_path / "index", DOCUMENTS, embedder)
    changed = Embedder(embedder.model, embedder.state, embedder.data, embedder.length - 1)
    with pytest.raises(UserError, match="made by another encoder"):
        retrieval.Index.open(tmp_path / "index", changed)
    with pytest.raises(UserError, match="an index of other documents, of another encoder or with other options"):
        retrieval.build(tmp_path / "index", DOCUMENTS[:3], embedder)
    with pytest.raises(UserError, match="holds no index; build one"):
        retrieval.Index.open(tmp_path / "nothing")
    with pytest.raises(DataError, match="two documents have the id 'd0' .the second at document 5"):
        retrieval.build(tmp_path / "twice", [*DOCUMENTS, DOCUMENTS[0]])
    words = retrieval.build(tmp_path / "words", DOCUMENTS)
    with pytest.raises(UserError, match="has no vectors"):
        retrieval.Index.open(tmp_path / "words", embedder)
    with pytest.raises(UserError, match="method=fusion needs vectors"):
        words.search(["cat"], retrieval.SearchOptions(method="fusion"))
    assert words.search(["unknown words only"]) == [[]] and isinstance(words.hits(["cat"]), Hits)


@pytest.mark.parametrize("method", ["words", "vectors", "fusion"])
def test_no_query_gives_no_row(embedder, tmp_path, method):
    index = retrieval.build(tmp_path / "index", DOCUMENTS, embedder)
    options = retrieval.SearchOptions(num_documents=3, method=method)
    assert index.search([], options) == [] and index.hits([], options).documents.shape == (0, 3)
    # More than there are, and only words that no document holds.
    found = index.search(["xyzzy"], retrieval.SearchOptions(num_documents=9, method=method))[0]
    assert len(found) == (0 if method == "words" else len(DOCUMENTS))


def test_an_encoder_whose_vectors_are_not_finite_is_refused(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(Embedder, "documents", lambda self, texts: np.full((len(texts), 4), np.nan, np.float32))
    with pytest.raises(UserError, match="document 0 has a vector with NaN or infinity; its model has no finite output"):
        retrieval.build(tmp_path / "index", DOCUMENTS, embedder)


def test_the_command_takes_a_run_as_encoder_and_refuses_one_that_embeds_nothing(tmp_path, capsys):
    run = untrained("dpr_facts", tmp_path / "dpr")
    # Its tokens are the words of made facts.
    texts = [run.experiment.data.make_tokenizer().decode(np.arange(4 * i, 4 * i + 4)) for i in range(20, 25)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    index, ask = f"--index={tmp_path / 'index'}", f"--query={texts[2]}"
    build = f"--build={tmp_path / 'texts.txt'}"
    assert retrieve.main(["retrieve", index, build, f"--encoder={run.workdir}", ask]) == 0
    first, *answer = capsys.readouterr().out.splitlines()
    assert "5 documents, words and vectors of" in first and len(answer) == 6
    # The same run under its other flag opens the index and finds the same.
    assert retrieve.main(["retrieve", index, f"--workdir={run.workdir}", ask]) == 0
    assert capsys.readouterr().out.splitlines() == answer
    vae = untrained("vae_digits", tmp_path / "vae")
    message = "vae_digits is a run of .*VAE on .*, which gives no vectors of texts; give a run of an encoder"
    with pytest.raises(UserError, match=message):
        retrieve.main(["retrieve", index, ask, f"--encoder={vae.workdir}"])
    with pytest.raises(UserError, match="give one encoder: --workdir=RUN or --encoder=RUN, not both"):
        retrieve.main(["retrieve", index, ask, f"--encoder={run.workdir}", f"--workdir={run.workdir}"])
    with pytest.raises(UserError, match="nowhere"):
        retrieve.main(["retrieve", index, ask, f"--encoder={tmp_path / 'nowhere'}"])


def test_texts_that_are_cut_are_counted_in_a_warning(embedder, caplog):
    with caplog.at_level(logging.WARNING):
        embedder.documents(["word " * 500, "short"])
    assert f"1 of 2 texts are longer than {embedder.length} tokens and are cut" in caplog.text


def test_the_command_builds_and_answers(tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t, "title": "T"}) + "\n" for t in TEXTS))
    index = f"--index={tmp_path / 'index'}"
    assert retrieve.main(["retrieve", index, f"--build={tmp_path / 'texts.jsonl'}"]) == 0
    assert "5 documents, words" in capsys.readouterr().out
    assert retrieve.main(["retrieve", index, "--query=bark|xyz", "--num_documents=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "bark" and lines[1].split()[1] == "2" and "Dogs bark at night." in lines[1]
    assert lines[2:] == ["xyz", "  no document holds a word of it"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "holds no document"),
        ('{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}\n', "two documents have the id 'x' .the second at line 2"),
        ('{"text": " "}\n', r"document '1' \(line 1\) is empty"),
        ('{"body": "a"}\n', 'line 1 of .* is not like {"id": "a", "text": "..."}: it has no text'),
        ("not json\n", "line 1 of .* is not like .*: 'not json'"),
    ],
)
def test_a_bad_collection_is_one_sentence(tmp_path, content, message):
    (tmp_path / "texts.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_collection(tmp_path / "texts.jsonl")


def test_collections_are_read_from_folders_and_lines(tmp_path):
    (tmp_path / "folder/deep").mkdir(parents=True)
    (tmp_path / "folder/b.txt").write_text("B\nb")
    (tmp_path / "folder/deep/a.txt").write_text("A")
    assert read_collection(tmp_path / "folder") == [Document("b.txt", "B\nb"), Document("deep/a.txt", "A")]
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert read_collection(tmp_path / "lines.txt") == [Document("1", "one"), Document("3", "two")]
