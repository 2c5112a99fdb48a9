"""The works as an asyncio ``Protocol``. The second argument names the loop, ``asyncio`` or ``uvloop``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

from benchmarks import work
from benchmarks.servers.sessions import SESSIONS


class Protocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)


class Echo(Protocol):
    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Send(Protocol):
    _chunks: Iterator[bytes]
    _paused = False

    def data_received(self, data: bytes) -> None:
        self._chunks = work.stream(data)
        self._send()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()

    def _send(self) -> None:
        for chunk in self._chunks:
            self._transport.write(chunk)
            if self._paused:
                return
        self._transport.close()


class Receive(Protocol):
    def __init__(self) -> None:
        self._receipt = work.Receipt()

    def data_received(self, data: bytes) -> None:
        receipt = self._receipt.count(data)
        if receipt:
            self._transport.write(receipt)


class Burst(Protocol):
    def data_received(self, data: bytes) -> None:
        for piece in work.BURST:
            self._transport.write(piece)


class InSession(Protocol):
    def __init__(self, name: str) -> None:
        self._session = SESSIONS[name]()

    def data_received(self, data: bytes) -> None:
        answer = self._session.answer(data)
        if answer:
            self._transport.write(answer)
        if self._session.ended:
            self._transport.close()


async def serve() -> None:
    sessions = {name: partial(InSession, name) for name in SESSIONS}
    works: dict[str, Callable[[], Protocol]]
    works = {"echo": Echo, "send": Send, "receive": Receive, "burst": Burst, **sessions}
    protocol = work.chosen(works)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=1024)
    work.announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def main() -> None:
    if sys.argv[2] == "uvloop":
        import uvloop

        uvloop.run(serve())
    else:
        asyncio.run(serve())


if __name__ == "__main__":
    main()
