"""Judges a run of `rag_facts` with 1 to 8 other documents beside the right one, and without the right one:

    python -m tests.families.retrieval.distractors --workdir=runs/rag_facts

The table says which share of the answers is right, about the first world and after all facts have changed.  Missing
documents are masked, so that one program judges all numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

import genjax
from genjax import config
from genjax.data import KnowledgeQuestions

MOST = 8


def batch_of(data: KnowledgeQuestions, split: str, distractors: int, withheld: bool, count: int) -> dict[str, Any]:
    """Questions with some documents, filled up with missing ones to 1 + MOST."""
    num_documents = distractors + (not withheld)
    asked = dataclasses.replace(data, num_documents=num_documents, withheld=withheld).load_split(split).arrays()
    chosen = np.random.default_rng(0).permutation(len(asked["tokens"]))[:count]
    missing = ((0, 0), (0, 1 + MOST - num_documents), (0, 0))
    return {
        name: np.pad(array[chosen], missing) if name.startswith("documents") else array[chosen]
        for name, array in asked.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=100)
    options = parser.parse_args()
    config.add_package("experiments.configs")
    run = genjax.restore(options.workdir)
    evaluate = jax.jit(run.model.evaluate)

    def right(split: str, distractors: int, withheld: bool = False) -> float:
        batch = batch_of(run.experiment.data, split, distractors, withheld, options.questions)
        parts = range(0, options.questions, options.batch_size)
        rows = [{name: array[i : i + options.batch_size] for name, array in batch.items()} for i in parts]
        values = [np.asarray(evaluate(run.state, each, jax.random.key(0))["exact_match"]) for each in rows]
        return round(float(np.concatenate(values).mean()), 4)

    print(f"step {run.step}, {options.questions} questions a number", flush=True)
    for distractors in range(1, MOST + 1):
        found = {
            "distractors": distractors,
            "before": right("validation", distractors),
            "after": right("test", distractors),
            "withheld": right("test", distractors, withheld=True),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
