r"""A server that counts lines, words and bytes of documents, and its client.

Each document is a record that begins with its length, and so is each answer. With the adapter ``Sized``, both sides
handle whole records, wherever the network cuts them.

    python examples/word_count.py server
    printf 'hello out there\n' > hello.txt
    python examples/word_count.py client hello.txt
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import gevent

import ngi_gevent
from ngi_gevent import blocking
from ngi_gevent.adapters import Sized
from ngi_gevent.interfaces import IServerConnection


class Counter:
    """A server. Each connection has one object."""

    def __init__(self, connection: IServerConnection) -> None:
        Sized(connection).set_handler(self)

    def handle_input(self, connection: Sized, document: bytes) -> None:
        """Called with a whole document. Each write makes one record, too."""
        connection.write(b"%d %d %d" % (document.count(b"\n"), len(document.split()), len(document)))


class Client:
    """Send *files* to be counted, one after another."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    @Sized.handler
    def count(self, connection: Sized) -> Generator[None, bytes, None]:
        for file in self.files:
            connection.write(file.read_bytes())
            counts = yield
            print(counts.decode(), file)
        # Returning closes the connection.


def serve(port: int) -> None:
    listener = ngi_gevent.listener(("127.0.0.1", port), Counter)
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


def count(port: int, files: list[Path]) -> None:
    reason = blocking.request(ngi_gevent.connect, ("127.0.0.1", port), Client(files).count, timeout=60)
    if reason is not None:  # the client did not end it, so the server did
        raise ngi_gevent.UnexpectedResponse(f"the input ended early: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    if options.role == "server":
        serve(options.port)
    else:
        count(options.port, options.files)


if __name__ == "__main__":
    try:
        main()
    except (ngi_gevent.NGIError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
