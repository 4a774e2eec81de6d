"""Measures of generated text: against references, as answers, as entities, and by itself.

    BLEU (Papineni et al. 2002) and chrF (Popovic 2015), by sacrebleu with its signature (Post 2018)
    ROUGE (Lin 2004), by rouge-score
    exact match and F1 of answers, normalised as in SQuAD (Rajpurkar et al. 2016)
    F1 of entities in BIO or BIOES tags, by the rules of the CoNLL script, as seqeval counts them
    distinct-n (Li et al. 2016), self-BLEU (Zhu et al. 2018), repeated n-grams (Welleck et al. 2020)

Everything here takes strings or lists of tokens, and no model.
"""

from __future__ import annotations

import collections
import importlib
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from genjax.errors import UserError


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0].replace("_", "-")
        raise UserError(f"this metric needs the library {package}: pip install 'genjax[text]'") from None


def _check_pairs(hypotheses: Sequence[Any], references: Sequence[Any]) -> None:
    if not len(hypotheses) or len(hypotheses) != len(references):
        raise UserError(
            f"there are {len(hypotheses)} hypotheses for {len(references)} references; give one for each, "
            "and at least one"
        )


def _all(references: str | Sequence[str]) -> tuple[str, ...]:
    """The references of one example, of which there may be several."""
    return (references,) if isinstance(references, str) else tuple(references)


# ----------------------------------------------------------------------------------------------------------------------
# Words of any script

#: Scripts without blanks between words, by the beginnings of their characters' names: each character counts as a word.
_WITHOUT_BLANKS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def _is_a_word(character: str) -> bool:
    """Whether a character is a word by itself: a letter of a script without blanks."""
    return not character.isascii() and unicodedata.name(character, "").startswith(_WITHOUT_BLANKS)


def words(text: str) -> list[str]:
    """Words of a text, between blanks; in scripts without blanks each character, with its marks, is a word."""
    if text.isascii():
        return text.split()
    parts, last_alone = [], False
    for character in text:
        if unicodedata.category(character)[0] != "M":
            alone = _is_a_word(character)
            parts += [" "] * (alone or last_alone)
            last_alone = alone
        parts.append(character)
    return "".join(parts).split()


class UnicodeWords:
    """Words of letters, marks and numbers of any script in lower case, in the form that rouge-score asks tokenizers
    for.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return words("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower()))


def _has_other_script(text: str) -> bool:
    """Whether a text has letters that are not Latin."""
    return not text.isascii() and any(c.isalpha() and not unicodedata.name(c, "").startswith("LATIN") for c in text)


def _bleu_tokenizer(texts: Sequence[str]) -> str | None:
    """Name of sacrebleu's tokenizer: None for its default; another if most texts are in a script without blanks."""
    found = [{unicodedata.name(c).partition(" ")[0] for c in text if _is_a_word(c)} for text in texts]
    if 2 * sum(map(bool, found)) <= len(texts):
        return None
    return "zh" if set().union(*found) == {"CJK"} else "char"


# ----------------------------------------------------------------------------------------------------------------------
# Against references


def translation_scores(
    hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], lowercase: bool = False
) -> dict[str, float | str]:
    """Corpus BLEU and chrF from 0 to 100, with the signatures that describe the computation.

    If most references are in a script without blanks, BLEU counts characters as words: in Chinese, Han characters
    (sacrebleu's `zh`), in other scripts all characters (`char`).

    Args:
      hypotheses: N texts.
      references: for each of them a reference, or several (the same number for all).
      lowercase: whether case is ignored.

    Returns:
      `bleu`, `chrf`, `bleu_signature`, `chrf_signature`.

    Raises:
      UserError: the numbers do not fit, or sacrebleu is not installed.
    """
    metrics = _library("sacrebleu.metrics")
    _check_pairs(hypotheses, references)
    rows = [_all(r) for r in references]
    if len({len(r) for r in rows}) != 1:
        raise UserError("every hypothesis needs the same number of references")
    streams = [list(column) for column in zip(*rows, strict=True)]
    results: dict[str, float | str] = {}
    tokenize = _bleu_tokenizer([reference for row in rows for reference in row])
    bleu = metrics.BLEU(lowercase=lowercase, tokenize=tokenize)
    for name, metric in {"bleu": bleu, "chrf": metrics.CHRF(lowercase=lowercase)}.items():
        results[name] = float(metric.corpus_score(list(hypotheses), streams).score)
        results[f"{name}_signature"] = str(metric.get_signature())
    return results


