"""Several processes of a run of which one dies, hangs or is asked to stop."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import genjax
from genjax.config import ConfigError
from genjax.training import Training
from genjax.training.checkpoints import flatten
from genjax.training.watchdog import HUNG
from tests.training.tiny_runs import ROOT, TINY, command, environment, flags

#: A killed process is noticed by its closed connections; seconds that the others may take.
SECONDS = 100


def launched(workdir: Path, **overrides: object) -> list[subprocess.Popen]:
    """Two processes of one run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    changes = {**TINY, "training.mesh": "data:2", **{k.replace("__", "."): v for k, v in overrides.items()}}
    together = ["--experiment=vae_digits", f"--workdir={workdir}", *flags(changes), "--training.num_processes=2"]
    return [
        subprocess.Popen(
            command("train", *together, f"--training.coordinator_address={address}", f"--training.process_id={i}"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]


def until(process: subprocess.Popen, start: str) -> None:
    """Reads the output of a process up to a line."""
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"the process ended before {start!r}")


@pytest.mark.slow
def test_of_two_processes_one_is_killed_the_other_says_so_and_the_same_command_goes_on(tmp_path):
    first, second = launched(tmp_path / "killed", training__num_steps=100_000)
    until(first, "step 30/")
    second.kill()
    second.communicate()
    began = time.monotonic()
    output = first.communicate(timeout=SECONDS)[0]
    assert first.returncode == 1 and time.monotonic() - began < SECONDS, output
    assert "error: process 0 of 2 has lost another process of the run" in output and "Traceback" not in output
    # The same command with an end that is near, and a run that nobody disturbed.
    for workdir in ("killed", "undisturbed"):
        outputs = [(p.communicate(timeout=240)[0], p.returncode) for p in launched(tmp_path / workdir)]
        assert [status for _, status in outputs] == [0, 0], outputs
    states = [flatten(genjax.restore(tmp_path / name).state) for name in ("killed", "undisturbed")]
    for path, leaf in states[0].items():
        assert np.asarray(leaf).tobytes() == np.asarray(states[1][path]).tobytes(), path


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    first, second = launched(tmp_path, training__num_steps=100_000)
    until(first, "step 20/")
    second.send_signal(signal.SIGTERM)
    told = [p.communicate(timeout=120)[0].splitlines()[-1] for p in (first, second)]
    assert [p.returncode for p in (first, second)] == [128 + signal.SIGTERM] * 2
    assert told[0] == told[1] and told[0].startswith("stopped by SIGTERM at step "), told


HANGING = """
import time
from genjax.training.watchdog import Watchdog

def wait_for_a_peer_that_never_answers():
    time.sleep(60)

with Watchdog(0.2) as watchdog:
    watchdog.beat("step 40")
    wait_for_a_peer_that_never_answers()
"""


def test_a_run_that_hangs_prints_the_stacks_of_all_threads_and_ends():
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == HUNG
    assert "in wait_for_a_peer_that_never_answers" in ended.stderr
    assert "error: the run hung: nothing went on for 0.2 s after step 40 (--training.hang_timeout)" in ended.stderr


def test_a_limit_that_is_no_time_is_one_sentence():
    with pytest.raises(ConfigError, match="training.hang_timeout=0.0 must be positive, or none"):
        Training(hang_timeout=0.0)
