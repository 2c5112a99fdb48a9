"""Rules for the end of a connection: when ``handle_close`` is called, and with which reason."""

from __future__ import annotations

import pytest

from ngi_gevent import ConnectionClosed
from ngi_gevent.testing.contract.rules.common import MEGABYTE, Echo
from ngi_gevent.testing.contract.witness import Witness

# Rule 2: handle_close reports an end that the application did not request, once, and last.


@pytest.mark.parametrize("method", ["close", "abort"])
def test_no_callback_comes_after_close_from_this_side(stage, method):
    class Leave(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            getattr(connection, method)()

    peer = stage.peer(stage.listen(Leave))
    peer.send(b"one")
    stage.until(lambda: stage.served and not stage.served[0].connection)
    if method == "close":
        peer.send(b"two")
    peer.close()
    stage.until(lambda: stage.served[0].gone)
    assert stage.served[0].trace == [b"one"]


def test_close_from_outside_is_the_end_of_callbacks(stage):
    client, served = stage.talk()
    served.connection.close()
    client.connection.abort()
    stage.until(lambda: served.gone)
    assert served.trace == []


def test_an_end_comes_once_after_all_input(stage):
    peer = stage.peer(stage.listen())
    peer.send(b"all of it")
    peer.finish()
    stage.until(lambda: stage.served and stage.served[0].gone)
    served = stage.served[0]
    assert b"".join(served.trace[:-1]) == b"all of it"
    assert served.trace[-1] == ("close", "end of input")


def test_in_handle_close_the_connection_is_false_and_writing_raises(stage):
    class Late(Witness):
        def handle_close(self, connection, reason):
            self.truth = bool(connection)
            with pytest.raises(ConnectionClosed):
                connection.write(b"too late")
            with pytest.raises(ConnectionClosed):
                connection.writelines([b"too late"])
            connection.close()
            super().handle_close(connection, reason)

    peer = stage.peer(stage.listen(Late))
    peer.finish()
    stage.until(lambda: stage.served and stage.served[0].closed)
    assert stage.served[0].truth is False


def test_no_input_comes_after_an_iterator_of_the_peer_ended_the_connection(stage):
    def lines():
        client.connection.close()
        yield b"late"

    client, served = stage.talk()
    served.connection.writelines(lines())
    stage.until(lambda: client.gone)
    assert client.trace == []


def test_a_reset_connection_reports_the_exception_after_its_input(stage):
    client, served = stage.talk()
    client.connection.write(b"before")
    stage.until(lambda: served.data == b"before")
    client.connection.abort()
    stage.until(lambda: served.closed)
    assert served.trace[0] == b"before"
    assert len(served.trace) == 2
    if stage.name != "unix":  # an aborted Unix socket appears to have finished normally
        assert isinstance(served.closed, OSError)


def test_closing_a_connection_that_has_ended_prevents_handle_close(stage):
    """The listener stops while the handler is busy. Then the handler itself closes the connection."""

    class Busy(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.control.close()
            connection.close()

    peer = stage.peer(stage.listen(Busy))
    peer.send(b"x")
    stage.until(lambda: stage.served and not stage.served[0].connection)
    peer.close()
    stage.until(lambda: stage.served[0].gone)
    assert stage.served[0].trace == [b"x"]


# Rule 3: a peer that has only finished sending still gets its answer.


def test_a_peer_that_finished_sending_gets_its_answer(stage):
    peer = stage.peer(stage.listen(Echo))
    peer.send(b"hello")
    peer.finish()
    peer.read()
    stage.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"HELLO", "end")


def test_a_peer_that_finished_sending_gets_all_of_a_long_answer(stage):
    class Long(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * 4 * MEGABYTE)
            connection.writelines(b"y" * 1000 for _ in range(5000))

    peer = stage.peer(stage.listen(Long))
    peer.send(b"?")
    peer.finish()
    peer.read()
    stage.until(lambda: peer.ended)
    assert (len(peer.received), peer.ended) == (4 * MEGABYTE + 5_000_000, "end")


# Rule 4: reasons.


def test_reasons_are_readable_in_log_entries(stage):
    stage.talk()
    peer = stage.peer(stage.listeners[0])
    peer.finish()
    stage.until(lambda: len(stage.served) == 2 and stage.served[1].closed)
    stage.listeners[0].close()
    stage.until(lambda: stage.served[0].closed)
    assert [str(served.closed) for served in stage.served] == ["stopped", "end of input"]


@pytest.mark.parametrize("closing", ["client", "served"])
def test_the_peer_receives_an_end_before_the_closing_connection_is_gone(stage, closing):
    sides = dict(zip(("client", "served"), stage.talk(), strict=True))
    order = []
    for side, witness in sides.items():
        witness.connection.when_closed(
            lambda side=side, witness=witness: (order.append((side, witness.closed)), stage.happened())
        )
    sides.pop(closing).connection.close()
    ((other, witness),) = sides.items()
    stage.until(lambda: witness.gone and len(order) == 2)
    assert order == [(other, "end of input"), (closing, None)]


@pytest.mark.parametrize("closed", ["listener", "implementation"])
def test_the_server_side_receives_an_end_first(stage, closed):
    order = []

    class Client(Witness):
        def handle_close(self, connection, reason):
            order.append("client")
            super().handle_close(connection, reason)

    class Server(Witness):
        def handle_close(self, connection, reason):
            order.append(reason)
            super().handle_close(connection, reason)

    client, served = stage.talk(Server, Client)
    closing = stage.listeners[0] if closed == "listener" else stage.implementation
    closing.close()
    stage.until(lambda: client.closed and served.closed)
    assert order == ["stopped", "client"]
    if closed == "implementation":
        stage.implementation.wait(10)
        stage.implementation = stage.make()


__all__ = [name for name in dir() if name.startswith("test_")]
