"""Loads a server as many clients do, and looks at what it keeps:

    python -m tests.serving.load                                 # the experiment `instructions`, not trained
    python -m tests.serving.load --workdir=SmolLM2-135M-Instruct.Q4_1.gguf --parts=speed --tokens=64

speed     tokens a second of 1, 8 and 32 clients that ask again and again, beside the same number of rows of
          `model.generate` in this process, with no server; the rounds of both take turns.  Tokens a CPU second, without
          the seconds of the clients, say more on a busy machine.
requests  requests of mixed kinds, right and wrong ones, of 32 clients; some clients are cut off in the middle of their
          answer.  Every other answer must be what one client alone gets.  The memory of the server is compared between
          the first and the last thousand.
open      connections that are opened and say nothing, while somebody asks.
end       SIGTERM while texts are written and wait: all of them are finished, and the server ends.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from genjax import config
from genjax.tools.opened import opened
from tests.serving.served import Client
from tests.tools.untrained import untrained

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22]}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "turn_on", "parameters": SCHEMA}}
#: Requests of each kind that are told apart by their seeds.
SEEDS = 4
CLIENTS = 32
#: Rounds that are not counted.
WARM_ROUNDS = 1


class Process:
    """A server in a process of its own.

    Attributes:
      client: asks it.
    """

    def __init__(self, workdir: str, folder: Path, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.log = folder / f"{port}.log"
        command = [sys.executable, "-m", "experiments.serve", f"--workdir={workdir}", f"--port={port}", *flags]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.client = Client(port)
        until = time.monotonic() + 600
        while True:
            with contextlib.suppress(OSError):
                status, health = self.client.ask("/health")
                if status == 200 and not health["warming_up"]:
                    break
            if self.process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.2)
        self.model = self.client.ask("/v1/models")[1]["data"][0]

    def memory(self) -> int:
        """Resident memory in bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS"))

    def cpu_seconds(self) -> float:
        """CPU seconds of the server so far, of all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def at_rest(self) -> bool:
        """Whether the server has nothing to do, after at most a minute."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            health = self.client.ask("/health")[1]
            if not health["active"] and not health["waiting"]:
                return True
            time.sleep(0.1)
        return False

    def end(self, seconds: float = 120) -> float:
        """Asks the server to end; the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(seconds)
        return time.monotonic() - began


@contextlib.contextmanager
def process(workdir: str, *flags: str) -> Iterator[Process]:
    """A server that is ended, or killed if it does not end."""
    with tempfile.TemporaryDirectory(prefix="genjax-load-") as folder:
        server = Process(workdir, Path(folder), *flags)
        try:
            yield server
            if server.process.poll() is None:
                server.end()
        finally:
            server.process.kill()
            server.process.wait()


# Speed.


def loop_of(run: Any, prompt: np.ndarray, rows: int, tokens: int) -> Callable[[int], np.ndarray]:
    """`model.generate` for a number of rows, compiled, as a function of the seed."""
    prompts = np.repeat(prompt[None], rows, axis=0)
    generate = jax.jit(lambda state, key: run.model.generate(state, key, prompts, tokens).tokens)
    return lambda seed: np.asarray(generate(run.state, jax.random.key(seed)))


def of_loop(generate: Callable[[int], np.ndarray], calls: int) -> tuple[float, float]:
    """Tokens a second of a loop without the server, and tokens a CPU second of this process."""
    began, cpu = time.perf_counter(), time.process_time()
    written = sum(generate(call).size for call in range(calls))
    return written / (time.perf_counter() - began), written / (time.process_time() - cpu)


def of_clients(server: Process, prompt: np.ndarray, count: int, tokens: int, calls: int) -> tuple[float, float]:
    """Tokens a second of a number of clients, each of which asks again as soon as it has its answer, and tokens a CPU
    second of the server.
    """
    client = server.client
    body = {"prompt": prompt.tolist(), "max_tokens": tokens}

    def one(number: int) -> int:
        written = 0
        for call in range(calls):
            status, answer = client.ask(TEXT, body | {"seed": number * calls + call})
            assert status == 200, answer
            written += answer["usage"]["completion_tokens"]
        return written

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        began, cpu = time.perf_counter(), server.cpu_seconds()
        written = sum(pool.map(one, range(count)))
        return written / (time.perf_counter() - began), written / (server.cpu_seconds() - cpu)


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of clients beside a loop; the median of several rounds of each."""
    run = opened(options.workdir)
    prompt = np.arange(options.prompt, dtype=np.int32) % (run.model.vocab_size - 8) + 4
    found: dict[str, Any] = {"tokens of a prompt": options.prompt, "tokens of a text": options.tokens}
    with process(options.workdir) as server:
        for count in options.clients:
            loop, clients, generate = [], [], loop_of(run, prompt, count, options.tokens)
            for _ in range(WARM_ROUNDS + options.rounds):
                loop.append(of_loop(generate, options.calls))
                clients.append(of_clients(server, prompt, count, options.tokens, options.calls))
            rates = np.array([clients, loop])[:, WARM_ROUNDS:]  # [2, rounds, 2]
            row: dict[str, Any] = {}
            for place, unit in enumerate(("a second", "a CPU second")):
                row[f"tokens {unit}, loop"] = round(float(np.median(rates[1, :, place])), 1)
                row[f"tokens {unit}, clients"] = round(float(np.median(rates[0, :, place])), 1)
                row[f"ratio {unit}"] = round(float(np.median(rates[0, :, place] / rates[1, :, place])), 3)
            found[f"{count} clients"] = row
            print(json.dumps({count: row}), file=sys.stderr, flush=True)
    fewest, most = min(options.clients), max(options.clients)
    for unit, side in itertools.product(("a second", "a CPU second"), ("clients", "loop")):
        of = [found[f"{count} clients"][f"tokens {unit}, {side}"] for count in (most, fewest)]
        found[f"{most} {side} over {fewest}, tokens {unit}"] = round(of[0] / of[1], 2)
    return found