def rouge_scores(
    hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], stemming: bool = False
) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L from 0 to 100; of several references the best counts.

    The words of rouge-score are runs of a to z and digits, which other scripts do not have.  An example whose
    references have letters that are not Latin is compared by `UnicodeWords`.

    Raises:
      UserError: the numbers do not fit, or rouge-score is not installed.
    """
    scorer_of = _library("rouge_score.rouge_scorer")
    _check_pairs(hypotheses, references)
    kinds = ("rouge1", "rouge2", "rougeL")
    latin = scorer_of.RougeScorer(list(kinds), use_stemmer=stemming)
    others = scorer_of.RougeScorer(list(kinds), tokenizer=UnicodeWords())
    scores = []
    for hypothesis, reference in zip(hypotheses, map(_all, references)):
        scorer = others if any(map(_has_other_script, reference)) else latin
        scores.append(scorer.score_multi(list(reference), hypothesis))
    return {kind: 100.0 * float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}


def normalize_answer(text: str) -> str:
    """Lower case without punctuation and English articles, one space between words."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_f1(answer: str, reference: str) -> float:
    """Harmonic mean of the precision and recall of `words`; 1 where both are empty, 0 where one is."""
    found, wanted = words(normalize_answer(answer)), words(normalize_answer(reference))
    if not found or not wanted:
        return float(found == wanted)
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2.0 * common / (len(found) + len(wanted))


