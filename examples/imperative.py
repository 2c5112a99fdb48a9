"""A server written as a conversation: a function that reads and writes, and waits for its input.

    python examples/imperative.py
    nc 127.0.0.1 8000

``blocking.server`` runs it for each connection on its own greenlet, with a pair of binary files.
"""

from __future__ import annotations

import argparse
import signal

import gevent

import ngi_gevent
from ngi_gevent import blocking
from ngi_gevent.blocking import Input, Output

#: Bytes of the longest line, and seconds that a client can take for one.
MAX_LINE = 100
PATIENCE = 60


def ask(question: bytes, input: Input, output: Output) -> str:
    output.write(question)
    line = input.readline(MAX_LINE, timeout=PATIENCE)
    if not line:
        raise EOFError("the client has finished")
    return line.decode(errors="replace").strip()


def conversation(input: Input, output: Output) -> None:
    try:
        name = ask(b"What is your name? ", input, output)
        while not (age := ask(b"How old are you? ", input, output)).isdecimal():
            output.write(b"A number, please. ")
    except EOFError:
        return
    except ngi_gevent.Timeout:
        output.write(b"\nSomebody has fallen asleep.\n")
        return
    output.write(f"{name}, in ten years you will be {int(age) + 10}.\n".encode())
    # Returning closes the connection. All written data is delivered.


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    listener = ngi_gevent.listener(("127.0.0.1", options.port), blocking.server(conversation))
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
