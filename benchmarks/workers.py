"""Requests per second with one worker of gunicorn, and with two: ``python -m benchmarks.workers``.

Each request takes about a millisecond of Python, as a short computation does.  The load runs on the same machine, so
only the ratio counts.  Two free cores would bring it to 2.  With its default settings, this writes
``benchmarks/results/workers.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from benchmarks import machine
from ngi_gevent.interfaces import IServerConnection

RESULTS = Path(__file__).parent / "results"

#: How often both are measured, and the seconds of each measurement.
ROUNDS, SECONDS = 20, 0.5

#: Numbers that each request adds up: about a millisecond.
WORK = 40_000

#: Connections, distributed equally to the workers.  Each has one request at a time.
CONNECTIONS = 16

#: Bytes of a request and an answer.
SIZE = 64


class Server:
    """The application of the workers."""

    def __init__(self, connection: IServerConnection) -> None:
        connection.set_handler(self)

    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        sum(range(WORK))
        connection.write(b"%*d" % (SIZE, os.getpid()))


@contextlib.contextmanager
def gunicorn(workers: int) -> Iterator[str]:
    """Run gunicorn with that many workers, and yield the path of its Unix socket."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        command = [
            *(sys.executable, "-m", "gunicorn", "--no-control-socket", "--log-level", "warning"),
            *("-k", "ngi_gevent.gunicorn.Worker", "-w", str(workers), "-b", f"unix:{path}"),
            *("--chdir", str(Path(__file__).parent.parent), "benchmarks.workers:Server"),
        ]
        process = subprocess.Popen(command)
        try:
            while not Path(path).exists():
                if process.poll() is not None:
                    raise RuntimeError(f"gunicorn ended with {process.returncode}")
                time.sleep(0.01)
            yield path
        finally:
            process.terminate()
            process.wait()


def request(sock: socket.socket) -> None:
    sock.sendall(bytes(SIZE))


def answer(sock: socket.socket) -> int:
    """Return the process id of the worker that has answered."""
    return int(sock.recv(SIZE, socket.MSG_WAITALL))


def connect(path: str, workers: int) -> list[socket.socket]:
    """Return ``CONNECTIONS`` connections, the same number for each worker."""
    found: dict[int, list[socket.socket]] = {}
    while sum(map(len, found.values())) < CONNECTIONS:
        sock = socket.socket(socket.AF_UNIX)
        while sock.connect_ex(path):
            time.sleep(0.01)
        request(sock)
        sockets = found.setdefault(answer(sock), [])
        if len(sockets) < CONNECTIONS // workers:
            sockets.append(sock)
        else:  # another worker has not started, or was slower
            sock.close()
    return [sock for sockets in found.values() for sock in sockets]


def rate(sockets: list[socket.socket], seconds: float) -> float:
    """Return how many requests per second are answered on *sockets*."""
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ, sock)
            request(sock)
        answered, began = 0, time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            for key, _ in selector.select(1):
                answer(key.data)
                request(key.data)
                answered += 1
    for sock in sockets:
        answer(sock)
    return answered / elapsed


def measured(rounds: int, seconds: float) -> list[tuple[float, float]]:
    """Return the requests a second of one worker and of two, for each round.

    Both run all the time, and get load in turns: other processes on the machine disturb both in the same way.
    """
    with contextlib.ExitStack() as stack:
        one, two = (connect(stack.enter_context(gunicorn(workers)), workers) for workers in (1, 2))
        for sock in one + two:
            stack.enter_context(sock)
        return [(rate(one, seconds), rate(two, seconds)) for _ in range(rounds)]


def markdown(rates: list[tuple[float, float]], seconds: float) -> str:
    """Return *rates* as a page."""
    least, median, most = statistics.quantiles([second / first for first, second in rates], n=4)
    medians = [
        f"| {workers} | {statistics.median(each):,.0f} |" for workers, each in enumerate(zip(*rates, strict=True), 1)
    ]
    described = {**machine.described(), "gunicorn": version("gunicorn")}
    return f"""\
# One worker of gunicorn, and two

`python -m benchmarks.workers` measures how many requests two workers answer, compared with one. Each request adds up
{WORK:,} numbers, which takes about a millisecond of Python. {CONNECTIONS} connections have one request each at a time.

**The load runs on the same machine, and takes processor time from the workers.** So only the ratio counts. Two free
cores would bring it to 2.

{", ".join(f"{name} {value}" for name, value in described.items())}.

| workers | requests a second |
| ---: | ---: |
{chr(10).join(medians)}

Ratio: **{median:.2f}**. In half of the rounds, it was between {least:.2f} and {most:.2f}. The figures are medians of
{len(rates)} rounds. In each of them, one worker and then two get load for {seconds:g} seconds.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--output", type=Path, help="the directory for workers.md")
    options = parser.parse_args()
    page = markdown(measured(options.rounds, options.seconds), options.seconds)
    is_full = (options.rounds, options.seconds) == (ROUNDS, SECONDS)
    output = options.output or (RESULTS if is_full else None)
    if output is None:
        print(page)
    else:
        (output / "workers.md").write_text(page)
        print(f"written to {output / 'workers.md'}")


if __name__ == "__main__":
    main()
