"""Metrics of text, by hand and against the libraries that define them."""

import itertools

import numpy as np
import pytest

from genjax.evaluation import bias, memorization, text
from genjax.tools.text import read_pairs

HYPOTHESES = ["the cat sat on the mat", "a dog barks", "it rains in the north of spain"]
REFERENCES = ["the cat sat on a mat", "the dog barks loudly", "it rains in the plains of spain"]


def test_bleu_and_chrf_are_those_of_sacrebleu_and_say_so():
    sacrebleu = pytest.importorskip("sacrebleu")
    scores = text.translation_scores(HYPOTHESES, REFERENCES)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score)
    assert "tok:13a" in scores["bleu_signature"] and "version:" in scores["chrf_signature"]
    assert text.translation_scores(["A b c d"], [["x y z w", "a b c d"]], lowercase=True)["bleu"] == pytest.approx(100)
    with pytest.raises(ValueError, match="2 hypotheses for 1 references"):
        text.translation_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="same number of references"):
        text.translation_scores(["a", "b"], [["a"], ["a", "b"]])


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    # 4 of 4 words against 5, 2 of 3 bigrams against 4, longest common subsequence 4.
    scores = text.rouge_scores(["the cat sat down"], [["the cat quickly sat down", "none"]])
    assert scores["rouge1"] == pytest.approx(100 * 2 * 4 / 9) and scores["rougeL"] == pytest.approx(100 * 2 * 4 / 9)
    assert scores["rouge2"] == pytest.approx(100 * 2 * 2 / 7)


@pytest.mark.parametrize("alphabet", ["вяжшыэ", "कखगघङच", "天地人日月水", "あいうえおか", "กขคงจฉ"])
def test_rouge_bleu_and_diversity_of_other_scripts_are_those_of_as_many_latin_words(alphabet):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    latin = [["one two three four five", "one two four five six"], ["two one one", "two one three"]]
    names = ["one", "two", "three", "four", "five", "six"]
    # Scripts without blanks have a character for a word, others three.
    joined = alphabet[0] in "天あก"
    word = dict(zip(names, alphabet if joined else [c * 3 for c in alphabet]))
    theirs = [[("" if joined else " ").join(word[w] for w in t.split()) for t in pair] for pair in latin]
    # The library's own of Latin words.
    assert text.rouge_scores(*zip(*theirs)) == pytest.approx(text.rouge_scores(*zip(*latin)))
    ours, right = (text.translation_scores(*zip(*pairs)) for pairs in (theirs, latin))
    assert ours["bleu"] == pytest.approx(right["bleu"]) and right["bleu"] > 0
    assert ("tok:13a" not in ours["bleu_signature"]) == joined
    ours, right = (text.diversity_scores([t for pair in pairs for t in pair]) for pairs in (theirs, latin))
    assert ours == pytest.approx(right)
    assert text.words("naïve\u00a0words, and x你好y") == ["naïve", "words,", "and", "x", "你", "好", "y"]


def test_answers_are_normalised_as_in_squad():
    assert text.normalize_answer("The  U.S.A., an answer!") == "usa answer"
    scores = text.answer_scores(["the Eiffel Tower", "in Paris", ""], [["Eiffel tower."], ["Rome", "Paris"], []])
    assert scores["exact_match"] == pytest.approx(200 / 3)
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 3)
    assert text.answer_f1("", "word") == 0.0
    # Two of three characters, two of two, as mixed segmentation counts them (MLQA, CMRC).
    assert text.answer_f1("巴黎市", "巴黎。") == pytest.approx(2 * 2 / 6) and text.answer_f1("巴黎市", "巴黎") == 0.8
    assert text.literal_match(["a", "The b"], ["a", "b"]) == 0.5


def test_entities_by_hand():
    assert text.entities(["B-PER", "I-PER", "O", "B-LOC"]) == {("PER", 0, 1), ("LOC", 3, 3)}
    assert text.entities(["I-PER", "I-LOC", "B-LOC", "I-PER"]) == {
        (k, i, i) for i, k in enumerate(["PER", "LOC", "LOC", "PER"])
    }
    assert text.entities(["B-A", "I-A", "E-A", "S-A", "I-A"]) == {("A", 0, 2), ("A", 3, 3), ("A", 4, 4)}
    with pytest.raises(ValueError, match="'PER' is neither O"):
        text.entities(["PER"])
    with pytest.raises(ValueError, match="sentence 1 has 2 tags and 1 predicted"):
        text.entity_scores([["O"]], [["O", "O"]])
    assert text.entity_scores([["O"]], [["O"]])["f1"] == 0.0


