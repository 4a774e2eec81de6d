"""Stops a run at random moments, starts it again, and looks at what is left of it:

    python -m tests.training.soak --minutes=30 --processes=2

A run is killed, or asked to stop (one stop in four), at a moment between its start and its expected end, and the same
command goes on.  Of two processes one is stopped alone in one stop of four.  A run that comes to its end is compared,
bit by bit and file by file, with a run that nobody disturbed, and another begins.  When the time is over, the last run
is brought to its end and compared too.  The table says how often that was, how memory has grown (peaks of the first and
of the last quarter of the starts), and which files were left over.  What was counted so far is printed at every stop.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "")

import numpy as np

import genjax
from genjax import config
from genjax.training.checkpoints import flatten
from tests.training.tiny_runs import TINY, flags, started

#: Processes that have lost another one end by themselves within JAX's heartbeat; seconds.
OTHERS = 150.0


def starts(workdir: Path, options: argparse.Namespace, output: Path) -> list[BaseProcess]:
    """The processes of one start of the run."""
    changes = {
        **TINY,
        "training.num_steps": options.steps,
        "training.checkpoint_every": max(options.steps // 20, 5),
        "training.log_every": max(options.steps // 20, 5),
        "training.evaluate_every": options.steps // 2,
        "training.sample_every": options.steps // 2,
        "training.keep_checkpoints": 2,
        "training.mesh": f"data:{options.processes}",
    }
    if options.processes == 1:
        return [started(workdir, *flags(changes), output=output)]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"--training.coordinator_address=localhost:{probe.getsockname()[1]}"
    together = [*flags(changes), address, f"--training.num_processes={options.processes}"]
    return [started(workdir, *together, f"--training.process_id={i}", output=output) for i in range(options.processes)]


def joined(processes: list[BaseProcess], seconds: float) -> bool:
    """Whether all processes have ended within some seconds."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(timeout=max(until - time.monotonic(), 0.0))
    return all(process.exitcode is not None for process in processes)


def peak(process: BaseProcess) -> int:
    """Largest resident memory of a process so far, bytes; 0 if it has ended."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0)


def files(workdir: Path) -> set[str]:
    """Files of a run, without those of the arrays, whose names orbax draws, and without orbax's notes of a commit: a
    rating that is added to a checkpoint later, as the run was stopped before its evaluation, has none.
    """
    names = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return {str(name) for name in names if "d" not in name.parts and name.name != "commit_success.txt"}


def difference(workdir: Path, undisturbed: Path) -> list[str]:
    """What of a finished run is not as in an undisturbed one."""
    found = sorted(files(workdir) ^ files(undisturbed))
    left, right = (flatten(genjax.restore(place).state) for place in (workdir, undisturbed))
    found += [name for name in right if np.asarray(left[name]).tobytes() != np.asarray(right[name]).tobytes()]
    rows = []
    for place in (workdir, undisturbed):
        lines = (json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines())
        rows.append([{name: v for name, v in line.items() if name != "steps_per_second"} for line in lines])
    return found + ["metrics.jsonl"] * (rows[0] != rows[1])


def soak(options: argparse.Namespace, root: Path) -> dict[str, object]:
    """Disturbs runs for `options.minutes`."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "compiled")
    undisturbed, output, draw = root / "undisturbed", root / "output", random.Random(options.seed)
    # The first compiles, the second tells how long a run takes.
    for place in (root / "first", undisturbed):
        began = time.monotonic()
        processes = starts(place, options, output)
        if not joined(processes, 1800) or any(process.exitcode for process in processes):
            sys.exit(f"the undisturbed run failed: {output.read_text()[-2000:]}")
        duration = time.monotonic() - began
    workdir, peaks, differing = root / "disturbed", [], []
    count = {"starts": 0, "killed": 0, "asked": 0, "one of several": 0, "ended": 0, "not ended by themselves": 0}
    ends = time.monotonic() + 60 * options.minutes
    while True:
        output.write_text("")
        last = time.monotonic() > ends
        processes = starts(workdir, options, output)
        count["starts"] += 1
        if joined(processes, 20 * duration if last else draw.uniform(0.05, 1.0) * duration):
            if any(process.exitcode for process in processes):
                sys.exit(f"a start failed: {output.read_text()[-4000:]}")
            count["ended"] += 1
            differing += difference(workdir, undisturbed)
            shutil.rmtree(workdir)
            if last:
                break
            continue
        if last:
            sys.exit(f"the last run did not end: {output.read_text()[-4000:]}")
        peaks.append(max(map(peak, processes)))
        asked, alone = draw.random() < 0.25, options.processes > 1 and draw.random() < 0.25
        count["asked" if asked else "killed"] += 1
        count["one of several"] += alone
        print(json.dumps({**count, "differences": differing}), file=sys.stderr, flush=True)
        for process in [draw.choice(processes)] if alone else processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM if asked else signal.SIGKILL)
        if not joined(processes, OTHERS):
            count["not ended by themselves"] += 1
            for process in processes:
                process.kill()
            joined(processes, 30)
    quarter = max(len(peaks) // 4, 1)
    megabytes = lambda own: round(float(np.mean(own)) / 2**20, 1)
    return {
        "processes": options.processes,
        "minutes": options.minutes,
        "seconds of an undisturbed run": round(duration, 1),
        **count,
        "peak MiB, first quarter": megabytes(peaks[:quarter]),
        "peak MiB, last quarter": megabytes(peaks[-quarter:]),
        "differences": sorted(set(differing)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500, help="steps of a run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config.add_package("experiments.configs")
    with tempfile.TemporaryDirectory(prefix="genjax-soak-") as root:
        print(json.dumps(soak(options, Path(root))), flush=True)


if __name__ == "__main__":
    main()
