r"""A program with plain threads and a queue, without greenlets or monkey-patching.  Each line is a number to factor.

    python examples/threaded.py
    printf '1001\n1003\n' | nc -N 127.0.0.1 8000

``Threaded`` serves connections in its own thread.  Handlers run there, and must not block it.  They put work into a
queue.  The program's threads take the work, compute, and write the answers.  Until then, the connection pauses reading.
So answers are in order, and clients that have finished sending get their answers.

In a monkey-patched program, the queue would be gevent's, and the threads would be greenlets: docs/how_to/threads.md
shows how to write such a program.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import threading

import ngi_gevent
from ngi_gevent.adapters import Lines
from ngi_gevent.interfaces import IServerConnection

#: Numbers that wait to be factored, at most one for each connection.
work: queue.SimpleQueue[tuple[Lines, int]] = queue.SimpleQueue()


class Requests:
    """The server.  All its methods are called on the thread of ``Threaded``."""

    def __init__(self, connection: IServerConnection) -> None:
        Lines(connection, max_line=12).set_handler(self)

    def handle_input(self, connection: Lines, line: bytes) -> None:
        try:
            number = int(line)
        except ValueError:
            connection.write(b"not a number\n")
        else:
            connection.pause_reading()  # until the answer is written
            work.put((connection, number))


def factors(number: int) -> list[int]:
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 or not found else found


def worker() -> None:
    """The body of a plain thread."""
    while True:
        connection, number = work.get()
        answer = f"{number} = {' * '.join(map(str, factors(number)))}\n"
        with contextlib.suppress(ngi_gevent.ConnectionClosed):  # the client may have disconnected
            connection.write(answer.encode())  # any thread can use a connection
        connection.resume_reading()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    for _ in range(4):
        threading.Thread(target=worker, daemon=True).start()
    with ngi_gevent.Threaded() as network, contextlib.suppress(KeyboardInterrupt):
        listener = network.listener(("127.0.0.1", options.port), Requests)  # connections are served from here on
        print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
        network.wait()  # the program can do any other work here


if __name__ == "__main__":
    main()
