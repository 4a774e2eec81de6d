"""Questions: windows of their texts, labelled spans, and the answer of all windows of a text."""

import json

import numpy as np
import pytest

from genjax.data import DataError, QuestionAnswering
from genjax.data.text.tokenizer import Tokenizer, train_tokenizer
from genjax.families.language.encoder_tasks import SpanExtraction

CONTEXT = "So Über Ann came, and later Über Bob came with naïve Cy; " * 2 + "the end."


def all_of(data, split):
    examples = data.load(split)
    return examples.gather(np.arange(len(examples)))


def labelled(data, split):
    """Answers of a model that is sure of the labels."""
    batch = all_of(data, split)
    score = np.where(batch["span"][:, 1] > 0, 1.0, -1.0)
    return data.answers(split, batch["question"], batch["shift"], batch["span"], score, np.zeros(len(score)))


def squad(folder, contexts=(CONTEXT,)):
    """A SQuAD 2.0 file of questions for the second Ann, for Cy, and for nobody."""
    paragraphs = []
    for context in contexts:
        place = context.index("Ann", 30)
        answers = [("Ann", place), ("naïve Cy", context.rindex("naïve"))]
        asked = [{"question": f" Who {a}? ", "answers": [{"text": a, "answer_start": i}]} for a, i in answers]
        lost = {"question": "Why?", "answers": [], "is_impossible": True}
        paragraphs.append({"context": context, "qas": [*asked, lost]})
    for name in ("train-v2.0", "dev-v2.0", "test"):
        (folder / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))


def test_labels_of_the_made_facts_are_their_answers():
    made = QuestionAnswering()
    assert labelled(made, "test") == [a for (a,) in made.references("test")] and not made.has_unanswerable


@pytest.mark.parametrize("kind", ["characters", "bytes", "word_piece"])
def test_windows_hold_the_text_and_those_with_the_whole_answer_name_it(kind, tmp_path):
    squad(tmp_path)
    if kind == "word_piece":
        library = pytest.importorskip("tokenizers")
        theirs = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
        theirs.normalizer = library.normalizers.BertNormalizer(lowercase=True)
        theirs.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        options = {"special_tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "show_progress": False}
        theirs.train_from_iterator([CONTEXT], library.trainers.WordPieceTrainer(vocab_size=50, **options))
        tokenizer, size = Tokenizer.of_library("file", theirs.to_str()), 40
    else:
        tokenizer, size = train_tokenizer(kind, [CONTEXT, "Why? Who?"], 0), 60
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    data = QuestionAnswering(
        name="squad", dir=str(tmp_path), sequence_length=size, stride=9, tokenizer_file=str(tmp_path / "tokenizer.json")
    )
    batch = all_of(data, "validation")
    ids, spans = tokenizer.encode(CONTEXT), tokenizer.spans(CONTEXT)
    answers = [q.answers for q in data.questions("validation")]
    found = dict.fromkeys(range(3), 0)
    seen = np.zeros((3, len(ids)), int)
    for i, number in enumerate(batch["question"]):
        places = np.flatnonzero(batch["context"][i])
        tokens = places + batch["shift"][i]
        np.testing.assert_array_equal(batch["tokens"][i][places], ids[tokens])
        seen[number, tokens] += 1
        whole = False
        if answers[number]:
            ((answer, place),) = answers[number]
            own = np.flatnonzero((spans[:, 1] > place) & (spans[:, 0] < place + len(answer)))
            whole = set(own) <= set(tokens)
            assert not whole or (batch["span"][i] + batch["shift"][i]).tolist() == [own[0], own[-1]]
        assert whole or batch["span"][i].tolist() == [0, 0]
        found[number] += whole
    assert (seen > 0).all() and seen.max() > 1
    assert found[0] and found[1] and not found[2] and sum(found.values()) < len(batch["question"])
    assert data.has_unanswerable and data.references("test") == [("Ann",), ("naïve Cy",), ()]
    assert labelled(data, "validation") == ["Ann", "naïve Cy", ""]


def test_the_likeliest_window_answers():
    made = QuestionAnswering(sequence_length=48, stride=8)
    batch = all_of(made, "test")
    count = int((batch["question"] == 0).sum())
    assert count > 1
    spans = np.repeat(batch["context"][:count].argmax(1)[:, None], 2, axis=1)
    score = np.arange(count, dtype=float)
    own = {name: batch[name][:count] for name in ("question", "shift")}
    context = made.questions("test")[0].context
    # Facts always have an answer, so that none is never taken.
    answer = made.answers("test", own["question"], own["shift"], spans, score, score + 5)
    assert answer == [context[8 * (count - 1)].strip()]
    assert made.answers("test", own["question"], own["shift"], spans, -score, score) == [context[0]]
    # Windows may come in another order, and not those of all questions.
    rows = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(batch["question"], range(0, 27, 3))))
    own = {name: batch[name][rows] for name in ("question", "shift", "span")}
    answers = made.answers("test", *own.values(), (own["span"][:, 1] > 0) * 1.0, np.zeros(len(rows)))
    assert answers == [made.references("test")[number][0] for number in range(0, 27, 3)]


