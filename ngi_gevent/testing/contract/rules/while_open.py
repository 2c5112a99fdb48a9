"""Rules for ``while_open``: the connection's end interrupts a waiting handler."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from ngi_gevent import ConnectionClosed
from ngi_gevent.testing.contract.witness import Witness

# Rule 15: a blocked handler can be interrupted when its peer has gone.


class Waiting(Witness):
    """A handler that waits in ``handle_input`` for an event that never comes, as long as the connection is open."""

    def __init__(self, stage, connection=None):
        super().__init__(stage, connection)
        self.interrupted = None

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(b"unread")  # without input, a Unix socket is not reset
        try:
            with connection.while_open():
                self.trace.append("waiting")
                self.stage.happened()
                try:
                    Event().wait()
                except Exception:  # the exception must not stop this
                    self.trace.append("swallowed")
        except ConnectionClosed as error:
            self.interrupted = error
            self.stage.happened()
            raise


class WaitingWithEOF(Waiting):
    def handle_eof(self, connection):
        self.trace.append("eof")
        self.stage.happened()


def waiting(stage, kind=Waiting):
    """Return a peer, and the witness that waits for it.  In memory, the wait is refused."""
    peer = stage.peer(stage.listen(kind))
    peer.send(b"x")
    stage.until(lambda: stage.served and "waiting" in stage.served[0].trace)
    assert ("swallowed" in stage.served[0].trace) == stage.at_once
    return peer, stage.served[0]


@pytest.mark.parametrize("end", ["reset", "finish"])
def test_a_peer_that_has_gone_interrupts_the_block(stage, end):
    peer, served = waiting(stage)
    if stage.at_once:
        return
    getattr(peer, end)()
    stage.until(lambda: served.closed)
    assert "swallowed" not in served.trace
    assert served.closed == "end of input" if end == "finish" else isinstance(served.closed, OSError)


@pytest.mark.parametrize("end", ["close", "abort", "fail", "stop"])
def test_an_end_from_this_side_interrupts_the_block(stage, end):
    _, served = waiting(stage)
    if stage.at_once:
        return
    {"stop": stage.listeners[0].close, "fail": lambda: served.connection.fail("enough")}.get(
        end, getattr(served.connection, end, None)
    )()
    stage.until(lambda: served.interrupted)
    if end in ("fail", "stop"):
        stage.until(lambda: served.closed)
    assert served.closed == {"fail": "enough", "stop": "stopped"}.get(end)


def test_with_handle_eof_only_a_reset_interrupts_the_block(stage):
    peer, served = waiting(stage, WaitingWithEOF)
    if stage.at_once:
        return
    peer.finish()
    other = stage.peer(stage.listen(Waiting))
    other.send(b"x")
    other.finish()
    stage.until(lambda: len(stage.served) == 2 and stage.served[1].interrupted)  # the end is checked later
    assert served.interrupted is None
    peer.reset()
    stage.until(lambda: served.interrupted)
    stage.until(lambda: served.closed)
    assert "eof" not in served.trace


def test_a_block_that_has_ended_is_not_interrupted(stage):
    class Leaving(Witness):
        def handle_input(self, connection, data):
            with connection.while_open(), connection.while_open():
                connection.close()
            self.trace.append("left")
            if not stage.at_once:
                gevent.sleep(0)
            super().handle_input(connection, data)

    client, served = stage.talk(Leaving)
    client.connection.write(b"x")
    stage.until(lambda: served.data)
    assert served.trace == ["left", b"x"]


def test_a_block_on_a_connection_that_has_ended_does_not_wait(stage):
    refused = []

    class Server(Witness):
        def handle_input(self, connection, data):
            with connection.while_open():
                connection.abort()
            try:
                with connection.while_open():
                    raise AssertionError("the block runs")
            except ConnectionClosed as error:
                refused.append(error)
            self.stage.happened()

    client, _ = stage.talk(Server)
    client.connection.write(b"x")
    stage.until(lambda: refused and client.closed)


__all__ = [name for name in dir() if name.startswith("test_")]
