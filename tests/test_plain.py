"""The transport without TLS: its calls to the socket."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture
def broken_pipes():
    """The SIGPIPE signals of the test.  By default, each signal would end the program."""
    signals = []
    before = signal.signal(signal.SIGPIPE, lambda *_: signals.append("SIGPIPE"))
    yield signals
    signal.signal(signal.SIGPIPE, before)


@pytest.mark.parametrize("pieces", [[b"x"], [b"x" * 50_000] * 2])
def test_sending_to_a_closed_peer_raises_no_signal(tcp, tmp_path, broken_pipes, pieces):
    """On a Unix socket, the first send fails already.  Two large pieces are sent by sendmsg."""
    listener = tcp.implementation.listener(tmp_path / "socket", tcp.server())
    tcp.listeners.append(listener)
    peer = tcp.peer(listener)
    tcp.until(lambda: tcp.served)
    peer.socket.close()
    for piece in pieces:
        tcp.served[0].connection.write(piece)
    tcp.until(lambda: tcp.served[0].closed)
    assert isinstance(tcp.served[0].closed, BrokenPipeError)
    assert broken_pipes == []
