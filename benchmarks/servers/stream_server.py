"""The works on gevent's own ``StreamServer``, with ``recv`` and ``sendall``, and a greenlet for each connection.

The handlers receive at most 64 KiB at a time, as ``ngi_gevent`` and Twisted do. asyncio and uvloop receive up to 256
KiB.

All the other servers send small pieces without waiting for more (TCP_NODELAY), by default or by an option. gevent
leaves that to the handler, so the handlers here set the option.  Otherwise, the rest of a long answer would wait for
the client's delayed acknowledgement, which would distort the measurement.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from gevent.server import StreamServer

from benchmarks import work
from benchmarks.servers.sessions import SESSIONS


def echo(sock: Any, address: object) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := sock.recv(65536):
        sock.sendall(data)


def send(sock: Any, address: object) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for chunk in work.stream(sock.recv(work.SIZE.size)):
        sock.sendall(chunk)


def receive(sock: Any, address: object) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    receipt = work.Receipt()
    while data := sock.recv(65536):
        answer = receipt.count(data)
        if answer:
            sock.sendall(answer)


def burst(sock: Any, address: object) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while sock.recv(65536):
        for piece in work.BURST:
            sock.sendall(piece)


def in_session(name: str, sock: Any, address: object) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    session = SESSIONS[name]()
    while not session.ended and (data := sock.recv(65536)):
        answer = session.answer(data)
        if answer:
            sock.sendall(answer)


def main() -> None:
    sessions = {name: partial(in_session, name) for name in SESSIONS}
    works: dict[str, Callable[[Any, object], None]]
    works = {"echo": echo, "send": send, "receive": receive, "burst": burst, **sessions}
    handle = work.chosen(works)
    server = StreamServer(("127.0.0.1", 0), handle, backlog=1024)
    server.start()
    work.announce(server.socket.getsockname()[1])
    server.serve_forever()


if __name__ == "__main__":
    main()
