"""Answers from an index by a model that reads, in Python and by the command."""

import numpy as np
import pytest

from experiments import retrieve
from genjax.data.text.collection import Document
from genjax.errors import UserError
from genjax.tools import reading, retrieval
from genjax.tools.embedding import Embedder
from tests.tools.untrained import untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained("rag_facts", tmp_path_factory.mktemp("rag") / "run")


@pytest.fixture(scope="module")
def documents(run) -> list[Document]:
    texts = dict.fromkeys(text for each in run.experiment.data.asked("test")[:4] for text in each.documents)
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


def test_an_answer_is_what_the_model_writes_from_what_the_index_finds(run, documents, tmp_path):
    data, index = run.experiment.data, retrieval.build(tmp_path / "index", documents, Embedder.of_run(run))
    asked = data.asked("test")[0]
    answer = reading.answer(run, index, asked.question)
    found = index.search([asked.question], retrieval.SearchOptions(num_documents=data.num_documents))[0]
    # The retriever that made the vectors is the model's own, so its best documents are the first.
    assert [each.document for each in answer.read] == [each.document for each in found[: run.model.num_documents]]
    encode = data.make_tokenizer().encode
    source, source_mask = data.pad([data.enclosed(encode(asked.question), data.source_length)], data.source_length)
    rows = [data.enclosed(encode(each.document.text), data.document_length) for each in found]
    texts, mask = data.pad(rows, data.document_length)
    batch = {"source": source, "source_mask": source_mask, "documents": texts[None], "documents_mask": mask[None]}
    written = np.asarray(run.model.answer(run.state, batch))[0].tolist()
    ids = written[: written.index(data.separator_token)] if data.separator_token in written else written
    assert answer.text == "".join(answer.tokens).strip() and len(answer.tokens) == len(ids)
    assert answer.attribution.shape == (len(ids), run.model.num_documents)
    np.testing.assert_allclose(answer.attribution.sum(1), 1, atol=1e-5)


def test_the_command_prints_the_answer_and_draws_where_it_came_from(run, documents, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(document.text for document in documents))
    flags = [f"--index={tmp_path / 'index'}", f"--workdir={run.workdir}"]
    assert retrieve.main(["retrieve", *flags, f"--build={tmp_path / 'texts.txt'}"]) == 0
    question = run.experiment.data.asked("test")[0].question
    assert retrieve.main(["retrieve", *flags, f"--query={question}", f"--picture={tmp_path / 'picture'}"]) == 0
    assert "\nanswer:" in capsys.readouterr().out and (tmp_path / "picture.png").stat().st_size > 1000


def test_a_run_that_reads_no_documents_is_refused(run, documents, tmp_path):
    words = retrieval.build(tmp_path / "words", documents)
    with pytest.raises(UserError, match="no document was found for 'unknown'"):
        reading.answer(run, words, "unknown")
    encoder = untrained("dpr_facts", tmp_path / "dpr")
    with pytest.raises(UserError, match="is a run of DPR, which answers from no documents"):
        reading.answer(encoder, words, "a")
