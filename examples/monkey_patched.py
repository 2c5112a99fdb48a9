"""A handler that calls blocking code, here ``urllib``. Each line names a page to request from a web server.

    python examples/monkey_patched.py http://127.0.0.1:8001
    python -m http.server --bind 127.0.0.1 8001
    echo examples/README.md | nc -N 127.0.0.1 8000

gevent patches the standard library, so a blocking call waits only on the greenlet of one connection.
"""

# ruff: noqa: E402 (what is imported after patching is so on purpose)

from __future__ import annotations

from gevent import monkey

monkey.patch_all()  # before any other import that might keep unpatched functions

import argparse
import signal
import urllib.parse
import urllib.request
from http.client import HTTPException

import gevent

import ngi_gevent
from ngi_gevent.adapters import Lines
from ngi_gevent.interfaces import IServerConnection


class Gateway:
    """A server in front of the web server at *url*. Its connections share this object, which has no state."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, connection: IServerConnection) -> None:
        Lines(connection).set_handler(self)

    def handle_input(self, connection: Lines, name: bytes) -> None:
        try:
            with urllib.request.urlopen(f"{self.url}/{urllib.parse.quote(name)}", timeout=30) as response:
                answer = f"{response.status}, {len(response.read())} bytes"
        except (OSError, HTTPException) as error:
            answer = str(error)
        if connection:  # the client may be gone after this long call
            connection.write(f"{answer}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("url", help="of the web server, without a path")
    options = parser.parse_args()

    listener = ngi_gevent.listener(("127.0.0.1", options.port), Gateway(options.url))
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
