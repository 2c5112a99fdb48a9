"""The works on ``ngi_gevent``: its public interface, with default options."""

from __future__ import annotations

import struct
import timeit
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import ngi_gevent
from benchmarks import work
from benchmarks.servers.sessions import SESSIONS, example
from ngi_gevent.interfaces import IServerConnection


class Handler:
    def __init__(self, connection: IServerConnection) -> None:
        connection.set_handler(self)

    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        raise NotImplementedError


class Echo(Handler):
    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        connection.write(data)


class Connections(Echo):
    """An echo that answers one message with the seconds that ``connections()`` takes."""

    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        if data == work.TIME_CONNECTIONS:
            data = struct.pack("d", min(timeit.repeat(connection.control.connections, number=1, repeat=20)))
        super().handle_input(connection, data)


class Send(Handler):
    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        connection.writelines(work.stream(data))
        connection.close()


class Receive(Handler):
    def __init__(self, connection: IServerConnection) -> None:
        self._receipt = work.Receipt()
        super().__init__(connection)

    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        receipt = self._receipt.count(data)
        if receipt:
            connection.write(receipt)


class Burst(Handler):
    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        for piece in work.BURST:
            connection.write(piece)


@cache
def server_of(name: str) -> Any:
    """The server of a protocol's example. It is made once, since its connections share their state."""
    return example("resp_server").redis_server() if name == "resp" else example("http_server").http_server()


def serve_example(name: str, connection: IServerConnection) -> None:
    server_of(name)(connection)


def main() -> None:
    examples = {name: partial(serve_example, name) for name in SESSIONS}
    works: dict[str, Callable[[IServerConnection], object]]
    works = {"echo": Echo, "send": Send, "receive": Receive, "burst": Burst, "connections": Connections, **examples}
    server = work.chosen(works)
    work.announce(ngi_gevent.listener(None, server).address[1])
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
