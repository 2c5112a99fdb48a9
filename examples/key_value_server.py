r"""A key-value server: requests are lines, values have a size, and each connection is a handler over a store.

::

    set COLOUR 4      then 4 bytes and a line end: the value
    get COLOUR
    delete COLOUR
    quit

The answers are ``ok``, ``value 4`` followed by the value, ``nothing``, or ``error`` with the reason.  Keys are UTF-8.

    python examples/key_value_server.py
    printf 'set colour 4\nblue\nget colour\nquit\n' | nc 127.0.0.1 8000
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from typing import Any

import gevent

import ngi_gevent
from ngi_gevent.interfaces import IConnection, IServerConnection

#: Bytes of the longest line, and of the largest value.
MAX_LINE = 1000
MAX_VALUE = 1024 * 1024


class BadRequest(Exception):
    """A request is not valid."""


class Requests:
    """A parser for requests, wherever they are cut.  It does not use connections.

    The input is stored in one buffer, and each byte is searched only once.  The search for a line end continues where
    the last one stopped.  While a value is incomplete, there is no search at all.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0  # where the next request begins
        self._searched = 0  # there is no line end before this place
        self._setting: tuple[str, int] | None = None  # the key, and the size of its value, if a value is expected

    def feed(self, data: bytes) -> None:
        del self._buffer[: self._start]
        self._searched -= self._start
        self._start = 0
        self._buffer += data

    def next(self) -> tuple[str, str, bytes] | None:
        """Return the next request as verb, key and value, or None if it is incomplete.  Raises ``BadRequest``."""
        if self._setting is None:
            line = self._line()
            if line is None:
                return None
            verb, key, size = _request(line)
            if verb != "set":
                return verb, key, b""
            self._setting = key, size
        key, size = self._setting
        end = self._start + size
        if len(self._buffer) <= end:
            return None
        value = bytes(self._buffer[self._start : end])
        if self._buffer[end : end + 1] != b"\n":
            raise BadRequest("a value must end with a line end")
        self._setting = None
        self._start = self._searched = end + 1
        return "set", key, value

    def _line(self) -> str | None:
        end = self._buffer.find(b"\n", self._searched)
        self._searched = len(self._buffer) if end < 0 else end + 1
        if self._searched - self._start > MAX_LINE:
            raise BadRequest("a line is too long")
        if end < 0:
            return None
        line, self._start = self._buffer[self._start : end], end + 1
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise BadRequest("a line must be UTF-8") from None


def _request(line: str) -> tuple[str, str, int]:
    """Return the verb, key and size in a line."""
    verb, *arguments = line.split(" ")
    if len(arguments) != {"set": 2, "get": 1, "delete": 1, "quit": 0}.get(verb, -1):
        raise BadRequest("a request must be: set KEY SIZE, get KEY, delete KEY, or quit")
    if verb != "set":
        return verb, "".join(arguments), 0
    key, size = arguments
    if not (size.isascii() and size.isdigit() and len(size) < 10 and int(size) <= MAX_VALUE):
        raise BadRequest(f"a size must be a number up to {MAX_VALUE}")
    return verb, key, int(size)


class KeyValueHandler:
    """A connection with one client."""

    def __init__(self, connection: IServerConnection, store: dict[str, bytes]) -> None:
        self._store = store
        self._requests = Requests()
        connection.set_handler(self)

    def handle_input(self, connection: IConnection, data: bytes) -> None:
        self._requests.feed(data)
        try:
            while connection and (request := self._requests.next()):
                self._answer(connection, *request)
        except BadRequest as error:
            connection.write(f"error {error}\n".encode())
            connection.close()

    def _answer(self, connection: IConnection, verb: str, key: str, value: bytes) -> None:
        if verb == "set":
            self._store[key] = value
            connection.write(b"ok\n")
        elif verb == "quit":
            connection.close()
        elif key not in self._store:
            connection.write(b"nothing\n")
        elif verb == "get":
            found = self._store[key]
            connection.write(b"value %d\n%b\n" % (len(found), found))
        else:
            del self._store[key]
            connection.write(b"ok\n")


def key_value_server(store: dict[str, bytes] | None = None) -> Callable[[Any], KeyValueHandler]:
    """Return a server whose connections share *store*."""
    shared = {} if store is None else store
    return lambda connection: KeyValueHandler(connection, shared)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    listener = ngi_gevent.listener(("127.0.0.1", options.port), key_value_server())
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
