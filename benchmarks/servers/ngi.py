"""The works on ``ngi_gevent``: its public interface, with default options."""

from __future__ import annotations

import ngi_gevent
from benchmarks import work
from ngi_gevent.interfaces import IServerConnection


class Handler:
    def __init__(self, connection: IServerConnection) -> None:
        connection.set_handler(self)

    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        raise NotImplementedError


class Echo(Handler):
    def handle_input(self, connection: IServerConnection, data: bytes) -> None:
        connection.write(data)


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


def main() -> None:
    server = work.chosen({"echo": Echo, "send": Send, "receive": Receive, "burst": Burst})
    work.announce(ngi_gevent.listener(None, server).address[1])
    ngi_gevent.wait()


if __name__ == "__main__":
    main()
