"""Rules for half-closed connections: the end of one direction."""

from __future__ import annotations

import pytest

from ngi_gevent import ConnectionClosed
from ngi_gevent.testing.contract.rules.common import MEGABYTE, Failure, tracebacks
from ngi_gevent.testing.contract.witness import Witness

# Rule 3: each direction has its own end.


class EOFWitness(Witness):
    """Records the end of input, and leaves the connection open for output."""

    def handle_eof(self, connection):
        self.trace.append("eof")
        self.stage.happened()


def test_handle_eof_is_called_once_after_all_input_and_leaves_output_open(stage):
    peer = stage.peer(stage.listen(EOFWitness))
    peer.send(b"request")
    peer.finish()
    peer.read()
    stage.until(lambda: stage.served and "eof" in stage.served[0].trace)
    served = stage.served[0]
    assert b"".join(served.trace[:-1]) == b"request"
    assert served.connection
    assert served.connection.input_ended
    served.connection.write(b"answer")
    stage.until(lambda: peer.received == b"answer")
    served.connection.write(b", and more")
    served.connection.close()
    stage.until(lambda: peer.ended)
    assert (peer.received, peer.ended) == (b"answer, and more", "end")
    assert served.trace.count("eof") == 1
    assert served.closed is None


def test_input_ended_is_false_before_the_end_of_input(stage):
    client, served = stage.talk()
    assert not client.connection.input_ended
    assert not served.connection.input_ended
    served.connection.close()
    stage.until(lambda: client.closed)
    assert client.connection.input_ended


def test_write_eof_ends_the_output_after_all_written_data(stage):
    client, served = stage.talk(EOFWitness)
    client.connection.write(b"a" * MEGABYTE)
    client.connection.writelines(b"b" * 1000 for _ in range(100))
    client.connection.write(b"c")
    client.connection.write_eof()
    with pytest.raises(ConnectionClosed, match="half-closed"):
        client.connection.write(b"d")
    with pytest.raises(ConnectionClosed, match="half-closed"):
        client.connection.writelines([b"d"])
    stage.until(lambda: "eof" in served.trace)
    assert served.data == b"a" * MEGABYTE + b"b" * 100_000 + b"c"
    assert client.connection
    assert served.connection
    client.connection.write_eof()
    served.connection.write(b"answer")
    stage.until(lambda: client.data == b"answer")
    served.connection.close()
    stage.until(lambda: client.closed)
    assert client.closed == "end of input"
    assert not client.connection
    assert served.closed is None


def test_once_both_directions_have_ended_the_connection_closes_by_itself(stage):
    gone = []

    class Server(EOFWitness):
        def connected(self, connection):
            super().connected(connection)
            connection.when_closed(lambda: gone.append("served") or stage.happened())

        def handle_eof(self, connection):
            connection.write(b"last words")
            connection.write_eof()
            super().handle_eof(connection)

    client, served = stage.talk(Server, EOFWitness)
    client.connection.when_closed(lambda: gone.append("client") or stage.happened())
    client.connection.write_eof()
    stage.until(lambda: len(gone) == 2)
    assert client.data == b"last words"
    assert [client.trace[-1], served.trace[-1]] == ["eof", "eof"]
    assert client.closed is served.closed is None
    assert not client.connection
    assert not served.connection


@pytest.mark.parametrize("end", ["close", "stop"])
def test_after_the_end_of_a_peer_write_eof_closes_the_connection(stage, end):
    client, served = stage.talk(witness=EOFWitness)
    gone = []
    client.connection.when_closed(lambda: gone.append("client") or stage.happened())
    if end == "close":
        served.connection.close()
    else:
        stage.listeners[0].close()
    stage.until(lambda: "eof" in client.trace)
    client.connection.write_eof()
    stage.until(lambda: gone)
    assert client.closed is None


