"""Times search beside the libraries faiss and bm25s, in one run:

    taskset -c 0,1 python -m tests.families.retrieval.speed

vectors   the 10 best of a million documents of 384 numbers for 64 queries, beside faiss's flat index
words     the 10 best of a million short documents for 200 queries of 3 words (BM25), beside bm25s

Both search in turns; the medians of the seconds, and of the CPU seconds of all threads, stand in the table, which say
more on a busy machine.  Documents are drawn; words follow Zipf's law.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bm25s
import faiss
import numpy as np

from genjax.families.retrieval.bm25 import BM25
from genjax.families.retrieval.vector_index import VectorIndex

BEST = 10


def cpu_seconds() -> float:
    """CPU seconds of this process so far, of all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(search: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds and CPU seconds of a call, and what it gave."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    found = search()
    return time.perf_counter() - wall, cpu_seconds() - cpu, found


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median seconds and CPU seconds of both."""
    ours(), theirs()
    seconds = np.array([[*timed(ours)[:2], *timed(theirs)[:2]] for _ in range(rounds)])
    names = ("seconds", "CPU seconds", "seconds of the peer", "CPU seconds of the peer")
    found = {name: round(float(np.median(column)), 4) for name, column in zip(names, seconds.T)}
    for what, own, other in (("seconds", 0, 2), ("CPU seconds", 1, 3)):
        ratio = statistics.median((seconds[:, other] / seconds[:, own]).tolist())
        found[f"times as fast by {what}"] = round(ratio, 3)
    return found


def memory() -> int:
    """Resident memory in bytes."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS"))


def largest_growth(call: Callable[[], Any]) -> int:
    """Bytes that a call takes more than there were before, at its highest."""
    before, sizes, over = memory(), [], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            sizes.append(memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    over.set()
    watcher.join()
    return max(sizes, default=before) - before


def vectors(options: argparse.Namespace) -> dict[str, Any]:
    """Exact search among vectors."""
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((options.documents, options.width), np.float32)
    queries = rng.standard_normal((64, options.width), np.float32)
    index, peer = VectorIndex.of(documents), faiss.IndexFlatIP(options.width)
    peer.add(documents)
    faiss.omp_set_num_threads(options.threads)
    found = in_turns(lambda: index.search(queries, BEST), lambda: peer.search(queries, BEST), options.rounds)
    same = float((index.search(queries, BEST).documents == peer.search(queries, BEST)[1]).mean())
    grown = largest_growth(lambda: index.search(queries, BEST))
    return found | {
        "same ids": same,
        "block": index.block_size,
        "MiB of a block": round(4 * index.block_size * (options.width + len(queries)) / 2**20, 1),
        "MiB more during a search": round(grown / 2**20, 1),
    }


def words(options: argparse.Namespace) -> dict[str, Any]:
    """BM25 over short documents."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, options.vocabulary + 1)
    frequency /= frequency.sum()
    names = np.array([f"w{i}" for i in range(options.vocabulary)], object)
    lengths = rng.integers(4, 13, options.documents)
    drawn = names[rng.choice(options.vocabulary, lengths.sum(), p=frequency)]
    documents = [part.tolist() for part in np.split(drawn, np.cumsum(lengths)[:-1])]
    queries = [names[rng.choice(options.vocabulary, 3, p=frequency)].tolist() for _ in range(200)]
    ours, cpu, index = timed(lambda: BM25().index(documents))
    peer = bm25s.BM25(method="lucene")
    theirs, cpu_theirs, _ = timed(lambda: peer.index(documents, show_progress=False))
    found = in_turns(
        lambda: index.search(queries, BEST),
        lambda: peer.retrieve(queries, k=BEST, show_progress=False, n_threads=0),
        options.rounds,
    )
    own, other = index.search(queries, BEST).scores, peer.retrieve(queries, k=BEST, show_progress=False).scores
    return found | {
        "largest difference of scores": float(np.abs(np.where(np.isfinite(own), own, 0) - other).max()),
        "CPU seconds to index": round(cpu, 1),
        "CPU seconds to index of the peer": round(cpu_theirs, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--vocabulary", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2, help="threads of faiss")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", default="vectors,words")
    options = parser.parse_args()
    for name in options.parts.split(","):
        print(json.dumps({name: {"vectors": vectors, "words": words}[name](options)}), flush=True)


if __name__ == "__main__":
    main()
