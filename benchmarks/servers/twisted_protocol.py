"""The works as a Twisted ``Protocol``, on the epoll reactor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import protocol, reactor  # noqa: E402
from twisted.internet.interfaces import IPushProducer  # noqa: E402
from zope.interface import implementer  # noqa: E402

from benchmarks import work  # noqa: E402
from benchmarks.servers.sessions import SESSIONS  # noqa: E402


class Protocol(protocol.Protocol):
    transport: Any

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


@implementer(IPushProducer)
class Send(Protocol):
    _chunks: Iterator[bytes]
    _paused = False

    def dataReceived(self, data: bytes) -> None:
        self._chunks = work.stream(data)
        self.transport.registerProducer(self, True)
        self.resumeProducing()

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._chunks = iter(())

    def resumeProducing(self) -> None:
        self._paused = False
        for chunk in self._chunks:
            self.transport.write(chunk)
            if self._paused:
                return
        self.transport.unregisterProducer()
        self.transport.loseConnection()


class Receive(Protocol):
    def __init__(self) -> None:
        self._receipt = work.Receipt()

    def dataReceived(self, data: bytes) -> None:
        receipt = self._receipt.count(data)
        if receipt:
            self.transport.write(receipt)


class Burst(Protocol):
    def dataReceived(self, data: bytes) -> None:
        for piece in work.BURST:
            self.transport.write(piece)


class InSession(Protocol):
    name: str

    def __init__(self) -> None:
        self._session = SESSIONS[self.name]()

    def dataReceived(self, data: bytes) -> None:
        answer = self._session.answer(data)
        if answer:
            self.transport.write(answer)
        if self._session.ended:
            self.transport.loseConnection()


class RESP(InSession):
    name = "resp"


class HTTP(InSession):
    name = "http"


def main() -> None:
    works = {"echo": Echo, "send": Send, "receive": Receive, "burst": Burst, "resp": RESP, "http": HTTP}
    factory = protocol.Factory.forProtocol(work.chosen(works))
    running: Any = reactor  # the attribute that the module has once the reactor is installed
    port = running.listenTCP(0, factory, backlog=1024, interface="127.0.0.1")
    work.announce(port.getHost().port)
    running.run()


if __name__ == "__main__":
    main()
