"""The works without a socket: ``python -m benchmarks.in_memory WORK SECONDS`` repeats one, and reports as JSON.

The works are:

* ``lines`` passes lines of 32 bytes, in chunks of 64 KiB, through ``adapters.Lines``;
* ``split`` only splits the same chunks, which is the minimum that Python code can do;
* ``round-trips`` writes 64 bytes from a client in memory, and the server sends them back;
* ``simulated-...`` is described in ``benchmarks.simulated``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import simulated
from benchmarks.servers.ngi import Echo
from ngi_gevent import adapters, testing

LINE = 32
CHUNK = 64 * 1024
MESSAGE = bytes(64)


class Counter:
    """A handler that counts its calls, and the bytes that it receives."""

    def __init__(self, connection: Any = None) -> None:
        self.calls = self.size = 0
        if connection is not None:
            connection.set_handler(self)

    def connected(self, connection: Any) -> None:
        self.connection = connection
        connection.set_handler(self)

    def failed_connect(self, reason: object) -> None:
        raise AssertionError(reason)

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.calls += 1
        self.size += len(data)


def chunk_of_lines() -> bytes:
    """64 KiB of lines. The first and the last are halves."""
    lines = b"".join(b"%031d\n" % number for number in range(CHUNK // LINE + 1))
    return lines[LINE // 2 :][:CHUNK]


def lines() -> Iterator[int]:
    """Yield the number of lines that were delivered, after each chunk."""
    connection = testing.Connection(testing.Recorder())
    counter = Counter(adapters.Lines(connection))
    chunk = chunk_of_lines()
    sent = 0
    while True:
        connection.test_input(chunk)
        sent += CHUNK
        yield counter.calls
        complete = (sent + LINE // 2) // LINE  # the first line is a half
        if counter.calls != complete or counter.size != complete * (LINE - 1) - LINE // 2:
            raise AssertionError(f"{counter.calls} lines of {counter.size} bytes came of {sent} bytes")


def split() -> Iterator[int]:
    count = 0
    chunk = chunk_of_lines()
    rest = b""
    while True:
        *complete, rest = (rest + chunk).split(b"\n")
        count += len(complete)
        yield count


def round_trips() -> Iterator[int]:
    """Yield the number of round trips, after each thousand."""
    client = Counter()
    testing.Implementation().listener(None, Echo).connect(client)
    write = client.connection.write
    sent = 0
    while True:
        for _ in range(1000):
            write(MESSAGE)
        sent += 1000
        yield client.calls
        if client.size != sent * len(MESSAGE):
            raise AssertionError(f"{client.size} bytes came of {sent * len(MESSAGE)}")


WORKS: dict[str, Callable[[], Iterator[int]]] = {
    "lines": lines,
    "split": split,
    "round-trips": round_trips,
    "simulated-seconds": simulated.seconds,
    "simulated-resets": simulated.resets,
    "simulated-races": simulated.races,
}


def measured(counts: Iterator[int], seconds: float) -> dict[str, float]:
    """Return the growth of *counts* per second, after a warm-up."""
    for _ in range(20):
        before = next(counts)
    began = time.perf_counter()
    elapsed = 0.0
    while elapsed < seconds:
        count = next(counts)
        elapsed = time.perf_counter() - began
    return {"operations": count - before, "seconds": elapsed}


if __name__ == "__main__":
    work, amount = sys.argv[1], float(sys.argv[2])
    is_memory = work == "simulated-memory"
    print(json.dumps(simulated.memory(int(amount)) if is_memory else measured(WORKS[work](), amount)))
