"""The world of facts: what its splits ask, and what its documents hold."""

import numpy as np
import pytest

from genjax.data.base import DataError
from genjax.data.text.knowledge import NUM_FACTS, WORDS, Asked, KnowledgeQuestions


def facts(documents: tuple[str, ...]) -> dict[str, str]:
    """The word of each "NOUN of NAME"."""
    parts = (text.removeprefix("the ").removesuffix(" .").split(" is ") for text in documents)
    return dict(parts)


def test_every_question_is_answered_by_its_relevant_document_alone():
    for split, facts_of in (("train", "redrawn"), ("train", "fixed"), ("validation", "fixed"), ("test", "fixed")):
        for each in KnowledgeQuestions(facts=facts_of, num_made=300).asked(split):
            known = facts(each.documents)
            asked = each.question.removeprefix("what is the ").removesuffix(" ?")
            assert known[asked] == each.answer and len(known) == 8
            assert each.documents[each.relevant] == f"the {asked} is {each.answer} ."


def test_all_facts_change_between_validation_and_test():
    before, after = (KnowledgeQuestions().asked(split) for split in ("validation", "test"))
    assert [e.question for e in before] == [e.question for e in after] and len(before) == NUM_FACTS == 600
    assert not any(b.answer == a.answer for b, a in zip(before, after))
    # In a fixed world, training asks what the validation split asks; else each example has facts of its own.
    answers = {e.question: e.answer for e in before}
    assert all(answers[e.question] == e.answer for e in KnowledgeQuestions(facts="fixed", num_made=700).asked("train"))
    own = KnowledgeQuestions(num_made=3000).asked("train")
    assert np.mean([answers[e.question] == e.answer for e in own]) == pytest.approx(1 / 30, abs=0.015)


def test_a_withheld_document_is_replaced_and_places_tell_nothing():
    for each in KnowledgeQuestions(withheld=True).asked("test"):
        asked = each.question.removeprefix("what is the ").removesuffix(" ?")
        assert each.relevant == -1 and asked not in facts(each.documents) and len(each.documents) == 8
    places = np.bincount([each.relevant for each in KnowledgeQuestions().asked("test")], minlength=8)
    assert places.min() > 40


def test_rows_hold_their_texts():
    data = KnowledgeQuestions(num_made=5, num_documents=3)
    arrays, asked = data.load_split("train").arrays(), data.asked("train")
    assert arrays["documents"].shape == (5, 3, 16) and arrays["tokens"].shape == (5, 9)
    for i, each in enumerate(asked):
        assert data.decode(arrays["source"][i]).strip() == each.question
        assert data.decode(arrays["tokens"][i]).strip() == each.answer
        assert [data.decode(row).strip() for row in arrays["documents"][i]] == list(each.documents)
    # A word is the same token in a document and in an answer.
    word = arrays["tokens"][0, 1]
    assert word in arrays["documents"][0, asked[0].relevant]
    assert arrays["tokens"].max() < data.spec()["vocab_size"] and WORDS.size == len(set(WORDS.ravel()))


def test_a_file_of_the_user(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        '{"question": "a ?", "answer": "b", "documents": ["a b", "c"], "relevant": 0}\n'
        '{"question": "c ?", "answer": "d", "documents": ["c d"]}\n'
    )
    (tmp_path / "dev.jsonl").write_text('{"question": "a ?", "answer": "b", "documents": ["a b"], "relevant": 0}\n')
    (tmp_path / "test.jsonl").write_text('{"question": "a ?", "answer": "b", "documents": ["a b"], "relevant": 0}\n')
    data = KnowledgeQuestions(name="file", dir=str(tmp_path))
    assert data.asked("train")[1] == Asked("c ?", "d", ("c d",), -1)
    mask = data.load_split("train").arrays()["documents_mask"]
    assert mask.any(2).tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "holds no question"),
        ('{"question": "a", "answer": "b"}', "line 1 of .* is not like"),
        ('{"question": "a", "answer": "b", "documents": []}', "has an empty text or no document"),
        ('{"question": " ", "answer": "b", "documents": ["c"]}', "has an empty text or no document"),
        (
            '{"question": "a", "answer": "b", "documents": ["c"], "relevant": 1}',
            "relevant=1 must be a place among its 1",
        ),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, line, message):
    (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        KnowledgeQuestions(name="file", dir=str(tmp_path)).asked("train")


def test_bad_settings_are_one_sentence():
    with pytest.raises(DataError, match="data.num_documents=0 must be at least 1"):
        KnowledgeQuestions(num_documents=0)
    with pytest.raises(DataError, match="data.num_documents=201 must be at most 200"):
        KnowledgeQuestions(num_documents=201)
    with pytest.raises(DataError, match="there is no set 'moon' of questions"):
        KnowledgeQuestions(name="moon").asked("train")
