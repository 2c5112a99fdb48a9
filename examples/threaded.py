"""A program of plain threads and a queue, without greenlets and not monkey-patched: each line is a number to factor.

    python examples/threaded.py
    echo 1001 | nc -W 1 127.0.0.1 8000

``Threaded`` serves connections in a thread of its own.  Handlers run there, and must not block it: they put the work
into a queue, and threads of the program take it, work, and write the answers.

In a monkey-patched program, the queue would be gevent's, and the threads greenlets: docs/how_to/threads.md shows what
works there.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import threading

import ngi_gevent
from ngi_gevent.adapters import Lines
from ngi_gevent.interfaces import IServerConnection

#: What is to be done, and who wants to know; so many that a crowd of clients cannot fill the memory.
work: queue.Queue[tuple[Lines, int]] = queue.Queue(maxsize=1000)


class Requests:
    """The server.  All of it is called on the thread of ``Threaded``."""

    def __init__(self, connection: IServerConnection) -> None:
        Lines(connection, max_line=12).set_handler(self)

    def handle_input(self, connection: Lines, line: bytes) -> None:
        try:
            number = int(line)
            work.put_nowait((connection, number))  # put() would wait, and every connection with it
        except ValueError:
            connection.write(b"not a number\n")
        except queue.Full:
            connection.write(b"busy\n")


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
        with contextlib.suppress(ngi_gevent.ConnectionClosed):  # the client may not have waited
            connection.write(answer.encode())  # connections may be used from any thread


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    for _ in range(4):
        threading.Thread(target=worker, daemon=True).start()
    with ngi_gevent.Threaded() as network, contextlib.suppress(KeyboardInterrupt):
        listener = network.listener(("127.0.0.1", options.port), Requests)  # served from here on
        print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
        network.wait()  # or anything else that the program does


if __name__ == "__main__":
    main()
