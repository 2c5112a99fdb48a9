"""Rules for handlers and servers that raise: the exception is logged, and only their own connection closes."""

from __future__ import annotations

import pytest

from ngi_gevent.testing.contract.rules.common import Echo, Failure, tracebacks
from ngi_gevent.testing.contract.witness import Witness

# Rule 6: handlers that raise.


@pytest.mark.parametrize("with_close", [True, False])
def test_a_raising_handle_input_closes_its_connection_and_no_other(stage, caplog, with_close):
    class Bad(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(b"written before")
            if data == b"raise":
                raise error

        handle_close = Witness.handle_close if with_close else None

    error = Failure("in handle_input")
    other = stage.client(stage.listen(Bad))
    stage.until(lambda: stage.served)
    peer = stage.peer(stage.listeners[0])
    peer.send(b"raise")
    peer.read()
    stage.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"written before", "end")
    assert stage.served[1].trace == [b"raise", ("close", error)][: 1 + with_close]
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1
    assert other.connection
    other.connection.write(b"still there")
    stage.until(lambda: other.data == b"written before")


def test_a_raising_handle_exception_closes_the_connection(stage, caplog):
    class Bad(Witness):
        def handle_exception(self, connection, exception):
            super().handle_exception(connection, exception)
            connection.write(b"sorry")
            raise error

    error = Failure("in handle_exception")
    client, served = stage.talk(Bad)
    served.connection.writelines([b"good", 5])
    stage.until(lambda: client.closed)
    assert client.data == b"goodsorry"
    assert [kind for kind, _ in served.trace] == ["exception", "close"]
    assert served.closed is error
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_a_raising_handle_close_is_logged_and_the_close_goes_on(stage, caplog):
    class Bad(Witness):
        def handle_close(self, connection, reason):
            super().handle_close(connection, reason)
            raise error

    error = Failure("in handle_close")
    peer = stage.peer(stage.listen(Bad))
    peer.finish()
    peer.read()
    stage.until(lambda: peer.ended)
    stage.until(lambda: stage.served[0].gone)
    assert stage.served[0].trace == [("close", "end of input")]
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


@pytest.mark.parametrize("end", ["close", "stop"])
def test_a_callback_that_writes_after_the_end_of_its_connection_is_not_an_error(stage, caplog, end):
    """The end may not have been reported yet. ``handle_close`` gets its reason, and nothing above DEBUG is logged."""

    class Late(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.close() if end == "close" else connection.control.close()
            connection.write(b"too late")

    peer = stage.peer(stage.listen(Late))
    peer.send(b"x")
    peer.read()
    stage.until(lambda: peer.ended and (end == "close" or stage.served[0].closed))
    assert peer.received == b""
    assert stage.served[0].trace == [b"x"] + [("close", "stopped")] * (end == "stop")
    assert caplog.records == []


def test_a_raising_server_closes_its_connection_and_no_other(stage, caplog):
    def server(connection):
        if fail:
            raise error
        stage.server(Echo)(connection)

    fail, error = False, Failure("in the server")
    other = stage.client(stage.listen(server))
    stage.until(lambda: stage.served)
    fail = True
    peer = stage.peer(stage.listeners[0])
    peer.read()
    stage.until(lambda: peer.ended)
    assert peer.ended == "end"
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1
    assert len(list(stage.listeners[0].connections())) == 1
    fail = False
    other.connection.write(b"still there")
    stage.until(lambda: other.data == b"STILL THERE")
    assert stage.client(stage.listeners[0]).connection


def test_the_handler_of_a_server_that_raises_late_gets_handle_close(stage, caplog):
    def server(connection):
        stage.server()(connection)
        raise error

    error = Failure("after set_handler")
    client = stage.client(stage.listen(server))
    stage.until(lambda: client.closed and stage.served[0].closed)
    assert stage.served[0].closed is error
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_a_raising_connected_closes_its_connection(stage, caplog):
    class Bad(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"hello")
            raise error

    error = Failure("in connected")
    client, served = stage.talk(None, Bad)
    stage.until(lambda: client.closed and served.closed)
    assert (client.closed, served.closed, served.data) == (error, "end of input", b"hello")
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_a_raising_failed_connect_is_logged(stage, caplog):
    class Bad(Witness):
        def failed_connect(self, reason):
            super().failed_connect(reason)
            raise error

    error = Failure("in failed_connect")
    listener = stage.listen()
    listener.close()
    stage.client(listener, Bad)
    stage.implementation.wait(10)
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


__all__ = [name for name in dir() if name.startswith("test_")]
