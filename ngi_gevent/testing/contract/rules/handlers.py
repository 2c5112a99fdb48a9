"""Rules for handlers: callbacks of one connection never overlap, and wait until it has a handler."""

from __future__ import annotations

import pytest

from ngi_gevent.testing.contract.witness import Witness

# Rule 5: callbacks of one connection never overlap.


def test_callbacks_of_one_connection_do_not_nest(stage):
    class Pong(Witness):
        depth = deepest = 0

        def handle_input(self, connection, data):
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)
            connection.write(data)
            super().handle_input(connection, data)
            self.depth -= 1
            if len(self.data) > 100:
                connection.close()

    client, served = stage.talk(Pong, Pong)
    client.connection.write(b"ping")
    stage.until(lambda: not client.connection and not served.connection)
    assert client.deepest == served.deepest == 1


# Rule 7: nothing is read before there is a handler.


def test_input_and_the_end_are_held_until_there_is_a_handler(stage):
    connections = []

    def keep(connection):
        connections.append(connection)
        stage.happened()

    peer = stage.peer(stage.listen(keep))
    peer.send(b"early")
    peer.finish()
    stage.until(lambda: connections)
    witness = Witness(stage)
    connections[0].set_handler(witness)
    stage.until(lambda: witness.closed)
    assert b"".join(witness.trace[:-1]) == b"early"
    assert witness.closed == "end of input"


def test_an_end_for_another_reason_is_held_too(stage):
    connections = []

    def keep(connection):
        connections.append(connection)
        stage.happened()

    peer = stage.peer(stage.listen(keep))
    stage.until(lambda: connections)
    stage.listeners[0].close()
    peer.read()
    stage.until(lambda: peer.ended)
    witness = Witness(stage)
    connections[0].set_handler(witness)
    stage.until(lambda: witness.closed)
    assert witness.trace == [("close", "stopped")]


def test_a_later_handler_gets_the_input_from_then_on(stage):
    class First(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.set_handler(second)
            connection.write(b"changed")

    second = Witness(stage)
    client, first = stage.talk(First)
    client.connection.write(b"one")
    stage.until(lambda: client.data == b"changed")
    client.connection.write(b"two")
    client.connection.close()
    stage.until(lambda: second.closed)
    assert first.trace == [b"one"]
    assert second.trace == [b"two", ("close", "end of input")]


class Coroutine:
    async def handle_input(self, connection, data):
        """A handler that would never run."""


class Generator:
    def handle_input(self, connection, data):
        yield


class AsynchronousGenerator:
    async def handle_input(self, connection, data):
        yield


def test_set_handler_accepts_only_handlers(stage):
    client, served = stage.talk()
    for no_handler in None, object(), Witness, "handler", Coroutine(), Generator(), AsynchronousGenerator():
        with pytest.raises(TypeError, match="handle_input"):
            client.connection.set_handler(no_handler)
    assert client.connection


def test_the_old_spelling_of_set_handler_warns(stage):
    client, served = stage.talk()
    second = Witness(stage)
    with pytest.warns(DeprecationWarning, match="set_handler"):
        client.connection.setHandler(second)
    served.connection.write(b"new")
    stage.until(lambda: second.data == b"new")


__all__ = [name for name in dir() if name.startswith("test_")]
