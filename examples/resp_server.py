r"""A server for Redis clients: the protocol RESP, with the parser of hiredis, over a dict in memory.

It needs hiredis: ``pip install hiredis``.  ``redis-cli -p 8000`` talks to it.

    python examples/resp_server.py
    printf '*2\r\n$4\r\nECHO\r\n$5\r\nhello\r\n' | nc -N 127.0.0.1 8000
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import hiredis

import ngi_gevent
from ngi_gevent.adapters import SansIO

#: Bytes of the longest command with its value, and bytes that a client can send in one piece after it.
MAX_COMMAND = 16 * 1024 * 1024

#: Answers that are written together, and bytes of an answer after which no more are added.
JOINED, SHORT = 64, 1024

OK = b"+OK\r\n"

#: The return value of the parser for an incomplete command.  Its default is False, which a client can send in RESP 3.
INCOMPLETE = object()


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


class BadCommand(Exception):
    """A command is not valid.  The message goes to the client."""


class Commands:
    """The commands, as methods that do not use connections."""

    def __init__(self, store: dict[bytes, bytes]) -> None:
        self._store = store
        self._functions: dict[bytes, tuple[Callable[..., bytes], int, int]] = {
            b"PING": (lambda *data: bulk(*data) if data else b"+PONG\r\n", 0, 1),
            b"ECHO": (bulk, 1, 1),
            b"GET": (self.get, 1, 1),
            b"SET": (self.set, 2, 2),
            b"DEL": (self.delete, 1, 1000),
            b"INCR": (self.increment, 1, 1),
            b"SELECT": (lambda _: OK, 1, 1),
            b"CLIENT": (lambda *_: OK, 1, 10),
            b"CONFIG": (lambda *_: b"*0\r\n", 1, 10),
            b"COMMAND": (lambda *_: b"*0\r\n", 0, 10),
        }

    def run(self, command: list[bytes]) -> bytes:
        """Return the answer to a command."""
        name, *arguments = command
        function, fewest, most = self._functions.get(name.upper(), (None, 0, 0))
        if function is None:
            raise BadCommand(f"unknown command {name[:100]!r}")
        if not fewest <= len(arguments) <= most:
            raise BadCommand(f"wrong number of arguments for {name[:100]!r}")
        return function(*arguments)

    def get(self, key: bytes) -> bytes:
        value = self._store.get(key)
        return b"$-1\r\n" if value is None else bulk(value)

    def set(self, key: bytes, value: bytes) -> bytes:
        self._store[key] = value
        return OK

    def delete(self, *keys: bytes) -> bytes:
        return b":%d\r\n" % sum(self._store.pop(key, None) is not None for key in keys)

    def increment(self, key: bytes) -> bytes:
        try:
            number = b"%d" % (int(self._store.get(key, b"0")) + 1)
        except ValueError:  # also for a number with too many digits
            raise BadCommand("value is not an integer") from None
        self._store[key] = number
        return b":%b\r\n" % number


class RedisHandler:
    """A connection with one client.  An event is the joined answers to several commands, to save time."""

    def __init__(self, connection: Any, commands: Commands) -> None:
        self._commands = commands
        self._reader = hiredis.Reader(notEnoughData=INCOMPLETE)
        self._unread = 0  # bytes since the last complete command
        SansIO(connection, self._feed, self._answers, errors=(hiredis.ProtocolError,)).set_handler(self)

    def _feed(self, data: bytes) -> None:
        self._unread += len(data)
        if self._unread > MAX_COMMAND:
            raise hiredis.ProtocolError(f"a command has more than {MAX_COMMAND} bytes")
        self._reader.feed(data)

    def _answers(self) -> Iterator[bytes]:
        """Yield the answers to the commands that are complete.  Short ones are joined."""
        answers: list[bytes] = []
        try:
            while (command := self._next_command()) is not INCOMPLETE:
                self._unread = 0
                answers.append(self._answer(command))
                if len(answers) == JOINED or len(answers[-1]) > SHORT:
                    yield b"".join(answers)
                    answers.clear()
        except Exception:
            yield b"".join(answers)  # the answers to the commands before the mistake
            raise
        if answers:
            yield b"".join(answers)

    def _next_command(self) -> Any:
        try:
            return self._reader.gets()
        except TypeError:  # a key of a map is not hashable
            raise hiredis.ProtocolError("a command is a list of strings") from None

    def _answer(self, command: Any) -> bytes:
        if type(command) is not list or {*map(type, command)} != {bytes}:
            raise hiredis.ProtocolError("a command is a list of strings")
        try:
            return self._commands.run(command)
        except BadCommand as error:
            return f"-ERR {error}\r\n".encode()

    def handle_input(self, connection: Any, answers: Any) -> None:
        if type(answers) is bytes:
            connection.write(answers)
            return
        connection.write(b"-ERR Protocol error\r\n")
        connection.close()


def redis_server(store: dict[bytes, bytes] | None = None) -> Callable[[Any], RedisHandler]:
    """Return a server whose connections share *store*."""
    commands = Commands({} if store is None else store)
    return lambda connection: RedisHandler(connection, commands)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()

    listener = ngi_gevent.listener(("127.0.0.1", options.port), redis_server())
    gevent.signal_handler(signal.SIGINT, listener.close)  # Ctrl-C ends all connections, so that wait() returns
    print(f"listening on 127.0.0.1:{listener.address[1]}", flush=True)
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