def answer_scores(answers: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 from 0 to 100 after `normalize_answer`; of several references the best counts.

    For an example without references only an empty answer is right.
    """
    _check_pairs(answers, references)
    exact, f1 = [], []
    for answer, wanted in zip(answers, references):
        options = _all(wanted) or ("",)
        exact.append(max(float(normalize_answer(answer) == normalize_answer(o)) for o in options))
        f1.append(max(answer_f1(answer, o) for o in options))
    return {"exact_match": 100.0 * float(np.mean(exact)), "f1": 100.0 * float(np.mean(f1))}


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Fewest words to change, take away and add in all hypotheses, as a share of the words of the references.

    Raises:
      UserError: there are not as many hypotheses as references, or the references have no words.
    """
    _check_pairs(hypotheses, references)
    num_words = sum(len(reference.split()) for reference in references)
    if not num_words:
        raise UserError("the references have no words, so that no share of them is wrong")
    return sum(_distance(a.split(), b.split()) for a, b in zip(hypotheses, references)) / num_words


def _distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein's distance of two sequences."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def literal_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Share of hypotheses that are their reference character for character, in [0, 1]."""
    _check_pairs(hypotheses, references)
    return float(np.mean([h == r for h, r in zip(hypotheses, references)]))


# ----------------------------------------------------------------------------------------------------------------------
# Entities


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of a sentence's tags O, B-TYPE, I-TYPE, E-TYPE, S-TYPE.

    A tag I or E continues the entity before it if that entity's last tag is B or I and the types agree.  Every other
    tag except O begins an entity.  So I after O begins an entity too, as in the CoNLL script.

    Returns:
      Triples of type, first and last place.

    Raises:
      UserError: a tag has another form.
    """
    found: list[tuple[str, int, int]] = []
    open_kind = None  # type of the entity that the next tag may continue
    for place, tag in enumerate(tags):
        prefix, dash, kind = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I", "E", "S") or not dash or not kind):
            raise UserError(f"the tag {tag!r} is neither O nor one of B-, I-, E-, S- with a type, as in B-PER")
        if tag == "O":
            open_kind = None
            continue
        if prefix in ("I", "E") and kind == open_kind:
            found[-1] = (kind, found[-1][1], place)
        else:
            found.append((kind, place, place))
        open_kind = kind if prefix in ("B", "I") else None
    return set(found)


def entity_scores(predicted: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities from 0 to 100, over all types and (`f1_TYPE`) of each.

    Args:
      predicted: tags of each sentence.
      references: tags of each sentence, as many.

    Raises:
      UserError: sentences differ in length, or a tag has another form.
    """
    _check_pairs(predicted, references)
    hits, found, wanted = (collections.Counter[str]() for _ in range(3))
    for number, (theirs, ours) in enumerate(zip(predicted, references)):
        if len(theirs) != len(ours):
            raise UserError(f"sentence {number + 1} has {len(ours)} tags and {len(theirs)} predicted ones")
        first, second = entities(theirs), entities(ours)
        for counter, group in ((hits, first & second), (found, first), (wanted, second)):
            counter.update(kind for kind, _, _ in group)

    def f1(kind: str) -> float:
        return 200.0 * hits[kind] / max(found[kind] + wanted[kind], 1)

    total = hits.total()
    kinds = sorted(found.keys() | wanted.keys())
    return {
        "precision": 100.0 * total / max(found.total(), 1),
        "recall": 100.0 * total / max(wanted.total(), 1),
        "f1": 200.0 * total / max(found.total() + wanted.total(), 1),
        "macro_f1": float(np.mean([f1(kind) for kind in kinds])) if kinds else 0.0,
        **{f"f1_{kind}": f1(kind) for kind in kinds},
    }


# ----------------------------------------------------------------------------------------------------------------------
# Diversity and repetition


def _ngrams(tokens: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return list(zip(*(tokens[i:] for i in range(n))))


def distinct(texts: Sequence[str], n: int, tokenize: Callable[[str], Sequence[Any]] = words) -> float:
    """Number of different n-grams divided by the number of n-grams, over all texts; 0 if there are none."""
    grams = [gram for text in texts for gram in _ngrams(tokenize(text), n)]
    return len(set(grams)) / max(len(grams), 1)


def repetition(texts: Sequence[str], n: int, tokenize: Callable[[str], Sequence[Any]] = words) -> float:
    """Mean over texts of the share of n-grams that occur earlier in the text; texts without n-grams are left out."""
    rows = [_ngrams(tokenize(text), n) for text in texts]
    shares = [1.0 - len(set(grams)) / len(grams) for grams in rows if grams]
    return float(np.mean(shares)) if shares else 0.0


def self_bleu(texts: Sequence[str], max_texts: int = 200) -> float:
    """Mean BLEU from 0 to 100 of each text against all others; 100 where all are the same.

    Args:
      texts: at least two texts.
      max_texts: only the first `max_texts` texts are compared, since the time grows with the square of their number.

    Raises:
      UserError: there are fewer than two texts, or sacrebleu is not installed.
    """
    metrics = _library("sacrebleu.metrics")
    texts = [t for t in texts if t.strip()][:max_texts]
    if len(texts) < 2:
        raise UserError("self-BLEU needs at least two texts that are not empty")
    bleu = metrics.BLEU(effective_order=True, tokenize=_bleu_tokenizer(texts))
    return float(np.mean([bleu.sentence_score(t, texts[:i] + texts[i + 1 :]).score for i, t in enumerate(texts)]))


def diversity_scores(texts: Sequence[str]) -> dict[str, float]:
    """distinct-1 to 3 and repetition-2 to 4 of words, in [0, 1], and, for two texts or more, self-BLEU
    from 0 to 100.
    """
    scores = {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}
    scores |= {f"repetition_{n}": repetition(texts, n) for n in (2, 3, 4)}
    if sum(bool(t.strip()) for t in texts) >= 2:
        scores["self_bleu"] = self_bleu(texts)
    return scores