def test_entity_scores_are_those_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    tags = ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B"]
    rows = [list(row) for row in itertools.product(tags, repeat=3)]
    others = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    scores = text.entity_scores(others, rows)
    assert scores["f1"] == pytest.approx(100 * metrics.f1_score(rows, others))
    assert scores["precision"] == pytest.approx(100 * metrics.precision_score(rows, others))
    assert scores["macro_f1"] == pytest.approx(100 * metrics.f1_score(rows, others, average="macro"))
    assert scores["f1_B"] == pytest.approx(100 * metrics.f1_score(rows, others, average=None)[1])


def test_diversity_by_hand():
    texts = ["a b a b", "a b"]
    assert text.distinct(texts, 1) == pytest.approx(2 / 6) and text.distinct(texts, 2) == pytest.approx(2 / 4)
    assert text.repetition(texts, 1) == pytest.approx((1 / 2 + 0) / 2)
    assert text.repetition(["a"], 2) == 0.0
    pytest.importorskip("sacrebleu")
    assert text.self_bleu(["same words here again"] * 3) == pytest.approx(100)
    assert text.self_bleu(["one two three four", "five six seven eight"]) < 30
    assert text.diversity_scores(["one two", "three four"])["distinct_1"] == 1.0
    with pytest.raises(ValueError, match="at least two"):
        text.self_bleu(["", "a"])


@pytest.mark.parametrize("part_size", [7, 64, 1000])
def test_longest_common_substrings_are_those_of_enumeration(part_size):
    rng = np.random.default_rng(1)
    corpus = rng.integers(0, 3, 200)
    samples = [rng.integers(0, 3, 12), corpus[150:165], np.array([7, 7]), np.zeros(0, int), np.array([2, 9, 2])]
    # A sample that goes on where another begins must not be found across their border.
    for sample, (lengths, sources) in zip(samples, memorization.matching_lengths(samples, corpus, part_size)):
        for place in range(len(sample)):
            wanted = max(
                k for k in range(len(sample) - place + 1)
                if any((corpus[i : i + k] == sample[place : place + k]).all() for i in range(len(corpus) - k + 1))
            )  # fmt: skip
            assert lengths[place] == wanted
            if wanted:
                source = sources[place]
                np.testing.assert_array_equal(corpus[source : source + wanted], sample[place : place + wanted])
    matches = memorization.longest_matches(samples, corpus, min_length=10, part_size=part_size)
    assert matches[1].length == 15 and matches[1].covered == 1.0 and matches[2].source == -1
    assert memorization.memorization_scores(matches)["longest_match_max"] == 15


def test_suffixes_of_a_period_are_sorted():
    tokens = np.array([1, 0] * 50 + [1])
    wanted = sorted(range(len(tokens)), key=lambda i: tokens[i:].tolist())
    np.testing.assert_array_equal(memorization.suffix_array(tokens), wanted)


def test_extraction_by_hand():
    scores = memorization.extraction_scores(np.array([[1, 2, 3], [1, 9, 3]]), np.array([[1, 2, 3], [1, 2, 3]]))
    assert scores == {"extracted": 0.5, "repeated_tokens": 2.0}
    with pytest.raises(ValueError, match="must both be"):
        memorization.extraction_scores(np.zeros((2, 3)), np.zeros((2, 2)))


def test_bias_list_and_preferences(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("# first\tsecond\tkind\nHe is a nurse.\tShe is a nurse.\tgender\n\nA\tB\tage\n")
    pairs = read_pairs(path)
    assert [p.kind for p in pairs] == ["gender", "age"] and pairs[0].second == "She is a nurse."
    scores = bias.preference_scores([-1.0, -3.0], [-2.0, -2.0], [p.kind for p in pairs])
    assert scores["prefers_first"] == 50.0 and scores["difference"] == 0.0
    assert scores["prefers_first_gender"] == 100.0 and scores["prefers_first_age"] == 0.0
    path.write_bytes("\ufeffA\u2028b\tB\t\r\n".encode())
    assert [(p.first, p.second) for p in read_pairs(path)] == [("A\u2028b", "B")]
    path.write_bytes(b"A\xe9\tB\n")
    with pytest.raises(ValueError, match="pairs.tsv is not UTF-8"):
        read_pairs(path)
    path.write_text("one sentence alone\n")
    with pytest.raises(ValueError, match="line 1 of .* is not two sentences"):
        read_pairs(path)
    with pytest.raises(ValueError, match="no list of sentence pairs"):
        read_pairs(tmp_path / "absent")
    with pytest.raises(ValueError, match="not finite"):
        bias.preference_scores([float("nan")], [0.0], ["a"])
