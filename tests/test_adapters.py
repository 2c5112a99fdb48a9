"""The adapter that passes everything through: a handler behind it notices nothing but its name."""

from __future__ import annotations

import pytest

from ngi_gevent import adapters, testing


class Handler(testing.Recorder):
    def __init__(self):
        super().__init__()
        self.connections = set()

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        self.connections.add(connection)

    def handle_close(self, connection, reason):
        super().handle_close(connection, reason)
        self.connections.add(connection)

    def handle_exception(self, connection, exception):
        super().handle_exception(connection, exception)
        self.connections.add(connection)


def adapted():
    connection = testing.Connection(testing.Recorder(), "here", "there")
    return adapters.Base(connection), connection


def test_everything_passes_in_both_directions():
    adapter, connection = adapted()
    handler = Handler()
    adapter.set_handler(handler)
    connection.test_input(b"in")
    adapter.write(b"out ")
    adapter.writelines([b"lines", 1])
    connection.test_close("over")
    peer = connection.peer._handler
    assert peer.data == b"out lines"
    assert (handler.data, handler.closed, len(handler.exceptions)) == (b"in", "over", 1)
    assert handler.connections == {adapter}


def test_it_has_all_that_a_connection_has():
    implementation = testing.Implementation()
    listener = implementation.listener("address", testing.Recorder)
    client = testing.Recorder()
    listener.connect(client, client_address="client")
    (connection,) = listener.connections()
    adapter = adapters.Base(connection)
    assert (adapter.control, adapter.peer_address, adapter.local_address) == (listener, "client", "address")
    assert adapter
    assert repr(connection) in repr(adapter)
    told = []
    adapter.when_closed(lambda: told.append(1))
    adapter.abort()
    assert not adapter
    assert told == [1]
    assert isinstance(client.closed, ConnectionResetError)


def test_close_closes():
    adapter, connection = adapted()
    adapter.write(b"bye")
    adapter.close()
    assert not connection
    assert (connection.peer._handler.data, connection.peer._handler.closed) == (b"bye", "end of input")


def test_its_handler_needs_no_optional_method(caplog):
    class Minimal:
        def handle_input(self, connection, data):
            pass

    adapter, connection = adapted()
    adapter.set_handler(Minimal())
    connection.test_close("over")
    assert not caplog.records
    adapter, connection = adapted()
    adapter.set_handler(Minimal())
    adapter.writelines([b"x", 1])
    assert not connection
    assert [record.exc_info[0] for record in caplog.records] == [TypeError]


def test_a_later_handler_takes_over():
    adapter, connection = adapted()
    first, second = Handler(), Handler()
    adapter.set_handler(first)
    connection.test_input(b"one")
    with pytest.warns(DeprecationWarning, match="set_handler"):
        adapter.setHandler(second)
    connection.test_input(b"two")
    assert (first.data, second.data) == (b"one", b"two")
    with pytest.raises(TypeError):
        adapter.set_handler(None)