# Requests.


def kinds(model: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Requests that a run can be asked: name, path and body."""
    found: list[tuple[str, str, Any]] = [
        ("health", "/health", None),
        ("page", "/", None),
        ("metrics", "/metrics", None),
        ("models", "/v1/models", None),
        ("another model", TEXT, {"prompt": "walk", "model": "another"}),
        ("no JSON", CHAT, b"{"),
        ("no path", "/v1/nothing", {}),
        ("samples", "/v1/samples", {"n": 2}),
        ("too many samples", "/v1/samples", {"n": 10**6}),
    ]
    if model["draws_pictures"]:
        found.append(("pictures", "/v1/images/generations", {"prompt": "", "n": 2}))
    if model["embeds"]:
        found.append(("vectors", "/v1/embeddings", {"input": ["a text", "another"], "encoding_format": "base64"}))
    if not model["continues"]:
        return found
    found += [
        ("text", TEXT, {"prompt": "walk", "max_tokens": 20}),
        ("stream", TEXT, {"prompt": "turn left", "max_tokens": 20, "stream": True}),
        ("texts", TEXT, {"prompt": ["walk", "turn left twice"], "n": 2, "max_tokens": 8, "logprobs": 2}),
        ("tokens", TEXT, {"prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0}),
        ("regex", TEXT, {"prompt": "walk", "regex": "[a-c]{6}", "max_tokens": 12}),
        ("hot", TEXT, {"prompt": "walk", "temperature": 9}),
        ("long", TEXT, {"prompt": "walk " * 4000}),
    ]
    if not model["chats"]:
        return found
    chat = {"messages": [{"role": "user", "content": "walk twice"}], "max_tokens": 20}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    return [
        *found,
        ("chat", CHAT, chat),
        ("chat stream", CHAT, chat | {"stream": True, "stream_options": {"include_usage": True}}),
        ("log-probabilities", CHAT, chat | {"logprobs": True, "top_logprobs": 3}),
        ("stop", CHAT, chat | {"stop": ["LK"]}),
        ("object", CHAT, chat | {"response_format": schema, "max_tokens": 48}),
        ("tool", CHAT, chat | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 80}),
        ("no message", CHAT, {"messages": []}),
    ]


def asked(client: Client, path: str, body: Any, seed: int) -> tuple[int, Any]:
    """Status and answer, without what differs from call to call."""
    if not isinstance(body, dict) or not body:
        status, answer = client.ask(path, body)
        return status, None if path in ("/health", "/metrics") else answer
    body = body | ({} if path == "/v1/embeddings" else {"seed": seed})
    if body.get("stream"):
        events = client.stream(path, body)
        assert events[-1] == "[DONE]"
        choices = [choice for event in events[:-1] for choice in event["choices"]]
        texts = [choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices]
        return 200, ["".join(texts), choices[-1]["finish_reason"], events[-2].get("usage")]
    status, answer = client.ask(path, body)
    answer = {name: value for name, value in answer.items() if name not in ("id", "created")}
    for choice in answer.get("choices", []):
        for call in choice.get("message", {}).get("tool_calls", []):
            call.pop("id")
    return status, answer


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal, numbers up to the rounding of sums over other numbers of rows."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-4
    return one == other


def cut(client: Client, path: str, body: dict[str, Any], seed: int) -> None:
    """A client that is killed after the first bytes of its answer: its connection is reset."""
    connection, answer = client.connect("POST", path, body | {"seed": seed, "stream": True, "max_tokens": 60})
    answer.read1(64)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer.close()
    connection.close()


def requests(options: argparse.Namespace) -> dict[str, Any]:
    """Many requests, and what became of them."""
    with process(options.workdir) as server:
        client, model = server.client, server.model
        every = list(itertools.product(kinds(model), range(SEEDS)))
        alone = [asked(client, path, body, seed) for (_, path, body), seed in every]
        path, body = TEXT, {"prompt": "walk"}
        cuts = options.killed if model["continues"] else 0
        # The middle third of all requests has clients that are cut off.
        middle = np.linspace(options.requests / 3, 2 * options.requests / 3, cuts, dtype=int)
        killed = set(middle.tolist())
        lock, memory, wrong, statuses = threading.Lock(), [], [], {}
        # Those below 0 are not counted: programs are compiled for the numbers of rows that come together.
        numbers = iter(range(-options.warm, options.requests))

        def work() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                    if number is None:
                        return
                    if number % 20 == 0:
                        memory.append((number, server.memory()))
                    if number % 1000 == 0:
                        print(number, memory[-1][1] >> 20, "MiB", file=sys.stderr)
                if number in killed:
                    cut(client, path, body, number)
                    continue
                # Steps that visit all kinds in another order each time.
                place = (number * 7919 + number // len(every)) % len(every)
                (name, own_path, own_body), seed = every[place]
                try:
                    got = asked(client, own_path, own_body, seed)
                except (OSError, http.client.HTTPException, AssertionError, IndexError) as error:
                    got = 0, f"{type(error).__name__}: {error}"
                if number < 0:
                    continue
                with lock:
                    statuses[got[0]] = statuses.get(got[0], 0) + 1
                    if not same(got, alone[place]):
                        wrong.append(name)

        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            for each in [pool.submit(work) for _ in range(CLIENTS)]:
                each.result()
        seconds = time.monotonic() - began
        at_rest = server.at_rest()
        mean = lambda first, last: statistics.mean(size for number, size in memory if first <= number < last)
        part = min(1000, options.requests // 2)
        first, last = mean(0, part), mean(options.requests - part, options.requests)
        log = server.log.read_text()
    return {
        "kinds": len(every) // SEEDS,
        "requests before": options.warm,
        "requests": options.requests,
        "clients cut off": len(killed),
        "seconds": round(seconds, 1),
        "answers by status": statuses,
        "answers that are not those of one client alone": len(wrong),
        "of these kinds": sorted(set(wrong)),
        "nothing is left over": at_rest,
        "errors in the log": log.count("Traceback"),
        f"MiB, first {part}": round(first / 2**20, 1),
        f"MiB, last {part}": round(last / 2**20, 1),
        "growth": round(last / first - 1, 4),
    }


# Connections that say nothing.


def idle(options: argparse.Namespace) -> dict[str, Any]:
    """A thousand connections are open, half of them in the middle of a request, and somebody asks."""
    with process(options.workdir) as server:
        port, before = server.client.port, server.memory()
        held = []
        for number in range(options.connections):
            with contextlib.suppress(OSError):
                one = socket.create_connection(("127.0.0.1", port), timeout=5)
                if number % 2:
                    one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le")
                held.append(one)
        began = time.monotonic()
        try:
            status = server.client.ask("/health")[0]
        except OSError as error:
            status = type(error).__name__
        seconds = time.monotonic() - began
        million = server.client.ask(TEXT, {"prompt": "a" * 10**6})[0]
        after = server.client.ask(TEXT, {"prompt": "walk", "max_tokens": 2})[0] if server.model["continues"] else None
        refused = 0
        for one in held:
            one.setblocking(False)
            with contextlib.suppress(OSError):
                refused += b"too many open connections; ask again later" in one.recv(1000)
            one.close()
        return {
            "connections": len(held),
            "of these refused with a sentence": refused,
            "status of the next request": status,
            "its seconds": round(seconds, 3),
            "status of a prompt of a million characters": million,
            "status of the request after it": after,
            "MiB more": round((server.memory() - before) / 2**20, 1),
        }


# The end.


def end(options: argparse.Namespace) -> dict[str, Any]:
    """SIGTERM while 32 texts are written and as many wait."""
    with process(options.workdir) as server:
        client = server.client
        long = min(options.tokens, server.model["max_model_len"] - 16)
        body = lambda seed: {"prompt": "walk", "max_tokens": long, "seed": seed}
        count = 2 * CLIENTS
        alone = [client.ask(TEXT, body(seed))[1]["choices"][0] for seed in range(count)]
        begun, answers = threading.Barrier(count + 1), [None] * count

        def one(seed: int) -> None:
            stream = seed % 2 == 0
            connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=240)
            content = json.dumps(body(seed) | {"stream": stream})
            connection.request("POST", TEXT, content, {"Content-Type": "application/json"})
            begun.wait(60)
            with contextlib.closing(connection):
                text = connection.getresponse().read().decode()
            if not stream:
                answers[seed] = json.loads(text)["choices"][0]["text"]
                return
            *events, done, _ = text.split("\n\n")
            assert done == "data: [DONE]"
            answers[seed] = "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events)

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            texts = [pool.submit(one, seed) for seed in range(count)]
            begun.wait(60)
            time.sleep(0.02)
            busy = client.ask("/health")[1]
            seconds = server.end()
            failed = [error for error in (each.exception() for each in texts) if error is not None]
        try:
            client.ask("/health")
            refused = False
        except OSError:
            refused = True
        log = server.log.read_text()
    return {
        "texts": count,
        "written and waiting at the signal": [busy["active"], busy["waiting"]],
        "whole and right": sum(got == want["text"] for got, want in zip(answers, alone)),
        "failed": [repr(error) for error in failed],
        "seconds to the end": round(seconds, 2),
        "exit status": server.process.returncode,
        "asked afterwards, refused": refused,
        "errors in the log": log.count("Traceback"),
    }


PARTS = {"speed": speed, "requests": requests, "open": idle, "end": end}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", help="run, folder of transformers, or GGUF file; by default an untrained run")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to do, with commas between them")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--warm", type=int, default=1000, help="requests before those that are counted")
    parser.add_argument("--killed", type=int, default=200, help="clients that are cut off")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt, for speed")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of a text, for speed")
    parser.add_argument("--calls", type=int, default=3, help="texts that a client asks for in a round")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, CLIENTS], help="numbers of clients, for speed")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config.add_package("experiments.configs")
    with tempfile.TemporaryDirectory(prefix="genjax-load-") as folder:
        if options.workdir is None:
            options.workdir = str(untrained("instructions", Path(folder) / "instructions", {}).workdir)
        for name in options.parts.split(","):
            print(json.dumps({name: PARTS[name](options)}), flush=True)


if __name__ == "__main__":
    main()
