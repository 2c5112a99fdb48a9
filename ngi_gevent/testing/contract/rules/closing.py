"""Rules for closing: ``close`` delivers all output, and ``abort`` drops it."""

from __future__ import annotations

from ngi_gevent.testing.contract.rules.common import MEGABYTE, MUCH
from ngi_gevent.testing.contract.witness import Witness

# Rule 1: close flushes, abort does not.


def test_close_delivers_pending_output_before_the_peer_receives_the_end(stage):
    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * 4 * MEGABYTE)
            connection.writelines(iter([b"y", b"z"]))
            connection.close()

    peer = stage.peer(stage.listen(Answer))
    peer.send(b"please")
    peer.read()
    stage.until(lambda: peer.ended)
    assert (peer.ended, peer.received) == ("end", b"x" * 4 * MEGABYTE + b"yz")


def test_close_delivers_to_a_peer_that_is_still_sending(stage):
    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(b"enough" * 100_000)
            connection.close()

    peer = stage.peer(stage.listen(Answer))
    peer.send(b"x" * MEGABYTE)
    peer.read()
    stage.until(lambda: peer.ended)
    assert (peer.ended, peer.received) == ("end", b"enough" * 100_000)


def test_close_delivers_to_a_peer_that_sends_everything_before_it_reads(stage):
    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * MUCH)
            connection.close()

    peer = stage.peer(stage.listen(Answer))
    peer.send(b"y" * MUCH)  # input is discarded only at a limited speed
    peer.read_when_sent()
    stage.until(lambda: peer.ended)
    assert (peer.ended, len(peer.received)) == ("end", MUCH)


def test_close_outside_of_callbacks_delivers_too(stage):
    client, served = stage.talk()
    served.connection.write(b"x" * 1000)
    served.connection.close()
    stage.until(lambda: client.closed)
    assert (client.data, client.closed) == (b"x" * 1000, "end of input")


def test_abort_drops_unsent_output_and_the_peer_does_not_receive_a_clean_end(stage):
    class Abort(Witness):
        def handle_input(self, connection, data):
            connection.write(b"x" * MUCH)
            connection.abort()

    peer = stage.peer(stage.listen(Abort))
    peer.send(b"go")
    stage.until(lambda: stage.served and stage.served[0].gone)
    peer.read()
    stage.until(lambda: peer.ended)
    assert len(peer.received) < MUCH


def test_abort_resets_the_connection_for_the_peer(stage):
    client, served = stage.talk()
    served.connection.abort()
    stage.until(lambda: client.closed)
    assert client.closed == "end of input" if stage.name == "unix" else isinstance(client.closed, ConnectionResetError)


def test_abort_ends_a_closing_connection(stage):
    client, served = stage.talk()
    peer = stage.peer(stage.listeners[0])
    stage.until(lambda: len(stage.served) == 2)
    connection = stage.served[1].connection
    connection.write(b"x" * MUCH)
    connection.close()
    connection.abort()
    stage.until(lambda: stage.served[1].gone)
    peer.read()
    stage.until(lambda: peer.ended)
    assert len(peer.received) < MUCH


__all__ = [name for name in dir() if name.startswith("test_")]
