"""BM25 and its relatives: documents ranked by the words that they share with a query.

For N documents, of which n hold a word, with the word's count tf in a document of |d| words, and
L = 1 - b + b |d| / mean |d|:

    score(q, d) = sum over words of q (repeats count) that d holds of idf * weight

    method      idf                                     weight
    lucene      log(1 + (N - n + 1/2) / (n + 1/2))      tf / (tf + k1 L)
    robertson   max(0, log((N - n + 1/2) / (n + 1/2)))  tf / (tf + k1 L)
    atire       log(N / n)                              tf (k1 + 1) / (tf + k1 L)
    bm25l       log((N + 1) / (n + 1/2))                (k1 + 1) (tf / L + delta) / (k1 + tf / L + delta)
    bm25+       log((N + 1) / n)                        tf (k1 + 1) / (tf + k1 L) + delta

(Robertson & Zaragoza 2009, doi:10.1561/1500000019; Trotman et al. 2012 for atire; Lv & Zhai 2011,
doi:10.1145/2009916.2010070 for bm25l and doi:10.1145/2063576.2063584 for bm25+; names as in Kamphuis et al. 2020,
doi:10.1007/978-3-030-45442-5_4.)

The scores of all words in all documents that hold them are computed once, when the index is made.  A search adds the
columns of the query's words.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from genjax.errors import UserError
from genjax.families.retrieval.hits import Hits, best_positive, check_number, whole_groups

Method = Literal["lucene", "robertson", "atire", "bm25l", "bm25+"]
Dtype = Literal["float32", "float64"]
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Words of a text in lower case: runs of letters, digits and underscores."""
    return _WORD.findall(text.lower())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BM25:
    """How documents are scored.

    Attributes:
      method: the formula.
      k1: how slowly the weight saturates with the count of a word; at least 0.
      b: how much the length of a document counts, from 0 to 1.
      delta: what bm25l and bm25+ add for a word that a document holds.
      absent_words: give a document the weight of tf = 0 for words of the query that it lacks, as some libraries do.
        Then `delta` of bm25+ moves all documents alike, and does not change their order.
      dtype: type of the scores.
    """

    method: Method = "lucene"
    k1: float = 1.5
    b: float = 0.75
    delta: float = 0.5
    absent_words: bool = False
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name, choices in (("method", Method), ("dtype", Dtype)):
            if getattr(self, name) not in get_args(choices):
                raise UserError(f"{name}={getattr(self, name)} must be one of {', '.join(get_args(choices))}")
        if not 0 <= self.k1 < np.inf:
            raise UserError(f"k1={self.k1} must be a finite number, and not negative")
        if not 0 <= self.b <= 1:
            raise UserError(f"b={self.b} must lie between 0 and 1")
        if not 0 <= self.delta < np.inf:
            raise UserError(f"delta={self.delta} must be a finite number, and not negative")

    def inverse_frequency(self, num_documents: int, holding: np.ndarray) -> np.ndarray:
        """idf of words that `holding` [V] of the documents hold, float64 [V]."""
        n, every = holding.astype(np.float64), float(num_documents)
        match self.method:
            case "lucene":
                return np.log1p((every - n + 0.5) / (n + 0.5))
            case "robertson":
                return np.maximum(0.0, np.log((every - n + 0.5) / (n + 0.5)))
            case "atire":
                return np.log(every / n)
            case "bm25l":
                return np.log((every + 1) / (n + 0.5))
        return np.log((every + 1) / n)

    def weight(self, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Weight of words with `counts` in documents of relative length L = `lengths`, both float64 of one shape."""
        if self.method == "bm25l":
            shifted = counts / lengths + self.delta
            return (self.k1 + 1) * shifted / (self.k1 + shifted)
        saturated = counts / (counts + self.k1 * lengths)
        if self.method in ("lucene", "robertson"):
            return saturated
        return saturated * (self.k1 + 1) + (self.delta if self.method == "bm25+" else 0.0)

    def index(self, documents: Iterable[Sequence[str]]) -> BM25Index:
        """The index of documents, each a sequence of words (see `words_of`).

        Raises:
          UserError: there is no document, or one has no word.
        """
        ids: dict[str, int] = {}
        tokens: list[np.ndarray] = []
        for place, document in enumerate(documents):
            if not len(document):
                raise UserError(f"document {place} has no word; remove it, since no query can find it")
            tokens.append(np.array([ids.setdefault(word, len(ids)) for word in document], np.int64))
        if not tokens:
            raise UserError("there is no document to index")
        lengths = np.array([len(words) for words in tokens], np.float64)
        # Pairs (word, document) in order of the word, then of the document.
        pairs = np.concatenate(tokens) * len(tokens) + np.repeat(np.arange(len(tokens)), lengths.astype(np.int64))
        pairs, counts = np.unique(pairs, return_counts=True)
        words, places = np.divmod(pairs, len(tokens))
        holding = np.bincount(words, minlength=len(ids))
        frequency = self.inverse_frequency(len(tokens), holding)
        relative = 1 - self.b + self.b * lengths / lengths.mean()
        absent = np.zeros(len(ids))
        if self.absent_words:
            # L cancels out where tf is 0.
            absent = frequency * self.weight(np.zeros(len(ids)), np.ones(len(ids)))
        scores = frequency[words] * self.weight(counts.astype(np.float64), relative[places]) - absent[words]
        return BM25Index(
            settings=self,
            vocabulary=ids,
            starts=np.append(0, np.cumsum(holding)).astype(np.int64),
            places=places.astype(np.int32),
            # A word of idf 0 adds nothing, but its documents are found.
            scores=np.maximum(scores, np.finfo(self.dtype).tiny).astype(self.dtype),
            absent=absent,
            num_documents=len(tokens),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class BM25Index:
    """Scores of words in documents, as columns of a sparse matrix.

    Attributes:
      settings: the formula that made the scores.
      vocabulary: number of each word, below V.
      starts: first entry of each word's column, int64 [V + 1].
      places: documents that hold the word, rising within a column, int32 [E].
      scores: the word's score in them, [E], less what absent documents get; above 0.
      absent: score of each word in documents that lack it, float64 [V].
      num_documents: number N of documents.
    """

    settings: BM25
    vocabulary: dict[str, int]
    starts: np.ndarray
    places: np.ndarray
    scores: np.ndarray
    absent: np.ndarray
    num_documents: int

    def search(self, queries: Iterable[Sequence[str]], num_documents: int = 10) -> Hits:
        """The best documents for each query (a sequence of words), [Q, K].

        Documents that hold no word of the query are not found, so a query of unknown words finds nothing; documents of
        equal score come in the order of their ids.

        Raises:
          UserError: fewer than one document is asked for.
        """
        check_number(num_documents)
        sums = np.zeros(whole_groups(self.num_documents), self.scores.dtype)
        rows = []
        for query in queries:
            known = [self.vocabulary[word] for word in query if word in self.vocabulary]
            for word in known:
                column = slice(self.starts[word], self.starts[word + 1])
                sums[self.places[column]] += self.scores[column]
            found, scores = best_positive(sums, num_documents)
            rows.append(Hits(found, scores + self.scores.dtype.type(self.absent[known].sum())))
            sums[:] = 0
        return Hits.stack(rows) if rows else Hits(np.zeros((0, num_documents), np.int64), np.zeros((0, num_documents)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the settings as arrays, for `from_arrays`; words stand in the order of their numbers."""
        words = "\n".join(self.vocabulary).encode()
        return {
            "words": np.frombuffer(words, np.uint8),
            "starts": self.starts,
            "places": self.places,
            "scores": self.scores,
            "absent": self.absent,
            "num_documents": np.array(self.num_documents),
        }

    @classmethod
    def from_arrays(cls, settings: BM25, arrays: dict[str, Any]) -> BM25Index:
        """The index that `arrays` described."""
        words = bytes(np.asarray(arrays["words"])).decode().split("\n")
        rest = {name: np.asarray(arrays[name]) for name in ("starts", "places", "scores", "absent")}
        vocabulary = {word: place for place, word in enumerate(words)}
        return cls(settings, vocabulary, **rest, num_documents=int(arrays["num_documents"]))