def test_write_eof_while_the_peer_sends_loses_nothing(stage):
    """With TLS, a record that is not decrypted before the close_notify would break the session."""

    class Talk(EOFWitness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"x" * MEGABYTE)
            connection.write_eof()

    client, served = stage.talk(Talk, Talk)
    stage.until(lambda: "eof" in client.trace and "eof" in served.trace)
    assert client.size == served.size == MEGABYTE
    stage.until(lambda: not client.connection and not served.connection)
    assert client.closed is served.closed is None


def test_close_after_write_eof_closes_the_connection(stage):
    gone = []
    client, served = stage.talk(EOFWitness)
    client.connection.when_closed(lambda: gone.append(True) or stage.happened())
    client.connection.write(b"all")
    client.connection.write_eof()
    stage.until(lambda: "eof" in served.trace)
    client.connection.close()
    if stage.at_once:
        assert gone
    served.connection.close()  # without reading, a socket lingers
    stage.until(lambda: gone)
    assert served.data == b"all"


def test_write_eof_in_a_closing_or_closed_connection_does_nothing(stage):
    client, served = stage.talk()
    client.connection.write(b"all")
    client.connection.close()
    client.connection.write_eof()
    stage.until(lambda: served.closed)
    assert (served.data, served.closed) == (b"all", "end of input")
    served.connection.write_eof()


def test_a_handler_that_raises_in_handle_eof_ends_the_connection(stage, caplog):
    error = Failure("in handle_eof")

    class Raises(Witness):
        def handle_eof(self, connection):
            connection.write(b"before")
            raise error

    client, served = stage.talk(Raises)
    client.connection.write_eof()
    stage.until(lambda: served.closed and client.closed)
    assert served.closed is error
    assert client.data == b"before"
    assert len(tracebacks(caplog, error)) == 1


def test_a_half_closed_connection_that_breaks_is_reported(stage):
    peer = stage.peer(stage.listen(EOFWitness))
    peer.finish()
    stage.until(lambda: stage.served and "eof" in stage.served[0].trace)
    served = stage.served[0]
    peer.reset()
    stage.until(lambda: served.closed)
    assert isinstance(served.closed, OSError)
    assert not served.connection


def test_write_eof_on_a_connection_with_an_unnoticed_reset_is_reported(stage):
    class Late(Witness):
        def connected(self, connection):
            self.meet(connection)

    peer = stage.peer(stage.listen(Late))
    stage.until(lambda: stage.served)
    served = stage.served[0]
    peer.reset()
    stage.settle()
    served.connection.write_eof()
    stage.settle()
    served.connection.set_handler(served)
    stage.until(lambda: served.closed)  # over a Unix socket, which has no resets, it may be "end of input"
    assert not served.connection


def test_the_listener_ends_half_closed_connections(stage):
    client, served = stage.talk(EOFWitness)
    client.connection.write_eof()
    stage.until(lambda: "eof" in served.trace)
    stage.listeners[0].close()
    stage.until(lambda: served.closed and client.closed)
    assert served.closed == "stopped"


# Rule 2: fail ends a connection for a reason that the application chooses.


@pytest.mark.parametrize("reason", ["too much", Failure("too much")])
def test_fail_delivers_output_and_reports_the_reason(stage, reason):
    class Server(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(b"sorry")
            connection.fail(reason)
            with pytest.raises(ConnectionClosed):
                connection.write(b"more")

    client, served = stage.talk(Server)
    client.connection.write(b"request")
    stage.until(lambda: served.closed and client.closed)
    assert served.closed is reason
    assert (client.data, client.closed) == (b"sorry", "end of input")
    served.connection.fail("again")
    assert served.trace == [b"request", ("close", reason)]


@pytest.mark.parametrize("reason", [None, 5, Failure])
def test_fail_takes_a_reason(stage, reason):
    client, _ = stage.talk()
    with pytest.raises(TypeError, match="reason"):
        client.connection.fail(reason)
    assert client.connection


__all__ = [name for name in dir() if name.startswith("test_")]