def test_the_likeliest_span_lies_in_the_context_and_is_not_too_long():
    rng = np.random.default_rng(0)
    logits, context = rng.normal(size=(5, 2, 9)).astype(np.float32), np.zeros((5, 9), bool)
    context[:, 3:8] = True
    task = SpanExtraction(max_answer_length=3)
    spans, scores, none = task.likeliest_answers({"span": logits}, {"tokens": np.zeros((5, 9)), "context": context})
    for row, span, score in zip(logits, np.asarray(spans), np.asarray(scores)):
        options = {(a, b): row[0, a] + row[1, b] for a in range(3, 8) for b in range(a, min(a + 3, 8))}
        assert max(options, key=options.get) == tuple(span) and score == pytest.approx(options[tuple(span)])
    np.testing.assert_allclose(none, logits[:, 0, 0] + logits[:, 1, 0])
    best = np.asarray(task.best_spans({"span": logits}, {"tokens": np.zeros((5, 9)), "context": context}))
    np.testing.assert_array_equal(best, np.where((np.asarray(scores) >= np.asarray(none))[:, None], spans, 0))


def test_an_empty_answer_is_none(tmp_path):
    asked = [{"question": "Who?", "answers": [{"text": "", "answer_start": -1}]}]
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"data": [{"paragraphs": [{"context": "\x00", "qas": asked}]}]})
        )
    data = QuestionAnswering(name="squad", dir=str(tmp_path), tokenizer="bytes")
    assert data.has_unanswerable and data.references("test") == [()]
    assert all_of(data, "test")["span"].tolist() == [[0, 0]] and labelled(data, "test") == [""]


def test_files_that_are_no_squad_are_one_sentence(tmp_path):
    squad(tmp_path)
    read = lambda length: QuestionAnswering(name="squad", dir=str(tmp_path), sequence_length=length).questions("test")
    content = json.loads((tmp_path / "test.json").read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 5
    (tmp_path / "test.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="does not stand at character 5"):
        read(41)
    (tmp_path / "test.json").write_text("{")
    with pytest.raises(DataError, match="is not a SQuAD file"):
        read(42)
    wrong = [
        ({"context": " ", "qas": []}, "has an empty text"),
        (
            {"context": "a \ud83d", "qas": []},
            r"a text of .*test.json has at 'a .ud83d' a byte that is not UTF-8, or half of",
        ),
        ({"context": "a", "qas": [{"question": "\ude42?", "answers": []}]}, "a question of .* half of a character"),
    ]
    for length, (paragraph, message) in enumerate(wrong, 43):
        (tmp_path / "test.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
        with pytest.raises(DataError, match=message):
            read(length)
    with pytest.raises(DataError, match="data.stride=0 must be at least 1"):
        QuestionAnswering(stride=0)
